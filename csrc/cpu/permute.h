// Gathers by permutations of vectors: AVX-512 has them for all lanes at once, AVX2 for the bytes of 16. The instruction
// that gathers takes as long as loads of single elements. Included once for each instruction set (isa.h): no guard.
#if FASTNETS_VECTOR_BYTES >= 32
namespace fastnets::FASTNETS_ISA {

// Bytes of a vector, in the source as in the result.
template <typename E>
constexpr int64_t kWindow = sizeof(E) == 1 ? 16 : 64;

#if FASTNETS_VECTOR_BYTES == 64
template <typename E>
FASTNETS_INLINE __m512i load_lanes(uint64_t lanes, const char* p) {
  if constexpr (sizeof(E) == 2) return _mm512_maskz_loadu_epi16(static_cast<__mmask32>(lanes), p);
  if constexpr (sizeof(E) == 4) return _mm512_maskz_loadu_epi32(static_cast<__mmask16>(lanes), p);
  return _mm512_maskz_loadu_epi64(static_cast<__mmask8>(lanes), p);
}

template <typename E>
FASTNETS_INLINE void store_lanes(uint64_t lanes, char* p, __m512i v) {
  if constexpr (sizeof(E) == 2) return _mm512_mask_storeu_epi16(p, static_cast<__mmask32>(lanes), v);
  if constexpr (sizeof(E) == 4) return _mm512_mask_storeu_epi32(p, static_cast<__mmask16>(lanes), v);
  _mm512_mask_storeu_epi64(p, static_cast<__mmask8>(lanes), v);
}

// v, with some lanes replaced by those of `from` that `index` names.
template <typename E>
FASTNETS_INLINE __m512i take_lanes(__m512i v, uint64_t lanes, __m512i index, __m512i from) {
  if constexpr (sizeof(E) == 2) return _mm512_mask_permutexvar_epi16(v, static_cast<__mmask32>(lanes), index, from);
  if constexpr (sizeof(E) == 4) return _mm512_mask_permutexvar_epi32(v, static_cast<__mmask16>(lanes), index, from);
  return _mm512_mask_permutexvar_epi64(v, static_cast<__mmask8>(lanes), index, from);
}

template <typename E, bool STREAM>
void permute_blocks(const Block& block, const Rows& rows) {
  constexpr int64_t L = 64 / sizeof(E);
  const Window *first = block.windows.data(), *end = first + block.windows.size();
  const uint64_t every = L == 64 ? ~uint64_t{0} : (uint64_t{1} << L) - 1;
  const int64_t last = static_cast<int64_t>(block.offsets.size()) - L;
  const char* from = rows.from;
  char* to = rows.to;
  for (int64_t row = 0; row < rows.count; ++row, from += rows.from_step, to += rows.to_step) {
    int64_t k = 0;
    __m512i v = _mm512_setzero_si512();
    for (const Window* window = first; window < end; ++window) {
      const __m512i source = load_lanes<E>(window->read, from + window->offset);
      v = take_lanes<E>(v, window->written, _mm512_load_si512(window->index), source);
      if (!window->last) continue;
      if constexpr (STREAM)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + k * sizeof(E)), v);
      else if (k <= last)
        _mm512_storeu_si512(to + k * sizeof(E), v);
      else
        store_lanes<E>(every >> (k - last), to + k * sizeof(E), v);
      k += L;
      v = _mm512_setzero_si512();  // so that the next one need not wait for this one
    }
  }
}

#endif

// Every vector is whole: the last one overlaps the one before.
inline void permute_bytes(const Block& block, const Rows& rows) {
  constexpr int64_t L = kWindow<uint8_t>;
  const Window *first = block.windows.data(), *end = first + block.windows.size();
  const int64_t last = static_cast<int64_t>(block.offsets.size()) - L;
  const char* from = rows.from;
  char* to = rows.to;
  for (int64_t row = 0; row < rows.count; ++row, from += rows.from_step, to += rows.to_step) {
    int64_t k = 0;
    __m128i v = _mm_setzero_si128();
    for (const Window* window = first; window < end; ++window) {
      const __m128i source = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + window->offset));
      v |= _mm_shuffle_epi8(source, _mm_load_si128(reinterpret_cast<const __m128i*>(window->index)));
      if (!window->last) continue;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + std::min(k, last)), v);
      k += L;
      v = _mm_setzero_si128();
    }
  }
}

// A window of the source, as wide as a vector, from the lowest of the missing offsets on, but within `end` where there
// are no masks to read by; without the lanes that it has.
template <typename E>
Window take_window(const int64_t* offsets, int64_t end, uint64_t& missing) {
  constexpr bool kBytes = sizeof(E) == 1;
  constexpr unsigned char kZero = kBytes ? 0x80 : 0;  // what a shuffle of bytes takes for none
  constexpr int64_t L = kWindow<E> / sizeof(E);
  Window w{};
  std::memset(w.index, kZero, sizeof w.index);
  w.offset = kBytes ? end - kWindow<E> : INT64_MAX;
  for (int64_t lane = 0; lane < L; ++lane)
    if (missing >> lane & 1) w.offset = std::min(w.offset, offsets[lane]);
  for (int64_t lane = 0; lane < L; ++lane) {
    if (!(missing >> lane & 1)) continue;
    const int64_t distance = offsets[lane] - w.offset;
    if (distance >= kWindow<E> || distance % sizeof(E) != 0) continue;
    const E index = static_cast<E>(distance / sizeof(E));
    std::memcpy(w.index + lane * sizeof(E), &index, sizeof index);
    w.read |= uint64_t{1} << index;
    w.written |= uint64_t{1} << lane;
  }
  missing &= ~w.written;
  return w;
}

// Covers the lanes of each vector of the result by windows. False: there would be so many that single elements are as
// fast, or a vector of bytes is more than there is.
template <typename E>
bool find_windows(Block& block) {
  constexpr bool kBytes = sizeof(E) == 1;
  constexpr int64_t L = kWindow<E> / sizeof(E), kMost = 8;
  const std::vector<int64_t>& offsets = block.offsets;
  const int64_t size = offsets.size();
  const auto [low, high] = std::minmax_element(offsets.begin(), offsets.end());
  if (kBytes && (size < L || *high - *low < L)) return false;
  for (int64_t k = 0; k < size; k += L) {
    const int64_t first = kBytes ? std::min(k, size - L) : k, lanes = std::min<int64_t>(L, size - first);
    uint64_t missing = lanes == 64 ? ~uint64_t{0} : (uint64_t{1} << lanes) - 1;
    for (int64_t windows = 0; missing; ++windows) {
      if (windows == kMost) return false;
      block.windows.push_back(take_window<E>(offsets.data() + first, *high + 1, missing));
    }
    block.windows.back().last = true;
  }
  return true;
}

}  // namespace fastnets::FASTNETS_ISA
#endif
