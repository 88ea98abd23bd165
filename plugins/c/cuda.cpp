#include "cuda.h"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <mutex>
#include <new>

#include "error.h"

namespace edgelstm {
namespace {

using Address = uint64_t;
constexpr size_t kPage = 4096;  // what is locked is whole pages
enum { kOutOfMemory = 2, kNoDevice = 100 };
enum { kMajor = 75, kMinor = 76, kNonBlocking = 1, kDeviceMap = 2, kThreadLocal = 1 };  // as in cuda.h

#define EDGELSTM_CUDA(X) \
  X(cuInit, int (*)(unsigned)) \
  X(cuDeviceGetCount, int (*)(int*)) \
  X(cuDeviceGet, int (*)(int*, int)) \
  X(cuDeviceGetName, int (*)(char*, int, int)) \
  X(cuDeviceGetAttribute, int (*)(int*, int, int)) \
  X(cuDevicePrimaryCtxRetain, int (*)(void**, int)) \
  X(cuDevicePrimaryCtxRelease, int (*)(int)) \
  X(cuCtxPushCurrent, int (*)(void*)) \
  X(cuCtxPopCurrent, int (*)(void**)) \
  X(cuMemGetInfo, int (*)(size_t*, size_t*)) \
  X(cuMemAlloc, int (*)(Address*, size_t)) \
  X(cuMemFree, int (*)(Address)) \
  X(cuMemHostRegister, int (*)(void*, size_t, unsigned)) \
  X(cuMemHostUnregister, int (*)(void*)) \
  X(cuMemcpyAsync, int (*)(Address, Address, size_t, CudaStream)) \
  X(cuStreamCreate, int (*)(CudaStream*, unsigned)) \
  X(cuStreamDestroy, int (*)(CudaStream)) \
  X(cuStreamSynchronize, int (*)(CudaStream)) \
  X(cuStreamBeginCapture, int (*)(CudaStream, int)) \
  X(cuStreamEndCapture, int (*)(CudaStream, void**)) \
  X(cuGraphInstantiateWithFlags, int (*)(CudaGraph*, void*, unsigned long long)) \
  X(cuGraphDestroy, int (*)(void*)) \
  X(cuGraphLaunch, int (*)(CudaGraph, CudaStream)) \
  X(cuGraphExecDestroy, int (*)(CudaGraph)) \
  X(cuGetErrorString, int (*)(int, const char**))

}  // namespace

struct Cuda::Driver {
#define X(name, ...)            \
  using name##_t = __VA_ARGS__; \
  name##_t name = nullptr;
  EDGELSTM_CUDA(X)
#undef X
};

// A name's newest form, of which there are several (cuMemAlloc_v2), is told by the driver itself.
const Cuda::Driver& Cuda::driver() {
  static std::mutex mutex;
  static Driver* loaded = nullptr;  // never freed
  std::lock_guard<std::mutex> turn(mutex);
  if (loaded != nullptr) return *loaded;
  const char hint[] = "Install NVIDIA's driver; in a container, start it with --gpus all (on a Jetson: --runtime nvidia)";
  void* handle = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) throw Error(EDGELSTM_LIBRARY, "there is no NVIDIA driver here: no library libcuda.so.1", hint);
  using Find = int (*)(const char*, void**, int, unsigned long long, int*);
  auto find = reinterpret_cast<Find>(dlsym(handle, "cuGetProcAddress_v2"));
  if (find == nullptr) throw Error(EDGELSTM_LIBRARY, "the NVIDIA driver is too old: it is of CUDA 11 or earlier", "Install one of CUDA 12 or later");
  auto made = std::make_unique<Driver>();
  auto look = [&](const char* name) {
    void* function = nullptr;
    int status = 0;
    if (find(name, &function, 12000, 0, &status) != 0 || function == nullptr)
      throw Error(EDGELSTM_LIBRARY, std::string("the NVIDIA driver lacks ") + name, hint);
    return function;
  };
#define X(name, ...) made->name = reinterpret_cast<Driver::name##_t>(look(#name));
  EDGELSTM_CUDA(X)
#undef X
  loaded = made.release();
  return *loaded;
}

void Cuda::check(int result, const char* what) {
  if (result == 0) return;
  const char* text = nullptr;
  driver().cuGetErrorString(result, &text);
  std::string said = std::string("the GPU failed: ") + what + ": " + (text == nullptr ? "error " + std::to_string(result) : std::string(text));
  if (result == kOutOfMemory) throw Error(EDGELSTM_DEVICE, said, "Other programs may hold its memory (nvidia-smi shows them); or open it with fewer streams");
  throw Error(EDGELSTM_RUN, said);
}

