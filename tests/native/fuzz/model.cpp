// libFuzzer over edgelstm_open with a real ONNX Runtime ($EDGELSTM_ONNXRUNTIME), and two steps of whatever opened. The file is the graph in
// $EDGELSTM_FUZZ_GRAPH, which has no Signature, and after it the bytes as its Signature: parts of a protobuf file add up. A file that
// begins with "raw\n" is a whole model instead, for the search of names of other files; ONNX Runtime's own reader is not looked at.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "edgelstm.h"
#include "error.h"
#include "signature.h"

namespace {

std::string graph() {
  std::ifstream file(getenv("EDGELSTM_FUZZ_GRAPH"), std::ios::binary);
  std::string found((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (found.empty()) fprintf(stderr, "EDGELSTM_FUZZ_GRAPH names no file\n"), exit(1);
  return found;
}

void field(std::string* to, int number, const std::string& value) {
  *to += char(number << 3 | 2);
  size_t size = value.size();
  for (; size > 127; size >>= 7) *to += char(size | 128);
  *to += char(size);
  *to += value;
}

void need(bool good) {
  if (!good) abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string base = graph();
  std::string given(reinterpret_cast<const char*>(data), size), file;
  if (given.compare(0, 4, "raw\n") == 0) {
    file = given.substr(4);
  } else {
    std::string entry;
    field(&entry, 1, "edgelstm.signature"), field(&entry, 2, given);
    file = base;
    field(&file, 14, entry);
  }
  int handle = memfd_create("model.onnx", 0);
  need(handle >= 0 && write(handle, file.data(), file.size()) == ssize_t(file.size()));
  std::string path = "/proc/self/fd/" + std::to_string(handle);
  edgelstm_options options = EDGELSTM_OPTIONS;
  options.threads = 1, options.no_spin = 1, options.streams = 2;
  edgelstm_program* program = nullptr;
  edgelstm_error error;
  int code = edgelstm_open(path.c_str(), &options, &program, &error);
  need((code == EDGELSTM_OK) == (program != nullptr));
  if (code == EDGELSTM_OK) {
    edgelstm::Signature told = edgelstm::parse_signature(edgelstm_signature_json(program), "file");
    edgelstm_stream* stream;
    need(edgelstm_stream_new(program, &stream, &error) == EDGELSTM_OK);
    std::vector<std::string> frames;
    std::vector<edgelstm_input> in;
    for (const edgelstm::Spec& spec : told.inputs) frames.emplace_back(spec.bytes(), '\1');
    for (const std::string& frame : frames) in.push_back({frame.data(), frame.size()});
    std::vector<edgelstm_output> out(told.outputs.size());
    for (int k = 0; k < 2; k++) edgelstm_step(&stream, 1, in.data(), out.data(), &error);
    std::string state(edgelstm_state_size(program), '\0');
    need(edgelstm_state_save(stream, &state[0], state.size(), &error) == EDGELSTM_OK);
    need(edgelstm_state_load(stream, state.data(), state.size(), &error) == EDGELSTM_OK);
    edgelstm_close(program);
  } else {
    need(code == error.code && memchr(error.what, 0, sizeof error.what) != nullptr);
  }
  close(handle);
  return 0;
}
