// Depthwise convolution where the pixels of a row are neighbours in memory: 3x3 and 5x5 at strides 1 and 2 with "same"
// padding. Included by isa.h: no guard.
//
// Lanes are pixels of a row. What a vector of results takes from a row of x is loaded once and shifted in registers for
// the columns beside, zeros where there are none; at stride 2 even and odd columns are parted first. It is added to all
// of kRows rows of results that it belongs to, whose sums stay in registers: less than half the shuffles that each row
// by itself would take. A vector at a side of the map gives all its lanes but k / 2, one amid all but 2 (k / 2): at 3x3
// and stride 1 rows of 14, 28, 56 and 112 are vectors of 14. Maps of at most half a vector are taken two at a time.
// Of channels_last with fewer channels than lanes, rows are the same: a vector is as many pixels as fit, and what a
// column beside takes is loaded by itself. Nothing is copied, and while a tile is computed, the lines that the next
// rows, or maps, and their results lie in are asked for: memory sees x read once and y written once, b * n * c * (h * w
// + oh * ow) bytes.

namespace fastnets::FASTNETS_ISA::rows {

using depthwise::Problem;

// Lanes: the sides of a map cost up to four of them, so more than the narrowest vectors have.
template <typename A>
inline constexpr int kWide = std::max(8, kLanes<A>);

// Lanes D further on in each of N parts of a vector; zeros where they would be of another part.
template <int D, int N, typename A, int L>
constexpr int shifted(int lane) {
  const int part = L / N, to = lane % part + D;
  return to >= 0 && to < part ? lane + D : L;
}

template <int D, int N, typename A, int L, int... J>
FASTNETS_INLINE Vec<A, L> shift(const Vec<A, L>& v, std::integer_sequence<int, J...>) {
  if constexpr (D == 0) return v;
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (L == 16 && N == 1) {
    const __m512i zero{}, from = bits<__m512i>(v);
    return bits<Vec<A, L>>(_mm512_alignr_epi32(D > 0 ? zero : from, D > 0 ? from : zero, (D + L) % L));
  }
#endif
  return __builtin_shufflevector(v, Vec<A, L>{}, shifted<D, N, A, L>(J)...);
}

// Halves, one after the other.
template <typename A, int L, int... J>
FASTNETS_INLINE Vec<A, L> join(const Vec<A, L / 2>& low, const Vec<A, L / 2>& high, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(low, high, J...);
}

// Each second lane of a and, after its last, of b: from `Odd` on.
template <int Odd, typename A, int L, int... J>
FASTNETS_INLINE Vec<A, L> each_second(const Vec<A, L>& a, const Vec<A, L>& b, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(a, b, (2 * J + Odd)...);
}

// A vector of results of a row: where its first column is, in numbers; as bits, the lanes that are read of x, in each
// load that it takes, and those that are results.
struct Span {
  int64_t column;
  uint32_t loads[10], stored;
};

// In place of a number of maps: all of them, pixel by pixel.
constexpr int kPixels = 0;

// Up to which stride they are taken so: each load is of part of a row, so this is for what has masks; at stride 2 it is
// each second pixel of two vectors, which AVX-512 alone permutes at once.
template <typename T>
constexpr int kPixelStride = FASTNETS_VECTOR_BYTES / 32 * (FASTNETS_VECTOR_BYTES == 64 || std::is_same_v<T, float>);

// Results of K x K kernels at stride S on N maps at a time.
template <typename T, int K, int S, int N>
class Maps {
 public:
  using A = Sum<T>;
  static constexpr int L = kWide<A>, P = K / 2, kParts = N == kPixels ? 1 : N;
  static constexpr int kRows = FASTNETS_VECTOR_BYTES > 16 ? 7 : 2;  // networks' maps have multiples of seven

  Maps(const Convolution& g, const Operand& x, const Operand& y, Activation name)
      : height(g.h), channels(g.c), x_row(x.stride.h), y_row(y.stride.h), activate(name) {
    if constexpr (N == kPixels)
      span_pixels(g);
    else
      span_columns(g);
    // The first rows that no tile before has read are K - S below the first of a tile.
    x_ahead = N == 2 ? 2 * x.stride.c - (K - S - P) * x_row : kRows * S * x_row;
    y_ahead = N == 2 ? 2 * y.stride.c : kRows * y_row;
  }

