// Kernels of the grouped convolution: correlate (forward, and the input's gradient), weight_gradient, and
// sum_partials.
//
// Work. A block is 128 threads: `lanes` neighbouring channels (V in each thread) times 128 / lanes items. An item is
// one column of R output pixels: a thread walks down the input rows, and each value it loads serves all taps and
// outputs that need it. Neighbouring lanes are neighbours in memory: channels where the output is channels_last,
// otherwise (lanes = 1) columns of one channel. A block takes several rounds of items, so that its weights are loaded
// once.
//
// Groups. A result channel sums over `depth` source channels, those of its group of `share` result channels. The weight
// gradient has a channel for each pair of an output channel and one of its input channels, the latter fastest.
//
// Bytes. correlate reads x and writes y; R + K - 1 input rows are loaded for R output rows (R = 4), the surplus from L1
// and L2. weight_gradient reads x and dy once and writes one partial sum per block, channel and tap, which
// sum_partials adds in a fixed order. A kernel other than 3x3 and 5x5 takes 16 taps per block: the blocks that share
// x and dy then follow each other, and read them from L2.
#pragma once

#include <type_traits>

#include "activate.cuh"
#include "launch.h"
#include "pack.cuh"

namespace fastnets {

constexpr int kThreads = 128;
constexpr int kBlocks = 4;  // at least so many at once on a multiprocessor: up to 128 registers in a thread
constexpr int kGenericTaps = 16;

struct Pixels {
  int h, w;
};

// y[n, o, i, j] = sum over k < depth and taps p, q of w[o / share, o % share, k, p, q] * u[n, o / share * depth + k, r,
// s] with r = i * stride.h - padding.h + p * dilation.h and s likewise, where u (`in` pixels) is x with up.h - 1 rows
// and up.w - 1 columns of zeros between its own. Forward: up = 1; gradient of the input: stride = 1.
struct Correlation {
  int n, channels, depth, share;
  Pixels in, out, kernel, stride, padding, dilation, up;
  Four x, y;      // strides, in elements
  Four weight;    // of w's dimensions: n is that of o % share, c that of k
  int64_t group;  // stride of w from group to group
  int64_t bias;   // stride
};

// Where the first weight of a result channel stands.
__device__ inline int64_t weight_of(const Correlation& g, int o) {
  return o / g.share * g.group + o % g.share * g.weight.n;
}

// How channels and items are dealt to blocks. Depends on shapes and strides only, so that sums are reproducible.
struct Work {
  int lanes, groups, runs;  // channel lanes in a block (a power of two up to 32), groups of such, runs of R rows in oh
  int64_t items, chunk;     // columns of R pixels per channel, and how many of them a block takes
};

struct Range {
  int64_t first, end;
  int step;
};

__device__ inline int first_channel(const Work& work, unsigned block, int width) {
  return (static_cast<int>(block % work.groups) * work.lanes + static_cast<int>(threadIdx.x) % work.lanes) * width;
}

__device__ inline Range items_of_thread(const Work& work, unsigned block) {
  const int64_t begin = block / work.groups * work.chunk;
  return {begin + threadIdx.x / work.lanes, min(begin + work.chunk, work.items), kThreads / work.lanes};
}

struct Item {
  int n, run, column;
};

// Takes the last coordinate, of that size, off a flat index.
__device__ inline int take(int64_t& index, int size) {
  const int64_t whole = index;
  index = whole >> 31 ? whole / size : static_cast<uint32_t>(whole) / static_cast<uint32_t>(size);
  return static_cast<int>(whole - index * size);
}

__device__ inline Item item_at(int64_t index, int columns, int runs) {
  const int column = take(index, columns), run = take(index, runs);
  return {static_cast<int>(index), run, column};
}

// Whether coordinate `at` of the map with zeros between (see Correlation) is a value of x.
__device__ inline bool is_value(int at, int size, int up) {
  return static_cast<unsigned>(at) < static_cast<unsigned>(size) && (up == 1 || at % up == 0);
}

// K = 3 or 5: a K x K kernel of depth 1, without dilation, vertical stride S, up factors U. K = 0: any geometry.
template <typename T, int V, int K, int S, int U>
__global__ void __launch_bounds__(kThreads, kBlocks)
    correlate(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
              const Correlation g, const Work work, const Activation activation) {
  using A = Sum<T>;
  constexpr int R = K ? 4 : 1;
  const int o = first_channel(work, blockIdx.x, V);
  if (o >= g.channels) return;

  A weight[V][K ? K * K : 1], start[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    start[v] = bias ? static_cast<A>(bias[(o + v) * g.bias]) : A(0);
#pragma unroll
    for (int p = 0; p < K; ++p)
#pragma unroll
      for (int q = 0; q < K; ++q)
        weight[v][p * K + q] = static_cast<A>(w[weight_of(g, o + v) + p * g.weight.h + q * g.weight.w]);
  }

  const Range range = items_of_thread(work, blockIdx.x);
  for (int64_t index = range.first; index < range.end; index += range.step) {
    const Item item = item_at(index, g.out.w, work.runs);
    const int left = item.column * g.stride.w - g.padding.w, i = item.run * R;
    A sum[R][V];
#pragma unroll
    for (int k = 0; k < R; ++k)
#pragma unroll
      for (int v = 0; v < V; ++v) sum[k][v] = start[v];

    if constexpr (K > 0) {
      const T* image = x + item.n * g.x.n + o / g.share * g.x.c;
      const int top = i * S - g.padding.h;
      bool inside[K];
      int64_t offset[K];
#pragma unroll
      for (int q = 0; q < K; ++q) {
        inside[q] = is_value(left + q, g.in.w, U);
        offset[q] = (left + q) / U * g.x.w;
      }
#pragma unroll
      for (int t = 0; t < (R - 1) * S + K; ++t) {
        if (!is_value(top + t, g.in.h, U)) continue;
        const T* row = image + (top + t) / U * g.x.h;
#pragma unroll
        for (int q = 0; q < K; ++q) {
          if (!inside[q]) continue;
          const Pack<T, V> pack = *reinterpret_cast<const Pack<T, V>*>(row + offset[q]);
#pragma unroll
          for (int k = 0; k < R; ++k) {
            const int p = t - k * S;  // the tap by which input row t meets output row k
            if (p < 0 || p >= K) continue;
#pragma unroll
            for (int v = 0; v < V; ++v) sum[k][v] += weight[v][p * K + q] * static_cast<A>(pack.at[v]);
          }
        }
      }
    } else {
      const T *image = x + item.n * g.x.n + o / g.share * g.depth * g.x.c, *kernel = w + weight_of(g, o);
      for (int k = 0; k < g.depth; ++k, image += g.x.c, kernel += g.weight.c) {
        for (int p = 0; p < g.kernel.h; ++p) {
          const int row = i * g.stride.h - g.padding.h + p * g.dilation.h;
          if (!is_value(row, g.in.h, g.up.h)) continue;
          for (int q = 0; q < g.kernel.w; ++q) {
            const int column = left + q * g.dilation.w;
            if (!is_value(column, g.in.w, g.up.w)) continue;
            sum[0][0] += static_cast<A>(kernel[p * g.weight.h + q * g.weight.w]) *
                         static_cast<A>(image[row / g.up.h * g.x.h + column / g.up.w * g.x.w]);
          }
        }
      }
    }

    T* out = y + item.n * g.y.n + o * g.y.c + i * g.y.h + item.column * g.y.w;
#pragma unroll
    for (int k = 0; k < R; ++k) {
      if (i + k >= g.out.h) break;
      Pack<T, V> pack;
#pragma unroll
      for (int v = 0; v < V; ++v) pack.at[v] = static_cast<T>(activate(sum[k][v], activation));
      *reinterpret_cast<Pack<T, V>*>(out + k * g.y.h) = pack;
    }
  }
}

// partial[pair, tap, chunk] = sum over a chunk of items of dy * x, with the sum of dy itself as tap kh * kw (for the
// bias). K, S as in correlate; K = 0: kGenericTaps taps in a block, the tap groups of a chunk in neighbouring blocks.
// An empty kernel: the bias alone.
template <typename T, int K, int S>
__global__ void __launch_bounds__(kThreads, kBlocks)
    weight_gradient(const T* __restrict__ dy, const T* __restrict__ x, Sum<T>* __restrict__ partial,
                    const Correlation g, const Work work) {
  using A = Sum<T>;
  constexpr int R = K ? 4 : 1, kTaps = K ? K * K : kGenericTaps;
  const int taps = g.kernel.h * g.kernel.w, tap_groups = max(1, (taps + kTaps - 1) / kTaps);
  const int tap_group = blockIdx.x % tap_groups, first_tap = tap_group * kTaps;
  const unsigned block = blockIdx.x / tap_groups;
  const int pair = first_channel(work, block, 1), pairs = g.channels * g.depth;
  const int o = pair / g.depth, source = o / g.share * g.depth + pair % g.depth;
  const Range range = items_of_thread(work, block);
  A sum[kTaps + 1] = {};  // the last for the bias
  for (int64_t index = range.first; index < range.end && pair < pairs; index += range.step) {
    const Item item = item_at(index, g.out.w, work.runs);
    const int left = item.column * g.stride.w - g.padding.w, i = item.run * R;
    const T* gradient = dy + item.n * g.y.n + o * g.y.c + i * g.y.h + item.column * g.y.w;
    A d[R];
#pragma unroll
    for (int k = 0; k < R; ++k) {
      d[k] = i + k < g.out.h ? static_cast<A>(gradient[k * g.y.h]) : A(0);
      sum[kTaps] += d[k];
    }
    if (taps == 0) continue;

    const T* image = x + item.n * g.x.n + source * g.x.c;
    if constexpr (K > 0) {
      const int top = i * S - g.padding.h;
#pragma unroll
      for (int t = 0; t < (R - 1) * S + K; ++t) {
        if (!is_value(top + t, g.in.h, 1)) continue;
        const T* row = image + (top + t) * g.x.h;
#pragma unroll
        for (int q = 0; q < K; ++q) {
          if (!is_value(left + q, g.in.w, 1)) continue;
          const A value = static_cast<A>(row[(left + q) * g.x.w]);
#pragma unroll
          for (int k = 0; k < R; ++k) {
            const int p = t - k * S;
            // Rows past the last have d = 0, but 0 times infinity would not be 0.
            if (p >= 0 && p < K && i + k < g.out.h) sum[p * K + q] += d[k] * value;
          }
        }
      }
    } else {
      int p = first_tap / g.kernel.w, q = first_tap % g.kernel.w;
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        const int row = i * g.stride.h - g.padding.h + p * g.dilation.h, column = left + q * g.dilation.w;
        if (p < g.kernel.h && is_value(row, g.in.h, 1) && is_value(column, g.in.w, 1))
          sum[t] += d[0] * static_cast<A>(image[row * g.x.h + column * g.x.w]);
        if (++q == g.kernel.w) q = 0, ++p;
      }
    }
  }

