// Kernels of batch normalisation and the activation after it: normalize, gradient_sums with merge_gradient_sums, and
// gradient. How work is dealt to blocks is in batch_norm_work.cuh: a thread has its channels' numbers in registers
// while it walks over its items.
//
// Bytes. normalize reads x and writes y; gradient_sums reads dy and x; gradient reads both and writes dx: each once.
#pragma once

#include "activate.cuh"
#include "batch_norm_work.cuh"

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

  // z = (x - mean) * scale + bias.
  __device__ void line(int64_t c, Sum<T>* to) const {
    to[0] = mean.at(c), to[1] = r(c) * weight.at(c), to[2] = bias.at(c);
  }
};

// Numbers for each of the block's channels, of(c): one thread computes them, all that have the channel get them.
template <int C, int K, typename A, typename F>
__device__ void share(const Work& w, int block, A (&to)[K][C], const F& of) {
  FASTNETS_SHARED(A, shared, K * kChannels);
  const int t = static_cast<int>(threadIdx.x);
  const int64_t c = first_channel<C>(w, block) + t;
  if (t < w.lanes * C && c < w.map.c) {
    A numbers[K];
    of(c, numbers);
#pragma unroll
    for (int k = 0; k < K; ++k) shared[k * kChannels + t] = numbers[k];
  }
  barrier();
#pragma unroll
  for (int k = 0; k < K * C; ++k) to[k / C][k % C] = shared[k / C * kChannels + t % w.lanes * C + k % C];
}

// The second pass over x goes from its end to its begin: what the first read last may still be in the L2 cache.
__device__ inline int block_from_end() { return static_cast<int>(gridDim.x - 1 - blockIdx.x); }

template <typename T, int V, int C>
__global__ void __launch_bounds__(kThreads)
    normalize(const T* __restrict__ x, T* __restrict__ y, const Statistics<T> t, const Work w) {
  using A = Sum<T>;
  A of[3][C];
  share(w, block_from_end(), of, [&](int64_t c, A* to) { t.line(c, to); });
  Items<V, C> items(w, block_from_end());
  with_activation(t.activation, [&](auto activation) {
    items.template walk<2>(w, [&]<int U>(const int64_t (&at)[U]) {
      Pack<T, V> in[U];
      load(x, at, in);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        Pack<T, V> out;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A z = (static_cast<A>(in[u].at[v]) - of[0][v % C]) * of[1][v % C] + of[2][v % C];
          out.at[v] = static_cast<T>(activate(z, activation.value));
        }
        store_pack(y + at[u], out);
      }
    });
  });
}

// parts [part][2][c]: sums of dz and of dz * (x - mean), where y = f(z).
template <typename T, int V, int C>
__global__ void __launch_bounds__(kThreads)
    gradient_sums(const T* __restrict__ dy, const T* __restrict__ x, double* __restrict__ parts, const Statistics<T> t,
                  const Work w) {
  using A = Sum<T>;
  const int block = static_cast<int>(blockIdx.x);
  A of[3][C], s[V] = {}, q[V] = {};
  share(w, block, of, [&](int64_t c, A* to) { t.line(c, to); });
  Items<V, C> items(w, block);
  with_activation(t.activation, [&](auto activation) {
    items.template walk<2>(w, [&]<int U>(const int64_t (&at)[U]) {
      Pack<T, V> g[U], in[U];
      load(dy, at, g);
      load(x, at, in);
#pragma unroll
      for (int u = 0; u < U; ++u)
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A d = static_cast<A>(in[u].at[v]) - of[0][v % C];
          const A dz = activate_backward(static_cast<A>(g[u].at[v]), d * of[1][v % C] + of[2][v % C], activation.value);
          s[v] += dz;
          q[v] += dz * d;
        }
    });
  });
  double sums[2][C] = {};
#pragma unroll
  for (int v = 0; v < V; ++v) sums[0][v % C] += s[v], sums[1][v % C] += q[v];
  store_part(sums, parts, w);
}

// sums [2][c]: of dz and of dz * xhat.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    merge_gradient_sums(const double* __restrict__ parts, Sum<T>* __restrict__ sums, const Statistics<T> t,
                        const int64_t count, const int64_t channels) {
  double total[2];
  const int64_t c = sum_parts(parts, count, channels, total);
  if (c < 0) return;
  sums[c] = static_cast<Sum<T>>(total[0]);
  sums[channels + c] = static_cast<Sum<T>>(total[1] * t.r(c));
}

// dx = w r (dz - mean(dz) - xhat mean(dz xhat)), of z = w xhat + b with mean and var functions of x. The means are over
// `count` values, or over *counted.
template <typename T, int V, int C>
__global__ void __launch_bounds__(kThreads)
    gradient(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, const Statistics<T> t,
             const Sum<T>* __restrict__ sums, const Sum<T> count, const Sum<T>* __restrict__ counted, const Work w) {
  using A = Sum<T>;
  A of[5][C];
  share(w, block_from_end(), of, [&](int64_t c, A* to) {
    const A n = counted ? *counted : count;
    t.line(c, to);
    to[3] = sums[c] / n, to[4] = t.r(c) * (sums[w.map.c + c] / n);
  });
  Items<V, C> items(w, block_from_end());
  with_activation(t.activation, [&](auto activation) {
    items.template walk<2>(w, [&]<int U>(const int64_t (&at)[U]) {
      Pack<T, V> g[U], in[U];
      load(dy, at, g);
      load(x, at, in);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        Pack<T, V> out;
#pragma unroll
        for (int v = 0; v < V; ++v) {
          const A d = static_cast<A>(in[u].at[v]) - of[0][v % C], scale = of[1][v % C];
          const A dz = activate_backward(static_cast<A>(g[u].at[v]), d * scale + of[2][v % C], activation.value);
          out.at[v] = static_cast<T>((dz - of[3][v % C] - d * of[4][v % C]) * scale);
        }
        store_pack(dx + at[u], out);
      }
    });
  });
}

}  // namespace batch_norm
}  // namespace fastnets
