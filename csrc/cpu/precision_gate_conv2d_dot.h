// Sums of products of bytes: unsigned ones, the activations of a pixel, with signed ones, weights of as many output
// channels as a vector has lanes. Included by isa.h, before the others: no guard.

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
  return sum + multiply_add(bits<Words>(bits<Vec<uint16_t, 2 * kWords> >(a) >> 8), bits<Words>(w >> 8));
#endif
}

FASTNETS_INLINE Words four_activations(const uint8_t* from) {
  int32_t four;
  std::memcpy(&four, from, sizeof four);
  return splat<int32_t, kWords>(four);
}

// The bytes of a window that `index` names, which may be any bytes: nothing else is read.
FASTNETS_INLINE Words pick(const uint8_t* window, const uint8_t* index) {
#if defined(FASTNETS_VNNI)
  return bits<Words>(_mm512_permutexvar_epi8(_mm512_loadu_si512(index), _mm512_loadu_si512(window)));
#elif FASTNETS_VECTOR_BYTES == 32
  // A shuffle reads one table of 16 bytes, by the low bits of an index, and gives 0 where its top bit is set: here
  // where the index is of another table.
  const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), top = _mm256_set1_epi8(0x70);
  __m256i picked = _mm256_setzero_si256();
  for (int i = 0; i < 64; i += 16) {
    const __m256i from_table = _mm256_adds_epu8(_mm256_sub_epi8(all, _mm256_set1_epi8(static_cast<char>(i))), top);
    const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(window + i));
    picked = _mm256_or_si256(picked, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), from_table));
  }
  return bits<Words>(picked);
#else
  uint8_t picked[sizeof(Words)];
  for (size_t i = 0; i < sizeof picked; ++i) picked[i] = window[index[i] % gate::kWindow];
  Words words;
  std::memcpy(&words, picked, sizeof words);
  return words;
#endif
}

}  // namespace fastnets::FASTNETS_ISA
