// Depthwise convolution where the pixels of a row are neighbours in memory, and for every other layout. Included by isa.h:
// no guard.
//
// Lanes are columns. The source rows that a kernel position needs are copied, in float, into lines with zeros around them
// and with the columns split by their residue modulo the stride. Every tap, whatever the stride, dilation or padding, is
// then a line read from some place on, and an output row a weighted sum of lines: no edges, no gathers. The copy costs one
// load and store for each number against kh * kw multiply-adds; lines live in the first-level cache, so memory sees x read
// once and y written once, b * n * (c * h * w + o * oh * ow) bytes. A task is a strip of rows for some channels.

namespace fastnets::FASTNETS_ISA::planar {

using depthwise::Problem;
using depthwise::Range;
using depthwise::share;

constexpr int64_t kSlack = FASTNETS_VECTOR_BYTES / sizeof(float);  // sums run to a multiple of the vector length

// The latest rows of a plane. Column u of a row stands at place u / split of line u % split; `left` zeros come before.
template <typename T>
class Lines {
 public:
  using A = Sum<T>;

  Lines(int64_t split, int64_t left, int64_t length, int64_t rows)
      : split_(split), left_(left), length_(length + kSlack), rows_(rows), data_(rows * split * length_) {}

  // The plane to read: `height` rows of `width` columns; rows before `first` are never asked for.
  void open(const T* plane, int64_t height, int64_t width, int64_t row_stride, int64_t column_stride, int64_t first) {
    plane_ = plane, height_ = height, width_ = width, row_stride_ = row_stride, column_stride_ = column_stride;
    next_ = std::max<int64_t>(0, first);
  }

  // The line in which column u stands, from column u on; rows must be asked for in ascending order, up to `rows` back.
  const A* at(int64_t y, int64_t u) {
    while (next_ <= y) fill(next_++);
    return data_.data() + (y % rows_ * split_ + u % split_) * length_ + u / split_;
  }

 private:
  void fill(int64_t y) {
    A* lines = data_.data() + y % rows_ * split_ * length_;
    const T* row = plane_ + y * row_stride_;
    for (int64_t residue = 0; residue < split_; ++residue) {
      // Columns x with (x + left) % split == residue, to place (x + left) / split.
      const int64_t x0 = ((residue - left_) % split_ + split_) % split_;
      const int64_t place = (x0 + left_) / split_;
      const int64_t count = std::min(x0 < width_ ? (width_ - x0 + split_ - 1) / split_ : 0, length_ - kSlack - place);
      A* to = lines + residue * length_ + place;
      const T* from = row + x0 * column_stride_;
      const int64_t step = split_ * column_stride_;
      if (step == 1)
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<A>(from[i]);
      else
        for (int64_t i = 0; i < count; ++i) to[i] = static_cast<A>(from[i * step]);
    }
  }

