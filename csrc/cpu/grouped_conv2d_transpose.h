// Rows of numbers into lanes and back: what brings contiguous images, and weights, into the order of the vectors.
// Included by isa.h: no guard.
#include <utility>

namespace fastnets::FASTNETS_ISA::grouped {

// The first `count` of L numbers; the other lanes are zero.
template <typename T, int L>
FASTNETS_INLINE Vec<Sum<T>, L> load_first(const T* p, int64_t count) {
  if (count >= L) return load<T, L>(p);
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>) return bits<Vec<float, L>>(_mm512_maskz_loadu_ps((1u << count) - 1, p));
#endif
  Vec<Sum<T>, L> v{};
  for (int64_t i = 0; i < count; ++i) v[i] = static_cast<Sum<T>>(p[i]);
  return v;
}

template <typename T, int L>
FASTNETS_INLINE void store_first(T* p, Vec<Sum<T>, L> v, int64_t count) {
  if (count >= L) return store<T, L>(p, v);
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>) return _mm512_mask_storeu_ps(p, (1u << count) - 1, bits<__m512>(v));
#endif
  for (int64_t i = 0; i < count; ++i) p[i] = static_cast<T>(v[i]);
}

// One of log2(L) steps of a transposition: of each pair of rows D apart, exchanges blocks of D lanes.
template <typename A, int L, int D, int... J>
FASTNETS_INLINE void exchange(Vec<A, L>& a, Vec<A, L>& b, std::integer_sequence<int, J...>) {
  const Vec<A, L> low = __builtin_shufflevector(a, b, ((J & D) ? L + J - D : J)...);
  b = __builtin_shufflevector(a, b, ((J & D) ? L + J : J + D)...);
  a = low;
}

template <typename A, int L, int D, int... I>
FASTNETS_INLINE void exchange_rows(Vec<A, L>* v, std::integer_sequence<int, I...>) {
  (exchange<A, L, D>(v[I / D * 2 * D + I % D], v[I / D * 2 * D + I % D + D], std::make_integer_sequence<int, L>()),
   ...);
}

template <typename A, int L, int D = L / 2>
FASTNETS_INLINE void transpose(Vec<A, L>* v) {
  if constexpr (D > 0) {
    exchange_rows<A, L, D>(v, std::make_integer_sequence<int, L / 2>());
    transpose<A, L, D / 2>(v);
  }
}

// to[j * pitch + r] = rows[r][j], for `count` j and L lanes r; lanes from `height` on are zero.
template <typename T>
__attribute__((noinline)) void rows_to_lanes(const T* const* rows, int64_t height, int64_t count, Sum<T>* to,
                                             int64_t pitch) {
  using A = Sum<T>;
  constexpr int L = kLanes<A>;
  if (count == 1) {
    for (int64_t r = 0; r < L; ++r) to[r] = r < height ? static_cast<A>(rows[r][0]) : A(0);
    return;
  }
  for (int64_t j = 0; j < count; j += L) {
    Vec<A, L> v[L];
    for (int r = 0; r < L; ++r) v[r] = r < height ? load_first<T, L>(rows[r] + j, count - j) : Vec<A, L>{};
    transpose<A, L>(v);
    for (int i = 0; i < L && j + i < count; ++i) store<A, L>(to + (j + i) * pitch, v[i]);
  }
}

// rows[r * row_step + j] = from[j * pitch + r], for `count` j and `height` lanes r.
template <typename T>
__attribute__((noinline)) void lanes_to_rows(const Sum<T>* from, int64_t pitch, int64_t count, T* rows,
                                             int64_t row_step, int64_t height) {
  using A = Sum<T>;
  constexpr int L = kLanes<A>;
  for (int64_t j = 0; j < count; j += L) {
    Vec<A, L> v[L];
    for (int i = 0; i < L; ++i) v[i] = j + i < count ? load<A, L>(from + (j + i) * pitch) : Vec<A, L>{};
    transpose<A, L>(v);
    for (int r = 0; r < L && r < height; ++r) store_first<T, L>(rows + r * row_step + j, v[r], count - j);
  }
}

}  // namespace fastnets::FASTNETS_ISA::grouped
