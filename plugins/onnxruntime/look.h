// A look at what a step wrote: NaN, infinity, or a number out of its bounds.
#pragma once

#include <cstdint>
#include <vector>

#include "node.h"

namespace edgelstm {

// Floats that a step writes side by side. An operator that wrote all of them may look while a core's own cache has them.
struct Piece {
  const float* data;
  int64_t count;
  Bounds bounds;
  bool seen;
  // Any thread may look at a part.
  void look(int64_t first, int64_t last) const {
    if (!kernels().within(data + first, last - first, bounds.low, bounds.high)) __atomic_store_n(bounds.bad, 1, __ATOMIC_RELAXED);
  }
};

// Floats from which on a piece is worth an operator's own look. Smaller ones stay in the nearest caches, and are looked at together.
constexpr int64_t kWorthOwnLook = 1024;

// What the step is looked at for that this thread is in; null: nobody looks, or nothing is worth an operator's look.
inline thread_local std::vector<Piece>* pieces = nullptr;

// The piece that an operator writes there, if it is looked at; the operator then has to look at all of it.
inline const Piece* piece(const float* data, int64_t count) {
  if (pieces == nullptr) return nullptr;
  for (Piece& each : *pieces)
    if (each.data == data && each.count == count) return each.seen = true, &each;
  return nullptr;
}

// The same for a kernel that looks itself.
inline Bounds bounds(const float* data, int64_t count) {
  const Piece* found = piece(data, count);
  return found == nullptr ? Bounds{} : found->bounds;
}

}  // namespace edgelstm