  // Lanes of a warp that share a channel, then the warps; both in a fixed order.
  FASTNETS_SHARED(A, shared, (kTaps + 1) * kThreads);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kWarps = kThreads / 32;
#pragma unroll
  for (int t = 0; t <= kTaps; ++t) {
    for (int distance = 16; distance >= work.lanes; distance /= 2) sum[t] += shuffle_xor(sum[t], distance);
    if (lane < work.lanes) shared[(t * kWarps + warp) * work.lanes + lane] = sum[t];
  }
  barrier();
  const int64_t chunk = block / work.groups, chunks = (work.items + work.chunk - 1) / work.chunk;
  for (int slot = threadIdx.x; slot < (kTaps + 1) * work.lanes; slot += kThreads) {
    const int t = slot / work.lanes, tap = t < kTaps ? first_tap + t : taps;
    const int channel = static_cast<int>(block % work.groups) * work.lanes + slot % work.lanes;
    if (channel >= pairs || tap > taps || (t == kTaps ? tap_group > 0 : tap == taps)) continue;
    A total = 0;
    for (int from = 0; from < kWarps; ++from) total += shared[(t * kWarps + from) * work.lanes + slot % work.lanes];
    partial[(channel * (taps + int64_t{1}) + tap) * chunks + chunk] = total;
  }
}

