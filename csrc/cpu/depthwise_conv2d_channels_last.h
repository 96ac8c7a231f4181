// Depthwise convolution where neighbouring channels are neighbours in memory, at least as many as lanes. Included by
// isa.h: no guard.
//
// Lanes are channels. A tile is seven or four output pixels of one row: under each kernel row, the source pixels below
// the tile are loaded once and serve every tap that meets them, (6 + k) loads for 7 k multiply-adds at stride 1;
// weights come from a packed copy [kh][kw][channels] in the first-level cache. A task is a strip of rows of one image
// for a chunk of channels, small enough that the rows which two kernel positions share are still cached: memory sees x
// read once and y written once, b * n * (c * h * w + o * oh * ow) bytes. The gradient of x is the same loop over dy;
// the gradient of w goes over the same strip while x and dy are cached, so that both together read x and dy once and
// write dx once.

#include "depthwise_conv2d_columns.h"
#include "depthwise_conv2d_normalized.h"

namespace fastnets::FASTNETS_ISA::channels_last {

using depthwise::Problem;

// dx[i] = sum over j of dy[(i + p - j d) / s] w[j], for the j where s divides: every (s / gcd(s, d))-th, taken from the
// last down so that source columns ascend.
inline Columns backward_columns(const Convolution& g, int64_t residue) {
  Columns c{residue, g.sw, (g.w - residue + g.sw - 1) / g.sw, 1, 0, 1, 0, 0, 0};
  for (int64_t j = g.kw - 1; j >= 0; --j) {
    const int64_t offset = residue + g.pw - j * g.dw;
    if (offset % g.sw != 0) continue;
    if (c.taps == 0) c.weight = j, c.offset = offset / g.sw;
    if (c.taps == 1) c.weight_step = j - c.weight, c.offset_step = offset / g.sw - c.offset;
    ++c.taps;
  }
  return c;
}

inline std::vector<Columns> all_backward_columns(const Convolution& g) {
  std::vector<Columns> sets;
  for (int64_t residue = 0; residue < std::min(g.sw, g.w); ++residue) sets.push_back(backward_columns(g, residue));
  return sets;
}

// The types that networks run in on a CPU have kernels for the shapes that networks have; the others share one for all,
// as does bfloat16 on processors from before AVX2.
template <typename T>
constexpr bool is_fast = std::is_same_v<T, float> || (std::is_same_v<T, BFloat16> && FASTNETS_VECTOR_BYTES > 16);

// First channel of block b of a chunk. The last block overlaps the one before: it computes some channels again rather
// than fewer at a time.
template <int L>
FASTNETS_INLINE int64_t block_of(Range c, int64_t b) {
  return std::min(c.begin + b * L, c.end - L);
}

// W output pixels from column t on, all taps of the set: K of them at adjacent columns, source_step S, channels
// adjacent in source and output. Of the (W - 1) S + K source columns, the first Left and the last Right lie beside the
// source and add nothing. kAny: how many do is found out at run time, they are read from `zeros`, and of the W pixels
// those beyond the last one are written to `spare`. Rows is how many source rows there are, where the compiler knows.
constexpr int kAny = -1;

template <typename T, int L, int W, int K, int S, int Rows, int Left, int Right>
void tile(const Row<T>& row, const Columns& set, int64_t t) {
  using A = Sum<T>;
  constexpr int N = (W - 1) * S + K;
  constexpr bool any = Left == kAny;
  // Copies in registers: the compiler must assume that the stores below change what `row` and `set` refer to.
  const int64_t channels = row.channels, rows = Rows == kAny ? row.source.size() : Rows, pixel = row.source_pixel;
  const int64_t column = S * t + set.offset, out_step = set.step * row.out_pixel;
  const int64_t source_start = column * pixel;
  const int64_t weight_start = set.weight * channels, weight_step = set.weight_step * channels;
  const T* const* const sources = row.source.data();
  const A* const* const weights = row.weight.data();
  const A* const bias = row.bias;
  const Activate<A> activate = row.activate;
  T* const out = row.out + (set.first + t * set.step) * row.out_pixel;
  const int64_t missing = any ? std::max<int64_t>(0, -column) : Left;
  const int64_t there = any ? std::min<int64_t>(N, row.width - column) : N - Right;
  const int64_t valid = any ? set.count - t : W;
  const T* const zeros = row.zeros;
  T* const spare = row.spare;
  // Claims pay where little is computed for a line that is written, and not much more read.
  const bool streams = !any && row.streams, claims = !any && K == 3 && S == 1 && row.claims;
  for (int64_t block = 0; block * L < channels; ++block) {
    const int64_t c = block_of<L>({0, channels}, block);
    Vec<A, L> sums[W];
    for (int i = 0; i < W; ++i) sums[i] = bias ? load<A, L>(bias + c) : Vec<A, L>{};
    if (claims)
      for (int i = 0; i < W; ++i) __builtin_prefetch(out + c + i * out_step, 1);
    for (int64_t r = 0; r < row.next_rows; ++r)
      for (int i = 0; i < W * S; ++i)
        __builtin_prefetch(row.next + r * row.row_stride + (source_start + c) + i * pixel);
#pragma GCC unroll 5  // the compiler by itself leaves a loop, and scalar instructions between its turns
    for (int64_t r = 0; r < rows; ++r) {
      const T* source = sources[r] + (source_start + c);
      const A* weight = weights[r] + (weight_start + c);
      Vec<A, L> in[N];
      for (int i = 0; i < N; ++i) {
        const T* const from = walk(source, i, pixel);
        if (!any && (i < Left || i >= N - Right)) continue;
        in[i] = load<T, L>(any && (i < missing || i >= there) ? zeros : from);
        hold(in[i]);
      }
      for (int j = 0; j < K; ++j) {
        const Vec<A, L> w = load<A, L>(weight + j * weight_step);
        for (int i = 0; i < W; ++i)
          if (any || (i * S + j >= Left && i * S + j < N - Right)) sums[i] += in[i * S + j] * w;
      }
    }
    activate.template operator()<L, W>(sums);
    T* to = out + c;
    if (streams)
      for (int i = 0; i < W; ++i) stream<T, L>(walk(to, i, out_step), sums[i]);
    else
      for (int i = 0; i < W; ++i) {
        T* const y = walk(to, i, out_step);
        store<T, L>(any && i >= valid ? spare : y, sums[i]);
      }
  }
}

// The L channels from c on of W output pixels from column t on: adds some taps of all source rows, each of which meets
// W columns. Not Inner: those that are none, beside the source, count as zeros.
template <typename T, int L, int W, bool Adjacent, bool Inner>
FASTNETS_INLINE void add_taps(const Row<T>& row, const Columns& set, int64_t c, int64_t t, Range taps,
                              Vec<Sum<T>, L> (&sums)[W]) {
  const int64_t pixel = row.source_pixel, channel = Adjacent ? 1 : row.source_channel, width = row.width;
  const int64_t stride = set.source_step, step = stride * pixel, further = set.offset_step, next = further * pixel;
  const int64_t first = stride * t + set.offset + further * taps.begin, source_start = first * pixel + c * channel;
  const int64_t next_weight = set.weight_step * row.channels, rows = taps.begin < taps.end ? row.source.size() : 0;
  const int64_t weight_start = (set.weight + set.weight_step * taps.begin) * row.channels + c;
  for (int64_t r = 0; r < rows; ++r) {
    const T* source = row.source[r] + source_start;
    const Sum<T>* weight = row.weight[r] + weight_start;
    for (int64_t j = taps.begin, column = first; j < taps.end; ++j, column += further) {
      const Vec<Sum<T>, L> w = load<Sum<T>, L>(weight);
      const T* at = source;
#pragma GCC unroll 7
      for (int i = 0; i < W; ++i) {
        const T* const from = walk(at, i, step);
        const bool there = Inner || static_cast<uint64_t>(column + i * stride) < static_cast<uint64_t>(width);
        sums[i] += (Adjacent || !there ? load<T, L>(there ? from : row.zeros) : load_strided<T, L>(from, channel)) * w;
      }
      source += next, weight += next_weight;
    }
  }
}

// W output pixels from column t on, any taps and strides: each number of the source is loaded for each tap that meets
// it, one load to a multiply-add.
template <typename T, int L, int W, bool Adjacent>
void any_tile(const Row<T>& row, const Columns& set, int64_t t) {
  using A = Sum<T>;
  const int64_t column = set.source_step * t + set.offset, reach = (W - 1) * set.source_step;
  const int64_t begin = set.taps_before(column, -reach), end = set.taps_before(column, row.width);
  const int64_t inner = set.taps_before(column, 0);
  const int64_t inner_end = std::max(inner, set.taps_before(column, row.width - reach));
  for (int64_t block = 0; block * L < row.channels; ++block) {
    const int64_t c = block_of<L>({0, row.channels}, block);
    Vec<A, L> sums[W];
    for (int i = 0; i < W; ++i) sums[i] = row.bias ? load<A, L>(row.bias + c) : Vec<A, L>{};
    add_taps<T, L, W, Adjacent, false>(row, set, c, t, {begin, std::min(inner, end)}, sums);
    add_taps<T, L, W, Adjacent, true>(row, set, c, t, {inner, inner_end}, sums);
    add_taps<T, L, W, Adjacent, false>(row, set, c, t, {inner_end, end}, sums);
    row.activate.template operator()<L, W>(sums);
    T* out = row.out + (set.first + t * set.step) * row.out_pixel + c * row.out_channel;
    for (int i = 0; i < W; ++i) store_strided<T, L>(out + i * set.step * row.out_pixel, sums[i], row.out_channel);
  }
}

template <typename T, int L, bool Adjacent>
void any_tiles(const Row<T>& row, const Columns& set) {
  const int64_t width = set.count >= 7 ? 7 : set.count >= 4 ? 4 : 1;
  for (int64_t from = 0; from < set.count; from += width) {
    const int64_t t = std::min(from, set.count - width);
    if (width == 7)
      any_tile<T, L, 7, Adjacent>(row, set, t);
    else if (width == 4)
      any_tile<T, L, 4, Adjacent>(row, set, t);
    else
      any_tile<T, L, 1, Adjacent>(row, set, t);
  }
}

// The last tile overlaps the one before, where there are pixels for a whole one.
template <typename T, int L, int W, int K, int S, int Rows>
void tiles(const Row<T>& row, const Columns& set) {
  constexpr int N = (W - 1) * S + K, P = K / 2,
                R = S == 2 ? P - 1 : P;  // with "same" padding and a width that S divides
  for (int64_t from = 0; from < set.count; from += W) {
    const int64_t t = std::max<int64_t>(0, std::min(from, set.count - W)), column = S * t + set.offset;
    const int64_t left = std::max<int64_t>(0, -column), right = std::max<int64_t>(0, column + N - row.width);
    if (W > set.count)
      tile<T, L, W, K, S, Rows, kAny, kAny>(row, set, t);
    else if (left == 0 && right == 0)
      tile<T, L, W, K, S, Rows, 0, 0>(row, set, t);
    else if (W == 7 && left == P && right == 0)
      tile<T, L, W, K, S, Rows, P, 0>(row, set, t);
    else if (W == 7 && left == 0 && right == R)
      tile<T, L, W, K, S, Rows, 0, R>(row, set, t);
    else if (W == 7 && left == P && right == R)
      tile<T, L, W, K, S, Rows, P, R>(row, set, t);
    else
      tile<T, L, W, K, S, Rows, kAny, kAny>(row, set, t);
  }
}

template <typename T, int L, int W, int K, int S>
void tiles(const Row<T>& row, const Columns& set) {
  return row.source.size() == K ? tiles<T, L, W, K, S, K>(row, set) : tiles<T, L, W, K, S, kAny>(row, set);
}

// Tiles of seven or of four pixels: maps are multiples of 7 or of a power of two. Seven reuse more, and know the sides
// of a map, so at stride 1 they may compute a sixth more pixels twice; at stride 2, where seven fetch 28 lines ahead
// and leave no room for loads in flight, four are faster.
template <typename T, int L, int K, int S>
void tiles(const Row<T>& row, const Columns& set) {
  const int64_t by_seven = (set.count + 6) / 7 * 7, by_four = (set.count + 3) / 4 * 4;
  const bool seven = S == 1 ? 6 * by_seven <= 7 * by_four : by_seven < by_four;
  return seven ? tiles<T, L, 7, K, S>(row, set) : tiles<T, L, 4, K, S>(row, set);
}

// At stride 1 every offset_step-th column is a row of its own, whose taps are adjacent.
template <typename T, int L>
void dilated_columns(const Row<T>& row, const Columns& set) {
  const int64_t d = set.offset_step;
  Row<T> part = row;
  part.source_pixel = d * row.source_pixel, part.next_rows = 0;
  for (int64_t q = 0; q < std::min(d, set.count); ++q) {
    const int64_t column = set.offset + q, first = (column % d + d) % d;
    for (size_t r = 0; r < row.source.size(); ++r) part.source[r] = row.source[r] + first * row.source_pixel;
    part.width = ceil_div(std::max<int64_t>(0, row.width - first), d);
    columns<T, L>(part, {set.first + q * set.step, d * set.step, ceil_div(set.count - q, d), 1, (column - first) / d, 1,
                         set.weight, set.weight_step, set.taps});
  }
}

template <typename T, int L>
void columns(const Row<T>& row, const Columns& set) {
  if constexpr (is_fast<T>) {
    if (set.offset_step > 1 && set.source_step == 1 && set.taps > 1) return dilated_columns<T, L>(row, set);
    const bool adjacent = set.offset_step == 1 && row.source_channel == 1 && row.out_channel == 1;
    const int64_t k = adjacent ? set.taps : 0, s = set.source_step;
    if (k == 3 && s == 1) return tiles<T, L, 3, 1>(row, set);
    if (k == 5 && s == 1) return tiles<T, L, 5, 1>(row, set);
    if (k == 7 && s == 1) return tiles<T, L, 7, 1>(row, set);
    if (k == 3 && s == 2) return tiles<T, L, 3, 2>(row, set);
    if (k == 5 && s == 2) return tiles<T, L, 5, 2>(row, set);
    if (k == 2 && s == 1) return tiles<T, L, 2, 1>(row, set);
    if (k == 1 && s == 1) return tiles<T, L, 1, 1>(row, set);
  }
  return row.source_channel == 1 ? any_tiles<T, L, true>(row, set) : any_tiles<T, L, false>(row, set);
}

template void columns<BFloat16, kLanes<float>>(const Row<BFloat16>&, const Columns&);
#if !defined(FASTNETS_BF16)
template void columns<float, kLanes<float>>(const Row<float>&, const Columns&);
#endif

// Weights of input channels [c.begin, c.end) as [multiplier][kh * kw + 1][channels], the bias (or zeros) after the last
// tap; `channels` may be more than there are.
template <typename T>
AlignedVector<Sum<T>> pack(const Problem& p, Range c, int64_t channels) {
  constexpr int L = kLanes<Sum<T>>;
  const Convolution& g = p.g;
  const Four& s = p.w.stride;
  const int64_t taps = g.kh * g.kw, slot = (taps + 1) * channels, count = c.end - c.begin;
  const bool rows = g.m == 1 && s.w == 1 && s.h == g.kw && count >= L;  // a channel's taps are neighbours
  AlignedVector<Sum<T>> packed(g.m * slot);
  const T *w = static_cast<const T*>(p.w.data), *bias = static_cast<const T*>(p.bias);
  for (int64_t b = 0; rows && b * L < count; ++b) {
    const int64_t first = block_of<L>({0, count}, b);
    const T* from[L];
    for (int r = 0; r < L; ++r) from[r] = w + (c.begin + first + r) * s.n;
    rows_to_lanes<T>(from, L, taps, packed.data() + first, channels);
  }
  for (int64_t q = 0; q < g.m; ++q)
    for (int64_t i = 0; i < count; ++i) {
      const int64_t o = (c.begin + i) * g.m + q;
      Sum<T>* const to = packed.data() + q * slot + i;
      for (int64_t k = 0; !rows && k < taps; ++k)
        to[k * channels] = static_cast<Sum<T>>(w[o * s.n + k / g.kw * s.h + k % g.kw * s.w]);
      if (bias) to[taps * channels] = static_cast<Sum<T>>(bias[o * p.bias_step]);
    }
  return packed;
}

template <typename T, int L>
void forward_unit(const Problem& p, const AlignedVector<Sum<T>>& packed, Range c, int64_t unit, Row<T>& row) {
  const Convolution& g = p.g;
  const Columns set = forward_columns(g);
  const int64_t n = unit / p.strips, channels = c.end - c.begin;
  const Range rows = share(g.oh, unit % p.strips, p.strips);
  row.source_pixel = p.x.stride.w, row.out_pixel = p.y.stride.w, row.out_channel = g.m;
  row.width = g.w, row.channels = channels, row.activate = Activate<Sum<T>>(p.activation);
  row.streams = p.streams && channels % L == 0 && can_stream<T, L>(static_cast<T*>(p.y.data) + c.begin, p.y.stride.w);
  row.claims = p.claims && !row.streams;
  for (int64_t q = 0; q < g.m; ++q) {
    const Sum<T>* weight = packed.data() + q * (g.kh * g.kw + 1) * channels;
    row.bias = weight + g.kh * g.kw * channels;
    for (int64_t r = rows.begin; r < rows.end; ++r) {
      row.source.clear(), row.weight.clear();
      for (int64_t i = 0; i < g.kh; ++i) {
        const int64_t y = r * g.sh - g.ph + i * g.dh;
        if (y < 0 || y >= g.h) continue;
        row.source.push_back(static_cast<const T*>(p.x.data) + n * p.x.stride.n + y * p.x.stride.h + c.begin);
        row.weight.push_back(weight + i * g.kw * channels);
      }
      const int64_t next = std::max<int64_t>(0, r * g.sh - g.ph + (g.kh - 1) * g.dh + 1);
      row.next = static_cast<const T*>(p.x.data) + n * p.x.stride.n + next * p.x.stride.h + c.begin;
      row.next_rows = p.prefetches ? std::clamp<int64_t>(g.h - next, 0, g.sh) : 0, row.row_stride = p.x.stride.h;
      row.out = static_cast<T*>(p.y.data) + n * p.y.stride.n + r * p.y.stride.h + c.begin * g.m + q;
      columns<T, L>(row, set);
    }
  }
}

// Rows of dx. Each row of dy that meets one counts m times, once for each multiplier's channels.
template <typename T, int L>
void backward_input_unit(const Problem& p, const AlignedVector<Sum<T>>& packed, const std::vector<Columns>& sets,
                         Range c, int64_t unit, Row<T>& row) {
  const Convolution& g = p.g;
  const int64_t n = unit / p.strips, channels = c.end - c.begin;
  const Range rows = share(g.h, unit % p.strips, p.strips);
  row.source_pixel = p.y.stride.w, row.source_channel = g.m, row.out_pixel = p.dx.stride.w;
  row.width = g.ow, row.channels = channels, row.bias = nullptr;
  row.streams = p.streams && channels % L == 0 && can_stream<T, L>(static_cast<T*>(p.dx.data) + c.begin, p.dx.stride.w);
  row.claims = p.claims && !row.streams;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    row.source.clear(), row.weight.clear();
    for (int64_t i = 0; i < g.kh; ++i) {
      const int64_t y = r + g.ph - i * g.dh;
      if (y < 0 || y % g.sh != 0 || y / g.sh >= g.oh) continue;
      for (int64_t q = 0; q < g.m; ++q) {
        row.source.push_back(static_cast<const T*>(p.y.data) + n * p.y.stride.n + y / g.sh * p.y.stride.h +
                             c.begin * g.m + q);
        row.weight.push_back(packed.data() + (q * (g.kh * g.kw + 1) + i * g.kw) * channels);
      }
    }
    const int64_t next = (r + g.ph) / g.sh + 1;
    row.next = static_cast<const T*>(p.y.data) + n * p.y.stride.n + next * p.y.stride.h + c.begin * g.m;
    row.next_rows = p.prefetches && (r + g.ph) % g.sh == 0 && next < g.oh, row.row_stride = p.y.stride.h;
    row.out = static_cast<T*>(p.dx.data) + n * p.dx.stride.n + r * p.dx.stride.h + c.begin;
    for (const Columns& set : sets) columns<T, L>(row, set);
  }
}

