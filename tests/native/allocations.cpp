// What the C library allocates in steps: allocations MODEL ONNXRUNTIME. Prints how many there were while new sets of streams were
// stepped, and how many after that. Counted is what it asks of C++ itself and through the standard library, not what ONNX Runtime does.
#include <dlfcn.h>
#include <edgelstm.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace {
std::atomic<bool> counting{false};
std::atomic<int> counted{0};

void *counted_block(size_t size, void *caller) {
  Dl_info info;
  if (counting && dladdr(caller, &info) != 0 && info.dli_fname != nullptr && strstr(info.dli_fname, "libonnxruntime") == nullptr) counted++;
  void *block = malloc(size ? size : 1);
  if (block == nullptr) throw std::bad_alloc();
  return block;
}
}  // namespace

void *operator new(size_t size) { return counted_block(size, __builtin_return_address(0)); }
void *operator new[](size_t size) { return counted_block(size, __builtin_return_address(0)); }
void operator delete(void *block) noexcept { free(block); }
void operator delete(void *block, size_t) noexcept { free(block); }
void operator delete[](void *block) noexcept { free(block); }
void operator delete[](void *block, size_t) noexcept { free(block); }

int main(int, char **arguments) {
  constexpr int kStreams = 6;
  edgelstm_options options = EDGELSTM_OPTIONS;
  options.streams = kStreams, options.threads = 1, options.onnxruntime = arguments[2];
  edgelstm_program *program;
  edgelstm_stream *all[kStreams];
  if (edgelstm_open(arguments[1], &options, &program, nullptr)) return 1;
  for (edgelstm_stream *&stream : all)
    if (edgelstm_stream_new(program, &stream, nullptr)) return 1;
  float x[3] = {1, 2, 3}, y[2];
  edgelstm_input in[kStreams];
  edgelstm_output out[kStreams];
  for (int k = 0; k < kStreams; k++) in[k] = {x, sizeof x}, out[k] = {y, sizeof y};
  edgelstm_stream *far[] = {all[5], all[0]};
  auto steps = [&] {
    for (int k = 0; k < 2 * kStreams; k++)
      if (edgelstm_step(all, size_t(k / 2 + 1), in, out, nullptr) || edgelstm_step(far, 2, in, out, nullptr)) exit(1);
  };
  counting = true;
  for (int k = 0; k < 4; k++) steps();
  int first = counted.exchange(0);
  for (int k = 0; k < 10; k++) steps();
  counting = false;
  printf("%d %d\n", first, counted.load());
  edgelstm_close(program);
}
