// ONNX Runtime, loaded when it is needed: its symbols bear its own version, so nothing is linked.
#pragma once

#include <memory>
#include <string>

#include "../onnxruntime/ort_abi.h"
#include "error.h"

namespace ort {

struct TypeInfo;
struct Metadata;
struct Allocator;
struct CudaOptions;

// Beside those of ort_abi.h. A test compares the places with the real header.
#define EDGELSTM_ORT_MORE(X) \
  X(7, CreateSession, Status* (*)(const Env*, const char*, const SessionOptions*, Session**)) \
  X(30, SessionGetInputCount, Status* (*)(const Session*, size_t*)) \
  X(31, SessionGetOutputCount, Status* (*)(const Session*, size_t*)) \
  X(33, SessionGetInputTypeInfo, Status* (*)(const Session*, size_t, TypeInfo**)) \
  X(34, SessionGetOutputTypeInfo, Status* (*)(const Session*, size_t, TypeInfo**)) \
  X(36, SessionGetInputName, Status* (*)(const Session*, size_t, Allocator*, char**)) \
  X(37, SessionGetOutputName, Status* (*)(const Session*, size_t, Allocator*, char**)) \
  X(55, CastTypeInfoToTensorInfo, Status* (*)(const TypeInfo*, const TensorInfo**)) \
  X(60, GetTensorElementType, Status* (*)(const TensorInfo*, int*)) \
  X(68, CreateMemoryInfo, Status* (*)(const char*, int, int, int, MemoryInfo**)) \
  X(76, AllocatorFree, Status* (*)(Allocator*, void*)) \
  X(78, GetAllocatorWithDefaultOptions, Status* (*)(Allocator**)) \
  X(98, ReleaseTypeInfo, void (*)(TypeInfo*)) \
  X(111, SessionGetModelMetadata, Status* (*)(const Session*, Metadata**)) \
  X(116, ModelMetadataLookupCustomMetadataMap, Status* (*)(const Metadata*, Allocator*, const char*, char**)) \
  X(118, ReleaseModelMetadata, void (*)(Metadata*)) \
  X(125, GetAvailableProviders, Status* (*)(char***, int*)) \
  X(126, ReleaseAvailableProviders, Status* (*)(char**, int)) \
  X(165, AddRunConfigEntry, Status* (*)(RunOptions*, const char*, const char*)) \
  X(204, SessionOptionsAppendExecutionProvider_CUDA_V2, Status* (*)(SessionOptions*, const CudaOptions*)) \
  X(205, CreateCUDAProviderOptions, Status* (*)(CudaOptions**)) \
  X(206, UpdateCUDAProviderOptions, Status* (*)(CudaOptions*, const char* const*, const char* const*, size_t)) \
  X(208, ReleaseCUDAProviderOptions, void (*)(CudaOptions*)) \
  X(263, UpdateCUDAProviderOptionsWithValue, Status* (*)(CudaOptions*, const char*, void*)) \
  X(228, RegisterCustomOpsLibrary_V2, Status* (*)(SessionOptions*, const char*))

struct More {
#define X(place, name, ...)         \
  using name##_t = __VA_ARGS__;     \
  name##_t name;
  EDGELSTM_ORT_MORE(X)
#undef X
  explicit More(const void* table) {
    auto entries = static_cast<void* const*>(table);
#define X(place, name, ...) name = reinterpret_cast<name##_t>(entries[place]);
    EDGELSTM_ORT_MORE(X)
#undef X
  }
};

}  // namespace ort

namespace edgelstm {

// A loaded library. It stays for the life of the process.
struct Runtime : ort::Api, ort::More {
  std::string path;
  ort::Env* env = nullptr;
  explicit Runtime(const void* table) : Api(table), More(table) {}

  std::string message(ort::Status* status) const;  // its first line; releases it
  void check(ort::Status* status) const {          // Error with EDGELSTM_RUN
    if (status != nullptr) throw Error(EDGELSTM_RUN, "ONNX Runtime: " + message(status));
  }
};

// `given`: the options' onnxruntime, or null. Throws Error.
const Runtime& load_runtime(const char* given);

// Frees with a function of the table.
template <class T>
using Owned = std::unique_ptr<T, void (*)(T*)>;

}  // namespace edgelstm
