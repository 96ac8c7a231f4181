// Depthwise convolution where the pixels of a row are neighbours in memory, and for every other layout. Included by
// isa.h: no guard.
//
// Lanes are pixels. A strip of rows of one plane is copied, in float, into a buffer with zeros around it and with rows
// and columns split by their residues modulo the stride. Every tap, whatever the stride, dilation or padding, is then
// that buffer read from some place on, and the whole strip of results one weighted sum of such reads: no edges, no
// gathers, and full vectors on maps of 7 columns. Between two rows it also computes a few numbers that nobody wants (7
// of 9 are wanted on a map of 7). The copy costs a load and a store for each number against kh * kw multiply-adds. The
// buffer fits the first-level cache: memory sees x read once and y written once, b * n * (c * h * w + o * oh * ow)
// bytes.

namespace fastnets::FASTNETS_ISA::planar {

using depthwise::Problem;
using depthwise::Range;
using depthwise::share;

constexpr int64_t kSlack = 4 * FASTNETS_VECTOR_BYTES / sizeof(float);  // sums run to a multiple of four vectors

template <typename T>
void copy_row(const T* from, int64_t step, Sum<T>* to, int64_t count) {
  constexpr int L = kLanes<Sum<T>>;
  int64_t i = 0;
  if (step == 1) {
    for (; i + L <= count; i += L) store<Sum<T>, L>(to + i, load<T, L>(from + i));
#if FASTNETS_VECTOR_BYTES == 64
    if constexpr (std::is_same_v<T, float>) {
      const __mmask16 rest = (1u << (count - i)) - 1;
      return _mm512_mask_storeu_ps(to + i, rest, _mm512_maskz_loadu_ps(rest, from + i));
    }
#endif
  }
  for (; i < count; ++i) to[i] = static_cast<Sum<T>>(from[i * step]);
}

template <typename T>
void write_row(const Sum<T>* from, T* to, int64_t step, int64_t count) {
  if constexpr (std::is_same_v<T, float>)
    if (step == 1) return copy_row<T>(from, 1, to, count);
  for (int64_t i = 0; i < count; ++i) to[i * step] = static_cast<T>(from[i]);
}

// A plane in memory.
template <typename T>
struct Plane {
  const T* data;
  int64_t height, row_stride, column_stride;
};

// Rows of a plane of `width` columns with zeros around. Row u, column v stand at `at(u, v)`; row u is the plane's row
// `first` + u, column v its column v - left. Splits: by what residues are apart. All places are found out once.
template <typename T>
class Strip {
 public:
  using A = Sum<T>;

  Strip(int64_t rows, int64_t columns, int64_t left, int64_t width, int64_t row_split, int64_t column_split)
      : pitch((columns + column_split - 1) / column_split),
        rows_(rows),
        row_split_(row_split),
        column_split_(column_split),
        part_((rows + row_split - 1) / row_split * pitch),
        data_(part_ * row_split * column_split + kSlack) {
    for (int64_t residue = 0; residue < column_split; ++residue) {
      // The first column x with (x + left) % split == residue, and how many such there are.
      const int64_t x = ((residue - left) % column_split + column_split) % column_split;
      const int64_t there = x < width ? (width - x + column_split - 1) / column_split : 0;
      columns_.push_back({x, std::min(there, pitch - (x + left) / column_split)});
      for (int64_t u = 0; u < rows; ++u) places_.push_back(place(u, x + left));
    }
  }

  const A* at(int64_t u, int64_t v) const { return data_.data() + place(u, v); }

  void fill(const Plane<T>& plane, int64_t first) {
    const bool moved = first != first_;  // where not, the rows beside the plane are still zero
    first_ = first;
    for (int64_t residue = 0; residue < column_split_; ++residue) {
      const auto [x, count] = columns_[residue];  // the zeros beside them are never overwritten
      const T* from = plane.data + first * plane.row_stride + x * plane.column_stride;
      for (int64_t u = 0; u < rows_; ++u, from += plane.row_stride) {
        A* to = data_.data() + places_[residue * rows_ + u];
        if (first + u >= 0 && first + u < plane.height)
          copy_row<T>(from, column_split_ * plane.column_stride, to, count);
        else if (moved)
          std::fill(to, to + count, A(0));
      }
    }
  }

  const int64_t pitch;  // from one row to the next of the same residue

 private:
  struct Columns {
    int64_t first, count;
  };

  int64_t place(int64_t u, int64_t v) const {
    return (u % row_split_ * column_split_ + v % column_split_) * part_ + u / row_split_ * pitch + v / column_split_;
  }

