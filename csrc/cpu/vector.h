// A vector of FASTNETS_VECTOR_BYTES in the compiler's own vector type, and what it lacks: loads and stores that convert
// from and to the storage types, selection, exp. Included once for each instruction set (isa.h): no guard.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../tensor.h"

#define FASTNETS_INLINE inline __attribute__((always_inline))

namespace fastnets::FASTNETS_ISA {

// L numbers of type A. Kernels work on kLanes<A> of them, or on one where there are fewer channels than that.
template <typename A, int L>
struct VectorOf {
  typedef A type __attribute__((vector_size(L * sizeof(A))));
};
template <typename A, int L>
using Vec = typename VectorOf<A, L>::type;

template <typename A>
inline constexpr int kLanes = FASTNETS_VECTOR_BYTES / sizeof(A);

template <typename A, int L>
FASTNETS_INLINE Vec<A, L> splat(A value) {
  return value - Vec<A, L>{};  // x - 0 is x, also for -0: one broadcast
}

template <typename To, typename From>
FASTNETS_INLINE To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Integers of 16 bits as such of 32, and back, without the shuffles that GCC writes for a conversion of vectors.
template <int L>
FASTNETS_INLINE Vec<uint32_t, L> widen(const void* p) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (L == 16)
    return bits<Vec<uint32_t, L>>(
        _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(static_cast<const __m256i*>(p))));
#elif FASTNETS_VECTOR_BYTES == 32
  if constexpr (L == 8)
    return bits<Vec<uint32_t, L>>(_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p))));
#endif
  Vec<uint16_t, L> v;
  std::memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Vec<uint32_t, L>);
}

template <int L>
FASTNETS_INLINE Vec<uint16_t, L> narrow(Vec<uint32_t, L> v) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (L == 16) return bits<Vec<uint16_t, L>>(_mm512_maskz_cvtepi32_epi16(0xffff, bits<__m512i>(v)));
#elif FASTNETS_VECTOR_BYTES == 32
  if constexpr (L == 8)
    return bits<Vec<uint16_t, L>>(
        _mm_packus_epi32(_mm256_castsi256_si128(bits<__m256i>(v)), _mm256_extracti128_si256(bits<__m256i>(v), 1)));
#endif
  return __builtin_convertvector(v, Vec<uint16_t, L>);
}

template <typename T, int L>
FASTNETS_INLINE Vec<Sum<T>, L> load(const T* p) {
  if constexpr (std::is_same_v<T, Sum<T>>) {
    Vec<T, L> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  } else if constexpr (std::is_same_v<T, BFloat16> && L > 1) {
    return bits<Vec<float, L>>(widen<L>(p) << 16);
#if FASTNETS_VECTOR_BYTES == 64
  } else if constexpr (L == 16) {
    return bits<Vec<float, L>>(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#endif
#if FASTNETS_VECTOR_BYTES >= 32
  } else if constexpr (L == 8) {
    return bits<Vec<float, L>>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#endif
  } else {
    Vec<float, L> v;
    for (int i = 0; i < L; ++i) v[i] = static_cast<float>(p[i]);
    return v;
  }
}

template <typename T, int L>
FASTNETS_INLINE void store(T* p, Vec<Sum<T>, L> v) {
  if constexpr (std::is_same_v<T, Sum<T>>) {
    std::memcpy(p, &v, sizeof v);
#if defined(FASTNETS_BF16)
  } else if constexpr (std::is_same_v<T, BFloat16> && L == 16) {
    const __m256bh rounded = _mm512_cvtneps_pbh(bits<__m512>(v));  // the same, but for numbers below 2^-126: zeros
    std::memcpy(p, &rounded, sizeof rounded);
#endif
  } else if constexpr (std::is_same_v<T, BFloat16> && L > 1) {
    // Round to nearest even: add half a unit in the last place, less one bit if the kept part is even. NaN stays NaN.
    const auto u = bits<Vec<uint32_t, L>>(v);
    const auto rounded = (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;
    const auto nan = (v != v);
    const auto r = (bits<Vec<uint32_t, L>>(nan) & 0x7FC0u) | (~bits<Vec<uint32_t, L>>(nan) & rounded);
    const auto halves = narrow<L>(r);
    std::memcpy(p, &halves, sizeof halves);
#if FASTNETS_VECTOR_BYTES == 64
  } else if constexpr (L == 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_maskz_cvtps_ph(0xffff, bits<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#endif
#if FASTNETS_VECTOR_BYTES >= 32
  } else if constexpr (L == 8) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(bits<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#endif
  } else {
    for (int i = 0; i < L; ++i) p[i] = static_cast<T>(v[i]);
  }
}

#if defined(FASTNETS_BF16)
// sum + x * w, where each lane of x and w is the bits of two bfloat16, whose products are added up.
template <typename V>
FASTNETS_INLINE Vec<float, 16> multiply_pairs(Vec<float, 16> sum, V x, V w) {
  return bits<Vec<float, 16>>(_mm512_dpbf16_ps(bits<__m512>(sum), bits<__m512bh>(x), bits<__m512bh>(w)));
}
#endif

// The lowest lanes, a bit for each.
constexpr uint32_t first_lanes(int64_t count) { return (1u << count) - 1; }

#if FASTNETS_VECTOR_BYTES == 32
FASTNETS_INLINE __m256i mask_of(uint32_t lanes) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(lanes)), bit), bit);
}
#endif

