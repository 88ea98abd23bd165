// libFuzzer over the reader of snapshots. The zip's checksums are set right half of the time, or nothing behind them would ever be
// reached. What is taken is written and read again, and is the same then.
#include "snapshot.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "digest.h"
#include "error.h"

using namespace edgelstm;

namespace {

// As corpus.py has them.
std::vector<State> states() {
  auto one = [](const char* name, const char* type, std::vector<int64_t> shape) {
    State state;
    state.name = name, state.type = &type_of(type), state.shape = shape;
    for (int64_t size : shape) state.count *= size;
    return state;
  };
  return {one("h", "float32", {2, 3}), one("c", "float16", {4}), one("n", "int64", {}), one("gr\xc3\xb6\xc3\x9f""e", "bool", {1})};
}
const std::string kModel(64, 'a');

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<State> all = states();
  try {
    std::vector<const void*> values = read_snapshot(all, kModel, data, size);
    std::string again = write_snapshot(all, values, kModel);
    std::vector<const void*> same = read_snapshot(all, kModel, again.data(), again.size());
    for (size_t k = 0; k < all.size(); k++)
      if (memcmp(values[k], same[k], all[k].bytes()) != 0) abort();
  } catch (const Error& error) {
    if (error.code != EDGELSTM_SNAPSHOT && error.code != EDGELSTM_OTHER_MODEL) abort();
  }
  return 0;
}

#ifdef EDGELSTM_FUZZING  // by libFuzzer; replay.cpp changes nothing
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

namespace {

uint64_t number(const uint8_t* at, int bytes) {
  uint64_t value = 0;
  for (int k = bytes; k-- > 0;) value = value << 8 | at[k];
  return value;
}

// Every entry of the directory gets the checksum of the bytes that it names, wherever they all lie in the file.
void right_checksums(uint8_t* data, size_t size) {
  for (size_t at = 0; at + 46 <= size; at++) {
    if (number(data + at, 4) != 0x02014b50) continue;
    uint64_t length = number(data + at + 24, 4), local = number(data + at + 42, 4);
    if (local + 30 > size) continue;
    uint64_t begin = local + 30 + number(data + local + 26, 2) + number(data + local + 28, 2);
    if (begin > size || length > size - begin) continue;
    uint32_t crc = crc32(data + begin, size_t(length));
    memcpy(data + at + 16, &crc, 4);
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  size = LLVMFuzzerMutate(data, size, most);
  if (seed & 1) right_checksums(data, size);
  return size;
}
#endif
