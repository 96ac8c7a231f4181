// The last results of a group of a 1x1 kernel, where they fill a quarter of a vector or less. Included by isa.h: no
// guard.
//
// Lanes are source channels, of pixels and of the weight's rows as they lie: L / M pixels meet M results in L sums,
// whose lanes are added up at the end. For each L channels that takes at most L loads and L multiply-adds, and 2 L
// shuffles at the end, where results as lanes would take L multiply-adds for each channel of as many pixels.

namespace fastnets::FASTNETS_ISA::grouped {

// Adds the products of L source channels, or of the first `count`, to those of R pixels with M results.
template <int R, int M, bool kWhole, int L>
FASTNETS_INLINE void add_products(const float* const (&x)[R], const float* const (&w)[M], int64_t k, int64_t count,
                                  Vec<float, L> (&sums)[L]) {
  Vec<float, L> weight[M];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) weight[m] = kWhole ? load<float, L>(w[m] + k) : load_first<float, L>(w[m] + k, count);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const Vec<float, L> value = kWhole ? load<float, L>(x[r] + k) : load_first<float, L>(x[r] + k, count);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) sums[r * M + m] += value * weight[m];
  }
}

// The last `rest` results, at most M, of one group's product; row m of the weight is w + m * row.
template <int M>
void dots(const fastnets::pointwise::Problem& p, const float* w, int64_t row, int64_t rest, Range pixels) {
  constexpr int L = kLanes<float>, R = L / M;
  const Activate<float> activate(p.activation);
  const float *x[R], *rows[M];
  for (int m = 0; m < M; ++m) rows[m] = w + (p.out + std::min<int64_t>(m, rest - 1)) * row;
  alignas(64) float z[L] = {};
  for (int i = 0; p.bias && i < L; ++i) z[i] = p.bias[p.out + std::min<int64_t>(i % M, rest - 1)];
  const Vec<float, L> bias = load<float, L>(z);
  for (int64_t pixel = pixels.begin; pixel < pixels.end; pixel += R) {
    for (int r = 0; r < R; ++r) x[r] = p.x.data + std::min(pixel + r, pixels.end - 1) * p.x.pixel;
    Vec<float, L> sums[L] = {};
    int64_t k = 0;
    for (; k + L <= p.in; k += L) add_products<R, M, true>(x, rows, k, L, sums);
    if (k < p.in) add_products<R, M, false>(x, rows, k, p.in - k, sums);
    add_lanes<1, float, L>(sums, std::make_integer_sequence<int, L>());
    Vec<float, L> result[1] = {sums[0] + bias};
    activate.template operator()<L, 1>(result);
    store<float, L>(z, result[0]);
    for (int64_t r = 0; r < std::min<int64_t>(R, pixels.end - pixel); ++r)
      for (int64_t m = 0; m < rest; ++m) p.y.data[(pixel + r) * p.y.pixel + p.out + m] = z[r * M + m];
  }
}

// The results of a group that `product` leaves.
inline void dots(const Problem& p, const fastnets::pointwise::Problem& product, int64_t group, Range pixels) {
  const float* const w = static_cast<const float*>(p.w) + group * p.w_group;
  const int64_t rest = p.out - product.out;
  if (rest == 1) return dots<1>(product, w, p.w_stride.n, rest, pixels);
  if (rest == 2) return dots<2>(product, w, p.w_stride.n, rest, pixels);
  dots<4>(product, w, p.w_stride.n, rest, pixels);
}

}  // namespace fastnets::FASTNETS_ISA::grouped
