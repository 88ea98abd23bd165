// A stand-in for a library of ONNX Runtime with the CUDA provider: the real one ($EDGELSTM_STANDIN_RUNTIME) on the processor, its runs put on
// the stream of the stand-in for the driver. NOT the provider: buffers, bindings by address and the order of copies and runs are as on a GPU.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>

#include "ort.h"

namespace {

struct Provider {
  void *stream = nullptr;
  std::map<std::string, std::string> told;
};

void *table[320];
const ort::Api *real;
const ort::More *more;
const ort::Base *base;
std::map<const void *, void *> streams;  // by a session's options, then by the session

template <class F>
F driver(const char *name) {
  return reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
}

void broken(const char *rule) {
  fprintf(stderr, "stand-in for ONNX Runtime's CUDA provider: %s\n", rule);
  driver<void (*)()>("standin_fail")();
}

ort::Status *available(char ***names, int *count) {
  static char cuda[] = "CUDAExecutionProvider", cpu[] = "CPUExecutionProvider";
  static char *all[] = {cuda, cpu};
  *names = all, *count = 2;
  return nullptr;
}
ort::Status *release_available(char **, int) { return nullptr; }
ort::Status *create(ort::CudaOptions **made) {
  *made = reinterpret_cast<ort::CudaOptions *>(new Provider);
  return nullptr;
}
void release(ort::CudaOptions *given) { delete reinterpret_cast<Provider *>(given); }
ort::Status *update(ort::CudaOptions *given, const char *const *keys, const char *const *values, size_t count) {
  for (size_t k = 0; k < count; k++) reinterpret_cast<Provider *>(given)->told[keys[k]] = values[k];
  return nullptr;
}
ort::Status *update_value(ort::CudaOptions *given, const char *key, void *value) {
  if (strcmp(key, "user_compute_stream") == 0) reinterpret_cast<Provider *>(given)->stream = value;
  return nullptr;
}
ort::Status *append(ort::SessionOptions *options, const ort::CudaOptions *given) {
  auto provider = reinterpret_cast<const Provider *>(given);
  if (provider->stream == nullptr || provider->told.count("device_id") == 0 || provider->told.at("use_tf32") != "0")
    return real->CreateStatus(ort::Code::kInvalidArgument, "the provider was not told its stream, its device or its precision");
  streams[options] = provider->stream;
  return nullptr;
}
ort::Status *create_memory(const char *name, int kind, int id, int type, ort::MemoryInfo **made) {
  if (strcmp(name, "Cuda") == 0) return real->CreateCpuMemoryInfo(0, 0, made);
  return more->CreateMemoryInfo(name, kind, id, type, made);
}
ort::Status *create_session(const ort::Env *env, const char *path, const ort::SessionOptions *options, ort::Session **made) {
  ort::Status *status = more->CreateSession(env, path, options, made);
  if (status == nullptr && streams.count(options)) streams[*made] = streams[options];
  streams.erase(options);
  return status;
}
ort::Status *create_value(const ort::MemoryInfo *memory, void *data, size_t size, const int64_t *shape, size_t rank, int type, ort::Value **made) {
  auto owns = driver<int (*)(void *, size_t)>("standin_owns");
  if (reinterpret_cast<uintptr_t>(data) % 256 || !owns(data, size)) return real->CreateStatus(ort::Code::kInvalidArgument, "an address that is not the GPU's");
  return real->CreateTensorWithDataAsOrtValue(memory, data, size, shape, rank, type, made);
}

struct Run {
  ort::Session *session;
  const ort::RunOptions *options;
  const ort::Binding *binding;
};
ort::Status *run(ort::Session *session, const ort::RunOptions *options, const ort::Binding *binding) {
  auto stream = streams.find(session);
  if (stream == streams.end()) return real->CreateStatus(ort::Code::kFail, "a session without the provider");
  auto work = [](void *given) {
    Run *one = static_cast<Run *>(given);
    if (ort::Status *status = real->RunWithBinding(one->session, one->options, one->binding)) broken(real->GetErrorMessage(status));
    delete one;
  };
  int code = driver<int (*)(void *, void (*)(void *), void *)>("cuLaunchHostFunc")(stream->second, work, new Run{session, options, binding});
  return code == 0 ? nullptr : real->CreateStatus(ort::Code::kFail, "the stream refuses it");
}

const void *get_api(uint32_t version) { return base->get_api(version) == nullptr ? nullptr : table; }
const char *get_version() { return base->version(); }

}  // namespace

extern "C" __attribute__((visibility("default"))) const ort::Base *OrtGetApiBase() {
  static const ort::Base ours = {get_api, get_version};
  if (base != nullptr) return &ours;
  void *handle = dlopen(getenv("EDGELSTM_STANDIN_RUNTIME"), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) return nullptr;
  base = reinterpret_cast<const ort::Base *(*)()>(dlsym(handle, "OrtGetApiBase"))();
  const void *found = base->get_api(ort::kVersion);
  memcpy(table, found, 275 * sizeof *table);  // KernelContext_ParallelFor is the last that anybody here asks for
  real = new ort::Api(found), more = new ort::More(found);
  auto put = [](int place, auto function) { table[place] = reinterpret_cast<void *>(function); };
  put(7, create_session), put(49, create_value), put(68, create_memory), put(125, available), put(126, release_available), put(133, run), put(204, append);
  put(205, create), put(206, update), put(208, release), put(263, update_value);
  return &ours;
}
