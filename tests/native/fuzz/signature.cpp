// libFuzzer over the reader of a Signature's JSON: what is taken keeps its own rules, what is refused is one Error.
#include "signature.h"

#include <cstdint>
#include <cstdlib>

#include "error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace edgelstm;
  try {
    Signature found = parse_signature(std::string(reinterpret_cast<const char*>(data), size), "file");
    if (found.inputs.empty() || found.rows < 0) abort();
    for (const State& state : found.states)
      if (!state.initial.empty() && state.initial.size() != state.bytes()) abort();
  } catch (const Error& error) {
    if (error.code != EDGELSTM_MODEL) abort();
  }
  return 0;
}
