// Kernels of batch normalisation and the activation after it: normalize, gradient_sums with add_parts, and gradient.
// How work is dealt to blocks is in batch_moments.cuh: a thread has its channels' vectors in registers while it walks
// over its items.
//
// Bytes. normalize reads x and writes y; gradient_sums reads dy and x; gradient reads both and writes dx: each once.
#pragma once

#include "activate.cuh"
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
  Activation activation;

  __device__ Sum<T> r(int64_t c) const { return Sum<T>(1) / std::sqrt(var.at(c) + eps); }
  __device__ Sum<T> scale(int64_t c) const { return r(c) * weight.at(c); }
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
    mean[v] = t.mean.at(c), scale[v] = t.scale(c), bias[v] = t.bias.at(c);
  }
  for (; items.left > 0; items.next(w)) {
    const auto in = *reinterpret_cast<const Pack<T, V>*>(x + items.at);
    Pack<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v)
      out.at[v] = static_cast<T>(activate((static_cast<A>(in.at[v]) - mean[v]) * scale[v] + bias[v], t.activation));
    *reinterpret_cast<Pack<T, V>*>(y + items.at) = out;
  }
}

// parts [part][2][c]: sums of dz and of dz * (x - mean), where y = f(z).
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    gradient_sums(const T* __restrict__ dy, const T* __restrict__ x, Sum<T>* __restrict__ parts, const Statistics<T> t,
                  const Work w) {
  using A = Sum<T>;
  Items items = items_of_thread<V>(w);
  A mean[V] = {}, scale[V] = {}, bias[V] = {}, s[V] = {}, q[V] = {};
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (items.left == 0) break;
    const int64_t c = items.channel + (w.map.last ? v : 0);
    mean[v] = t.mean.at(c), scale[v] = t.scale(c), bias[v] = t.bias.at(c);
  }
  for (; items.left > 0; items.next(w)) {
    const auto g = *reinterpret_cast<const Pack<T, V>*>(dy + items.at);
    const auto in = *reinterpret_cast<const Pack<T, V>*>(x + items.at);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A d = static_cast<A>(in.at[v]) - mean[v];
      const A dz = activate_backward(static_cast<A>(g.at[v]), d * scale[v] + bias[v], t.activation);
      s[v] += dz;
      q[v] += dz * d;
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

// sums [2][c]: of dz and of dz * xhat.
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

// dx = w r (dz - mean(dz) - xhat mean(dz xhat)), of z = w xhat + b with mean and var functions of x. The means are over
// `count` values, or over *counted.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    gradient(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, const Statistics<T> t,
             const Sum<T>* __restrict__ sums, const Sum<T> count, const Sum<T>* __restrict__ counted, const Work w) {
  using A = Sum<T>;
  Items items = items_of_thread<V>(w);
  if (items.left == 0) return;
  const A n = counted ? *counted : count;
  A mean[V], scale[V], bias[V], shift[V], slope[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t c = items.channel + (w.map.last ? v : 0);
    mean[v] = t.mean.at(c), scale[v] = t.scale(c), bias[v] = t.bias.at(c);
    shift[v] = sums[c] / n, slope[v] = t.r(c) * (sums[w.map.c + c] / n);
  }
  for (; items.left > 0; items.next(w)) {
    const auto g = *reinterpret_cast<const Pack<T, V>*>(dy + items.at);
    const auto in = *reinterpret_cast<const Pack<T, V>*>(x + items.at);
    Pack<T, V> out;
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A d = static_cast<A>(in.at[v]) - mean[v];
      const A dz = activate_backward(static_cast<A>(g.at[v]), d * scale[v] + bias[v], t.activation);
      out.at[v] = static_cast<T>((dz - shift[v] - d * slope[v]) * scale[v]);
    }
    *reinterpret_cast<Pack<T, V>*>(dx + items.at) = out;
  }
}

}  // namespace batch_norm
}  // namespace fastnets
