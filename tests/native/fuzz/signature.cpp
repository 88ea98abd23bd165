// libFuzzer over the reader of a Signature's JSON: what is taken keeps its own rules, what is refused is one Error. JSON that is written
// again is the same JSON.
#include "signature.h"

#include <cstdint>
#include <cstdlib>
#include <stdexcept>

#include "error.h"
#include "json.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace edgelstm;
  std::string text(reinterpret_cast<const char*>(data), size);
  try {
    std::string written = dump_sorted(parse_json(text));
    if (dump_sorted(parse_json(written)) != written) abort();
  } catch (const std::invalid_argument&) {
  }
  try {
    Signature found = parse_signature(text, "file");
    if (found.inputs.empty() || found.rows < 0) abort();
    for (const State& state : found.states)
      if (!state.initial.empty() && state.initial.size() != state.bytes()) abort();
  } catch (const Error& error) {
    if (error.code != EDGELSTM_MODEL) abort();
  }
  return 0;
}
