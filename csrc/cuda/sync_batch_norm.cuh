// Kernels of batch normalisation: normalize, gradient_sums with add_parts, and gradient. How work is dealt to blocks is
// in batch_moments.cuh: a thread has its channels' vectors in registers while it walks over its items.
//
// Bytes. normalize reads x and writes y; gradient_sums reads dy and x; gradient reads both and writes dx: each once.
#pragma once

#include "batch_moments.cuh"

namespace fastnets {
namespace batch_norm {

// A value per channel, in T or in the type of T's sums; `otherwise` where there is none.
template <typename T>
struct Vector {
  const void* data;
  int64_t step;
  bool sums;
  Sum<T> otherwise;

  __device__ Sum<T> at(int64_t c) const {
    if (!data) return otherwise;
    return sums ? static_cast<const Sum<T>*>(data)[c * step]
                : static_cast<Sum<T>>(static_cast<const T*>(data)[c * step]);
  }
};

template <typename T>
struct Statistics {
  Vector<T> mean, var, weight, bias;
  Sum<T> eps;

  __device__ Sum<T> r(int64_t c) const { return Sum<T>(1) / std::sqrt(var.at(c) + eps); }
};

template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    normalize(const T* __restrict__ x, T* __restrict__ y, const Statistics<T> t, const Work w) {
  using A = Sum<T>;
  Items items = items_of_thread<V>(w);
  if (items.left == 0) return;
  A mean[V], scale[V], bias[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t c = items.channel + (w.map.last ? v : 0);
    mean[v] = t.mean.at(c), scale[v] = t.r(c) * t.weight.at(c), bias[v] = t.bias.at(c);
  }
  for (; items.left > 0; items.next(w)) {
    const auto in = *reinterpret_cast<const Pack<T, V>*>(x + items.at);
    Pack<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) out.at[v] = static_cast<T>((static_cast<A>(in.at[v]) - mean[v]) * scale[v] + bias[v]);
    *reinterpret_cast<Pack<T, V>*>(y + items.at) = out;
  }
}

// parts [part][2][c]: sums of dy and of dy * (x - mean).
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    gradient_sums(const T* __restrict__ dy, const T* __restrict__ x, Sum<T>* __restrict__ parts, const Statistics<T> t,
                  const Work w) {
  using A = Sum<T>;
  Items items = items_of_thread<V>(w);
  A mean[V], s[V] = {}, q[V] = {};
#pragma unroll
  for (int v = 0; v < V; ++v) mean[v] = items.left > 0 ? t.mean.at(items.channel + (w.map.last ? v : 0)) : A(0);
  for (; items.left > 0; items.next(w)) {
    const auto g = *reinterpret_cast<const Pack<T, V>*>(dy + items.at);
    const auto in = *reinterpret_cast<const Pack<T, V>*>(x + items.at);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A d = static_cast<A>(g.at[v]);
      s[v] += d;
      q[v] += d * (static_cast<A>(in.at[v]) - mean[v]);
    }
  }
#pragma unroll
  for (int v = 1; v < V; ++v)
    if (!w.map.last) s[0] += s[v], q[0] += q[v];
  const bool stores = static_cast<int>(threadIdx.x) < w.lanes && items.channel < w.map.c;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (v > 0 && !w.map.last) break;
    const A sum_dy = sum_rows(s[v], w.lanes), sum_dy_d = sum_rows(q[v], w.lanes);
    if (stores) {
      A* const part = parts + 2 * int64_t{static_cast<int>(blockIdx.x) / w.groups} * w.map.c + items.channel + v;
      part[0] = sum_dy;
      part[w.map.c] = sum_dy_d;
    }
  }
}

// sums [2][c]: of dy and of dy * xhat.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    add_parts(const Sum<T>* __restrict__ parts, Sum<T>* __restrict__ sums, const Statistics<T> t, const int64_t count,
              const int64_t channels) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x, size = 2 * channels;
  if (i >= size) return;
  Sum<T> total = 0;
  for (int64_t p = 0; p < count; ++p) total += parts[p * size + i];
  sums[i] = i < channels ? total : total * t.r(i - channels);
}

// dx = w r (dy - mean(dy) - xhat mean(dy xhat)), of y = w xhat + b with mean and var functions of x. The means are over
// `count` values, or over *counted.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    gradient(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, const Statistics<T> t,
             const Sum<T>* __restrict__ sums, const Sum<T> count, const Sum<T>* __restrict__ counted, const Work w) {
  using A = Sum<T>;
  Items items = items_of_thread<V>(w);
  if (items.left == 0) return;
  const A n = counted ? *counted : count;
  A mean[V], scale[V], shift[V], slope[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t c = items.channel + (w.map.last ? v : 0);
    const A r = t.r(c);
    mean[v] = t.mean.at(c), scale[v] = r * t.weight.at(c);
    shift[v] = sums[c] / n, slope[v] = r * (sums[w.map.c + c] / n);
  }
  for (; items.left > 0; items.next(w)) {
    const auto g = *reinterpret_cast<const Pack<T, V>*>(dy + items.at);
    const auto in = *reinterpret_cast<const Pack<T, V>*>(x + items.at);
    Pack<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A d = static_cast<A>(in.at[v]) - mean[v];
      out.at[v] = static_cast<T>((static_cast<A>(g.at[v]) - shift[v] - d * slope[v]) * scale[v]);
    }
    *reinterpret_cast<Pack<T, V>*>(dx + items.at) = out;
  }
}

}  // namespace batch_norm
}  // namespace fastnets