// One by one, for what the instruction set has no masks for.
template <typename T, int L>
__attribute__((noinline)) void load_some(const T* p, uint32_t lanes, Sum<T>* to) {
  for (int i = 0; i < L; ++i) to[i] = lanes >> i & 1 ? static_cast<Sum<T>>(p[i]) : Sum<T>(0);
}

template <typename T, int L>
__attribute__((noinline)) void store_some(T* p, const Sum<T>* from, uint32_t lanes) {
  for (int i = 0; i < L; ++i)
    if (lanes >> i & 1) p[i] = static_cast<T>(from[i]);
}

// The lanes of `lanes`, a bit for each; the others are zero, and their memory is not touched.
template <typename T, int L>
FASTNETS_INLINE Vec<Sum<T>, L> load_lanes(const T* p, uint32_t lanes) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float> && L == 16) return bits<Vec<float, L>>(_mm512_maskz_loadu_ps(lanes, p));
  if constexpr (std::is_same_v<T, float> && L == 8) return bits<Vec<float, L>>(_mm256_maskz_loadu_ps(lanes, p));
  if constexpr (sizeof(T) == 2 && L == 16) {
    const __m256i v = _mm256_maskz_loadu_epi16(lanes, p);
    return load<T, L>(reinterpret_cast<const T*>(&v));
  }
  if constexpr (sizeof(T) == 2 && L == 8) {
    const __m128i v = _mm_maskz_loadu_epi16(lanes, p);
    return load<T, L>(reinterpret_cast<const T*>(&v));
  }
#elif FASTNETS_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<T, float> && L == 8) return bits<Vec<float, L>>(_mm256_maskload_ps(p, mask_of(lanes)));
#endif
  if (lanes == first_lanes(L)) return load<T, L>(p);
  Sum<T> some[L];
  load_some<T, L>(p, lanes, some);
  return load<Sum<T>, L>(some);
}

template <typename T, int L>
FASTNETS_INLINE void store_lanes(T* p, Vec<Sum<T>, L> v, uint32_t lanes) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float> && L == 16) return _mm512_mask_storeu_ps(p, lanes, bits<__m512>(v));
  if constexpr (std::is_same_v<T, float> && L == 8) return _mm256_mask_storeu_ps(p, lanes, bits<__m256>(v));
  if constexpr (sizeof(T) == 2 && L == 16) {
    __m256i halves;
    store<T, L>(reinterpret_cast<T*>(&halves), v);
    return _mm256_mask_storeu_epi16(p, lanes, halves);
  }
  if constexpr (sizeof(T) == 2 && L == 8) {
    __m128i halves;
    store<T, L>(reinterpret_cast<T*>(&halves), v);
    return _mm_mask_storeu_epi16(p, lanes, halves);
  }
