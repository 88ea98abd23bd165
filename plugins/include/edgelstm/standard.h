// What the headers use of the standard library. NVRTC compiles without one, and without CUDA's headers.
#pragma once

#if defined(__CUDACC_RTC__)

using int8_t = signed char;
using uint8_t = unsigned char;
using int16_t = short;
using uint16_t = unsigned short;
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long;  // 64 bits where CUDA's drivers for Linux run
using uint64_t = unsigned long;
using uintptr_t = unsigned long;
static_assert(sizeof(int64_t) == 8 && sizeof(void*) == 8, "a 64-bit Linux");

#else

#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>

#endif

// A kernel's parameter that stays where the launch put it, in constant memory; CUDA before 11.7 cannot be told so.
#if defined(__CUDACC_VER_MAJOR__) && __CUDACC_VER_MAJOR__ * 100 + __CUDACC_VER_MINOR__ >= 1107
#define EDGELSTM_GRID_CONSTANT __grid_constant__
#else
#define EDGELSTM_GRID_CONSTANT
#endif
