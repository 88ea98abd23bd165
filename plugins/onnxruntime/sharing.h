// Whether a step is divided among ONNX Runtime's threads, and how.
#pragma once

#include <atomic>
#include <chrono>

#include "choice.h"
#include "node.h"

namespace edgelstm {

// One cell's. A thread that others keep from running holds up a step that is divided, for milliseconds at times, where one thread
// alone may take microseconds. So both are timed, and the one that is faster now is taken; the numbers have the same bits either way.
class Sharing {
 public:
  // Calls work(first, last) over [0, count), in pieces of an even number.
  template <class Work>
  void run(const Context& context, int64_t count, int64_t threads, int64_t rows, const Work& work) {
    bool divide = choice_.divide(rows);
    auto start = std::chrono::steady_clock::now();
    if (divide) {
      pieces(context, count, threads, work);
    } else {
      work(0, count);
    }
    choice_.took(rows, divide, std::chrono::duration<float, std::micro>(std::chrono::steady_clock::now() - start).count());
  }

 private:
  static constexpr auto kAny = std::memory_order_relaxed;

  // Each thread goes through a stretch of its own, so that its caches keep the weights, then helps the others from their ends:
  // one that comes late, or not at all, holds up nobody.
  template <class Work>
  static void pieces(const Context& context, int64_t count, int64_t threads, const Work& work) {
    constexpr int64_t kMost = 16;
    struct alignas(64) Stretch {
      std::atomic<uint64_t> left;  // first << 32 | last
    };
    Stretch stretches[kMost];
    int64_t parts = threads < kMost ? threads : kMost;
    if (parts > count / 2) parts = count / 2;
    if (parts < 2) return work(0, count);
    int64_t piece = (count / parts / 4 + 1) / 2 * 2;
    if (piece < 2) piece = 2;
    int64_t at = 0;
    for (int64_t k = 0; k < parts; k++) {
      int64_t end = k + 1 == parts ? count : count * (k + 1) / parts / 2 * 2;
      stretches[k].left.store(uint64_t(at) << 32 | uint64_t(end), kAny);
      at = end;
    }
    context.each(parts, [&](int64_t part) {
      for (int64_t other = 0; other < parts; other++) {
        auto& left = stretches[(part + other) % parts].left;
        uint64_t seen = left.load(kAny);
        for (;;) {
          int64_t first = int64_t(seen >> 32), last = int64_t(seen & 0xffffffff);
          if (first >= last) break;
          int64_t size = piece < last - first ? piece : last - first, begin = other == 0 ? first : last - size;
          uint64_t rest = other == 0 ? uint64_t(first + size) << 32 | uint64_t(last) : uint64_t(first) << 32 | uint64_t(begin);
          if (!left.compare_exchange_weak(seen, rest, kAny)) continue;
          work(begin, begin + size);
          seen = left.load(kAny);
        }
      }
    });
  }

  Choice choice_;
};

}  // namespace edgelstm
