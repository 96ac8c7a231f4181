// Kernels of batch_moments: moments_of_parts and merge_moments. How work is dealt to blocks is in batch_norm_work.cuh.
//
// A thread sums up x - p and (x - p)² with its first value p as pivot. Over threads and blocks the sums are about the
// channel's first value o instead, and in float64: s of x - o, and q of (x - o)². As o is one of the n values, q is at
// most n times m2 = q - s² / n: what is rounded in q is at most about n * 2^-53 of m2.
//
// Bytes. Reads x once, b * n * c * l; writes and reads 16 for each block and channel.
#pragma once

#include "batch_norm_work.cuh"

namespace fastnets {
namespace batch_norm {

template <typename T>
__device__ double origin_of(const T* x, const Map& m, int64_t c) {
  return static_cast<Sum<T>>(x[m.last ? c : c * m.l]);
}

template <typename T, int V, int C>
__global__ void __launch_bounds__(kThreads)
    moments_of_parts(const T* __restrict__ x, double* __restrict__ parts, const Work w) {
  using A = Sum<T>;
  Items<V, C> items(w, static_cast<int>(blockIdx.x));
  const double count = items.left * (V / C);
  A pivot[C] = {}, s[V] = {}, q[V] = {};
  double sums[2][C] = {};
  if (items.left > 0) {
    const auto first = load_pack<C>(x + items.at);
#pragma unroll
    for (int v = 0; v < C; ++v) pivot[v] = static_cast<A>(first.at[v]);
  }
  items.template walk<4>(w, [&]<int U>(const int64_t (&at)[U]) {
    Pack<T, V> in[U];
    load(x, at, in);
#pragma unroll
    for (int u = 0; u < U; ++u)
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A d = static_cast<A>(in[u].at[v]) - pivot[v % C];
        s[v] += d;
        q[v] += d * d;
      }
  });
  if (count > 0) {
#pragma unroll
    for (int v = 0; v < V; ++v) sums[0][v % C] += s[v], sums[1][v % C] += q[v];
#pragma unroll
    for (int v = 0; v < C; ++v) {
      const double d = pivot[v] - origin_of(x, w.map, items.channel + v), shift = count * d;
      sums[1][v] += d * (2 * sums[0][v] + shift);
      sums[0][v] += shift;
    }
  }
  store_part(sums, parts, w);
}

// Writes mean, and m2 or (variance) m2 / count; and the count where it is asked for.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    merge_moments(const T* __restrict__ x, const double* __restrict__ parts, Sum<T>* __restrict__ mean,
                  Sum<T>* __restrict__ m2, int64_t* __restrict__ count, const int64_t values, const Work w,
                  const bool variance) {
  using A = Sum<T>;
  double total[2];
  const int64_t c = sum_parts(parts, w.parts, w.map.c, total);
  if (blockIdx.x == 0 && threadIdx.x == 0 && count) *count = values;
  if (c < 0) return;
  const double n = static_cast<double>(max(values, int64_t{1})), shift = total[0] / n;
  const double squares = total[1] - total[0] * shift, positive = squares < 0 ? 0 : squares;
  mean[c] = w.parts > 0 ? static_cast<A>(origin_of(x, w.map, c) + shift) : A(0);
  m2[c] = static_cast<A>(variance ? positive / n : positive);
}

// Writes mean and m2 (or the variance) of x; count may be null.
template <typename T>
void run_moments(const Stream& stream, const Tensor& x, const Tensor& mean, const Tensor& m2, int64_t* count,
                 bool variance) {
  const Map map = map_of(x);
  with_pack<T>(
      [&](auto v, auto c) {
        using A = Sum<T>;
        constexpr int V = v, C = c;
        const Work w = plan(map, V);
        const Tensor parts = empty_parts(mean, w);
        if (blocks(w) > 0)
          launch(stream, {blocks(w), kThreads}, moments_of_parts<T, V, C>, data<T>(x), mutable_data<double>(parts), w);
        launch(stream, {merging(map), kThreads}, merge_moments<T>, data<T>(x), data<double>(parts),
               mutable_data<A>(mean), mutable_data<A>(m2), count, map.count(), w, variance);
      },
      map, x);
}

}  // namespace batch_norm
}  // namespace fastnets
