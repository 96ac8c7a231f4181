// Gathers by permutations of vectors, which AVX-512 has for all lanes at once, and for bytes in 16; its gather
// instruction takes as long as loads of single elements. Included once for each instruction set (isa.h): no guard.
#if FASTNETS_VECTOR_BYTES == 64
namespace fastnets::FASTNETS_ISA {

// As many neighbours, in the source as in the result, as one permutation takes.
template <typename E>
struct LanesOf {
  using Type = __m512i;
};
template <>
struct LanesOf<uint8_t> {
  using Type = __m128i;
};
template <typename E>
using Lanes = typename LanesOf<E>::Type;

template <typename E>
FASTNETS_INLINE Lanes<E> load_lanes(uint64_t lanes, const char* p) {
  if constexpr (sizeof(E) == 1) return _mm_maskz_loadu_epi8(static_cast<__mmask16>(lanes), p);
  if constexpr (sizeof(E) == 2) return _mm512_maskz_loadu_epi16(static_cast<__mmask32>(lanes), p);
  if constexpr (sizeof(E) == 4) return _mm512_maskz_loadu_epi32(static_cast<__mmask16>(lanes), p);
  if constexpr (sizeof(E) == 8) return _mm512_maskz_loadu_epi64(static_cast<__mmask8>(lanes), p);
}

template <typename E>
FASTNETS_INLINE void store_lanes(uint64_t lanes, char* p, Lanes<E> v) {
  if constexpr (sizeof(E) == 1) return _mm_mask_storeu_epi8(p, static_cast<__mmask16>(lanes), v);
  if constexpr (sizeof(E) == 2) return _mm512_mask_storeu_epi16(p, static_cast<__mmask32>(lanes), v);
  if constexpr (sizeof(E) == 4) return _mm512_mask_storeu_epi32(p, static_cast<__mmask16>(lanes), v);
  if constexpr (sizeof(E) == 8) return _mm512_mask_storeu_epi64(p, static_cast<__mmask8>(lanes), v);
}

// v, with some lanes replaced by those of `from` that `index` names.
template <typename E>
FASTNETS_INLINE Lanes<E> take_lanes(Lanes<E> v, uint64_t lanes, Lanes<E> index, Lanes<E> from) {
  if constexpr (sizeof(E) == 1) return _mm_mask_shuffle_epi8(v, static_cast<__mmask16>(lanes), from, index);
  if constexpr (sizeof(E) == 2) return _mm512_mask_permutexvar_epi16(v, static_cast<__mmask32>(lanes), index, from);
  if constexpr (sizeof(E) == 4) return _mm512_mask_permutexvar_epi32(v, static_cast<__mmask16>(lanes), index, from);
  if constexpr (sizeof(E) == 8) return _mm512_mask_permutexvar_epi64(v, static_cast<__mmask8>(lanes), index, from);
}

template <typename E, bool STREAM>
void permute_blocks(const Block& block, const Rows& rows) {
  constexpr int64_t L = sizeof(Lanes<E>) / sizeof(E);
  const Window *first = block.windows.data(), *end = first + block.windows.size();
  constexpr uint64_t every = (uint64_t{1} << L) - 1;
  const int64_t last = static_cast<int64_t>(block.offsets.size()) - L;
  const char* from = rows.from;
  char* to = rows.to;
  for (int64_t row = 0; row < rows.count; ++row, from += rows.from_step, to += rows.to_step) {
    int64_t k = 0;
    Lanes<E> v{};
    for (const Window* window = first; window < end; ++window) {
      Lanes<E> index;
      std::memcpy(&index, window->index, sizeof index);
      v = take_lanes<E>(v, window->written, index, load_lanes<E>(window->read, from + window->offset));
      if (!window->last) continue;
      if constexpr (STREAM && sizeof v == 64)
        _mm512_stream_si512(reinterpret_cast<__m512i*>(to + k * sizeof(E)), v);
      else if (k <= last)
        std::memcpy(to + k * sizeof(E), &v, sizeof v);
      else
        store_lanes<E>(every >> (k - last), to + k * sizeof(E), v);
      k += L;
      v = Lanes<E>{};  // so that the next one need not wait for this one
    }
  }
}

// Covers the lanes of each vector of the result by windows of the source as wide as a vector. False: there would be so
// many that single elements are as fast.
template <typename E>
bool find_windows(Block& block) {
  constexpr int64_t kWidth = sizeof(Lanes<E>), L = kWidth / sizeof(E), kMost = 8;
  const std::vector<int64_t>& offsets = block.offsets;
  for (int64_t k = 0; k < static_cast<int64_t>(offsets.size()); k += L) {
    const int64_t lanes = std::min<int64_t>(L, offsets.size() - k);
    uint64_t missing = (uint64_t{1} << lanes) - 1;
    for (int64_t windows = 0; missing; ++windows) {
      if (windows == kMost) return false;
      Window& w = block.windows.emplace_back(Window{});
      w.offset = INT64_MAX;
      for (int64_t lane = 0; lane < lanes; ++lane)
        if (missing >> lane & 1) w.offset = std::min(w.offset, offsets[k + lane]);
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int64_t distance = offsets[k + lane] - w.offset;
        if (!(missing >> lane & 1) || distance >= kWidth || distance % sizeof(E) != 0) continue;
        const E index = static_cast<E>(distance / sizeof(E));
        std::memcpy(w.index + lane * sizeof(E), &index, sizeof index);
        w.read |= uint64_t{1} << index;
        w.written |= uint64_t{1} << lane;
      }
      missing &= ~w.written;
    }
    block.windows.back().last = true;
  }
  return true;
}

}  // namespace fastnets::FASTNETS_ISA
#endif
