#include "ort.h"

#include <dlfcn.h>
#include <glob.h>
#include <sys/stat.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

namespace edgelstm {
namespace {

const char kVariable[] = "EDGELSTM_ONNXRUNTIME";
const char kHint[] = "Install ONNX Runtime 1.18 or later, and name its library or the folder it is in: the option onnxruntime, or "
                     "$EDGELSTM_ONNXRUNTIME; that of the PyPI package lies in onnxruntime/capi (edgelstm config --onnxruntime says where)";

std::vector<std::string> matches(const std::string& pattern) {
  glob_t all;
  std::vector<std::string> found;
  if (glob(pattern.c_str(), 0, nullptr, &all) == 0) found.assign(all.gl_pathv, all.gl_pathv + all.gl_pathc);
  globfree(&all);
  return found;
}

// The libraries in a folder whose name is no pattern.
std::vector<std::string> within(const std::string& folder) {
  std::string escaped;
  for (char c : folder) {
    if (c == '*' || c == '?' || c == '[' || c == '\\') escaped += '\\';
    escaped += c;
  }
  std::vector<std::string> found = matches(escaped + "/libonnxruntime.so*");
  for (const std::string& path : matches(escaped + "/libonnxruntime*.dylib")) found.push_back(path);
  return found;
}

std::vector<std::string> named(const std::string& name) {
  struct stat info;
  if (stat(name.c_str(), &info) == 0 && S_ISDIR(info.st_mode)) return within(name);
  return {name};
}

std::vector<std::string> candidates(const char* given) {
  if (given != nullptr && *given != '\0') return named(given);
  const char* variable = getenv(kVariable);
  if (variable != nullptr && *variable != '\0') return named(variable);
  std::vector<std::string> all = {"libonnxruntime.so.1", "libonnxruntime.so", "libonnxruntime.dylib"};
  const char* environment = getenv("VIRTUAL_ENV");
  if (environment != nullptr && *environment != '\0')
    for (const std::string& folder : matches(std::string(environment) + "/lib*/python3*/site-packages/onnxruntime/capi"))
      for (const std::string& path : within(folder)) all.push_back(path);
  return all;
}

}  // namespace

std::string Runtime::message(ort::Status* status) const {
  std::string text = GetErrorMessage(status);
  ReleaseStatus(status);
  return text.substr(0, text.find('\n'));
}

const Runtime& load_runtime(const char* given) {
  static std::mutex mutex;
  static auto& loaded = *new std::map<void*, std::unique_ptr<Runtime>>;  // never freed: its threads may outlive main()
  std::lock_guard<std::mutex> turn(mutex);
  std::string trouble = "none was found";
  std::vector<std::string> all = candidates(given);
  if (all.size() == 1) trouble = "none in " + all[0];
  for (const std::string& path : all) {
    void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      const char* said = dlerror();
      if (all.size() == 1 && said != nullptr) trouble = said;
      continue;
    }
    auto known = loaded.find(handle);
    if (known != loaded.end()) {
      dlclose(handle);
      return *known->second;
    }
    auto base = reinterpret_cast<const ort::Base* (*)()>(dlsym(handle, "OrtGetApiBase"));
    const void* table = base == nullptr ? nullptr : base()->get_api(ort::kVersion);
    if (table == nullptr) {
      trouble = base == nullptr ? path + " is another library" : path + " is of version " + base()->version() + ", 1.18 or later is due";
      dlclose(handle);
      continue;
    }
    auto runtime = std::make_unique<Runtime>(table);
    runtime->path = path;
    runtime->check(runtime->CreateEnv(4, "edgelstm", &runtime->env));
    // What the variable ORT_DISABLE_TELEMETRY=1 stops from the start, and a library may not set: other threads may be reading variables.
    runtime->check(runtime->DisableTelemetryEvents(runtime->env));
    return *loaded.emplace(handle, std::move(runtime)).first->second;
  }
  throw Error(EDGELSTM_LIBRARY, "ONNX Runtime can't be loaded: " + trouble, kHint);
}

}  // namespace edgelstm
