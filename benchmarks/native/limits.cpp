// What this machine can do at most: limits THREADS BYTES... prints microseconds to read BYTES once (again and again, each thread
// its own part), a number a line, then the GFLOP a second of multiply-adds on all threads. Built with -O3 -march=native.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>
#include <sys/mman.h>
#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

// Vectors as wide as a register, and as many sums as registers hold beside two factors: wider or more would go through memory. One
// multiply-add takes 4 or 5 clocks, of which a core begins 2 a clock, or 4: so it takes 10 or 16 at once to keep it busy.
#if defined(__AVX512F__)
constexpr int kBytes = 64, kSums = 24;
#elif defined(__AVX__)
constexpr int kBytes = 32, kSums = 12;
#elif defined(__aarch64__)
constexpr int kBytes = 16, kSums = 24;
#else
constexpr int kBytes = 16, kSums = 12;
#endif
typedef float vf __attribute__((vector_size(kBytes)));
static volatile float sink;

static inline vf multiply_add(vf sum, vf a, vf b) {
#if defined(__aarch64__) && defined(__ARM_NEON)
  return (vf)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);  // its instruction adds to the sum, of which the other form needs a copy
#else
  return sum * a + b;
#endif
}

// All threads begin together; the time is that of the slowest, the best of many rounds: what was reached once.
template <class Work>
double best(int threads, int rounds, const Work& work) {
  std::atomic<int> ready{0}, go{0}, done{0};
  std::vector<std::thread> others;
  for (int t = 1; t < threads; t++)
    others.emplace_back([&, t] {
      for (int r = 1; r <= rounds; r++) {
        ready++;
        while (go.load() < r) {}
        work(t);
        done++;
      }
    });
  double least = 1e9;
  for (int r = 1; r <= rounds; r++) {
    while (ready.load() < r * (threads - 1)) {}
    auto start = std::chrono::steady_clock::now();
    go.store(r);
    work(0);
    while (done.load() < r * (threads - 1)) {}
    least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  for (auto& t : others) t.join();
  return least;
}

static void read(const vf* data, size_t count) {
  vf sum[8] = {};
  for (size_t k = 0; k + 8 <= count; k += 8)
    for (int j = 0; j < 8; j++) sum[j] += data[k + j];
  for (int j = 1; j < 8; j++) sum[0] += sum[j];
  sink = sum[0][0];
}

int main(int argc, char** argv) {
  int threads = std::atoi(argv[1]);
  for (int a = 2; a < argc; a++) {
    size_t bytes = std::strtoull(argv[a], nullptr, 10);
    int used = bytes < (1 << 18) ? 1 : threads;  // a small cell stays on one
    size_t part = bytes / used / kBytes, room = (part * kBytes + (2 << 20) - 1) >> 21 << 21;
    std::vector<vf*> parts;
    for (int t = 0; t < used; t++) {
      parts.push_back(static_cast<vf*>(aligned_alloc(2 << 20, room)));
      madvise(parts[t], room, MADV_HUGEPAGE);
      std::memset(static_cast<void*>(parts[t]), 0, room);
    }
    int repeats = std::max<size_t>(1, (1 << 20) / bytes);
    double seconds = best(used, bytes > (8 << 20) ? 200 : 1000, [&](int t) {
      for (int k = 0; k < repeats; k++) read(parts[t], part);
    });
    std::printf("%.4f\n", seconds / repeats * 1e6);
  }
  const int steps = 5000;  // some 20 us: short enough that one of the rounds runs undisturbed
  double seconds = best(threads, 2000, [&](int) {
    vf sum[kSums], a = vf{} + 1.0001f, b = vf{} + 0.5f;
#pragma GCC unroll 24
    for (int j = 0; j < kSums; j++) sum[j] = vf{} + float(j);  // equal ones would be computed once
    for (int k = 0; k < steps; k++)
#pragma GCC unroll 24
      for (int j = 0; j < kSums; j++) sum[j] = multiply_add(sum[j], a, b);
#pragma GCC unroll 24
    for (int j = 1; j < kSums; j++) sum[0] += sum[j];
    sink = sum[0][0];
  });
  std::printf("%.1f\n", threads * 2.0 * (kBytes / 4) * kSums * steps / seconds / 1e9);
}
