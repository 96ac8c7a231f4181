// Kernels of the grouped convolution in any geometry: correlate (forward, and the input's gradient), weight_gradient,
// and sum_partials.
//
// Work. A block is 128 threads: `lanes` neighbouring channels times 128 / lanes items. An item of correlate is an
// output pixel; one of weight_gradient a column of R pixels: a thread walks down the input rows, and each value it
// loads serves all taps that need it. Neighbouring lanes are neighbours in memory: channels where the output is
// channels_last, otherwise (lanes = 1) columns of one channel. A block takes several rounds of items.
//
// Groups. A result channel sums over `depth` source channels, those of its group of `share` result channels. The weight
// gradient has a channel for each pair of an output channel and one of its input channels, the latter fastest.
//
// Bytes. correlate writes y once and reads x once for each tap and channel of a group, mostly from L1 and L2.
// weight_gradient reads x and dy once and writes one partial sum per block, channel and tap, which sum_partials adds in
// a fixed order. A kernel other than 3x3 and 5x5 takes 16 taps per block: the blocks that share x and dy then follow
// each other, and read them from L2.
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

// Any geometry; 3x3 and 5x5 kernels of depth 1 are in grouped_conv2d_walk.cuh.
template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocks)
    correlate(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
              const Correlation g, const Work work, const Activation activation) {
  using A = Sum<T>;
  const int o = first_channel(work, blockIdx.x, 1);
  if (o >= g.channels) return;
  const A start = bias ? static_cast<A>(bias[o * g.bias]) : A(0);
  const Range range = items_of_thread(work, blockIdx.x);
  for (int64_t index = range.first; index < range.end; index += range.step) {
    const Item item = item_at(index, g.out.w, work.runs);
    const int left = item.column * g.stride.w - g.padding.w, top = item.run * g.stride.h - g.padding.h;
    const T *image = x + item.n * g.x.n + o / g.share * g.depth * g.x.c, *kernel = w + weight_of(g, o);
    A sum = start;
    for (int k = 0; k < g.depth; ++k, image += g.x.c, kernel += g.weight.c) {
      for (int p = 0; p < g.kernel.h; ++p) {
        const int row = top + p * g.dilation.h;
        if (!is_value(row, g.in.h, g.up.h)) continue;
        for (int q = 0; q < g.kernel.w; ++q) {
          const int column = left + q * g.dilation.w;
          if (!is_value(column, g.in.w, g.up.w)) continue;
          sum += static_cast<A>(kernel[p * g.weight.h + q * g.weight.w]) *
                 static_cast<A>(image[row / g.up.h * g.x.h + column / g.up.w * g.x.w]);
        }
      }
    }
    y[item.n * g.y.n + o * g.y.c + item.run * g.y.h + item.column * g.y.w] = static_cast<T>(activate(sum, activation));
  }
}

// What all threads of a block with the same channel have summed, in a fixed order: the lanes of a warp, then the warps.
// Calls store(slot, lane, total); `shared` has room for N numbers of each thread.
template <int N, typename A, typename F>
__device__ void sum_block(A (&sum)[N], int lanes, A* shared, const F& store) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  constexpr int kWarps = kThreads / 32;
#pragma unroll
  for (int t = 0; t < N; ++t) {
    for (int distance = 16; distance >= lanes; distance /= 2) sum[t] += shuffle_xor(sum[t], distance);
    if (lane < lanes) shared[(t * kWarps + warp) * lanes + lane] = sum[t];
  }
  barrier();
  for (int slot = threadIdx.x; slot < N * lanes; slot += kThreads) {
    A total = 0;
    for (int from = 0; from < kWarps; ++from) total += shared[(slot / lanes * kWarps + from) * lanes + slot % lanes];
    store(slot / lanes, slot % lanes, total);
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

  FASTNETS_SHARED(A, shared, (kTaps + 1) * kThreads);
  const int64_t chunk = block / work.groups, chunks = (work.items + work.chunk - 1) / work.chunk;
  sum_block(sum, work.lanes, shared, [&](int t, int lane, A total) {
    const int channel = static_cast<int>(block % work.groups) * work.lanes + lane;
    const int tap = t < kTaps ? first_tap + t : taps;
    if (channel >= pairs || tap > taps || (t == kTaps ? tap_group > 0 : tap == taps)) return;
    partial[(channel * (taps + int64_t{1}) + tap) * chunks + chunk] = total;
  });
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
