// A look at what a step wrote: NaN, infinity, or a number out of its bounds.
#pragma once

#include <cstdint>
#include <cstring>
#include <deque>

#include "kernels.h"

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
  Piece(const float* data, int64_t count, float low, float high) : data_(data), count_(count), bounds_{low, high, &bad_} {}
  Piece(const Piece&) = delete;
  Piece& operator=(const Piece&) = delete;
  bool is(const float* data, int64_t count) const { return data == data_ && count == count_; }
  void begin() { seen_ = false, bad_ = 0; }
  void seen() { seen_ = true; }
  const Bounds& bounds() const { return bounds_; }
  // Any thread may look at a part.
  void look(int64_t first, int64_t last) {
    if (!within(data_ + first, last - first, bounds_.low, bounds_.high)) __atomic_store_n(&bad_, 1, __ATOMIC_RELAXED);
  }
  bool is_good() {
    if (!seen_) look(0, count_);
    return bad_ == 0;
  }

 private:
  const float* data_;
  int64_t count_;
  unsigned char bad_ = 0;
  Bounds bounds_;
  bool seen_ = false;
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

// The same for a kernel that looks itself.
inline Bounds bounds(const float* data, int64_t count) {
  Piece* found = piece(data, count);
  return found == nullptr ? Bounds{} : found->bounds();
}

}  // namespace edgelstm