  // The kernels of N maps, turned by 180 degrees or not, and their biases.
  void set(const T* const (&w)[kParts], int64_t row, int64_t column, bool turned, const A (&b)[kParts]) {
    for (int i = 0; i < K; ++i)
      for (int j = 0; j < K; ++j) {
        const int64_t at = i * row + j * column;
        weight[turned ? K * K - 1 - i * K - j : i * K + j] =
            each(static_cast<A>(w[0][at]), static_cast<A>(w[kParts - 1][at]));
      }
    bias = each(b[0], b[kParts - 1]);
  }

  // The same for channel c of pixels.
  void set(int64_t c, const T* w, int64_t row, int64_t column, bool turned, A b) {
    for (int64_t l = c; l < L; l += channels) {
      for (int k = 0; k < K * K; ++k)
        weight[turned ? K * K - 1 - k : k][l] = static_cast<A>(w[k / K * row + k % K * column]);
      bias[l] = b;
    }
  }

  // Some rows of results, of maps that lie `x_step` and `y_step` apart.
  void run(const T* from, int64_t x_step, T* to, int64_t y_step, Range rows) {
    x = from, y = to, x_gap = N == 2 ? x_step : N == 1 ? L : channels, y_gap = y_step;
    for (int64_t row = rows.begin; row < rows.end; row += kRows)
      for (const Span& span : spans) tile(span, row, rows.end);
  }

 private:
  static constexpr auto kAll = std::make_integer_sequence<int, L>();

  static FASTNETS_INLINE Vec<A, L> each(A first, A second) {
    if constexpr (N != 2) return splat<A, L>(first);
    return join<A, L>(splat<A, L / 2>(first), splat<A, L / 2>(second), kAll);
  }

  void span_columns(const Convolution& g) {
    constexpr int64_t part = L / kParts, read = S == 2 ? L : part;
    constexpr int64_t before = (P + S - 1) / S, after = P / S;  // lanes that miss a neighbour amid the map
    for (int64_t end = 0; end < g.ow;) {
      const int64_t column = std::max<int64_t>(0, std::min(end - before, g.ow - part)), first = end - column;
      const int64_t last = column + part < g.ow ? part - after : g.ow - column;
      const int64_t left = g.w - column * S, rest = N == 2 ? left : std::max<int64_t>(0, left - read);
      spans.push_back({column,
                       {first_lanes(std::min(left, read)), first_lanes(std::min(rest, read))},
                       first_lanes(last) & ~first_lanes(first)});
      end = column + last;
    }
  }

  void span_pixels(const Convolution& g) {
    const int64_t pixels = std::min(L / channels, g.ow);
    for (int64_t end = 0; end < g.ow; end += pixels) {
      const int64_t first = std::min(end, g.ow - pixels);  // the last vector overlaps the one before
      Span span{first * channels, {}, first_lanes(pixels * channels)};
      for (int64_t l = 0; l < S * pixels * channels; ++l)
        for (int j = 0; j < K; ++j) {
          const int64_t column = first * S + l / channels + j - P;
          if (column >= 0 && column < g.w) span.loads[j + l / L * K] |= 1u << l % L;
        }
      spans.push_back(span);
    }
    for (int64_t l = 0; l < L; ++l) order[l] = l / channels * channels * S + l % channels;
  }

  // Those pixels of two vectors that are a stride apart.
  FASTNETS_INLINE Vec<A, L> each_second_pixel(const Vec<A, L>& low, const Vec<A, L>& high) const {
#if FASTNETS_VECTOR_BYTES == 64
    const auto mixed = _mm512_permutex2var_ps(bits<__m512>(low), bits<__m512i>(order), bits<__m512>(high));
    return bits<Vec<A, L>>(mixed);
#else
    return low;  // there is no such kernel
#endif
  }

