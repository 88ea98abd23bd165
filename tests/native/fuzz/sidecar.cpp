// libFuzzer over the reader of the file beside a TensorRT plan: what is taken keeps its own rules, what is refused is one Error. The
// engine's name is a hash of what the file says, whatever the order and spelling that it is said in.
#include "sidecar.h"

#include <cstdint>
#include <cstdlib>

#include "error.h"
#include "json.h"
#include "signature.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace edgelstm;
  std::string text(reinterpret_cast<const char*>(data), size);
  auto need = [](bool good) {
    if (!good) abort();
  };
  try {
    Sidecar found = parse_sidecar(text, "file");
    need(!found.profiles.empty());
    for (const auto& rows : found.profiles) need(1 <= rows[0] && rows[0] <= rows[1] && rows[1] <= rows[2]);
    need(1 <= found.streams[0] && found.streams[0] <= found.streams[1] && found.streams[1] <= found.streams[2]);
    need(found.engine_name.size() == 41 && found.engine_name.compare(0, 9, "edgelstm-") == 0);
    Sidecar again = parse_sidecar(dump_sorted(parse_json(text)), "file");
    need(again.engine_name == found.engine_name && again.signature == found.signature && again.plan_bytes == found.plan_bytes);
    need(again.profiles == found.profiles && again.targets == found.targets && again.precision == found.precision);
    parse_signature(found.signature, "file");  // which is looked at next
  } catch (const Error& error) {
    need(error.code == EDGELSTM_MODEL);
  }
  return 0;
}
