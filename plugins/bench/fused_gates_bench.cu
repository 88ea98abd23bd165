// FusedGates on a GPU: checked against the host loop, then timed against copying as many bytes.
//
//   nvcc -std=c++17 -O3 -arch=native -Iinclude bench/fused_gates_bench.cu src/fused_gates.cu -o fused_gates_bench
//   ./fused_gates_bench [--checks-only | --times-only] [--every 1] [--repeats 30]
//
// Prints a line of JSON for the device, one for the checks and one for each time, each as soon as it is known: what is cut
// short keeps what it has. --every 7 makes one check in seven, for compute-sanitizer, under which each takes long.
//
// Exit code 0: all checks passed; 1: some did not; 2: no GPU, or a CUDA call failed.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "edgelstm/fused_gates.h"
#include "edgelstm/fused_gates_run.h"

using namespace edgelstm;

namespace {

void need(cudaError_t status, char const* what) {
    if (status != cudaSuccess) {
        std::printf("{\"error\": \"%s: %s\"}\n", what, cudaGetErrorString(status));
        std::exit(2);
    }
}

// ---- Tensors of one call, on the host and on the device

struct Buffer {
    std::vector<char> host;
    char* device{nullptr};

    explicit Buffer(size_t bytes) : host(bytes, '\xA5') { need(cudaMalloc(&device, bytes + 16), "cudaMalloc"); }
    Buffer(Buffer const&) = delete;
    Buffer& operator=(Buffer const&) = delete;
    ~Buffer() { cudaFree(device); }

    void toDevice() { need(cudaMemcpy(device, host.data(), host.size(), cudaMemcpyHostToDevice), "copy to the GPU"); }
    std::vector<char> fromDevice() const {
        std::vector<char> bytes(host.size());
        need(cudaMemcpy(bytes.data(), device, bytes.size(), cudaMemcpyDeviceToHost), "copy from the GPU");
        return bytes;
    }
};

float valueAt(std::vector<char> const& bytes, DataType type, size_t k) {
    uint32_t word = 0;
    std::memcpy(&word, bytes.data() + k * sizeOf(type), sizeOf(type));
    float values[4];
    if (type == DataType::kFloat) {
        unpack<DataType::kFloat>(word, values);
    } else if (type == DataType::kHalf) {
        unpack<DataType::kHalf>(word, values);
    } else if (type == DataType::kBf16) {
        unpack<DataType::kBf16>(word, values);
    } else {
        unpack<DataType::kInt8>(word, values);
    }
    return values[0];
}

struct Random {
    uint64_t state;
    float operator()(float low, float high) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        return low + (high - low) * static_cast<float>(state >> 40) * 0x1p-24F;
    }
};

void fill(Buffer& buffer, DataType type, float size, Random& random) {
    size_t const count = buffer.host.size() / sizeOf(type);
    for (size_t k = 0; k < count; ++k) {
        float const both[4] = {type == DataType::kInt8 ? rintf(random(-128, 127)) : random(-size, size), 0, 0, 0};
        uint32_t const word = type == DataType::kFloat  ? pack<DataType::kFloat>(both)
                              : type == DataType::kHalf ? pack<DataType::kHalf>(both)
                              : type == DataType::kBf16 ? pack<DataType::kBf16>(both)
                                                        : pack<DataType::kInt8>(both);
        std::memcpy(buffer.host.data() + k * sizeOf(type), &word, sizeOf(type));
    }
    buffer.toDevice();
}

// ---- Checks: the GPU against the host loop, which runs the same code but for 2^x, 1/x and the conversions

struct Check {
    FusedGatesForms forms;
    FusedGatesVariant variant;
    int32_t streams, channels;
    int64_t spatial;
    bool inPlace, idle;
};

size_t bytesOf(TensorForm form, int64_t streams, int64_t channels, int64_t spatial) {
    return static_cast<size_t>(streams * rowsOf(form.layout, channels, spatial).stream) * sizeOf(form.type);
}