Cuda::Cuda(int index) : index(index), d_(driver()) {
  int count = 0, started = d_.cuInit(0);
  if (started == kNoDevice || (started == 0 && d_.cuDeviceGetCount(&count) == 0 && count == 0))
    throw Error(EDGELSTM_DEVICE, "there is no NVIDIA GPU here", "Is CUDA_VISIBLE_DEVICES empty? On the CPU open the .onnx file, without the option device");
  if (started != 0) throw Error(EDGELSTM_DEVICE, "the NVIDIA driver does not start", "Does nvidia-smi work? After an update of the driver, restart");
  if (index >= count)
    throw Error(EDGELSTM_DEVICE, "device cuda:" + std::to_string(index) + ": found " + std::to_string(count) + " GPU(s)", "They are counted from cuda:0");
  check(d_.cuDeviceGet(&device_, index), "cuDeviceGet");
  char text[128] = "";
  check(d_.cuDeviceGetName(text, sizeof text - 1, device_), "cuDeviceGetName");
  name = text;
  check(d_.cuDeviceGetAttribute(&major, kMajor, device_), "cuDeviceGetAttribute");
  check(d_.cuDeviceGetAttribute(&minor, kMinor, device_), "cuDeviceGetAttribute");
  check(d_.cuDevicePrimaryCtxRetain(&context_, device_), "cuDevicePrimaryCtxRetain");
  try {
    Current now(this);
    check(d_.cuStreamCreate(&stream, 0), "cuStreamCreate");
    // Capturing on a stream that the default one waits for would break other threads' work.
    check(d_.cuStreamCreate(&capturing_, kNonBlocking), "cuStreamCreate");
  } catch (...) {
    if (stream != nullptr) d_.cuStreamDestroy(stream);
    d_.cuDevicePrimaryCtxRelease(device_);
    throw;
  }
}

// What fails here was told by the call that waited; everything is to be freed.
Cuda::~Cuda() {
  if (d_.cuCtxPushCurrent(context_) == 0) {
    d_.cuStreamSynchronize(stream);
    for (const auto& block : locked_) d_.cuMemHostUnregister(block.get());
    for (Address address : allocated_) d_.cuMemFree(address);
    d_.cuStreamDestroy(capturing_);
    d_.cuStreamDestroy(stream);
    void* context;
    d_.cuCtxPopCurrent(&context);
  }
  d_.cuDevicePrimaryCtxRelease(device_);
}

Cuda::Current::Current(const Cuda* cuda) : cuda_(cuda) {
  if (cuda_ != nullptr) check(cuda_->d_.cuCtxPushCurrent(cuda_->context_), "cuCtxPushCurrent");
}

Cuda::Current::~Current() {
  void* context;
  if (cuda_ != nullptr) cuda_->d_.cuCtxPopCurrent(&context);
}

size_t Cuda::free_memory() const {
  size_t free = 0, total = 0;
  check(d_.cuMemGetInfo(&free, &total), "cuMemGetInfo");
  return free;
}

char* Cuda::allocate(size_t size) {
  allocated_.reserve(allocated_.size() + 1);
  Address address = 0;
  check(d_.cuMemAlloc(&address, size ? size : 1), "cuMemAlloc");
  allocated_.push_back(address);
  return reinterpret_cast<char*>(address);
}

char* Cuda::allocate_host(size_t size) {
  size = (size + kPage) / kPage * kPage;
  std::unique_ptr<char, void (*)(void*)> made(static_cast<char*>(aligned_alloc(kPage, size)), free);
  if (!made) throw std::bad_alloc();
  memset(made.get(), 0, size);
  locked_.reserve(locked_.size() + 1);
  check(d_.cuMemHostRegister(made.get(), size, kDeviceMap), "cuMemHostRegister");
  locked_.push_back(std::move(made));
  return locked_.back().get();
}

void Cuda::copy(void* to, const void* from, size_t size, CudaStream on) const {
  check(d_.cuMemcpyAsync(reinterpret_cast<Address>(to), reinterpret_cast<Address>(from), size, on == nullptr ? stream : on), "cuMemcpyAsync");
}

void Cuda::wait() const { check(d_.cuStreamSynchronize(stream), "cuStreamSynchronize"); }

CudaGraph Cuda::capture(const std::function<void(CudaStream)>& work) const {
  check(d_.cuStreamBeginCapture(capturing_, kThreadLocal), "cuStreamBeginCapture");
  void* graph = nullptr;
  try {
    work(capturing_);
  } catch (...) {
    if (d_.cuStreamEndCapture(capturing_, &graph) == 0 && graph != nullptr) d_.cuGraphDestroy(graph);
    throw;
  }
  check(d_.cuStreamEndCapture(capturing_, &graph), "cuStreamEndCapture");
  CudaGraph made = nullptr;
  int result = d_.cuGraphInstantiateWithFlags(&made, graph, 0);
  d_.cuGraphDestroy(graph);
  check(result, "cuGraphInstantiate");
  return made;
}

void Cuda::launch(CudaGraph graph) const { check(d_.cuGraphLaunch(graph, stream), "cuGraphLaunch"); }

void Cuda::destroy(CudaGraph graph) const { d_.cuGraphExecDestroy(graph); }

}  // namespace edgelstm
