// Runs a fuzz target over the files that are named, each once: what libFuzzer does where it is not.
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int count, char** names) {
  for (int k = 1; k < count; k++) {
    std::ifstream file(names[k], std::ios::binary);
    std::string held((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    fprintf(stderr, "%s\n", names[k]);  // the last line names the one that failed
    std::string exact(held.data(), held.size());
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(exact.data()), exact.size());
  }
  printf("%d files\n", count - 1);
}