// The largest difference of two tensors, as a multiple of what may be: some roundings of float32, one of the type.
double excess(std::vector<char> const& found, std::vector<char> const& wanted, DataType type) {
    double worst = 0;
    for (size_t k = 0; k < found.size() / sizeOf(type); ++k) {
        double const a = valueAt(found, type, k);
        double const b = valueAt(wanted, type, k);
        if (std::isnan(a) && std::isnan(b)) {
            continue;
        }
        double const unit = type == DataType::kHalf ? 0x1p-10 : type == DataType::kBf16 ? 0x1p-7 : 0;
        double const allowed =
            type == DataType::kInt8 ? 1 : 32 * 0x1p-23 * (1 + std::fabs(b)) + unit * std::fabs(b) + 0x1p-24;
        double const off = a == b ? 0 : std::fabs(a - b) / allowed;
        worst = off >= worst ? off : std::isnan(off) ? INFINITY : worst;
    }
    return worst;
}

double check(Check const& t, uint64_t seed) {
    Random random{seed};
    DataType const cType = t.forms.c.type;
    Buffer z(bytesOf(t.forms.z, t.streams, t.variant.gates() * int64_t{t.channels}, t.spatial));
    Buffer c(bytesOf(t.forms.c, t.streams, t.channels, t.spatial));
    Buffer hOld(bytesOf(t.forms.h, t.streams, t.channels, t.spatial));
    Buffer weights(static_cast<size_t>(3 * t.channels * t.spatial + 24) * sizeOf(cType));
    Buffer active(sizeof(int32_t) * t.streams), count(sizeof(int32_t) * t.streams);
    Buffer h(hOld.host.size()), cOut(c.host.size());
    fill(z, t.forms.z.type, 6.0F, random);
    fill(c, cType, 3.0F, random);
    fill(hOld, t.forms.h.type, 1.0F, random);
    fill(weights, cType, 1.0F, random);
    for (int32_t n = 0; n < t.streams; ++n) {
        reinterpret_cast<int32_t*>(active.host.data())[n] = n % 2;
    }
    active.toDevice();
    h.toDevice();
    cOut.toDevice();

    auto const params = [&](auto const& at) {
        FusedGatesParams p;
        p.variant = t.variant;
        p.forms = t.forms;
        p.hScale = 1.0F / 127.0F;
        p.streams = t.streams;
        p.channels = t.channels;
        p.spatial = t.spatial;
        p.z = at(z), p.c = at(c), p.h = at(h), p.cOut = t.inPlace ? at(c) : at(cOut);
        size_t const map = static_cast<size_t>(roundedUp(t.channels * t.spatial, 8)) * sizeOf(cType);
        p.pI = {at(weights), true};
        p.pF = {at(weights) + map, false};
        p.pO = {at(weights) + 2 * map, true};
        if (t.idle) {
            p.active = reinterpret_cast<int32_t const*>(at(active));
            p.hOld = at(hOld);
        }
        p.nonFinite = reinterpret_cast<int32_t*>(at(count));
        return p;
    };
    need(fusedGates(params([](Buffer& b) { return b.device; }), nullptr), "fusedGates");
    need(cudaDeviceSynchronize(), "fusedGates");
    std::vector<char> const deviceH = h.fromDevice(), deviceC = t.inPlace ? c.fromDevice() : cOut.fromDevice();
    std::vector<char> const deviceCount = count.fromDevice();
    if (fusedGatesOnHost(params([](Buffer& b) { return b.host.data(); })) != nullptr) {
        return INFINITY;
    }
    double const worst = std::max(excess(deviceH, h.host, t.forms.h.type),
                                  excess(deviceC, t.inPlace ? c.host : cOut.host, cType));
    return deviceCount == count.host ? worst : INFINITY;
}