// sums[j] += x[S t + offset + d j] dy[t] over the columns t >= first of one row, for every tap j. `sums` holds L
// numbers for each tap.
template <typename T, int L>
void weight_row(const T* x, const T* dy, const Columns& set, const Problem& p, int64_t first, Sum<T>* sums) {
  for (int64_t j = 0; j < set.taps; ++j) {
    const Range t = set.columns_of(j, p.g.w);
    const T* from = x + (set.offset + set.offset_step * j) * p.x.stride.w;
    Vec<Sum<T>, L> total = load<Sum<T>, L>(sums + j * L);
    for (int64_t i = std::max(first, t.begin); i < t.end; ++i)
      total += load<T, L>(from + i * set.source_step * p.x.stride.w) * load_strided<T, L>(dy + i * p.y.stride.w, p.g.m);
    store<Sum<T>, L>(sums + j * L, total);
  }
}

// W columns from dy on, under Rows kernel rows of K taps at adjacent columns, stride S: the numbers of dy are loaded
// once for all rows, and added to `bias` where these are all of the kernel's; those of x are loaded once for all taps
// of one. Inner: all columns of x are there, the first at place[0].
// Unrolled by pragma: GCC leaves long bodies in a loop, and the sums that it indexes in memory. 17 is the most turns.
template <typename T, int L, int W, int K, int S, int Rows, bool Inner, int Chains>
FASTNETS_INLINE void weight_tile(const T* x, const T* dy, const Problem& p, const int64_t* place,
                                 Vec<Sum<T>, L> (&total)[Chains][Rows][K], Vec<Sum<T>, L>& bias) {
  constexpr int N = (W - 1) * S + K;
  const T zeros[L] = {};
  Vec<Sum<T>, L> d[W];
#pragma GCC unroll 17
  for (int i = 0; i < W; ++i) {
    d[i] = load<T, L>(walk(dy, i, p.y.stride.w));
    if (Rows == K) bias += d[i];
  }
#pragma GCC unroll 17
  for (int r = 0; r < Rows; ++r) {
    const T* row = x + r * p.g.dh * p.x.stride.h + (Inner ? place[0] : 0);
#pragma GCC unroll 17
    for (int i = 0; i < N; ++i) {
      const T* const from = Inner ? walk(row, i, p.x.stride.w) : place[i] < 0 ? zeros : row + place[i];
      Vec<Sum<T>, L> in = load<T, L>(from);
      hold(in);
#pragma GCC unroll 17
      for (int j = 0; j < K; ++j)
        if (i >= j && (i - j) % S == 0 && (i - j) / S < W) total[(i - j) / S % Chains][r][j] += in * d[(i - j) / S];
    }
  }
}

