// The part of ONNX Runtime's C interface that the operators use, so that nothing but a C++ compiler is needed to build them.
//
// The interface only grows: a function keeps its place in the table for ever. Places and the layout of OrtCustomOp are those
// of onnxruntime_c_api.h (MIT), version 18; a test compares them with the real header.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ort {

constexpr uint32_t kVersion = 18;  // of the interface: KernelContext_ParallelFor came with 17

struct Status;  // null: success
struct Value;
struct TensorInfo;
struct KernelInfo;
struct KernelContext;
struct Domain;
struct SessionOptions;
struct Env;
struct Session;
struct Binding;
struct MemoryInfo;
struct RunOptions;

enum class Code : int { kFail = 1, kInvalidArgument = 2 };
constexpr int kFloat = 1, kUint8 = 2, kInt8 = 3, kInt64 = 7, kBfloat16 = 16;  // ONNXTensorElementDataType
enum class Presence : int { kRequired = 0, kOptional = 1 };

struct Base {
  const void* (*get_api)(uint32_t version);
  const char* (*version)();
};

// Every entry: its place in OrtApi, its name there, its type.
#define EDGELSTM_ORT_FUNCTIONS(X) \
  X(0, CreateStatus, Status* (*)(Code, const char*)) \
  X(2, GetErrorMessage, const char* (*)(const Status*)) \
  X(3, CreateEnv, Status* (*)(int, const char*, Env**)) \
  X(6, DisableTelemetryEvents, Status* (*)(const Env*)) \
  X(8, CreateSessionFromArray, Status* (*)(const Env*, const void*, size_t, const SessionOptions*, Session**)) \
  X(10, CreateSessionOptions, Status* (*)(SessionOptions**)) \
  X(22, SetSessionLogSeverityLevel, Status* (*)(SessionOptions*, int)) \
  X(24, SetIntraOpNumThreads, Status* (*)(SessionOptions*, int)) \
  X(25, SetInterOpNumThreads, Status* (*)(SessionOptions*, int)) \
  X(26, CreateCustomOpDomain, Status* (*)(const char*, Domain**)) \
  X(27, CustomOpDomain_Add, Status* (*)(Domain*, const struct CustomOp*)) \
  X(28, AddCustomOpDomain, Status* (*)(SessionOptions*, Domain*)) \
  X(39, CreateRunOptions, Status* (*)(RunOptions**)) \
  X(49, CreateTensorWithDataAsOrtValue, Status* (*)(const MemoryInfo*, void*, size_t, const int64_t*, size_t, int, Value**)) \
  X(51, GetTensorMutableData, Status* (*)(Value*, void**)) \
  X(61, GetDimensionsCount, Status* (*)(const TensorInfo*, size_t*)) \
  X(62, GetDimensions, Status* (*)(const TensorInfo*, int64_t*, size_t)) \
  X(65, GetTensorTypeAndShape, Status* (*)(const Value*, TensorInfo**)) \
  X(69, CreateCpuMemoryInfo, Status* (*)(int, int, MemoryInfo**)) \
  X(85, KernelInfoGetAttribute_float, Status* (*)(const KernelInfo*, const char*, float*)) \
  X(86, KernelInfoGetAttribute_int64, Status* (*)(const KernelInfo*, const char*, int64_t*)) \
  X(90, KernelContext_GetInput, Status* (*)(const KernelContext*, size_t, const Value**)) \
  X(91, KernelContext_GetOutput, Status* (*)(KernelContext*, size_t, const int64_t*, size_t, Value**)) \
  X(93, ReleaseStatus, void (*)(Status*)) \
  X(94, ReleaseMemoryInfo, void (*)(MemoryInfo*)) \
  X(95, ReleaseSession, void (*)(Session*)) \
  X(96, ReleaseValue, void (*)(Value*)) \
  X(97, ReleaseRunOptions, void (*)(RunOptions*)) \
  X(99, ReleaseTensorTypeAndShapeInfo, void (*)(TensorInfo*)) \
  X(100, ReleaseSessionOptions, void (*)(SessionOptions*)) \
  X(130, AddSessionConfigEntry, Status* (*)(SessionOptions*, const char*, const char*)) \
  X(133, RunWithBinding, Status* (*)(Session*, const RunOptions*, const Binding*)) \
  X(134, CreateIoBinding, Status* (*)(Session*, Binding**)) \
  X(135, ReleaseIoBinding, void (*)(Binding*)) \
  X(136, BindInput, Status* (*)(Binding*, const char*, const Value*)) \
  X(137, BindOutput, Status* (*)(Binding*, const char*, const Value*)) \
  X(249, KernelInfoGetConstantInput_tensor, Status* (*)(const KernelInfo*, size_t, int*, const Value**)) \
  X(274, KernelContext_ParallelFor, Status* (*)(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*))

// The functions, looked up once.
struct Api {
#define X(place, name, ...)         \
  using name##_t = __VA_ARGS__;     \
  name##_t name;
  EDGELSTM_ORT_FUNCTIONS(X)
#undef X
  explicit Api(const void* table) {
    auto entries = static_cast<void* const*>(table);
#define X(place, name, ...) name = reinterpret_cast<name##_t>(entries[place]);
    EDGELSTM_ORT_FUNCTIONS(X)
#undef X
  }
};

// OrtCustomOp. What is null is not asked, or has a default.
struct CustomOp {
  uint32_t version;
  void* (*CreateKernel)(const CustomOp*, const void*, const KernelInfo*);
  const char* (*GetName)(const CustomOp*);
  const char* (*GetExecutionProviderType)(const CustomOp*);
  int (*GetInputType)(const CustomOp*, size_t);
  size_t (*GetInputTypeCount)(const CustomOp*);
  int (*GetOutputType)(const CustomOp*, size_t);
  size_t (*GetOutputTypeCount)(const CustomOp*);
  void (*KernelCompute)(void*, KernelContext*);
  void (*KernelDestroy)(void*);
  Presence (*GetInputCharacteristic)(const CustomOp*, size_t);
  Presence (*GetOutputCharacteristic)(const CustomOp*, size_t);
  int (*GetInputMemoryType)(const CustomOp*, size_t);
  int (*GetVariadicInputMinArity)(const CustomOp*);
  int (*GetVariadicInputHomogeneity)(const CustomOp*);
  int (*GetVariadicOutputMinArity)(const CustomOp*);
  int (*GetVariadicOutputHomogeneity)(const CustomOp*);
  Status* (*CreateKernelV2)(const CustomOp*, const void*, const KernelInfo*, void**);
  Status* (*KernelComputeV2)(void*, KernelContext*);
  Status* (*InferOutputShapeFn)(const CustomOp*, void*);
  int (*GetStartVersion)(const CustomOp*);
  int (*GetEndVersion)(const CustomOp*);
  size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

}  // namespace ort
