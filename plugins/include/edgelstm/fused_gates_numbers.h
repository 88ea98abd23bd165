// Element types, memory accesses and the two approximations of the hardware, for the host and the device alike.
//
// Everything above this file is the same code on both sides. What differs is here and small: conversions (instructions
// on the device, bit arithmetic on the host; both round to nearest even), wide accesses, and 2^x and 1/x.
#pragma once

#include "edgelstm/fused_gates_params.h"

#if defined(__CUDACC__)
#define EDGELSTM_HD __host__ __device__ __forceinline__
#else
#define EDGELSTM_HD inline
#endif

#if defined(__CUDA_ARCH__)
#define EDGELSTM_UNROLL _Pragma("unroll")
#else
#define EDGELSTM_UNROLL
#endif

// A test may watch each access of the host loop: its address, its bytes, and whether it writes.
#ifndef EDGELSTM_ON_ACCESS
#define EDGELSTM_ON_ACCESS(address, bytes, write) ((void)0)
#endif
// A test may move the host's 2^x and 1/x by as many ulp as the hardware's may be off.
#ifndef EDGELSTM_APPROXIMATELY
#define EDGELSTM_APPROXIMATELY(value, ulps) (value)
#endif

namespace edgelstm {

EDGELSTM_HD uint32_t bitsOf(float x) {
#if defined(__CUDA_ARCH__)
    return __float_as_uint(x);
#else
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
#endif
}

EDGELSTM_HD float floatOf(uint32_t bits) {
#if defined(__CUDA_ARCH__)
    return __uint_as_float(bits);
#else
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
#endif
}

// The instructions flush subnormal results to zero, and so does the host.
#if !defined(__CUDACC_RTC__)
inline float flushed(float x) { return std::fabs(x) < 0x1p-126F ? std::copysign(0.0F, x) : x; }
#endif

// 2^x, at most 2 ulp from the correctly rounded result (PTX ISA, ex2.approx).
EDGELSTM_HD float exp2Approx(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return flushed(EDGELSTM_APPROXIMATELY(std::exp2(x), 2));
#endif
}

// 1/x, at most 1 ulp from the correctly rounded result (PTX ISA, rcp.approx).
EDGELSTM_HD float reciprocalApprox(float x) {
#if defined(__CUDA_ARCH__)
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return flushed(EDGELSTM_APPROXIMATELY(1.0F / x, 1));
#endif
}

// x within [-limit, limit]; NaN stays NaN, as numpy.clip has it.
EDGELSTM_HD float clamped(float x, float limit) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    float y;
    asm("{ .reg .f32 low; neg.f32 low, %2; min.NaN.f32 %0, %1, %2; max.NaN.f32 %0, %0, low; }"
        : "=&f"(y)
        : "f"(x), "f"(limit));
    return y;
#else
    float const high = x > limit ? limit : x;
    return high < -limit ? -limit : high;
#endif
}

#if !defined(__CUDACC_RTC__)
inline float halfToFloat(uint16_t half) {
    uint32_t const sign = (half & 0x8000U) << 16;
    uint32_t const exponent = (half >> 10) & 31U;
    uint32_t const mantissa = half & 1023U;
    if (exponent == 0) {
        return floatOf(sign | bitsOf(static_cast<float>(mantissa) * 0x1p-24F));
    }
    return floatOf(sign | (exponent == 31 ? 0x7F800000U : (exponent + 112) << 23) | (mantissa << 13));
}

inline uint16_t floatToHalf(float x) {
    uint32_t const sign = (bitsOf(x) >> 16) & 0x8000U;
    uint32_t bits = bitsOf(x) & 0x7FFFFFFFU;
    if (bits > 0x7F800000U) {
        return static_cast<uint16_t>(sign | 0x7FFFU);
    }
    if (bits >= bitsOf(65520.0F)) {
        return static_cast<uint16_t>(sign | 0x7C00U);
    }
    if (bits < bitsOf(0x1p-14F)) {
        // Adding 0.5, whose last bit is worth 2^-24, rounds to what a subnormal half can hold.
        return static_cast<uint16_t>(sign | (bitsOf(floatOf(bits) + 0.5F) - bitsOf(0.5F)));
    }
    bits += 0xFFFU + ((bits >> 13) & 1U);
    return static_cast<uint16_t>(sign | ((bits - (112U << 23)) >> 13));
}
#endif