// All columns of one row of dy, in such tiles. `places` says where each column of the padded row of x stands, negative:
// zeros. Few sums are kept in two parts, or the adds would wait for one another. The sums of all kernel rows are
// followed by that of dy.
template <typename T, int L, int W, int K, int S, int Rows>
void weight_tiles(const T* x, const T* dy, const Columns& set, const Problem& p, const int64_t* places, Sum<T>* sums) {
  using A = Sum<T>;
  constexpr int N = (W - 1) * S + K, Chains = Rows * K < 8 ? 2 : 1;
  const int64_t tiles = set.count / W;
  Vec<A, L> total[Chains][Rows][K] = {}, bias = load<A, L>(sums + (Rows == K ? K * K : 0) * L);
#pragma GCC unroll 17
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 17
    for (int j = 0; j < K; ++j) total[0][r][j] = load<A, L>(sums + (r * K + j) * L);
  for (int64_t t = 0; t < tiles * W; t += W) {
    const int64_t* place = places + t * S;
    const T* const d = dy + t * p.y.stride.w;
    if (place[0] >= 0 && place[N - 1] >= 0)
      weight_tile<T, L, W, K, S, Rows, true>(x, d, p, place, total, bias);
    else
      weight_tile<T, L, W, K, S, Rows, false>(x, d, p, place, total, bias);
  }
#pragma GCC unroll 17
  for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 17
    for (int j = 0; j < K; ++j) {
      const Vec<A, L> sum = total[0][r][j];
      store<A, L>(sums + (r * K + j) * L, Chains == 2 ? sum + total[Chains - 1][r][j] : sum);
    }
  for (int64_t t = tiles * W; Rows == K && t < set.count; ++t) bias += load<T, L>(dy + t * p.y.stride.w);
  if (Rows == K) store<A, L>(sums + K * K * L, bias);
  for (int r = 0; tiles * W < set.count && r < Rows; ++r)
    weight_row<T, L>(x + r * p.g.dh * p.x.stride.h, dy, set, p, tiles * W, sums + r * K * L);
}

