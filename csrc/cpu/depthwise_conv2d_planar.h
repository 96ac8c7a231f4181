// Depthwise convolution in every layout but channels_last: what depthwise_conv2d_rows.h does not take, and the gradient
// of the weight; and in channels_last where the channels are fewer than lanes. Included by isa.h: no guard.
//
// A vector's worth of channels at a time is brought into channels_last order in a scratch array, by transposing blocks
// of L pixels by L channels in registers (L log2 L shuffles for L * L numbers: at stride 1 a third of the time of a 3x3
// kernel), or, of few channels that are neighbours, pixel by pixel; the kernels of the channels_last layout run on it;
// and the result is transposed back. The scratch of a strip of rows stays in the second-level cache: memory sees x read
// once and y written once, b * n * (c * h * w + o * oh * ow) bytes. It holds sums' type, so that all types but double
// run the kernels of float.

namespace fastnets::FASTNETS_ISA::planar {

using depthwise::Problem;

// `count` pixels of `channels` planes to `to` [pixel][step]. Lanes beyond the last plane become zero.
template <typename T, int L>
void gather_run(const T* from, int64_t plane, int64_t pixel, int64_t channels, int64_t count, Sum<T>* to,
                int64_t step) {
  using A = Sum<T>;
  if (plane == 1) {
    for (int64_t i = 0; i < count; ++i) store<A, L>(to + i * step, load_first<T, L>(from + i * pixel, channels));
    return;
  }
  if (pixel != 1 || count < L) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t c = 0; c < L; ++c) to[i * step + c] = c < channels ? A(from[c * plane + i * pixel]) : A(0);
    return;
  }
  for (int64_t t = 0; t < count; t += L) {
    const int64_t i = std::min(t, count - L);  // the last block overlaps the one before
    Vec<A, L> v[L];
    for (int64_t c = 0; c < L; ++c) v[c] = c < channels ? load<T, L>(from + c * plane + i) : Vec<A, L>{};
    transpose<A, L>(v);
    for (int64_t j = 0; j < L; ++j) store<A, L>(to + (i + j) * step, v[j]);
  }
}

// The way back; lanes beyond the last plane are dropped.
template <typename T, int L>
void scatter_run(const Sum<T>* from, int64_t step, T* to, int64_t plane, int64_t pixel, int64_t channels,
                 int64_t count) {
  using A = Sum<T>;
  if (plane == 1) {
    for (int64_t i = 0; i < count; ++i) store_first<T, L>(to + i * pixel, load<A, L>(from + i * step), channels);
    return;
  }
  if (pixel != 1 || count < L) {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t i = 0; i < count; ++i) to[c * plane + i * pixel] = static_cast<T>(from[i * step + c]);
    return;
  }
  for (int64_t t = 0; t < count; t += L) {
    const int64_t i = std::min(t, count - L);
    Vec<A, L> v[L];
    for (int64_t j = 0; j < L; ++j) v[j] = load<A, L>(from + (i + j) * step);
    transpose<A, L>(v);
    for (int64_t c = 0; c < std::min<int64_t>(L, channels); ++c) store<T, L>(to + c * plane + i, v[c]);
  }
}

// Rows of some channels of one image as [row][column][channel], a multiple of L channels.
template <typename T>
class Scratch {
 public:
  using A = Sum<T>;
  static constexpr int L = kLanes<A>;

  Scratch(int64_t channels, int64_t width) : channels_(channels), step_((channels + L - 1) / L * L), width_(width) {}

  // Makes room for these rows; what the kernels are told of them, as if all rows were there.
  Operand at(Range rows) {
    const int64_t row = width_ * step_;
    numbers_.resize(std::max<size_t>(numbers_.size(), std::max<int64_t>(0, rows.end - rows.begin) * row));
    begin_ = rows.begin, end_ = rows.end, base_ = numbers_.data() - rows.begin * row;
    return {base_, {0, 1, row, step_}};
  }

  // From, or to, channels c.begin to c.end of image n of a tensor.
  void gather(const Operand& t, int64_t n, Range c) { move<true>(t, n, c); }
  void scatter(const Operand& t, int64_t n, Range c) { move<false>(t, n, c); }

 private:
  template <bool In>
  void move(const Operand& t, int64_t n, Range c) {
    const bool dense = t.stride.h == width_ * t.stride.w;  // rows follow each other: one long run
    const int64_t runs = dense ? 1 : end_ - begin_, count = dense ? (end_ - begin_) * width_ : width_;
    for (int64_t first = c.begin; first < c.end; first += L)
      for (int64_t r = 0; r < runs && end_ > begin_; ++r) {
        T* tensor = static_cast<T*>(t.data) + n * t.stride.n + first * t.stride.c + (begin_ + r) * t.stride.h;
        A* here = base_ + (begin_ + r) * width_ * step_ + (first - c.begin);
        if constexpr (In)
          gather_run<T, L>(tensor, t.stride.c, t.stride.w, c.end - first, count, here, step_);
        else
          scatter_run<T, L>(here, step_, tensor, t.stride.c, t.stride.w, c.end - first, count);
      }
  }

  int64_t channels_, step_, width_, begin_ = 0, end_ = 0;
  A* base_ = nullptr;
  AlignedVector<A> numbers_;
};

// The rows of x that a range of rows of y is computed from.
inline Range source_rows(const Convolution& g, Range rows) {
  return {std::max<int64_t>(0, rows.begin * g.sh - g.ph),
          std::min(g.h, (rows.end - 1) * g.sh - g.ph + (g.kh - 1) * g.dh + 1)};
}