#elif FASTNETS_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<T, float> && L == 8) return _mm256_maskstore_ps(p, mask_of(lanes), bits<__m256>(v));
#endif
  if (lanes == first_lanes(L)) return store<T, L>(p, v);
  Sum<T> all[L];
  store<Sum<T>, L>(all, v);
  store_some<T, L>(p, all, lanes);
}

// The first `count` of L numbers; the other lanes are zero.
template <typename T, int L>
FASTNETS_INLINE Vec<Sum<T>, L> load_first(const T* p, int64_t count) {
  return count >= L ? load<T, L>(p) : load_lanes<T, L>(p, first_lanes(count));
}

template <typename T, int L>
FASTNETS_INLINE void store_first(T* p, Vec<Sum<T>, L> v, int64_t count) {
  count >= L ? store<T, L>(p, v) : store_lanes<T, L>(p, v, first_lanes(count));
}

// Whether any lane of a comparison holds.
template <typename M>
FASTNETS_INLINE bool any(const M& mask) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (sizeof mask == 64) return _mm512_test_epi32_mask(bits<__m512i>(mask), bits<__m512i>(mask)) != 0;
#elif FASTNETS_VECTOR_BYTES == 32
  if constexpr (sizeof mask == 32) return !_mm256_testz_si256(bits<__m256i>(mask), bits<__m256i>(mask));
#endif
  uint64_t words[sizeof mask / sizeof(uint64_t)], all = 0;
  std::memcpy(words, &mask, sizeof mask);
  for (const uint64_t word : words) all |= word;
  return all != 0;
}

// A bit for each lane of a comparison.
template <typename M>
FASTNETS_INLINE unsigned lane_bits(const M& mask) {
  [[maybe_unused]] constexpr bool kFloats = sizeof mask[0] == sizeof(float);
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (sizeof mask == 64)
    return kFloats ? _mm512_movepi32_mask(bits<__m512i>(mask)) : _mm512_movepi64_mask(bits<__m512i>(mask));
#elif FASTNETS_VECTOR_BYTES == 32
  if constexpr (sizeof mask == 32)
    return kFloats ? _mm256_movemask_ps(bits<__m256>(mask)) : _mm256_movemask_pd(bits<__m256d>(mask));
#endif
  unsigned lanes = 0;
  for (unsigned i = 0; i < sizeof mask / sizeof mask[0]; ++i) lanes |= static_cast<unsigned>(mask[i] & 1) << i;
  return lanes;
}

// Keeps a vector in its register. Without it the compiler reads a value once from memory for each use of it, which
// binds these kernels to the load ports.
template <typename V>
FASTNETS_INLINE void hold([[maybe_unused]] V& v) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (sizeof v == 64) asm("" : "+v"(v));
#endif
}

// The same for lanes as bits.
FASTNETS_INLINE void hold([[maybe_unused]] uint32_t& lanes) {
#if FASTNETS_VECTOR_BYTES == 64
  asm("" : "+Yk"(lanes));
#endif
}

// The same for an address, which what follows is counted from.
template <typename T>
FASTNETS_INLINE void hold(T*& p) {
  asm("" : "+r"(p));
}

// The i-th address from `at` on, asked for one after the other: each fourth one is where the next are counted from, or
// the compiler would keep a register for the distance of each.
template <typename T>
FASTNETS_INLINE T* walk(T*& at, int i, int64_t step) {
  if (i > 0 && i % 4 == 0) {
    at += 4 * step;
    hold(at);
  }
  return at + i % 4 * step;
}

// Whether W vectors that lie together are whole cache lines, which `stream` can write.
template <typename T, int L, int W = 1>
constexpr bool are_lines = FASTNETS_VECTOR_BYTES >= 32 && std::is_same_v<T, Sum<T>> &&
                           L * sizeof(T) == FASTNETS_VECTOR_BYTES && W * L * sizeof(T) % 64 == 0;

// Whether `stream` may be used from p on, for W vectors that are written one after the other.
template <typename T, int L, int W = 1>
FASTNETS_INLINE bool can_stream(const T* p, int64_t step) {
  return are_lines<T, L, W> && reinterpret_cast<uintptr_t>(p) % 64 == 0 && step * sizeof(T) % 64 == 0;
}