// The kernel rows [rows.begin, rows.end): all at once, if it is K of them and their sums fit the registers. Returns
// whether they were, and dy was added to its own sum.
template <typename T, int L, int K, int S>
bool weight_tiles(const T* x, const T* dy, Range rows, const Columns& set, const Problem& p, const int64_t* places,
                  Sum<T>* sums) {
  constexpr int Most = K * K < (FASTNETS_VECTOR_BYTES == 64 ? 30 : 14) ? K : 1;
  const bool seven = set.count % 7 == 0;
  if (Most == K && rows.end - rows.begin == K) {
    seven ? weight_tiles<T, L, 7, K, S, Most>(x, dy, set, p, places, sums)
          : weight_tiles<T, L, 4, K, S, Most>(x, dy, set, p, places, sums);
    return true;
  }
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const T* const from = x + (i - rows.begin) * p.g.dh * p.x.stride.h;
    seven ? weight_tiles<T, L, 7, K, S, 1>(from, dy, set, p, places, sums + i * K * L)
          : weight_tiles<T, L, 4, K, S, 1>(from, dy, set, p, places, sums + i * K * L);
  }
  return false;
}

// Adds one row of dy to the sums of the kernel rows that meet x, from the row at x on. Returns whether to its own, too.
template <typename T, int L>
bool weight_rows(const T* x, const T* dy, Range rows, const Columns& set, const Problem& p, const int64_t* places,
                 Sum<T>* sums) {
  if constexpr (is_fast<T>) {
    const int64_t k = p.g.dw == 1 && p.g.m == 1 ? set.taps : 0, s = set.source_step;
    if (k == 3 && p.g.kh == 3 && s == 1) return weight_tiles<T, L, 3, 1>(x, dy, rows, set, p, places, sums);
    if (k == 3 && p.g.kh == 3 && s == 2) return weight_tiles<T, L, 3, 2>(x, dy, rows, set, p, places, sums);
    if (k == 5 && p.g.kh == 5 && s == 1) return weight_tiles<T, L, 5, 1>(x, dy, rows, set, p, places, sums);
    if (k == 5 && p.g.kh == 5 && s == 2) return weight_tiles<T, L, 5, 2>(x, dy, rows, set, p, places, sums);
  }
  for (int64_t i = rows.begin; i < rows.end; ++i)
    weight_row<T, L>(x + (i - rows.begin) * p.g.dh * p.x.stride.h, dy, set, p, 0, sums + i * p.g.kw * L);
  return false;
}