// The rows of dy that a range of rows of dx is computed from.
inline Range gradient_rows(const Convolution& g, Range rows) {
  const int64_t first = rows.begin + g.ph - (g.kh - 1) * g.dh;
  return {first > 0 ? (first + g.sh - 1) / g.sh : 0, std::min(g.oh, (rows.end - 1 + g.ph) / g.sh + 1)};
}

// A block of at most L channels as a problem of exactly L of them, with operands still to be set: the weights and
// biases are packed once for all images.
template <typename T>
struct Block {
  using A = Sum<T>;
  static constexpr int L = kLanes<A>;

  Block(const Problem& p, Range c) : channels(c), problem(p) {
    packed = channels_last::pack<T>(p, c, L);
    problem.prefetches = problem.claims = problem.streams = false;
  }

  Range outputs() const { return {channels.begin * problem.g.m, channels.end * problem.g.m}; }

  Range channels;
  Problem problem;
  AlignedVector<A> packed;
};

// Blocks of a chunk. The last one overlaps the one before, where there are enough channels for that.
template <typename T>
std::vector<Block<T>> blocks_of(const Problem& p, Range chunk) {
  constexpr int L = kLanes<Sum<T>>;
  std::vector<Block<T>> blocks;
  for (int64_t c = chunk.begin; c < chunk.end; c += L) {
    const int64_t first = std::max(chunk.begin, std::min(c, chunk.end - L));
    blocks.emplace_back(p, Range{first, std::min(chunk.end, first + L)});
  }
  return blocks;
}

template <typename T>
void forward(const Problem& p, int64_t begin, int64_t end) {
  using A = Sum<T>;
  constexpr int L = kLanes<A>;
  const Convolution& g = p.g;
  Scratch<T> x(L, g.w), y(L * g.m, g.ow);
  channels_last::Row<A> row;
  std::vector<Block<T>> blocks;
  int64_t chunk = -1;
  for (int64_t task = begin; task < end; ++task) {
    if (chunk != task / p.units()) chunk = task / p.units(), blocks = blocks_of<T>(p, p.channels(chunk));
    const int64_t unit = task % p.units(), n = unit / p.strips;
    const Range rows = share(g.oh, unit % p.strips, p.strips);
    for (Block<T>& block : blocks) {
      Problem& q = block.problem;
      q.x = x.at(source_rows(g, rows)), q.y = y.at(rows);
      x.gather(p.x, n, block.channels);
      channels_last::forward_unit<A, L>(q, block.packed, {0, L}, unit, row);
      y.scatter(p.y, n, block.outputs());
    }
  }
}

template <typename T>
void backward_unit(const Problem& p, Block<T>& block, const std::vector<channels_last::Columns>& sets, int64_t unit,
                   Scratch<T> (&scratch)[3], channels_last::Row<Sum<T>>& row, AlignedVector<Sum<T>>& sums) {
  using A = Sum<T>;
  constexpr int L = kLanes<A>;
  const Convolution& g = p.g;
  const int64_t n = unit / p.strips, strip = unit % p.strips, slot = (g.kh * g.kw + 1) * L;
  auto& [x, dy, dx] = scratch;
  Problem& q = block.problem;
  if (p.dx.data) {
    const Range rows = share(g.h, strip, p.strips);
    q.y = dy.at(gradient_rows(g, rows)), q.dx = dx.at(rows);
    dy.gather(p.y, n, block.outputs());
    channels_last::backward_input_unit<A, L>(q, block.packed, sets, {0, L}, unit, row);
    dx.scatter(p.dx, n, block.channels);
  }
  if (p.dw || p.db) {
    const Range rows = share(g.oh, strip, p.strips);
    q.x = x.at(source_rows(g, rows)), q.y = dy.at(rows);
    x.gather(p.x, n, block.channels);
    dy.gather(p.y, n, block.outputs());
    const std::vector<int64_t> places = channels_last::padded_places(q);
    for (int64_t m = 0; m < g.m; ++m)
      channels_last::backward_weight_unit<A, L>(q, 0, m, unit, places.data(), sums.data() + m * slot);
  }
}

template <typename T>
void backward(const Problem& p, int64_t begin, int64_t end) {
  using A = Sum<T>;
  constexpr int L = kLanes<A>;
  const Convolution& g = p.g;
  const int64_t slot = (g.kh * g.kw + 1) * L;
  Scratch<T> scratch[3] = {{L, g.w}, {L * g.m, g.ow}, {L, g.w}};
  const std::vector<channels_last::Columns> sets = channels_last::all_backward_columns(g);
  channels_last::Row<A> row;
  std::vector<Block<T>> blocks;
  AlignedVector<A> sums;
  int64_t chunk = -1;
  for (int64_t task = begin; task < end; ++task) {
    if (chunk != task / p.parts) chunk = task / p.parts, blocks = blocks_of<T>(p, p.channels(chunk));
    const Range units = share(p.units(), task % p.parts, p.parts);
    for (Block<T>& block : blocks) {
      sums.assign(g.m * slot, 0);
      for (int64_t unit = units.begin; unit < units.end; ++unit)
        backward_unit<T>(p, block, sets, unit, scratch, row, sums);
      for (int64_t m = 0; m < g.m; ++m)
        channels_last::write_sums<A, L>(p, task % p.parts, block.channels, m, sums.data() + m * slot);
    }
  }
}

template <typename T>
depthwise::Kernels kernels() {
  return {&forward<T>, &backward<T>};
}

}  // namespace fastnets::FASTNETS_ISA::planar