  // What each column of the kernel meets in a row of x.
  template <int... J>
  FASTNETS_INLINE void read(const T* from, int64_t gap, const uint32_t (&loads)[10], Vec<A, L> (&in)[K],
                            std::integer_sequence<int, J...>) const {
    if constexpr (N == kPixels && S == 2) {
      ((in[J] = each_second_pixel(load_lanes<T, L>(from + (J - P) * gap, loads[J]),
                                  load_lanes<T, L>(from + (J - P) * gap + L, loads[K + J]))),
       ...);
    } else if constexpr (N == kPixels) {
      ((in[J] = load_lanes<T, L>(from + (J - P) * gap, loads[J])), ...);
    } else if constexpr (S == 2) {
      const Vec<A, L> low = load_lanes<T, L>(from, loads[0]), high = load_lanes<T, L>(from + gap, loads[1]);
      const Vec<A, L> parted[2] = {each_second<0, A, L>(low, high, kAll), each_second<1, A, L>(low, high, kAll)};
      ((in[J] = shift<(J - P - ((J - P) & 1)) / 2, N, A, L>(parted[(J - P) & 1], kAll)), ...);
    } else {
      Vec<A, L> v;
      if constexpr (N == 1)
        v = load_lanes<T, L>(from, loads[0]);
      else
        v = join<A, L>(load_lanes<T, L / 2>(from, loads[0]), load_lanes<T, L / 2>(from + gap, loads[1]), kAll);
      ((in[J] = shift<J - P, N, A, L>(v, kAll)), ...);
    }
  }

  // A function of its own, so that all registers are its. The weights of 3x3 stay in some, too; the sums of 5x5 are
  // kept in two parts, where there are registers for it, or the adds would wait for one another.
  __attribute__((noinline)) void tile(const Span& span, int64_t row, int64_t end) const {
    constexpr int kSources = (kRows - 1) * S + K, kHeld = K == 3 ? K * K : 0;
    constexpr int kChains = K == 5 && FASTNETS_VECTOR_BYTES == 64 ? 2 : 1;
    uint32_t loads[10] = {};
#pragma GCC unroll 10
    for (int j = 0; j < (N == kPixels ? S * K : 2); ++j) {
      loads[j] = span.loads[j];
      hold(loads[j]);
    }
    Vec<A, L> held[kHeld + 1], sums[kChains][kRows];
#pragma GCC unroll 9
    for (int k = 0; k < kHeld; ++k) {
      held[k] = weight[k];
      hold(held[k]);
    }
#pragma GCC unroll 7
    for (int r = 0; r < kRows; ++r) sums[kChains - 1][r] = Vec<A, L>{}, sums[0][r] = bias;
    const int64_t first = row * S - P, step = x_row, gap = x_gap, ahead = x_ahead;
    const int above = static_cast<int>(std::max<int64_t>(0, -first));
    const int below = static_cast<int>(std::min<int64_t>(kSources, height - first));
    const T* from = x + first * step + span.column * S;
#pragma GCC unroll 17
    for (int i = 0; i < kSources; ++i) {
      if (i >= K - S) {
        __builtin_prefetch(from + ahead, 0, 3);
        if (S == 2 || N == 2) __builtin_prefetch(from + gap + ahead, 0, 3);
      }
      if (i < P ? i >= above : i < below) {
        Vec<A, L> in[K];
        read(from, gap, loads, in, std::make_integer_sequence<int, K>());
#pragma GCC unroll 5
        for (int j = 0; j < K; ++j) {
#pragma GCC unroll 7
          for (int r = 0; r < kRows; ++r) {
            const int k = (i - r * S) * K + j;
            if (k >= j && k < K * K) sums[j % kChains][r] += in[j] * (k < kHeld ? held[k] : weight[k]);
          }
        }
      }
      from += step;
      hold(from);
    }
#pragma GCC unroll 7
    for (int r = 0; r < kRows && kChains == 2; ++r) sums[0][r] += sums[kChains - 1][r];
    activate.template operator()<L, kRows>(sums[0]);
    write(sums[0], y + row * y_row + span.column, span.stored, end - row);
  }

  // The sums of rows that are there to their places.
  FASTNETS_INLINE void write(const Vec<A, L> (&sums)[kRows], T* to, uint32_t lanes, int64_t rows) const {
    hold(lanes);
    const int64_t step = y_row, gap = y_gap, ahead = y_ahead;
#pragma GCC unroll 7
    for (int r = 0; r < kRows; ++r) {
      if (r == rows) break;
      __builtin_prefetch(to + ahead, 1, 3);
      if constexpr (N != 2) {
        store_lanes<T, L>(to, sums[r], lanes);
      } else {
        __builtin_prefetch(to + gap + ahead, 1, 3);
        struct Halves {
          Vec<A, L / 2> low, high;
        };
        const auto halves = bits<Halves>(sums[r]);
        store_lanes<T, L / 2>(to, halves.low, lanes);
        store_lanes<T, L / 2>(to + gap, halves.high, lanes);
      }
      to += step;
      hold(to);
    }
  }

