// The gates by themselves, and the codes that a new h is stored as. Part of kernels.cpp, inside its namespace, compiled once for each
// set of instructions.

// The lowest bytes of L integers that fit into one, into memory.
template <class Code>
INLINE void store_codes(Code* p, vi codes) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)codes));
#elif defined(__SSE2__)
#if defined(__AVX2__)
  __m256i all = (__m256i)codes;
  __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
#else
  __m128i pairs = _mm_packs_epi32((__m128i)codes, (__m128i)codes);
#endif
  __m128i bytes = sizeof(Code) == 1 && Code(-1) > 0 ? _mm_packus_epi16(pairs, pairs) : _mm_packs_epi16(pairs, pairs);
  memcpy(p, &bytes, L);
#else
  typedef Code vc __attribute__((vector_size(LANES)));
  vc bytes = __builtin_convertvector(codes, vc);
  memcpy(p, &bytes, L);
#endif
}

// One of a constant's values, or L of those that lie side by side.
INLINE vf values_at(const float* values, const Steps& steps, int64_t channel, int64_t place, int64_t count) {
  const float* from = values + channel * steps.channel;
  return steps.place ? load(from + place, count) : splat(*from);
}

template <class Code>
INLINE void store_codes(Code* to, vi codes, int64_t count) {
  if (count >= L) {
    store_codes(to, codes);
  } else {
    Code some[L];
    store_codes(some, codes);
    memcpy(to, some, count);
  }
}

// As ONNX's QuantizeLinear: rounded to the nearest, halves to even, clipped to what the codes reach; NaN, as ONNX Runtime has it,
// becomes the least code.
template <class Code>
INLINE vi codes_of(vf x, vf scale, vf zero) {
  constexpr float least = Code(-1) > 0 ? 0 : -128, most = least + 255;
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  vf low = least - zero, high = most - zero;
  x = x / scale;
  x = x > low ? x : low;
  x = x < high ? x : high;
  return (vi)((x + magic) + zero) - (vi)splat(magic);
}

// Keeps the compiler from making one multiply-add, which rounds once, of a product that is rounded and what is added to it.
INLINE void rounded(vf* x) {
#if defined(__SSE2__)
  asm("" : "+x"(*x));
#elif defined(__aarch64__)
  asm("" : "+w"(*x));
#else
  asm("" : "+m"(*x));
#endif
}

template <class Code>
INLINE void quantise(const GatesStep& s, vf x, int64_t channel, int64_t place, int64_t at, int64_t count) {
  if (s.h_factor != nullptr) x = x * values_at(s.h_factor, s.factor_steps, channel, place, count);
  vf scale = values_at(s.h_scale, s.code_steps, channel, place, count), zero = values_at(s.h_zero, s.code_steps, channel, place, count);
  store_codes(static_cast<Code*>(s.codes_out) + at, codes_of<Code>(x, scale, zero), count);
}

// Places in a stretch of a map, of which c, h and codes are made one after the other: each is a chain of instructions that wait for one
// another, and a processor sees far enough ahead to go through several places at once only where the chain is short.
constexpr int64_t kStretch = 512;

template <class Work>
INLINE void each_vector(int64_t count, const Work& work) {
  int64_t k = 0;
  for (; k + L <= count; k += L) work(k, L);
  if (k < count) work(k, count - k);
}

template <class Z>
INLINE void gates_of(const GatesStep& s, const Z* all, int64_t first, int64_t last) {
  const Variant v = s.variant;
  const int64_t count = v.gates(), size = s.size, plane = s.channels * size;
  const float* p[3] = {s.p_i, s.p_f, s.p_o};
  const bool peephole = p[0] != nullptr;
  float stretch[kStretch + L];
  for (int64_t map = first; map < last; map++) {
    const int64_t row = map / s.channels, channel = map % s.channels;
    for (int64_t start = 0; start < size; start += kStretch) {
      const int64_t length = size - start < kStretch ? size - start : kStretch, at = map * size + start;
      const Z* z = all + (row * count * s.channels + channel) * size + start;
      auto part = [&](int64_t g, int64_t k, int64_t left) __attribute__((always_inline)) {
        if constexpr (sizeof(Z) == 1) {
          return (decode(z + g * plane + k, left) - s.zero[g]) * s.scale[g];
        } else {
          return load(z + g * plane + k, left);
        }
      };
      auto seen = [&](int j, int64_t k, int64_t left) __attribute__((always_inline)) {
        return p[j] != nullptr ? values_at(p[j], s.p_steps[j], channel, start + k, left) : vf{};
      };
      const float* c = s.c + at;
      float *c_out = s.c_out + at, *h = s.h_out != nullptr ? s.h_out + at : stretch;
      each_vector(length, [&](int64_t k, int64_t left) __attribute__((always_inline)) {
        vf parts[3];
        for (int64_t g = 0; g < count - 1; g++) parts[g] = part(g, k, left);
        store(c_out + k, next_cell(v, parts, load(c + k, left), peephole, seen(0, k, left), seen(1, k, left)), left);
      });
      each_vector(length, [&](int64_t k, int64_t left) __attribute__((always_inline)) {
        store(h + k, shown(v, part(count - 1, k, left), load(c_out + k, left), peephole, seen(2, k, left)), left);
      });
      if (s.made == Codes::kNone) continue;
      each_vector(length, [&](int64_t k, int64_t left) __attribute__((always_inline)) {
        if (s.made == Codes::kUint8) {
          quantise<uint8_t>(s, load(h + k, left), channel, start + k, at + k, left);
        } else {
          quantise<int8_t>(s, load(h + k, left), channel, start + k, at + k, left);
        }
      });
    }
  }
}

void gates(const GatesStep& s, int64_t first, int64_t last) {
  if (s.codes == Codes::kInt8) {
    gates_of(s, static_cast<const int8_t*>(s.z), first, last);
  } else if (s.codes == Codes::kUint8) {
    gates_of(s, static_cast<const uint8_t*>(s.z), first, last);
  } else {
    gates_of(s, static_cast<const float*>(s.z), first, last);
  }
}

template <class Code>
INLINE void two_codes_of(const TwoCodesStep& s, int64_t first, int64_t last) {
  const vf zero = splat(s.zero);
  for (int64_t map = first; map < last; map++) {
    const int64_t channel = map % s.channels;
    each_vector(s.size, [&](int64_t k, int64_t left) __attribute__((always_inline)) {
      int64_t at = map * s.size + k;
      vf x = load(s.x + at, left), factor = s.factor != nullptr ? values_at(s.factor, s.factor_steps, channel, k, left) : splat(1);
      vi codes = codes_of<Code>(x * factor, splat(s.scale), zero);
      store_codes(static_cast<Code*>(s.codes) + at, codes, left);
      vf worth = (__builtin_convertvector(codes, vf) - zero) * s.worth;
      if (s.worth_factor != nullptr) worth = worth * values_at(s.worth_factor, s.worth_steps, channel, k, left);
      rounded(&worth);
      store_codes(static_cast<Code*>(s.rest) + at, codes_of<Code>((x - worth) * factor, splat(s.rest_scale), zero), left);
    });
  }
}

void two_codes(const TwoCodesStep& s, int64_t first, int64_t last) {
  if (s.made == Codes::kUint8) {
    two_codes_of<uint8_t>(s, first, last);
  } else {
    two_codes_of<int8_t>(s, first, last);
  }
}