// Adds one row of dy to its sum, in four chains.
template <typename T, int L>
void bias_row(const T* dy, const Problem& p, Sum<T>* sum) {
  using A = Sum<T>;
  Vec<A, L> total[4] = {load<A, L>(sum)};
  int64_t t = 0;
  for (; t + 4 <= p.g.ow; t += 4)
    for (int i = 0; i < 4; ++i) total[i] += load_strided<T, L>(dy + (t + i) * p.y.stride.w, p.g.m);
  for (; t < p.g.ow; ++t) total[0] += load_strided<T, L>(dy + t * p.y.stride.w, p.g.m);
  store<A, L>(sum, (total[0] + total[1]) + (total[2] + total[3]));
}

// Where the columns of a row of x with its padding stand, in elements; -1 for those of the padding.
inline std::vector<int64_t> padded_places(const Problem& p) {
  std::vector<int64_t> places((p.g.ow - 1) * p.g.sw + (p.g.kw - 1) * p.g.dw + 1, -1);
  for (int64_t u = p.g.pw; u < std::min<int64_t>(p.g.pw + p.g.w, places.size()); ++u)
    places[u] = (u - p.g.pw) * p.x.stride.w;
  return places;
}

// Adds a strip to the sums of L channels from c on, multiplier index q: [kh][kw][L] of dw, then [L] of db.
template <typename T, int L>
void backward_weight_unit(const Problem& p, int64_t c, int64_t q, int64_t unit, const int64_t* places, Sum<T>* sums) {
  const Convolution& g = p.g;
  const Columns set = forward_columns(g);
  const int64_t n = unit / p.strips;
  const Range rows = share(g.oh, unit % p.strips, p.strips);
  const T* x = static_cast<const T*>(p.x.data) + n * p.x.stride.n + c;
  const T* dy = static_cast<const T*>(p.y.data) + n * p.y.stride.n + c * g.m + q;
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    const T* dy_row = dy + r * p.y.stride.h;
    const int64_t y = r * g.sh - g.ph;  // of the first kernel row
    const int64_t end = y < g.h ? std::min(g.kh, ceil_div(g.h - y, g.dh)) : 0;
    const Range meet{std::min(end, y < 0 ? ceil_div(-y, g.dh) : 0), end};
    const T* from = x + (y + meet.begin * g.dh) * p.x.stride.h;
    const bool added = p.dw && weight_rows<T, L>(from, dy_row, meet, set, p, places, sums);
    if (p.db && !added) bias_row<T, L>(dy_row, p, sums + g.kh * g.kw * L);
  }
}

