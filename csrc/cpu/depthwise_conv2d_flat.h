// Depthwise convolution of contiguous planes at stride 1 with as many columns out as in ("same" padding, 3x3 or 5x5).
// Included by isa.h: no guard.
//
// Lanes are pixels, and a plane is one long row: tap (i, j) of the result at place t is the source at place
// t + (i - p) * w + (j - p), whatever the row. A strip of a plane is copied, in the sums' type, between zeros for the
// rows that are not there; under each kernel row, U + 2 vectors are loaded for U vectors of results, and shifted for
// the columns beside. Each kernel column has sums of its own: where it reaches past the end of a row, what it summed
// belongs to the next row, and is cut out at the end. No gathers, and full vectors on maps of 7 columns. The copy fits
// the first-level cache, and while it is computed from, the lines of the next plane and of its results are asked for:
// memory sees x read once and y written once, b * n * c * (h * w + oh * ow) bytes.

namespace fastnets::FASTNETS_ISA::flat {

using depthwise::Problem;

// Lanes S, S + 1, ... of a and, after its last, the first of b.
template <int S, typename A, int L, int... J>
FASTNETS_INLINE Vec<A, L> shift(const Vec<A, L>& a, const Vec<A, L>& b, std::integer_sequence<int, J...>) {
#if FASTNETS_VECTOR_BYTES == 64  // GCC 12 takes two instructions and a register more
  if constexpr (L == 16 && S > 0 && S < L)
    return bits<Vec<A, L>>(_mm512_alignr_epi32(bits<__m512i>(b), bits<__m512i>(a), S));
#endif
  return __builtin_shufflevector(a, b, (S + J)...);
}

// What a strip is computed with.
template <typename T, int K>
struct Strip {
  using A = Sum<T>;
  using Mask = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  static constexpr int L = kLanes<A>, P = K / 2;
  static constexpr int kTile = 4;  // vectors of results at a time

  explicit Strip(const Problem& p, Activation name)
      : w(p.g.w), margin((P * w + 2 * L - 1) / L * L), activate(name), masks(K * (w + kTile * L)) {
    for (int j = 0; j < K; ++j)
      for (int64_t t = 0; t < w + kTile * L; ++t) {
        const int64_t column = t % w + j - P;
        masks[j * (w + kTile * L) + t] = column >= 0 && column < w ? -1 : 0;
      }
  }

  // Rows of a plane with `margin` numbers before and after, zero where there is no row: the P rows above and the vector
  // that is loaded before them.
  void fill(const T* plane, int64_t height, Range rows) {
    const int64_t count = (rows.end - rows.begin) * w;
    source.resize(std::max<size_t>(source.size(), 2 * margin + count + (kTile + 1) * L));
    const int64_t begin = rows.begin * w - margin, end = rows.end * w + margin;
    const int64_t first = std::max<int64_t>(begin, 0), size = std::min(end, height * w);
    A* to = source.data() - begin;
    for (int64_t t = begin; t < first; t += L) store<A, L>(to + t, Vec<A, L>{});
    int64_t t = first;
    for (; t + L <= size; t += L) store<A, L>(to + t, load<T, L>(plane + t));
    for (; t < size; ++t) to[t] = static_cast<A>(plane[t]);
    for (; t < end; t += L) store<A, L>(to + t, Vec<A, L>{});
  }

  // U vectors of results from place t of the strip on; the last has `last` lanes.
  template <int U>
  void tile(int64_t t, int64_t last, T* out) const {
    constexpr auto lanes = std::make_integer_sequence<int, L>();
    const A* from = source.data() + margin + t - P * w;
    Vec<A, L> sums[K][U];
    for (int j = 0; j < K; ++j)
      for (int u = 0; u < U; ++u) sums[j][u] = j == P ? splat<A, L>(bias) : Vec<A, L>{};
    for (int i = 0; i < K; ++i, from += w) {
      Vec<A, L> in[U + 2];
      for (int u = 0; u < U + 2; ++u) in[u] = load<A, L>(from + (u - 1) * L);
      columns<U>(in, weight + i * K, sums, lanes, std::make_integer_sequence<int, K>());
    }
    const Mask* mask = masks.data() + t % w;
    for (int j = 0; j < K; ++j, mask += w + kTile * L) {
      if (j == P) continue;
      for (int u = 0; u < U; ++u) {
        const auto kept = bits<Vec<Mask, L>>(sums[j][u]) & load_mask(mask + u * L);
        sums[P][u] += bits<Vec<A, L>>(kept);
      }
    }
    activate.template operator()<L, U>(sums[P]);
    constexpr int line = 64 / sizeof(T);
    for (int i = 0; i < U * L; i += line)
      __builtin_prefetch(next + t + i, 0, 2), __builtin_prefetch(next_out + t + i, 1, 2);
    for (int u = 0; u + 1 < U; ++u) store<T, L>(out + t + u * L, sums[P][u]);
    store_first<T, L>(out + t + (U - 1) * L, sums[P][U - 1], last);
  }

