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

typedef float vf __attribute__((vector_size(64)));
static volatile float sink;

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
    size_t part = bytes / used / 64, room = (part * 64 + (2 << 20) - 1) >> 21 << 21;
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
  const int steps = 20000;
  double seconds = best(threads, 200, [&](int) {
    vf sum[16], a = vf{} + 1.0001f, b = vf{} + 0.5f;
    for (int j = 0; j < 16; j++) sum[j] = vf{} + float(j);  // equal ones would be computed once
    for (int k = 0; k < steps; k++)
      for (int j = 0; j < 16; j++) sum[j] = sum[j] * a + b;
    for (int j = 1; j < 16; j++) sum[0] += sum[j];
    sink = sum[0][0];
  });
  std::printf("%.1f\n", threads * 2.0 * 16 * 16 * steps / seconds / 1e9);
}
