// Transposes L vectors of L lanes in registers, and so rows of numbers into lanes and back: what brings contiguous
// images, and weights, into the order of the vectors. Included once for each instruction set (isa.h): no guard.
#include <utility>

namespace fastnets::FASTNETS_ISA {

// Lane j of one of the two vectors that `exchange` makes of a and b; lanes of b are counted on from those of a.
template <int D, typename A, int L>
constexpr int lane_of(int j, bool second) {
  constexpr int quad = 16 / sizeof(A);  // lanes in 128 bits: shuffles within them are cheaper than across
  if (D < quad) return j / D % 2 * L + j / quad * quad + second * quad / 2 + j % quad / (2 * D) * D + j % D;
  const int k = j / quad, half = L / quad / 2;
  return k / half * L + (k % half * 2 + second) * quad + j % quad;
}

// Exchanges bit D of the vector's number for a bit of the lane's number, in pairs of vectors.
template <int D, typename A, int L, int... J>
FASTNETS_INLINE void exchange(Vec<A, L> (&v)[L], std::integer_sequence<int, J...> lanes) {
  for (int i = 0; i < L; ++i) {
    if (i & D) continue;
    const Vec<A, L> a = v[i], b = v[i + D];
    v[i] = __builtin_shufflevector(a, b, lane_of<D, A, L>(J, false)...);
    v[i + D] = __builtin_shufflevector(a, b, lane_of<D, A, L>(J, true)...);
  }
  if constexpr (2 * D < L) exchange<2 * D, A, L>(v, lanes);
}

template <typename A, int L>
FASTNETS_INLINE void transpose(Vec<A, L> (&v)[L]) {
  static_assert(sizeof(A) == 4 || sizeof(A) == 8);
  exchange<1, A, L>(v, std::make_integer_sequence<int, L>());
  // Within 128 bits the two bits of a lane of four bytes come out in each other's place.
  for (int i = 0; i < L && sizeof(A) == 4; i += 4) std::swap(v[i + 1], v[i + 2]);
}

// Lane i of v[0] becomes the sum of the lanes of v[i]: transposes, and adds as soon as there is what to add.
template <int D, typename A, int L, int... J>
FASTNETS_INLINE void add_lanes(Vec<A, L> (&v)[L], std::integer_sequence<int, J...> lanes) {
#pragma GCC unroll 16
  for (int i = 0; i < L; i += 2 * D) {
    const Vec<A, L> a = v[i], b = v[i + D];
    v[i] = __builtin_shufflevector(a, b, lane_of<D, A, L>(J, false)...) +
           __builtin_shufflevector(a, b, lane_of<D, A, L>(J, true)...);
  }
  if constexpr (2 * D < L) add_lanes<2 * D, A, L>(v, lanes);
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

}  // namespace fastnets::FASTNETS_ISA