EDGELSTM_HD uint16_t floatToBf16(float x) {
    uint32_t const bits = bitsOf(x);
    if ((bits & 0x7FFFFFFFU) > 0x7F800000U) {
        return 0x7FFFU;
    }
    return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

EDGELSTM_HD constexpr int32_t sizeOf(DataType type) {
    return type == DataType::kFloat ? 4 : type == DataType::kInt8 ? 1 : 2;
}

// Moves kBytes (1, 2, 4, 8 or a multiple of 16) between memory and words, in accesses of up to 16 bytes. The address
// is a multiple of the width of its accesses.
template <int kBytes>
EDGELSTM_HD void readBytes(void const* from, uint32_t* words) {
#if defined(__CUDA_ARCH__)
    if constexpr (kBytes >= 16) {
EDGELSTM_UNROLL
        for (int i = 0; i < kBytes / 16; ++i) {
            uint4 const wide = static_cast<uint4 const*>(from)[i];
            words[4 * i] = wide.x, words[4 * i + 1] = wide.y, words[4 * i + 2] = wide.z, words[4 * i + 3] = wide.w;
        }
    } else if constexpr (kBytes == 8) {
        uint2 const wide = *static_cast<uint2 const*>(from);
        words[0] = wide.x, words[1] = wide.y;
    } else if constexpr (kBytes == 4) {
        words[0] = *static_cast<uint32_t const*>(from);
    } else if constexpr (kBytes == 2) {
        words[0] = *static_cast<uint16_t const*>(from);
    } else {
        words[0] = *static_cast<uint8_t const*>(from);
    }
#else
    words[0] = 0;
    for (int i = 0; i < kBytes; i += 16) {
        EDGELSTM_ON_ACCESS(static_cast<char const*>(from) + i, kBytes < 16 ? kBytes : 16, false);
    }
    std::memcpy(words, from, kBytes);
#endif
}

template <int kBytes>
EDGELSTM_HD void writeBytes(void* to, uint32_t const* words) {
#if defined(__CUDA_ARCH__)
    if constexpr (kBytes >= 16) {
EDGELSTM_UNROLL
        for (int i = 0; i < kBytes / 16; ++i) {
            static_cast<uint4*>(to)[i] =
                make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
        }
    } else if constexpr (kBytes == 8) {
        *static_cast<uint2*>(to) = make_uint2(words[0], words[1]);
    } else if constexpr (kBytes == 4) {
        *static_cast<uint32_t*>(to) = words[0];
    } else if constexpr (kBytes == 2) {
        *static_cast<uint16_t*>(to) = static_cast<uint16_t>(words[0]);
    } else {
        *static_cast<uint8_t*>(to) = static_cast<uint8_t>(words[0]);
    }
#else
    for (int i = 0; i < kBytes; i += 16) {
        EDGELSTM_ON_ACCESS(static_cast<char*>(to) + i, kBytes < 16 ? kBytes : 16, true);
    }
    std::memcpy(to, words, kBytes);
#endif
}

// The values of one word: one float, two halves or bf16, or four codes; the first is in the low bits.
template <DataType kType>
EDGELSTM_HD void unpack(uint32_t word, float* values) {
    if constexpr (kType == DataType::kFloat) {
        values[0] = floatOf(word);
    } else if constexpr (kType == DataType::kBf16) {
        values[0] = floatOf(word << 16);
        values[1] = floatOf(word & 0xFFFF0000U);
    } else if constexpr (kType == DataType::kHalf) {
#if defined(__CUDA_ARCH__)
        asm("{ .reg .b16 low, high; mov.b32 {low, high}, %2; cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
            : "=f"(values[0]), "=f"(values[1])
            : "r"(word));
#else
        values[0] = halfToFloat(static_cast<uint16_t>(word & 0xFFFFU));
        values[1] = halfToFloat(static_cast<uint16_t>(word >> 16));
#endif
    } else {
EDGELSTM_UNROLL
        for (int i = 0; i < 4; ++i) {
            values[i] = static_cast<float>(static_cast<int8_t>((word >> (8 * i)) & 0xFFU));
        }
    }
}

// As unpack, backwards. int8 takes whole numbers from -128 to 127.
template <DataType kType>
EDGELSTM_HD uint32_t pack(float const* values) {
    if constexpr (kType == DataType::kFloat) {
        return bitsOf(values[0]);
    } else if constexpr (kType == DataType::kInt8) {
        uint32_t word = 0;
EDGELSTM_UNROLL
        for (int i = 0; i < 4; ++i) {
            word |= (static_cast<uint32_t>(static_cast<int32_t>(values[i])) & 0xFFU) << (8 * i);
        }
        return word;
    } else if constexpr (kType == DataType::kHalf) {
#if defined(__CUDA_ARCH__)
        uint32_t word;
#if __CUDA_ARCH__ >= 800
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(values[1]), "f"(values[0]));
#else
        asm("{ .reg .b16 low, high; cvt.rn.f16.f32 low, %1; cvt.rn.f16.f32 high, %2; mov.b32 %0, {low, high}; }"
            : "=r"(word)
            : "f"(values[0]), "f"(values[1]));
#endif
        return word;
#else
        return floatToHalf(values[0]) | static_cast<uint32_t>(floatToHalf(values[1])) << 16;
#endif
    } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
        uint32_t word;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(values[1]), "f"(values[0]));
        return word;
#else
        return floatToBf16(values[0]) | static_cast<uint32_t>(floatToBf16(values[1])) << 16;
#endif
    }
}

// The smallest magnitude that a type stores as infinity, or infinity itself: |x| < limit is what stays finite.
#if !defined(__CUDACC_RTC__)
inline float overflowOf(DataType type) {
    return type == DataType::kHalf ? 65520.0F : type == DataType::kBf16 ? 0x1.FFp127F : INFINITY;
}
#endif

}  // namespace edgelstm
