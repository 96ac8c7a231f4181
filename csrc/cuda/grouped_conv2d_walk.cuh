// Kernels of 3x3 and 5x5 convolutions of one input channel each: correlate_walk (forward, and the input's gradient) and
// gradient_walk (both gradients of a depthwise convolution from one read of x and dy).
//
// Work. A block is 128 threads: `lanes` neighbouring packs of V channels times 128 / lanes items. An item is R output
// rows and a run of columns: a thread walks along the columns and loads of each input column the R + K - 1 rows that
// its outputs need, all before the first use. correlate_walk adds a column to all outputs that it meets, so that it is
// loaded once; gradient_walk keeps the last K columns of dy, which meet x for the weight and the weight for dx.
// Neighbouring threads are neighbours in memory: channels where the output is channels_last. Otherwise (lanes = 1) rows
// and columns change places: a thread has R neighbouring columns of one channel, and walks down.
//
// Bytes. x and dy are read once from memory and y or dx written once; the rows that two items share come from L1 or L2,
// (R + K - 1) / R times the bytes. gradient_walk writes one partial sum per block, channel and tap.
#pragma once

#include <climits>

#include "grouped_conv2d.cuh"

namespace fastnets {

constexpr int kRows = 4;

struct Walk : Work {
  int walks, length;  // runs of columns, and how many columns are in one
};

struct WalkItem {
  int n, row, column, end;
};

__device__ inline WalkItem item_at(int64_t index, const Correlation& g, const Walk& work) {
  const int row = take(index, work.runs) * kRows, column = take(index, work.walks) * work.length;
  return {static_cast<int>(index), row, column, min(column + work.length, g.out.w)};
}

// N rows, from `top` on, of the map with zeros between (see is_value): bit t says whether row t is a value of x, which
// is then t / U rows below the first.
template <int N, int U>
__device__ unsigned rows_inside(int top, int size) {
  unsigned inside = 0;
#pragma unroll
  for (int t = 0; t < N; ++t) inside |= static_cast<unsigned>(is_value(top + t, size, U)) << t;
  return inside;
}

template <int U>
__device__ inline int first_row(int top) {
  return U == 1 ? top : (top + 1) >> 1;
}

template <int U, typename T, int V, int N>
__device__ void load_column(const T* first, int64_t stride, unsigned inside, Pack<T, V> (&packs)[N]) {
#pragma unroll
  for (int t = 0; t < N; ++t) packs[t] = inside >> t & 1 ? load_pack<V>(first + t / U * stride) : Pack<T, V>{};
}

template <int K, int V, typename T, typename A>
__device__ void load_weights(const T* w, const Correlation& g, int o, A (&weight)[V][K * K]) {
#pragma unroll
  for (int v = 0; v < V; ++v)
#pragma unroll
    for (int tap = 0; tap < K * K; ++tap)
      weight[v][tap] = static_cast<A>(w[weight_of(g, o + v) + tap / K * g.weight.h + tap % K * g.weight.w]);
}

// Stride S, up factors U in both directions.
template <typename T, int V, int K, int S, int U>
__global__ void __launch_bounds__(kThreads, V > 1 ? kBlocks - 1 : kBlocks)
    correlate_walk(const T* __restrict__ x, const T* __restrict__ w, const T* __restrict__ bias, T* __restrict__ y,
                   const Correlation g, const Walk work, const Activation activation) {
  using A = Sum<T>;
  constexpr int N = (kRows - 1) * S + K, kLive = (K - 1) / S + 1;  // output columns that an input column meets
  const int o = first_channel(work, blockIdx.x, V);
  if (o >= g.channels) return;
  A weight[V][K * K], start[V];
  load_weights<K, V>(w, g, o, weight);
#pragma unroll
  for (int v = 0; v < V; ++v) start[v] = bias ? static_cast<A>(bias[(o + v) * g.bias]) : A(0);

  const Range range = items_of_thread(work, blockIdx.x);
  for (int64_t index = range.first; index < range.end; index += range.step) {
    const WalkItem item = item_at(index, g, work);
    const int top = item.row * S - g.padding.h;
    const unsigned inside = rows_inside<N, U>(top, g.in.h);
    const T* first = x + item.n * g.x.n + o / g.share * g.x.c + first_row<U>(top) * g.x.h;
    T* out = y + item.n * g.y.n + o * g.y.c + item.row * g.y.h + item.column * g.y.w;
    int left = item.column * S - g.padding.w;
    A sum[kLive][kRows][V];
#pragma unroll
    for (int m = 0; m < kLive; ++m)
#pragma unroll
      for (int k = 0; k < kRows; ++k)
#pragma unroll
        for (int v = 0; v < V; ++v) sum[m][k][v] = start[v];

    const auto add_column = [&](int e) {  // column left + e, tap e of the output column that is next
      if (!is_value(left + e, g.in.w, U)) return;
      Pack<T, V> packs[N];
      load_column<U>(first + (left + e) / U * g.x.w, g.x.h, inside, packs);
#pragma unroll
      for (int t = 0; t < N; ++t) {
        if (!(inside >> t & 1)) continue;
#pragma unroll
        for (int k = 0; k < kRows; ++k) {
          const int p = t - k * S;  // the tap by which input row t meets output row k
          if (p < 0 || p >= K) continue;
#pragma unroll
          for (int m = 0; m < kLive; ++m) {
            const int q = e - m * S;
            if (q < 0) continue;
#pragma unroll
            for (int v = 0; v < V; ++v) sum[m][k][v] += weight[v][p * K + q] * static_cast<A>(packs[t].at[v]);
          }
        }
      }
    };
#pragma unroll
    for (int e = 0; e < K - S; ++e) add_column(e);
#pragma unroll kLive
    for (int column = item.column; column < item.end; ++column, left += S, out += g.y.w) {
#pragma unroll
      for (int e = K - S; e < K; ++e) add_column(e);
      with_activation(activation, [&](auto f) {
#pragma unroll
        for (int k = 0; k < kRows; ++k)
#pragma unroll
          for (int v = 0; v < V; ++v) sum[0][k][v] = activate(sum[0][k][v], decltype(f)::value);
      });
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        Pack<T, V> pack;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          pack.at[v] = static_cast<T>(sum[0][k][v]);
#pragma unroll
          for (int m = 0; m < kLive; ++m) sum[m][k][v] = m + 1 < kLive ? sum[m + 1][k][v] : start[v];
        }
        if (item.row + k < g.out.h) store_pack(out + k * g.y.h, pack);
      }
    }
  }
}

