// Rows of numbers into lanes and back: what brings contiguous images, and weights, into the order of the vectors.
// Included by isa.h: no guard.
namespace fastnets::FASTNETS_ISA::grouped {

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
