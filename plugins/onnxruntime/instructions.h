// Which sets of instructions the processor has and the system lets programs use. As __builtin_cpu_supports, which with some
// compilers' runtimes (Zig's) knows of none.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

namespace edgelstm {

struct Instructions {
  bool avx2 = false, avx2vnni = false;      // with FMA; and AVX-VNNI
  bool avx512 = false, avx512vnni = false;  // F, DQ, BW and VL; and VNNI
};

inline Instructions instructions() {
  Instructions found;
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
  bool fma = (c & bit_FMA) != 0;
  if ((c & bit_OSXSAVE) == 0 || !fma) return found;
  unsigned kept, upper;  // the registers that the system keeps for a program: 6 for 256 bits, e0 more for 512
  __asm__ volatile("xgetbv" : "=a"(kept), "=d"(upper) : "c"(0));
  if ((kept & 0x6) != 0x6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return found;
  constexpr unsigned k512 = bit_AVX512F | bit_AVX512DQ | bit_AVX512BW | bit_AVX512VL;
  found.avx2 = (b & bit_AVX2) != 0;
  found.avx512 = found.avx2 && (b & k512) == k512 && (kept & 0xe0) == 0xe0;
  found.avx512vnni = found.avx512 && (c & (1u << 11)) != 0;
  found.avx2vnni = found.avx2 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & (1u << 4)) != 0;
  return found;
}

}  // namespace edgelstm
#elif defined(__aarch64__)
#if defined(__linux__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace edgelstm {

struct Instructions {
  bool dot = false;  // of bytes
};

inline Instructions instructions() {
  Instructions found;
#if defined(__linux__)
  found.dot = (getauxval(AT_HWCAP) & (1ul << 20)) != 0;
#elif defined(__APPLE__)
  int there = 0;
  size_t size = sizeof there;
  found.dot = sysctlbyname("hw.optional.arm.FEAT_DotProd", &there, &size, nullptr, 0) == 0 && there != 0;
#endif
  return found;
}

}  // namespace edgelstm
#endif
