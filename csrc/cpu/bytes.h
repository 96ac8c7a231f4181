// Numbers as bytes, and sums of products of bytes: unsigned ones, the activations of a pixel, with signed ones, weights
// of as many output channels as a vector has lanes. Included by isa.h, before the others: no guard.

namespace fastnets::FASTNETS_ISA {

constexpr int kWords = kLanes<int32_t>;
using Words = Vec<int32_t, kWords>;
using Bytes = Vec<int8_t, 4 * kWords>;

FASTNETS_INLINE Words words(const int32_t* from) {
  Words v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

FASTNETS_INLINE void put(Words v, int32_t* to) { std::memcpy(to, &v, sizeof v); }

#if !defined(FASTNETS_VNNI)

// Pairs of 16-bit products, added.
FASTNETS_INLINE Words multiply_add(Words a, Words b) {
#if FASTNETS_VECTOR_BYTES == 64
  return bits<Words>(_mm512_madd_epi16(bits<__m512i>(a), bits<__m512i>(b)));
#elif FASTNETS_VECTOR_BYTES == 32
  return bits<Words>(_mm256_madd_epi16(bits<__m256i>(a), bits<__m256i>(b)));
#elif defined(__SSE2__)
  return bits<Words>(_mm_madd_epi16(bits<__m128i>(a), bits<__m128i>(b)));
#else
  return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

#endif

// sum + four products in each lane: the four activations with the lane's four weights.
FASTNETS_INLINE Words dot(Words sum, Words activations, Bytes weights) {
#if defined(FASTNETS_VNNI)
  return bits<Words>(_mm512_dpbusd_epi32(bits<__m512i>(sum), bits<__m512i>(activations), bits<__m512i>(weights)));
#else
  using Halves = Vec<int16_t, 2 * kWords>;
  const Halves a = bits<Halves>(activations), w = bits<Halves>(weights);
  sum += multiply_add(bits<Words>(a & int16_t{0xff}), bits<Words>((w << 8) >> 8));
  return sum + multiply_add(bits<Words>(bits<Vec<uint16_t, 2 * kWords>>(a) >> 8), bits<Words>(w >> 8));
#endif
}

FASTNETS_INLINE Words four_activations(const uint8_t* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return splat<int32_t, kWords>(four);
}

template <typename A>
FASTNETS_INLINE Vec<int32_t, kLanes<A>> nearest(Vec<A, kLanes<A>> v) {  // ties to even
  constexpr int L = kLanes<A>;
  if constexpr (std::is_same_v<A, float>) {
#if FASTNETS_VECTOR_BYTES == 64
    return bits<Vec<int32_t, L>>(_mm512_cvtps_epi32(bits<__m512>(v)));
#elif FASTNETS_VECTOR_BYTES == 32
    return bits<Vec<int32_t, L>>(_mm256_cvtps_epi32(bits<__m256>(v)));
#endif
  }
  Vec<int32_t, L> rounded;
  for (int i = 0; i < L; ++i) rounded[i] = static_cast<int32_t>(std::lrint(v[i]));
  return rounded;
}

// The first `count` numbers as bytes.
template <int L>
FASTNETS_INLINE void store_bytes(void* to, Vec<int32_t, L> v, int64_t count) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (L == 16) {
    if (count >= L) return _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(bits<__m512i>(v)));
    return _mm512_mask_cvtepi32_storeu_epi8(to, static_cast<__mmask16>((1 << count) - 1), bits<__m512i>(v));
  }
#endif
  const auto narrow = __builtin_convertvector(v, Vec<int8_t, L>);
  if (count >= L)
    std::memcpy(to, &narrow, L);
  else
    std::memcpy(to, &narrow, count);
}

// The first `count` of kWords bytes as numbers; the other lanes are zero.
FASTNETS_INLINE Vec<float, kWords> load_bytes(const uint8_t* from, int64_t count) {
#if FASTNETS_VECTOR_BYTES == 64
  const __mmask16 mask = static_cast<__mmask16>(count >= 16 ? 0xffff : (1 << count) - 1);
  const __m128i bytes = _mm_maskz_loadu_epi8(mask, from);
  return bits<Vec<float, kWords>>(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
#else
  Vec<uint8_t, kWords> bytes{};
  std::memcpy(&bytes, from, std::min<int64_t>(count, kWords));
  return __builtin_convertvector(__builtin_convertvector(bytes, Words), Vec<float, kWords>);
#endif
}

}  // namespace fastnets::FASTNETS_ISA