// A store past the caches: the line is not read first. For results too large to be found there by whoever reads them.
template <typename T, int L>
FASTNETS_INLINE void stream(T* p, Vec<Sum<T>, L> v) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (sizeof v == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bits<__m512i>(v));
#elif FASTNETS_VECTOR_BYTES == 32
  if constexpr (sizeof v == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bits<__m256i>(v));
#endif
  store<T, L>(p, v);
}

// Makes streamed stores visible to other threads.
FASTNETS_INLINE void finish_streams() {
#if FASTNETS_VECTOR_BYTES >= 32
  _mm_sfence();
#endif
}

// L numbers that lie `step` apart: a load or store for channel multipliers and strided columns.
template <typename T, int L>
FASTNETS_INLINE Vec<Sum<T>, L> load_strided(const T* p, int64_t step) {
  if (step == 1) return load<T, L>(p);
  Vec<Sum<T>, L> v;
  for (int i = 0; i < L; ++i) v[i] = static_cast<Sum<T>>(p[i * step]);
  return v;
}

template <typename T, int L>
FASTNETS_INLINE void store_strided(T* p, Vec<Sum<T>, L> v, int64_t step) {
  if (step == 1) return store<T, L>(p, v);
  for (int i = 0; i < L; ++i) p[i * step] = static_cast<T>(v[i]);
}

// Halves are added until one number is left.
template <typename A, int L>
FASTNETS_INLINE A sum(Vec<A, L> v) {
  if constexpr (L == 1) {
    return v[0];
  } else {
    struct Halves {
      Vec<A, L / 2> low, high;
    };
    const auto halves = bits<Halves>(v);
    return sum<A, L / 2>(halves.low + halves.high);
  }
}

// low, or high, where z is beyond. NaN fails the comparisons and passes through, as in PyTorch: an instruction that
// does so is not what compilers make of these.
template <typename A, int L>
FASTNETS_INLINE Vec<A, L> clamp(Vec<A, L> z, A low, A high) {
  const Vec<A, L> lo = splat<A, L>(low), hi = splat<A, L>(high);
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<A, float> && L == 16)
    return bits<Vec<A, L>>(_mm512_min_ps(bits<__m512>(hi), _mm512_max_ps(bits<__m512>(lo), bits<__m512>(z))));
#elif FASTNETS_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<A, float> && L == 8)
    return bits<Vec<A, L>>(_mm256_min_ps(bits<__m256>(hi), _mm256_max_ps(bits<__m256>(lo), bits<__m256>(z))));
#endif
  z = lo > z ? lo : z;
  return hi < z ? hi : z;
}

// p * 2^k for whole k from -126 to 128 and p about 1, or infinity where that is too large; NaN if one is.
template <int L>
FASTNETS_INLINE Vec<float, L> scale_by_power(Vec<float, L> p, Vec<float, L> k) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (L == 16) return bits<Vec<float, L>>(_mm512_scalef_ps(bits<__m512>(p), bits<__m512>(k)));
#endif
  const auto exponent = (__builtin_convertvector(k, Vec<int32_t, L>) + 126) << 23;  // 2^(k - 1): k may be 128
  return p * bits<Vec<float, L>>(exponent) * 2.0f;
}

// exp in float to 1.5 units in the last place: 2^k * e^r with k = round(x / ln 2), |r| <= ln 2 / 2, e^r by its series
// with coefficients fitted to that interval; of x below -87.3 that of -87.3, which is about the least normal number;
// from 89 on infinity. double through the C library.
template <typename A, int L>
FASTNETS_INLINE Vec<A, L> exponential(Vec<A, L> x) {
  if constexpr (std::is_same_v<A, double> || L == 1) {
    Vec<A, L> y;
    for (int i = 0; i < L; ++i) y[i] = std::exp(x[i]);
    return y;
  } else {
    const Vec<float, L> z = clamp<float, L>(x, -87.3f, 89.0f);
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Vec<float, L> k = (z * 1.44269504f + magic) - magic;
    const Vec<float, L> r = (z - k * 0.693359375f) - k * -2.12194440e-4f;  // ln 2 in two parts
    Vec<float, L> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r + 1.0f;
    return scale_by_power<L>(p * r + 1.0f, k);
  }
}

}  // namespace fastnets::FASTNETS_ISA
