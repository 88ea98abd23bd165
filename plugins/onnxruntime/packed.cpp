#include "packed.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <tuple>

namespace edgelstm {

namespace {

constexpr size_t kHuge = size_t{2} << 20;

uint64_t hash(const void* data, size_t bytes) {
  uint64_t value = 0x9e3779b97f4a7c15;
  for (size_t k = 0; k < bytes; k += 4) {
    uint32_t bits = 0;
    memcpy(&bits, static_cast<const char*>(data) + k, bytes - k < 4 ? bytes - k : 4);
    value = (value ^ bits) * 0x100000001b3;
    value ^= value >> 29;
  }
  return value;
}

size_t size_of(Weights weights) { return weights == Weights::kFloat ? 4 : weights == Weights::kInt8 ? 1 : 2; }

template <class W>
void fill(const Slice& s, int64_t units, int lanes, W* all) {
  int64_t down = s.transposed ? 1 : s.columns, across = s.transposed ? s.rows : 1, gates = s.gates.size();
  for (int64_t unit = 0; unit < units; unit++)
    for (int64_t g = 0; g < gates; g++) {
      const W* from = static_cast<const W*>(s.data) + (s.gates[g] + unit) * down + s.column * across;
      W* to = all + (unit / lanes * s.inputs * gates + g) * lanes + unit % lanes;
      for (int64_t k = 0; k < s.inputs; k++) to[k * gates * lanes] = from[k * across];
    }
}

// As Dot wants them.
void fill_grouped(const Slice& s, int64_t units, int lanes, uint8_t* all) {
  int64_t down = s.transposed ? 1 : s.columns, across = s.transposed ? s.rows : 1, gates = s.gates.size(), groups = Dot::groups(s.inputs);
  for (int64_t unit = 0; unit < units; unit++)
    for (int64_t g = 0; g < gates; g++) {
      const uint8_t* from = static_cast<const uint8_t*>(s.data) + (s.gates[g] + unit) * down + s.column * across;
      uint8_t* to = all + (unit / lanes * groups * gates + g) * lanes * 4 + unit % lanes * 4;
      for (int64_t k = 0; k < s.inputs; k++) to[k / 4 * gates * lanes * 4 + k % 4] = from[k * across] ^ s.dot->flip;
    }
}

using Key = std::tuple<const void*, uint64_t, int64_t, int64_t, int64_t, int64_t, bool, std::vector<int64_t>, int64_t, int, Weights, const Dot*>;

}  // namespace

Floats::Floats(size_t count) {
  size_t bytes = count * sizeof(float), boundary = bytes >= kHuge ? kHuge : 64;
  bytes = (bytes + boundary - 1) / boundary * boundary;
  void* memory = aligned_alloc(boundary, bytes);
  if (memory == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // A step goes through all of it: fewer pages are fewer misses of the address cache.
  if (boundary == kHuge) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
  memset(memory, 0, bytes);
  data_ = static_cast<float*>(memory);
}

Floats::~Floats() { free(data_); }

Shared pack(const Slice& s, int64_t units, int lanes) {
  static std::mutex lock;
  static std::map<Key, std::weak_ptr<const Floats>> known;
  std::lock_guard<std::mutex> guard(lock);
  size_t element = size_of(s.weights);
  Key key(s.data, hash(s.data, s.rows * s.columns * element), s.rows, s.columns, s.column, s.inputs, s.transposed, s.gates, units, lanes,
          s.weights, s.dot);
  for (auto it = known.begin(); it != known.end();) it = it->second.expired() ? known.erase(it) : std::next(it);
  if (auto found = known[key].lock()) return found;
  int64_t panels = (units + lanes - 1) / lanes, gates = s.gates.size();
  int64_t inputs = s.dot != nullptr ? 4 * Dot::groups(s.inputs) : s.inputs;
  auto packed = std::make_shared<Floats>((panels * inputs * gates * lanes * element + 3) / 4);
  void* to = packed->data();
  if (s.dot != nullptr) {
    fill_grouped(s, units, lanes, static_cast<uint8_t*>(to));
  } else if (s.weights == Weights::kInt8) {
    fill(s, units, lanes, static_cast<int8_t*>(to));
  } else if (s.weights == Weights::kBfloat16) {
    fill(s, units, lanes, static_cast<uint16_t*>(to));
  } else {
    fill(s, units, lanes, static_cast<float*>(to));
  }
  known[key] = packed;
  return packed;
}

Shared pack_bias(const std::vector<const float*>& gates, int64_t units, int lanes) {
  int64_t panels = (units + lanes - 1) / lanes, count = gates.size();
  auto packed = std::make_shared<Floats>(panels * count * lanes);
  for (int64_t unit = 0; unit < units; unit++)
    for (int64_t g = 0; g < count; g++)
      if (gates[g] != nullptr) packed->data()[(unit / lanes * count + g) * lanes + unit % lanes] = gates[g][unit];
  return packed;
}

}  // namespace edgelstm