// Every supported form with each kernel of it, on wide sizes and on tails. Returns how many failed.
int checkAll(int every, int& checks, double& worst) {
    constexpr DataType kTypes[] = {DataType::kFloat, DataType::kHalf, DataType::kInt8, DataType::kBf16};
    FusedGatesVariant peephole, options;
    peephole.peephole = true;
    options.peephole = options.hardSigmoid = options.coupled = options.outputRelu = true;
    options.cellClip = 2.0F;
    int64_t const shapes[][3] = {{3, 64, 96}, {2, 40, 33}, {3, 13, 7}, {5, 256, 1}};
    int failed = 0;
    uint64_t seed = 1;
    for (FormsRow const& row : kSupported) {
        for (DataType const z : kTypes) {
            for (DataType const c : kTypes) {
                for (DataType const h : kTypes) {
                    if (!(row.zTypes & setOf(z)) || !(row.cTypes & setOf(c)) || !(row.hTypes & setOf(h))) {
                        continue;
                    }
                    for (FusedGatesVariant const& v : {FusedGatesVariant{}, peephole, options}) {
                        for (auto const& shape : shapes) {
                            Check const t{{{z, row.z}, {c, row.c}, {h, row.h}},
                                          v,
                                          static_cast<int32_t>(shape[0]),
                                          static_cast<int32_t>(shape[1]),
                                          shape[2],
                                          seed % 2 == 0,
                                          seed % 3 == 0};
                            if (seed % every != 0) {
                                ++seed;
                                continue;
                            }
                            double const off = check(t, seed++);
                            failed += !(off <= 1);
                            worst = std::max(worst, off);
                            ++checks;
                        }
                    }
                }
            }
        }
    }
    return failed;
}

// ---- Times