// g is the correlation of dy (`in`, with U - 1 zeros between) with turned weights to dx (`out`, strides g.y); x has
// `out` pixels too, and is where the pairs of dy and x are counted: each x meets the K x K of dy around it. partial
// [channel, tap, chunk] as in weight_gradient. A padding of g is of 0 to K - 1 pixels.
template <typename T, int V, int K, int U>
__global__ void __launch_bounds__(kThreads, V* K == 3 ? kBlocks : kBlocks - 1)
    gradient_walk(const T* __restrict__ dy, const T* __restrict__ x, const T* __restrict__ w, T* __restrict__ dx,
                  Sum<T>* __restrict__ partial, const Correlation g, const Four x_strides, const Walk work) {
  using A = Sum<T>;
  constexpr int N = kRows - 1 + K, kTaps = K * K;
  const int o = first_channel(work, blockIdx.x, V);
  A weight[V][kTaps], sum[(kTaps + 1) * V] = {};  // the last for the bias
  if (o < g.channels) load_weights<K, V>(w, g, o, weight);

  const Range range = items_of_thread(work, blockIdx.x);
  for (int64_t index = range.first; index < range.end && o < g.channels; index += range.step) {
    const WalkItem item = item_at(index, g, work);
    const int top = item.row - g.padding.h;
    const unsigned inside = rows_inside<N, U>(top, g.in.h);
    const T* first = dy + item.n * g.x.n + o * g.x.c + first_row<U>(top) * g.x.h;
    const T* in = x + item.n * x_strides.n + o * x_strides.c + item.row * x_strides.h + item.column * x_strides.w;
    T* out = dx + item.n * g.y.n + o * g.y.c + item.row * g.y.h + item.column * g.y.w;
    int left = item.column - g.padding.w;
    // What is not of the next item too: each dy adds to the bias once.
    const int own_rows = item.row + kRows < g.out.h ? kRows : N;
    const int own_columns = item.end < g.out.w ? item.end - g.padding.w : INT_MAX;

    A window[K][N][V];
    bool in_column[K];
    const auto load = [&](int e) {
      in_column[e] = is_value(left + e, g.in.w, U);
      if (!in_column[e]) return;
      Pack<T, V> packs[N];
      load_column<U>(first + (left + e) / U * g.x.w, g.x.h, inside, packs);
#pragma unroll
      for (int t = 0; t < N; ++t)
#pragma unroll
        for (int v = 0; v < V; ++v) {
          window[e][t][v] = static_cast<A>(packs[t].at[v]);
          if (t < own_rows && left + e < own_columns) sum[kTaps * V + v] += window[e][t][v];
        }
    };
#pragma unroll
    for (int e = 0; e < K - 1; ++e) load(e);
#pragma unroll K
    for (int column = item.column; column < item.end; ++column, ++left, in += x_strides.w, out += g.y.w) {
      Pack<T, V> values[kRows];
#pragma unroll
      for (int k = 0; k < kRows; ++k)
        values[k] = item.row + k < g.out.h ? load_pack<V>(in + k * x_strides.h) : Pack<T, V>{};
      load(K - 1);
      A d[kRows][V] = {};
#pragma unroll
      for (int e = 0; e < K; ++e) {
        if (!in_column[e]) continue;
#pragma unroll
        for (int t = 0; t < N; ++t) {
          if (!(inside >> t & 1)) continue;
#pragma unroll
          for (int k = 0; k < kRows; ++k) {
            const int p = t - k;
            if (p < 0 || p >= K) continue;
#pragma unroll
            for (int v = 0; v < V; ++v) {
              d[k][v] += weight[v][p * K + e] * window[e][t][v];
              // Rows past the last have x = 0, but 0 times infinity would not be 0.
              if (item.row + k < g.out.h) sum[(p * K + e) * V + v] += static_cast<A>(values[k].at[v]) * window[e][t][v];
            }
          }
        }
      }
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        Pack<T, V> pack;
#pragma unroll
        for (int v = 0; v < V; ++v) pack.at[v] = static_cast<T>(d[k][v]);
        if (item.row + k < g.out.h) store_pack(out + k * g.y.h, pack);
      }
#pragma unroll
      for (int e = 0; e + 1 < K; ++e) {
        in_column[e] = in_column[e + 1];
#pragma unroll
        for (int t = 0; t < N; ++t)
#pragma unroll
          for (int v = 0; v < V; ++v) window[e][t][v] = window[e + 1][t][v];
      }
    }
  }

  FASTNETS_SHARED(A, shared, (kTaps + 1) * V * kThreads);
  const int64_t chunk = blockIdx.x / work.groups, chunks = (work.items + work.chunk - 1) / work.chunk;
  sum_block(sum, work.lanes, shared, [&](int slot, int lane, A total) {
    const int channel = (static_cast<int>(blockIdx.x % work.groups) * work.lanes + lane) * V + slot % V;
    if (channel < g.channels) partial[(channel * (kTaps + int64_t{1}) + slot / V) * chunks + chunk] = total;
  });
}

}  // namespace fastnets