  int64_t split_, left_, length_, rows_;
  std::vector<A> data_;
  const T* plane_ = nullptr;
  int64_t height_ = 0, width_ = 0, row_stride_ = 0, column_stride_ = 0, next_ = 0;
};

// One summand of an output row: a line and its weight.
template <typename A>
struct Tap {
  const A* line;
  A weight;
};

// out[t] = activation(bias + sum of weight * line[t]) for t < count and on to a multiple of the vector length.
template <typename A>
void weighted_sum(const std::vector<Tap<A>>& taps, A bias, const Activate<A>& activate, A* out, int64_t count) {
  constexpr int L = kLanes<A>, W = 4;
  const Tap<A>* const begin = taps.data();
  const Tap<A>* const end = begin + taps.size();
  int64_t t = 0;
  for (; t + (W - 1) * L < count; t += W * L) {
    Vec<A, L> sums[W];
    for (int i = 0; i < W; ++i) sums[i] = splat<A, L>(bias);
    for (const Tap<A>* tap = begin; tap != end; ++tap)
      for (int i = 0; i < W; ++i) sums[i] += load<A, L>(tap->line + t + i * L) * tap->weight;
    activate.template operator()<L, W>(sums);
    for (int i = 0; i < W; ++i) store<A, L>(out + t + i * L, sums[i]);
  }
  for (; t < count; t += L) {
    Vec<A, L> sums[1] = {splat<A, L>(bias)};
    for (const Tap<A>* tap = begin; tap != end; ++tap) sums[0] += load<A, L>(tap->line + t) * tap->weight;
    activate.template operator()<L, 1>(sums);
    store<A, L>(out + t, sums[0]);
  }
}

template <typename T>
void write_row(const Sum<T>* row, int64_t count, T* out, int64_t step) {
  if (step == 1)
    for (int64_t t = 0; t < count; ++t) out[t] = static_cast<T>(row[t]);
  else
    for (int64_t t = 0; t < count; ++t) out[t * step] = static_cast<T>(row[t]);
}

// Columns u = x + pw of a padded row that some output column reads.
inline int64_t reach(const Convolution& g) { return ((g.ow - 1) * g.sw + (g.kw - 1) * g.dw) / g.sw + 1; }

template <typename T>
Lines<T> forward_lines(const Convolution& g) {
  return Lines<T>(g.sw, g.pw, reach(g), (g.kh - 1) * g.dh + 1);
}

template <typename T>
Sum<T> weight_at(const Problem& p, int64_t o, int64_t i, int64_t j) {
  return static_cast<Sum<T>>(
      static_cast<const T*>(p.w.data)[o * p.w.stride.n + i * p.w.stride.h + j * p.w.stride.w]);
}

template <typename T>
void forward_unit(const Problem& p, int64_t c, int64_t unit, Lines<T>& lines, std::vector<Sum<T>>& out) {
  const Convolution& g = p.g;
  const int64_t n = unit / p.strips;
  const Range rows = share(g.oh, unit % p.strips, p.strips);
  std::vector<Tap<Sum<T>>> taps;
  const T* x = static_cast<const T*>(p.x.data) + n * p.x.stride.n + c * p.x.stride.c;
  lines.open(x, g.h, g.w, p.x.stride.h, p.x.stride.w, rows.begin * g.sh - g.ph);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t o = c * g.m; o < (c + 1) * g.m; ++o) {
      taps.clear();
      for (int64_t i = 0; i < g.kh; ++i) {
        const int64_t y = r * g.sh - g.ph + i * g.dh;
        for (int64_t j = 0; y >= 0 && y < g.h && j < g.kw; ++j)
          taps.push_back({lines.at(y, j * g.dw), weight_at<T>(p, o, i, j)});
      }
      const Sum<T> bias = p.bias ? static_cast<Sum<T>>(static_cast<const T*>(p.bias)[o * p.bias_step]) : Sum<T>(0);
      weighted_sum<Sum<T>>(taps, bias, Activate<Sum<T>>(p.activation), out.data(), g.ow);
      T* y = static_cast<T*>(p.y.data) + n * p.y.stride.n + o * p.y.stride.c + r * p.y.stride.h;
      write_row<T>(out.data(), g.ow, y, p.y.stride.w);
    }
  }
}

// Zeros before dy so that the first column of dx finds all its taps: dx[i] reads dy[(i + pw - j dw) / sw].
inline int64_t backward_left(const Convolution& g) {
  return std::max<int64_t>(0, (g.kw - 1) * g.dw - g.pw) / g.sw + 1;
}

template <typename T>
Lines<T> backward_lines(const Convolution& g) {
  return Lines<T>(1, backward_left(g), backward_left(g) + (g.w - 1 + g.pw) / g.sw + 1, (g.kh - 1) * g.dh / g.sh + 2);
}

// Rows of dx, column residue by column residue modulo the stride; `lines` holds one dy plane for each multiplier.
template <typename T>
void backward_input_unit(const Problem& p, int64_t c, int64_t unit, std::vector<Lines<T>>& lines,
                         std::vector<Sum<T>>& out) {
  const Convolution& g = p.g;
  const int64_t n = unit / p.strips, left = backward_left(g);
  const Range rows = share(g.h, unit % p.strips, p.strips);
  std::vector<Tap<Sum<T>>> taps;
  const T* dy = static_cast<const T*>(p.y.data) + n * p.y.stride.n + c * g.m * p.y.stride.c;
  for (int64_t q = 0; q < g.m; ++q)
    lines[q].open(dy + q * p.y.stride.c, g.oh, g.ow, p.y.stride.h, p.y.stride.w,
                  (rows.begin + g.ph - (g.kh - 1) * g.dh) / g.sh);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    T* dx = static_cast<T*>(p.dx.data) + n * p.dx.stride.n + c * p.dx.stride.c + r * p.dx.stride.h;
    for (int64_t residue = 0; residue < std::min(g.sw, g.w); ++residue) {
      taps.clear();
      for (int64_t i = g.kh - 1; i >= 0; --i) {
        const int64_t y = r + g.ph - i * g.dh;
        if (y < 0 || y % g.sh != 0 || y / g.sh >= g.oh) continue;
        for (int64_t j = 0; j < g.kw; ++j) {
          const int64_t u = residue + g.pw - j * g.dw;
          for (int64_t q = 0; u % g.sw == 0 && q < g.m; ++q)
            taps.push_back({lines[q].at(y / g.sh, left + u / g.sw), weight_at<T>(p, c * g.m + q, i, j)});
        }
      }
      const int64_t count = (g.w - residue + g.sw - 1) / g.sw;
      weighted_sum<Sum<T>>(taps, Sum<T>(0), Activate<Sum<T>>(Activation::kNone), out.data(), count);
      write_row<T>(out.data(), count, dx + residue * p.dx.stride.w, g.sw * p.dx.stride.w);
    }
  }
}