// Writes the sums of at most L channels to their part of dw and db.
template <typename A, int L>
void write_sums(const Problem& p, int64_t part, Range c, int64_t q, const A* sums) {
  const int64_t taps = p.g.kh * p.g.kw, count = c.end - c.begin, o = part * p.g.o + c.begin * p.g.m + q;
  for (int64_t l = 0; p.db && l < count; ++l) static_cast<A*>(p.db)[o + l * p.g.m] = sums[taps * L + l];
  if (!p.dw) return;
  A* const dw = static_cast<A*>(p.dw) + o * taps;
  lanes_to_rows<A>(sums, L, taps, dw, p.g.m * taps, count);
}

// The rows of x that rows of results are made of.
inline Range source_rows(const Convolution& g, Range rows) {
  const int64_t begin = std::clamp<int64_t>(rows.begin * g.sh - g.ph, 0, g.h);
  return {begin, std::clamp<int64_t>((rows.end - 1) * g.sh - g.ph + (g.kh - 1) * g.dh + 1, begin, g.h)};
}

// Tasks go strip by strip, all chunks of each: a strip stays in the second-level cache meanwhile, and threads take
// images rather than channels, as the kernels before and after do. What another core holds is slow to come by.
template <typename T, int L>
void forward(const Problem& p, int64_t begin, int64_t end) {
  Row<T> row;
  Source<T> source(p);
  std::vector<AlignedVector<Sum<T>>> packed(p.chunks());
  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task % p.chunks(), unit = task / p.chunks();
    const Range c = p.channels(chunk), rows = share(p.g.oh, unit % p.strips, p.strips);
    if (packed[chunk].empty()) packed[chunk] = pack<T>(p, c, c.end - c.begin);
    forward_unit<T, L>(source.rows(c, unit / p.strips, source_rows(p.g, rows)), packed[chunk], c, unit, row);
  }
  if (p.streams) finish_streams();
}