  const T* x = nullptr;
  T* y = nullptr;
  int64_t height, channels, x_row, y_row, x_ahead, y_ahead;
  int64_t x_gap = 0, y_gap = 0;  // to the next load of a row, to the second map
  Activate<A> activate;
  Vec<A, L> weight[K * K], bias;
  Vec<int32_t, L> order{};  // of kPixels: where the pixels of a vector stand in two
  std::vector<Span> spans;
};

// The kernel and the bias of a channel.
template <typename T>
struct Channel {
  Channel(const Problem& p, const void* bias, int64_t c)
      : w(static_cast<const T*>(p.w.data) + c * p.w.stride.n),
        b(bias ? static_cast<Sum<T>>(static_cast<const T*>(bias)[c * p.bias_step]) : Sum<T>(0)) {}
  const T* w;
  Sum<T> b;
};

// Sets the kernels of the maps from c on, of which those that are not there are the last one again.
template <typename T, int K, int S, int N>
FASTNETS_INLINE void set(Maps<T, K, S, N>& maps, const Problem& p, const void* bias, int64_t c, int64_t next,
                         bool turned) {
  const Four& s = p.w.stride;
  if constexpr (N == kPixels) {
    for (int64_t i = 0; i < p.g.c; ++i) {
      const Channel<T> channel(p, bias, i);
      maps.set(i, channel.w, s.h, s.w, turned, channel.b);
    }
  } else {
    const Channel<T> first(p, bias, c), last(p, bias, c + next);
    if constexpr (N == 1) maps.set({first.w}, s.h, s.w, turned, {first.b});
    if constexpr (N == 2) maps.set({first.w, last.w}, s.h, s.w, turned, {first.b, last.b});
  }
}

// The forward pass, or that of dx: the same over dy, with the kernel turned by 180 degrees.
template <typename T, int K, int S, int N>
void correlate(const Problem& p, const Operand& x, const Operand& y, const void* bias, Activation activation,
               bool turned, int64_t begin, int64_t end) {
  constexpr int64_t kRows = Maps<T, K, S, N>::kRows;
  const int64_t together = N == kPixels ? p.g.c : N;
  Maps<T, K, S, N> maps(p.g, x, y, activation);
  for (int64_t task = begin; task < end; ++task) {
    const Range channels = p.channels(task / p.units());
    const int64_t unit = task % p.units(), n = unit / p.strips;
    const Range tiles = share(ceil_div(p.g.oh, kRows), unit % p.strips, p.strips);
    for (int64_t c = channels.begin; c < channels.end; c += together) {
      const int64_t next = N == 2 && c + 1 < channels.end;  // a last map alone is its own second
      set(maps, p, bias, c, next, turned);
      maps.run(static_cast<const T*>(x.data) + n * x.stride.n + c * x.stride.c, next * x.stride.c,
               static_cast<T*>(y.data) + n * y.stride.n + c * y.stride.c, next * y.stride.c,
               {tiles.begin * kRows, std::min(p.g.oh, tiles.end * kRows)});
    }
  }
}

template <typename T, int K, int S, int N>
void forward(const Problem& p, int64_t begin, int64_t end) {
  correlate<T, K, S, N>(p, p.x, p.y, p.bias, p.activation, false, begin, end);
}

// dx alone, at stride 1.
template <typename T, int K, int N>
void backward(const Problem& p, int64_t begin, int64_t end) {
  correlate<T, K, 1, N>(p, p.y, p.dx, nullptr, Activation::kNone, true, begin, end);
}

template <typename T, int K, int N>
depthwise::Kernels kernels_of(int64_t stride) {
  if constexpr (N != kPixels || kPixelStride<T> == 2)
    if (stride == 2) return {&forward<T, K, 2, N>, &backward<T, K, N>};
  return {&forward<T, K, 1, N>, &backward<T, K, N>};
}

template <typename T, int N>
depthwise::Kernels kernels_of(const Convolution& g) {
  return g.kh == 3 ? kernels_of<T, 3, N>(g.sh) : kernels_of<T, 5, N>(g.sh);
}

template <typename T>
depthwise::Kernels kernels(const Problem& p) {
  if constexpr (kPixelStride<T> > 0)
    if (p.layout == depthwise::Layout::kPixels) return kernels_of<T, kPixels>(p.g);
  return 2 * p.g.ow <= kWide<Sum<T>> ? kernels_of<T, 2>(p.g) : kernels_of<T, 1>(p.g);
}

}  // namespace fastnets::FASTNETS_ISA::rows