// Sum of a[t] * b[t]. Lanes past the end are cut out of both: what stands there is not zero, and may be NaN.
template <typename A>
Vec<A, kLanes<A>> product(const A* a, const A* b, int64_t count) {
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
void backward_weight_unit(const Problem& p, int64_t c, int64_t unit, Lines<T>& lines, std::vector<Sum<T>>& row,
                          std::vector<Sum<T>>& sums) {
  using A = Sum<T>;
  constexpr int L = kLanes<A>;
  const Convolution& g = p.g;
  const int64_t n = unit / p.strips;
  const Range rows = share(g.oh, unit % p.strips, p.strips);
  const std::vector<A> ones(g.ow + kSlack, A(1));
  const T* x = static_cast<const T*>(p.x.data) + n * p.x.stride.n + c * p.x.stride.c;
  lines.open(x, g.h, g.w, p.x.stride.h, p.x.stride.w, rows.begin * g.sh - g.ph);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    for (int64_t q = 0; q < g.m; ++q) {
      const T* dy =
          static_cast<const T*>(p.y.data) + n * p.y.stride.n + (c * g.m + q) * p.y.stride.c + r * p.y.stride.h;
      for (int64_t t = 0; t < g.ow; ++t) row[t] = static_cast<A>(dy[t * p.y.stride.w]);
      A* to = sums.data() + q * (g.kh * g.kw + 1) * L;
      for (int64_t i = 0; p.dw && i < g.kh; ++i) {
        const int64_t y = r * g.sh - g.ph + i * g.dh;
        for (int64_t j = 0; y >= 0 && y < g.h && j < g.kw; ++j) {
          A* sum = to + (i * g.kw + j) * L;
          store<A, L>(sum, load<A, L>(sum) + product<A>(lines.at(y, j * g.dw), row.data(), g.ow));
        }
      }
      A* db = to + g.kh * g.kw * L;
      if (p.db) store<A, L>(db, load<A, L>(db) + product<A>(ones.data(), row.data(), g.ow));
    }
  }
}

// Writes one channel's sums to its part of dw and db.
template <typename A>
void write_sums(const Problem& p, int64_t part, int64_t c, const std::vector<A>& sums) {
  constexpr int L = kLanes<A>;
  const int64_t taps = p.g.kh * p.g.kw;
  for (int64_t q = 0; q < p.g.m; ++q) {
    const int64_t o = part * p.g.o + c * p.g.m + q;
    const A* from = sums.data() + q * (taps + 1) * L;
    for (int64_t k = 0; p.dw && k < taps; ++k) static_cast<A*>(p.dw)[o * taps + k] = sum<A, L>(load<A, L>(from + k * L));
    if (p.db) static_cast<A*>(p.db)[o] = sum<A, L>(load<A, L>(from + taps * L));
  }
}

template <typename T>
void forward(const Problem& p, int64_t begin, int64_t end) {
  Lines<T> lines = forward_lines<T>(p.g);
  std::vector<Sum<T>> out(p.g.ow + kSlack);
  for (int64_t task = begin; task < end; ++task) {
    const Range channels = p.channels(task / p.units());
    for (int64_t c = channels.begin; c < channels.end; ++c) forward_unit<T>(p, c, task % p.units(), lines, out);
  }
}

template <typename T>
void backward(const Problem& p, int64_t begin, int64_t end) {
  const Convolution& g = p.g;
  Lines<T> x_lines = forward_lines<T>(g);
  std::vector<Lines<T>> dy_lines(g.m, backward_lines<T>(g));
  std::vector<Sum<T>> row(std::max(g.w, g.ow) + kSlack), sums;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task % p.parts;
    const Range channels = p.channels(task / p.parts), units = share(p.units(), part, p.parts);
    for (int64_t c = channels.begin; c < channels.end; ++c) {
      sums.assign(g.m * (g.kh * g.kw + 1) * kLanes<Sum<T>>, 0);
      for (int64_t unit = units.begin; unit < units.end; ++unit) {
        if (p.dx.data) backward_input_unit<T>(p, c, unit, dy_lines, row);
        if (p.dw || p.db) backward_weight_unit<T>(p, c, unit, x_lines, row, sums);
      }
      write_sums<Sum<T>>(p, part, c, sums);
    }
  }
}

template <typename T>
depthwise::Kernels kernels() {
  return {&forward<T>, &backward<T>};
}

}  // namespace fastnets::FASTNETS_ISA::planar