// Median seconds of one launch, of `repeats` replays of a graph of many: what the host needs to launch is not the kernel's
// time, and at one stream it is the longer of the two.
double seconds(std::function<void(cudaStream_t)> const& launch, int repeats) {
    constexpr int kFew = 10;
    constexpr double kReplay = 1e-3;
    cudaEvent_t begin, end;
    cudaStream_t stream;
    need(cudaEventCreate(&begin), "cudaEventCreate");
    need(cudaEventCreate(&end), "cudaEventCreate");
    need(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    auto const timed = [&](std::function<void()> const& run) {
        float milliseconds = 0;
        need(cudaEventRecord(begin, stream), "cudaEventRecord");
        run();
        need(cudaEventRecord(end, stream), "cudaEventRecord");
        need(cudaEventSynchronize(end), "timing");
        need(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
        return milliseconds * 1e-3;
    };
    auto const several = [&](int count) {
        for (int k = 0; k < count; ++k) {
            launch(stream);
        }
    };
    several(1);
    double const about = std::max(timed([&] { several(kFew); }) / kFew, 1e-6);
    int const batch = std::max(kFew, std::min(200, static_cast<int>(kReplay / about)));
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    need(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    several(batch);
    need(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
    need(cudaGraphInstantiateWithFlags(&replay, graph, 0), "cudaGraphInstantiate");
    std::vector<double> times;
    for (int r = -3; r < repeats; ++r) {
        double const took = timed([&] { need(cudaGraphLaunch(replay, stream), "cudaGraphLaunch"); });
        if (r >= 0) {
            times.push_back(took / batch);
        }
    }
    cudaGraphExecDestroy(replay);
    cudaGraphDestroy(graph);
    cudaStreamDestroy(stream);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

__global__ void copyKernel(uint4 const* from, uint4* to, size_t count) {
    size_t const k = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
    if (k < count) {
        to[k] = from[k];
    }
}

// Values of any 16-bit or 32-bit type between about -4 and 4.
__global__ void noise(uint32_t* words, size_t count, DataType type) {
    size_t const k = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
    if (k < count) {
        uint32_t hash = static_cast<uint32_t>(k) * 2654435761U;
        hash ^= hash >> 15;
        hash *= 2246822519U;
        hash ^= hash >> 13;
        float const values[2] = {static_cast<float>(hash & 0xFFFFU) * 0x1p-13F - 4.0F,
                                 static_cast<float>(hash >> 16) * 0x1p-13F - 4.0F};
        words[k] = type == DataType::kFloat  ? pack<DataType::kFloat>(values)
                   : type == DataType::kHalf ? pack<DataType::kHalf>(values)
                                             : pack<DataType::kBf16>(values);
    }
}

char* filled(size_t bytes, DataType type) {
    char* memory = nullptr;
    need(cudaMalloc(&memory, bytes + 16), "cudaMalloc");
    size_t const words = bytes / 4;
    noise<<<static_cast<uint32_t>((words + 255) / 256), 256>>>(reinterpret_cast<uint32_t*>(memory), words, type);
    need(cudaDeviceSynchronize(), "noise");
    return memory;
}

struct Timed {
    char const* name;
    FusedGatesForms forms;
    bool peephole;
    bool inPlace;
};

struct Copies {
    double memcpyRate;
    double kernelRate;
};

// Bytes a second, read and written, of copying `bytes` / 2 from one place to another.
Copies copies(size_t bytes, int repeats) {
    size_t const half = bytes / 2 / 16 * 16;
    char* const from = filled(half, DataType::kFloat);
    char* const to = filled(half, DataType::kFloat);
    auto const byMemcpy = [&](cudaStream_t stream) {
        need(cudaMemcpyAsync(to, from, half, cudaMemcpyDeviceToDevice, stream), "cudaMemcpyAsync");
    };
    auto const byKernel = [&](cudaStream_t stream) {
        size_t const count = half / 16;
        copyKernel<<<static_cast<uint32_t>((count + 255) / 256), 256, 0, stream>>>(
            reinterpret_cast<uint4 const*>(from), reinterpret_cast<uint4*>(to), count);
    };
    Copies const rates{2.0 * half / seconds(byMemcpy, repeats), 2.0 * half / seconds(byKernel, repeats)};
    cudaFree(from);
    cudaFree(to);
    return rates;
}

void timeOne(Timed const& t, int32_t streams, int repeats) {
    constexpr int32_t kChannels = 64;
    constexpr int64_t kSpatial = 64 * 64;
    size_t const zBytes = bytesOf(t.forms.z, streams, 4 * kChannels, kSpatial);
    size_t const cBytes = bytesOf(t.forms.c, streams, kChannels, kSpatial);
    size_t const hBytes = bytesOf(t.forms.h, streams, kChannels, kSpatial);
    size_t const pBytes = t.peephole ? bytesOf(t.forms.c, 1, kChannels, kSpatial) : 0;
    FusedGatesParams p;
    p.variant.peephole = t.peephole;
    p.forms = t.forms;
    p.hScale = 1.0F / 127.0F;
    p.streams = streams;
    p.channels = kChannels;
    p.spatial = kSpatial;
    char* const z = filled(zBytes, t.forms.z.type);
    char* const c = filled(cBytes, t.forms.c.type);
    char* const cOut = t.inPlace ? c : filled(cBytes, t.forms.c.type);
    char* const h = filled(hBytes, DataType::kFloat);
    char* const weights = filled(3 * pBytes + 4, t.forms.c.type);
    p.z = z, p.c = c, p.cOut = cOut, p.h = h;
    p.pI = {weights, true}, p.pF = {weights + pBytes, true}, p.pO = {weights + 2 * pBytes, true};
    double const time = seconds([&p](cudaStream_t stream) { need(fusedGates(p, stream), "fusedGates"); }, repeats);
    size_t const bytes = zBytes + 2 * cBytes + hBytes + 3 * pBytes;
    Copies const copy = copies(bytes, repeats);
    double const rate = bytes / time;
    std::printf(
        "{\"case\": \"%s\", \"streams\": %d, \"channels\": %d, \"spatial\": %lld, \"bytes\": %zu, \"seconds\": %.4g, "
        "\"gb_per_s\": %.1f, \"memcpy_gb_per_s\": %.1f, \"copy_kernel_gb_per_s\": %.1f, \"of_best_copy\": %.3f}\n",
        t.name, streams, kChannels, static_cast<long long>(kSpatial), bytes, time, rate * 1e-9,
        copy.memcpyRate * 1e-9, copy.kernelRate * 1e-9, rate / std::max(copy.memcpyRate, copy.kernelRate));
    std::fflush(stdout);
    for (char* const memory : {z, c, h, weights}) {
        cudaFree(memory);
    }
    if (!t.inPlace) {
        cudaFree(cOut);
    }
}

}  // namespace

int main(int argc, char** argv) {
    bool checks = true, times = true;
    int every = 1, repeats = 30;
    for (int k = 1; k < argc; ++k) {
        if (std::strcmp(argv[k], "--checks-only") == 0) {
            times = false;
        } else if (std::strcmp(argv[k], "--times-only") == 0) {
            checks = false;
        } else if (std::strcmp(argv[k], "--every") == 0 && k + 1 < argc && std::atoi(argv[k + 1]) > 0) {
            every = std::atoi(argv[++k]);
        } else if (std::strcmp(argv[k], "--repeats") == 0 && k + 1 < argc && std::atoi(argv[k + 1]) > 0) {
            repeats = std::atoi(argv[++k]);
        } else {
            std::printf("{\"error\": \"unknown argument %s\"}\n", argv[k]);
            return 2;
        }
    }
    cudaDeviceProp device;
    need(cudaGetDeviceProperties(&device, 0), "no usable GPU");
    int driver = 0, runtime = 0;
    need(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
    need(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
    std::printf("{\"device\": \"%s\", \"compute_capability\": \"%d.%d\", \"l2_bytes\": %d, \"driver\": %d, \"runtime\": %d}\n",
                device.name, device.major, device.minor, device.l2CacheSize, driver, runtime);

    std::fflush(stdout);
    int failed = 0;
    if (checks) {
        int made = 0;
        double worst = 0;
        failed = checkAll(every, made, worst);
        std::printf("{\"checks\": %d, \"checks_failed\": %d, \"worst_of_allowed\": %.3g}\n", made, failed,
                    std::min(worst, 1e9));
        std::fflush(stdout);
    }

    if (times) {
        constexpr TensorForm kFloat{DataType::kFloat, Layout::kLinear};
        constexpr TensorForm kHalf{DataType::kHalf, Layout::kLinear};
        constexpr TensorForm kBf16{DataType::kBf16, Layout::kLinear};
        constexpr TensorForm kHalf8{DataType::kHalf, Layout::kHwc8};
        constexpr TensorForm kFloat32{DataType::kFloat, Layout::kChw32};
        constexpr TensorForm kCodes32{DataType::kInt8, Layout::kChw32};
        Timed const cases[] = {
            {"fp32 linear", {kFloat, kFloat, kFloat}, false, false},
            {"fp32 linear, in place", {kFloat, kFloat, kFloat}, false, true},
            {"fp32 linear, peephole maps", {kFloat, kFloat, kFloat}, true, false},
            {"fp16 linear, c fp32", {kHalf, kFloat, kHalf}, false, false},
            {"fp16 linear, c fp16", {kHalf, kHalf, kHalf}, false, false},
            {"bf16 linear, c fp32", {kBf16, kFloat, kBf16}, false, false},
            {"fp16 hwc8, c fp32", {kHalf8, kFloat, kHalf8}, false, false},
            {"fp16 hwc8, c fp16", {kHalf8, kHalf, kHalf8}, false, false},
            {"fp16 hwc8, c fp32, peephole maps", {kHalf8, kFloat, kHalf8}, true, false},
            {"fp32 chw32, h int8 chw32", {kFloat32, kFloat, kCodes32}, false, false},
            {"fp16 hwc8, h int8 chw32", {kHalf8, kFloat, kCodes32}, false, false},
        };
        // One stream, eight, and enough that what is moved is eight times the L2.
        int64_t const perStream = int64_t{64} * 64 * 64 * 14;
        int32_t const many = static_cast<int32_t>(std::max<int64_t>(16, 8LL * device.l2CacheSize / perStream + 1));
        for (int32_t const streams : {1, 8, many}) {
            for (Timed const& t : cases) {
                timeOne(t, streams, repeats);
            }
        }
    }
    return failed == 0 ? 0 : 1;
}
