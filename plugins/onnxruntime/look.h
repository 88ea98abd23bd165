// A look at what a step wrote: NaN, infinity, or a number out of its bounds.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <deque>

namespace edgelstm {

// Whether all values lie within low and high, which are finite. NaN lies nowhere.
inline bool within(const float* values, int64_t count, float low, float high) {
  typedef float Floats __attribute__((vector_size(16)));
  typedef int32_t Masks __attribute__((vector_size(16)));
  constexpr int64_t kFloats = 4, kChains = 4;  // chains: no comparison waits for the one before
  Masks good[kChains] = {};
  for (Masks& each : good) each = ~each;
  Floats least = Floats{} + low, most = Floats{} + high;
  int64_t k = 0;
  for (; k + kChains * kFloats <= count; k += kChains * kFloats)
    for (int64_t j = 0; j < kChains; j++) {
      Floats some;
      memcpy(&some, values + k + j * kFloats, sizeof some);
      good[j] &= (some >= least) & (some <= most);
    }
  Masks all = good[0] & good[1] & good[2] & good[3];
  bool rest = all[0] & all[1] & all[2] & all[3];
  for (; k < count; k++) rest &= (values[k] >= low) & (values[k] <= high);
  return rest;
}

// Floats that a step writes side by side. An operator that wrote all of them may look while a core's own cache has them.
class Piece {
 public:
  Piece(const float* data, int64_t count, float low, float high) : data_(data), count_(count), low_(low), high_(high) {}
  bool is(const float* data, int64_t count) const { return data == data_ && count == count_; }
  void begin() { seen_ = false, bad_.store(false, std::memory_order_relaxed); }
  void seen() { seen_ = true; }
  // Any thread may look at a part.
  void look(int64_t first, int64_t last) {
    if (!within(data_ + first, last - first, low_, high_)) bad_.store(true, std::memory_order_relaxed);
  }
  bool is_good() {
    if (!seen_) look(0, count_);
    return !bad_.load(std::memory_order_relaxed);
  }

 private:
  const float* data_;
  int64_t count_;
  float low_, high_;
  bool seen_ = false;
  std::atomic<bool> bad_{false};
};

// What the step is looked at for that this thread is in; null: nobody looks.
inline thread_local std::deque<Piece>* pieces = nullptr;

// The piece that an operator writes there, if it is looked at; the operator then has to look at all of it.
inline Piece* piece(const float* data, int64_t count) {
  if (pieces == nullptr) return nullptr;
  for (Piece& each : *pieces)
    if (each.is(data, count)) return each.seen(), &each;
  return nullptr;
}

}  // namespace edgelstm