// One warp for each (pair, tap): dw[pair, tap] or, for the tap after the last of a first pair, db[o]; a null pointer is
// not asked for.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    sum_partials(const Sum<T>* __restrict__ partial, T* __restrict__ dw, T* __restrict__ db, const Correlation g,
                 const int64_t chunks) {
  const int taps = g.kernel.h * g.kernel.w, lane = threadIdx.x % 32;
  const int64_t row = blockIdx.x * int64_t{kThreads / 32} + threadIdx.x / 32;
  const int64_t pair = row / (taps + 1), o = pair / g.depth;
  const int tap = static_cast<int>(row % (taps + 1));
  Sum<T> sum = 0;
  if (o < g.channels)
    for (int64_t chunk = lane; chunk < chunks; chunk += 32) sum += partial[row * chunks + chunk];
  for (int distance = 16; distance >= 1; distance /= 2) sum += shuffle_xor(sum, distance);
  if (lane > 0 || o >= g.channels) return;
  if (tap < taps && dw)
    dw[o * g.weight.n + pair % g.depth * g.weight.c + tap / g.kernel.w * g.weight.h + tap % g.kernel.w * g.weight.w] =
        static_cast<T>(sum);
  if (tap == taps && pair % g.depth == 0 && db) db[o] = static_cast<T>(sum);
}

}  // namespace fastnets