template <typename T, int L>
void backward(const Problem& p, int64_t begin, int64_t end) {
  const int64_t slot = (p.g.kh * p.g.kw + 1) * L;
  const std::vector<Columns> sets = all_backward_columns(p.g);
  int64_t packed_chunk = -1;
  Row<T> row;
  Source<T> source(p);
  Products<T> products(p);
  std::vector<int64_t> places;
  AlignedVector<Sum<T>> packed, sums;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task / p.parts, part = task % p.parts;
    const Range c = p.channels(chunk), units = share(p.units(), part, p.parts);
    if (p.dx.data && chunk != packed_chunk) packed = pack<T>(p, c, c.end - c.begin), packed_chunk = chunk;
    const int64_t blocks = p.dw || p.db ? (c.end - c.begin + L - 1) / L * p.g.m : 0;
    sums.assign(blocks * slot, 0);
    products.start(c);
    for (int64_t unit = units.begin; unit < units.end; ++unit) {
      const int64_t n = unit / p.strips, strip = unit % p.strips;
      const Range rows = share(p.g.h, strip, p.strips);
      if (p.dx.data) backward_input_unit<T, L>(products.rows(rows), packed, sets, c, unit, row);
      products.add(n, rows);
      if (blocks == 0) continue;
      const Problem& from = source.rows(c, n, source_rows(p.g, share(p.g.oh, strip, p.strips)));
      if (unit == units.begin) places = padded_places(from);
      for (int64_t b = 0; b < blocks; ++b)
        backward_weight_unit<T, L>(from, block_of<L>(c, b / p.g.m), b % p.g.m, unit, places.data(),
                                   sums.data() + b * slot);
    }
    products.write(part);
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t first = block_of<L>(c, b / p.g.m);
      write_sums<Sum<T>, L>(p, part, {first, first + L}, b % p.g.m, sums.data() + b * slot);
    }
  }
  if (p.streams) finish_streams();
}

template <typename T>
depthwise::Kernels kernels() {
  constexpr int L = kLanes<Sum<T>>;
  return {&forward<T, L>, &backward<T, L>};
}

}  // namespace fastnets::FASTNETS_ISA::channels_last