  int64_t rows_, row_split_, column_split_, part_, first_ = INT64_MIN;
  std::vector<Columns> columns_;  // of the plane, by residue
  std::vector<int64_t> places_;   // where they go, by residue and row
  std::vector<A> data_;
};

// One summand: where it is read from, its weight, and where that stands after the weights of the first output channel.
template <typename A>
struct Tap {
  const A* from;
  int64_t place;
  A weight = 0;
};

template <typename T>
void set_weights(const Problem& p, int64_t o, std::vector<Tap<Sum<T>>>& taps) {
  const T* w = static_cast<const T*>(p.w.data) + o * p.w.stride.n;
  for (Tap<Sum<T>>& tap : taps) tap.weight = static_cast<Sum<T>>(w[tap.place]);
}

// W vectors of the sum below.
template <typename A, int W>
void weighted_vectors(const std::vector<Tap<A>>& taps, A bias, const Activate<A>& activate, A* out, int64_t t) {
  constexpr int L = kLanes<A>;
  Vec<A, L> sums[W];
  for (int i = 0; i < W; ++i) sums[i] = splat<A, L>(bias);
  for (const Tap<A>& tap : taps)
    for (int i = 0; i < W; ++i) sums[i] += load<A, L>(tap.from + t + i * L) * tap.weight;
  activate.template operator()<L, W>(sums);
  for (int i = 0; i < W; ++i) store<A, L>(out + t + i * L, sums[i]);
}

// out[t] = activation(bias + sum of weight * from[t]) for t < count and on to a multiple of the vector length. Four to
// seven vectors at a time where there are as many: one alone would wait for each of its own sums.
template <typename A>
void weighted_sum(const std::vector<Tap<A>>& taps, A bias, const Activate<A>& activate, A* out, int64_t count) {
  constexpr int L = kLanes<A>;
  int64_t t = 0;
  for (; count - t > 7 * L; t += 4 * L) weighted_vectors<A, 4>(taps, bias, activate, out, t);
  const int64_t rest = (count - t + L - 1) / L;
  if (rest == 7) return weighted_vectors<A, 7>(taps, bias, activate, out, t);
  if (rest == 6) return weighted_vectors<A, 6>(taps, bias, activate, out, t);
  if (rest == 5) return weighted_vectors<A, 5>(taps, bias, activate, out, t);
  if (rest > 2) return weighted_vectors<A, 4>(taps, bias, activate, out, t);
  weighted_vectors<A, 2>(taps, bias, activate, out, t);
}

template <typename T>
T* at(const depthwise::Operand& t, int64_t n, int64_t c, int64_t y) {
  return static_cast<T*>(t.data) + n * t.stride.n + c * t.stride.c + y * t.stride.h;
}

// Most rows that a strip of `count` rows cut into p.strips has.
inline int64_t most_rows(const Problem& p, int64_t count) { return (count + p.strips - 1) / p.strips; }

// The rows of x under a strip of results.
template <typename T>
Strip<T> source_strip(const Problem& p) {
  const Convolution& g = p.g;
  return Strip<T>((most_rows(p, g.oh) - 1) * g.sh + (g.kh - 1) * g.dh + 1, (g.ow - 1) * g.sw + (g.kw - 1) * g.dw + 1,
                  g.pw, g.w, g.sh, g.sw);
}

template <typename T>
void fill_source(const Problem& p, int64_t n, int64_t c, int64_t first_result, Strip<T>& strip) {
  strip.fill({at<T>(p.x, n, c, 0), p.g.h, p.x.stride.h, p.x.stride.w}, first_result * p.g.sh - p.g.ph);
}

// Taps of the result, for one output channel.
template <typename T>
std::vector<Tap<Sum<T>>> source_taps(const Problem& p, const Strip<T>& strip) {
  std::vector<Tap<Sum<T>>> taps;
  for (int64_t i = 0; i < p.g.kh; ++i)
    for (int64_t j = 0; j < p.g.kw; ++j)
      taps.push_back({strip.at(i * p.g.dh, j * p.g.dw), i * p.w.stride.h + j * p.w.stride.w});
  return taps;
}

template <typename T>
void forward_unit(const Problem& p, int64_t c, int64_t unit, Strip<T>& strip, std::vector<Tap<Sum<T>>>& taps,
                  std::vector<Sum<T>>& out) {
  const Convolution& g = p.g;
  const int64_t n = unit / p.strips;
  const Range rows = share(g.oh, unit % p.strips, p.strips);
  const Activate<Sum<T>> activate(p.activation);
  fill_source(p, n, c, rows.begin, strip);
  for (int64_t o = c * g.m; o < (c + 1) * g.m; ++o) {
    set_weights<T>(p, o, taps);
    const Sum<T> bias = p.bias ? static_cast<Sum<T>>(static_cast<const T*>(p.bias)[o * p.bias_step]) : Sum<T>(0);
    weighted_sum<Sum<T>>(taps, bias, activate, out.data(), (rows.end - rows.begin - 1) * strip.pitch + g.ow);
    for (int64_t r = rows.begin; r < rows.end; ++r)
      write_row<T>(out.data() + (r - rows.begin) * strip.pitch, at<T>(p.y, n, o, r), p.y.stride.w, g.ow);
  }
}

// dx[i] = sum over j of dy[(i + p - j d) / s] w[j] where s divides. Row i = s q + a of dx reads rows q + (a + p - j d)
// / s of dy; `before` of these lie before row q.
inline int64_t before(int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (std::max<int64_t>(0, (kernel - 1) * dilation - padding) + stride - 1) / stride;
}

// The rows of dy under a strip of dx; strips of dx begin at multiples of the stride.
template <typename T>
Strip<T> gradient_strip(const Problem& p) {
  const Convolution& g = p.g;
  const int64_t top = before(g.kh, g.sh, g.ph, g.dh), left = before(g.kw, g.sw, g.pw, g.dw);
  return Strip<T>(top + most_rows(p, (g.h + g.sh - 1) / g.sh) + (g.sh - 1 + g.ph) / g.sh,
                  left + (g.w + g.sw - 1) / g.sw + (g.sw - 1 + g.pw) / g.sw, left, g.ow, 1, 1);
}

// Taps of dx for each residue of row and column modulo the stride; `strips` holds one plane of dy for each multiplier.
template <typename T>
std::vector<std::vector<Tap<Sum<T>>>> gradient_taps(const Problem& p, const std::vector<Strip<T>>& strips) {
  const Convolution& g = p.g;
  const int64_t top = before(g.kh, g.sh, g.ph, g.dh), left = before(g.kw, g.sw, g.pw, g.dw);
  std::vector<std::vector<Tap<Sum<T>>>> taps(g.sh * g.sw);
  for (int64_t a = 0; a < g.sh; ++a)
    for (int64_t b = 0; b < g.sw; ++b)
      for (int64_t i = 0; i < g.kh; ++i)
        for (int64_t j = 0; j < g.kw; ++j) {
          const int64_t y = a + g.ph - i * g.dh, x = b + g.pw - j * g.dw;
          for (int64_t k = 0; y % g.sh == 0 && x % g.sw == 0 && k < g.m; ++k)
            taps[a * g.sw + b].push_back({strips[k].at(top + y / g.sh, left + x / g.sw),
                                          k * p.w.stride.n + i * p.w.stride.h + j * p.w.stride.w});
        }
  return taps;
}

template <typename T>
void backward_input_unit(const Problem& p, int64_t c, int64_t unit, std::vector<Strip<T>>& strips,
                         std::vector<std::vector<Tap<Sum<T>>>>& taps, std::vector<Sum<T>>& out) {
  const Convolution& g = p.g;
  const Activate<Sum<T>> none(Activation::kNone);
  const int64_t n = unit / p.strips, pitch = strips[0].pitch, top = before(g.kh, g.sh, g.ph, g.dh);
  const Range q = share((g.h + g.sh - 1) / g.sh, unit % p.strips, p.strips);
  for (int64_t k = 0; k < g.m; ++k)
    strips[k].fill({at<T>(p.y, n, c * g.m + k, 0), g.oh, p.y.stride.h, p.y.stride.w}, q.begin - top);
  for (int64_t a = 0; a < g.sh; ++a)
    for (int64_t b = 0; b < g.sw; ++b) {
      const int64_t rows = std::min(q.end, (g.h - a + g.sh - 1) / g.sh) - q.begin;
      const int64_t columns = (g.w - b + g.sw - 1) / g.sw;
      if (rows <= 0 || columns <= 0) continue;
      std::vector<Tap<Sum<T>>>& some = taps[a * g.sw + b];
      set_weights<T>(p, c * g.m, some);
      weighted_sum<Sum<T>>(some, Sum<T>(0), none, out.data(), (rows - 1) * pitch + columns);
      for (int64_t r = 0; r < rows; ++r)
        write_row<T>(out.data() + r * pitch, at<T>(p.dx, n, c, (q.begin + r) * g.sh + a) + b * p.dx.stride.w,
                     g.sw * p.dx.stride.w, columns);
    }
}

// Sum of a[t] * b[t]. Lanes past the end are cut out of the product: what stands there may be NaN.
template <typename A>
FASTNETS_INLINE Vec<A, kLanes<A>> product(const A* a, const A* b, int64_t count) {
  constexpr int L = kLanes<A>;
  Vec<A, L> total{}, lane;
  for (int i = 0; i < L; ++i) lane[i] = A(i);
  int64_t t = 0;
  for (; t + L <= count; t += L) total += load<A, L>(a + t) * load<A, L>(b + t);
  if (t < count) {
    const Vec<A, L> last = load<A, L>(a + t) * load<A, L>(b + t);
    total += lane < A(count - t) ? last : Vec<A, L>{};
  }
  return total;
}

// Adds a strip to the sums [multiplier][kh * kw + 1][lanes] of dw, and of db in the last place.
template <typename T>
void backward_weight_unit(const Problem& p, int64_t c, int64_t unit, Strip<T>& strip,
                          const std::vector<Tap<Sum<T>>>& from, std::vector<Sum<T>>& row, std::vector<Sum<T>>& sums) {
  using A = Sum<T>;
  constexpr int L = kLanes<A>;
  const Convolution& g = p.g;
  const int64_t n = unit / p.strips, taps = g.kh * g.kw;
  const Range rows = share(g.oh, unit % p.strips, p.strips);
  const std::vector<A> ones(g.ow + kSlack, A(1));
  fill_source(p, n, c, rows.begin, strip);
  for (int64_t r = rows.begin; r < rows.end; ++r)
    for (int64_t k = 0; k < g.m; ++k) {
      copy_row<T>(at<T>(p.y, n, c * g.m + k, r), p.y.stride.w, row.data(), g.ow);
      A* to = sums.data() + k * (taps + 1) * L;
      const int64_t shift = (r - rows.begin) * strip.pitch;
      for (int64_t tap = 0; p.dw && tap < taps; ++tap)
        store<A, L>(to + tap * L, load<A, L>(to + tap * L) + product<A>(from[tap].from + shift, row.data(), g.ow));
      if (p.db) store<A, L>(to + taps * L, load<A, L>(to + taps * L) + product<A>(ones.data(), row.data(), g.ow));
    }
}

// Writes one channel's sums to its part of dw and db.
template <typename A>
void write_sums(const Problem& p, int64_t part, int64_t c, const std::vector<A>& sums) {
  constexpr int L = kLanes<A>;
  const int64_t taps = p.g.kh * p.g.kw;
  for (int64_t k = 0; k < p.g.m; ++k) {
    const int64_t o = part * p.g.o + c * p.g.m + k;
    const A* from = sums.data() + k * (taps + 1) * L;
    for (int64_t i = 0; p.dw && i < taps; ++i)
      static_cast<A*>(p.dw)[o * taps + i] = sum<A, L>(load<A, L>(from + i * L));
    if (p.db) static_cast<A*>(p.db)[o] = sum<A, L>(load<A, L>(from + taps * L));
  }
}

template <typename T>
void forward(const Problem& p, int64_t begin, int64_t end) {
  Strip<T> strip = source_strip<T>(p);
  std::vector<Tap<Sum<T>>> taps = source_taps(p, strip);
  std::vector<Sum<T>> out(most_rows(p, p.g.oh) * strip.pitch + kSlack);
  for (int64_t task = begin; task < end; ++task) {
    const Range channels = p.channels(task / p.units());
    for (int64_t c = channels.begin; c < channels.end; ++c) forward_unit<T>(p, c, task % p.units(), strip, taps, out);
  }
}

template <typename T>
void backward(const Problem& p, int64_t begin, int64_t end) {
  const Convolution& g = p.g;
  Strip<T> x_strip = source_strip<T>(p);
  const std::vector<Tap<Sum<T>>> x_taps = source_taps(p, x_strip);
  std::vector<Strip<T>> dy_strips(g.m, gradient_strip<T>(p));
  std::vector<std::vector<Tap<Sum<T>>>> dy_taps = gradient_taps(p, dy_strips);
  std::vector<Sum<T>> out(most_rows(p, (g.h + g.sh - 1) / g.sh) * dy_strips[0].pitch + kSlack), row(g.ow + kSlack),
      sums;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task % p.parts;
    const Range channels = p.channels(task / p.parts), units = share(p.units(), part, p.parts);
    for (int64_t c = channels.begin; c < channels.end; ++c) {
      sums.assign(g.m * (g.kh * g.kw + 1) * kLanes<Sum<T>>, 0);
      for (int64_t unit = units.begin; unit < units.end; ++unit) {
        if (p.dx.data) backward_input_unit<T>(p, c, unit, dy_strips, dy_taps, out);
        if (p.dw || p.db) backward_weight_unit<T>(p, c, unit, x_strip, x_taps, row, sums);
      }
      if (p.dw || p.db) write_sums<Sum<T>>(p, part, c, sums);
    }
  }
}

template <typename T>
depthwise::Kernels kernels() {
  return {&forward<T>, &backward<T>};
}

}  // namespace fastnets::FASTNETS_ISA::planar