  // Results of `count` places.
  void run(T* out, int64_t count) const {
    int64_t t = 0;
    for (; t + kTile * L < count; t += kTile * L) tile<kTile>(t, L, out);
    const int64_t rest = (count - t + L - 1) / L, last = count - t - (rest - 1) * L;
    if (rest == 4) tile<4>(t, last, out);
    if (rest == 3) tile<3>(t, last, out);
    if (rest == 2) tile<2>(t, last, out);
    if (rest == 1) tile<1>(t, last, out);
  }

  int64_t w, margin;
  Activate<A> activate;
  A weight[K * K], bias = 0;
  const T *next = nullptr, *next_out = nullptr;  // the same rows of the next plane
  std::vector<Mask> masks;                       // for each kernel column: whether column t % w + j - P is on the map
  std::vector<A> source;

 private:
  static FASTNETS_INLINE Vec<Mask, L> load_mask(const Mask* p) {
    Vec<Mask, L> v;
    std::memcpy(&v, p, sizeof v);
    return v;
  }

  template <int U, int... J, int... Lanes>
  static FASTNETS_INLINE void columns(const Vec<A, L> (&in)[U + 2], const A* weights, Vec<A, L> (&sums)[K][U],
                                      std::integer_sequence<int, Lanes...> lanes, std::integer_sequence<int, J...>) {
    (column<U, J>(in, weights[J], sums[J], lanes), ...);
  }

  template <int U, int J, int... Lanes>
  static FASTNETS_INLINE void column(const Vec<A, L> (&in)[U + 2], A weight, Vec<A, L> (&sums)[U],
                                     std::integer_sequence<int, Lanes...> lanes) {
    for (int u = 0; u < U; ++u) {
      if constexpr (J < P)
        sums[u] += shift<L + J - P, A, L>(in[u], in[u + 1], lanes) * weight;
      else
        sums[u] += shift<J - P, A, L>(in[u + 1], in[u + 2], lanes) * weight;
    }
  }
};

// The forward pass, or that of dx: the same over dy, with the kernel turned by 180 degrees.
template <typename T, int K, bool Turned>
void correlate(const Problem& p, const Operand& x, const Operand& y, const void* bias, Activation activation,
               int64_t begin, int64_t end) {
  using A = Sum<T>;
  const Convolution& g = p.g;
  Strip<T, K> strip(p, activation);
  for (int64_t task = begin; task < end; ++task) {
    const Range channels = p.channels(task / p.units());
    const int64_t unit = task % p.units(), n = unit / p.strips;
    const Range rows = share(g.h, unit % p.strips, p.strips);
    for (int64_t c = channels.begin; c < channels.end; ++c) {
      const T* w = static_cast<const T*>(p.w.data) + c * p.w.stride.n;
      for (int i = 0; i < K; ++i)
        for (int j = 0; j < K; ++j)
          strip.weight[Turned ? K * K - 1 - i * K - j : i * K + j] =
              static_cast<A>(w[i * p.w.stride.h + j * p.w.stride.w]);
      if (bias) strip.bias = static_cast<A>(static_cast<const T*>(bias)[c * p.bias_step]);
      const T* from = static_cast<const T*>(x.data) + n * x.stride.n + c * x.stride.c;
      T* to = static_cast<T*>(y.data) + n * y.stride.n + c * y.stride.c + rows.begin * g.w;
      strip.next = from + x.stride.c + rows.begin * g.w, strip.next_out = to + y.stride.c;
      strip.fill(from, g.h, rows);
      strip.run(to, (rows.end - rows.begin) * g.w);
    }
  }
}

template <typename T, int K>
void forward(const Problem& p, int64_t begin, int64_t end) {
  correlate<T, K, false>(p, p.x, p.y, p.bias, p.activation, begin, end);
}

template <typename T, int K>
void backward(const Problem& p, int64_t begin, int64_t end) {
  if (!p.dx.data) return planar::backward<T>(p, begin, end);
  correlate<T, K, true>(p, p.y, p.dx, nullptr, Activation::kNone, begin, end);
}

template <typename T>
depthwise::Kernels kernels(int64_t k) {
  if (k == 3) return {&forward<T, 3>, &backward<T, 3>};
  return {&forward<T, 5>, &backward<T, 5>};
}

}  // namespace fastnets::FASTNETS_ISA::flat
