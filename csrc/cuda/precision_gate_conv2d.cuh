// Kernels of precision gating: largest (max|x|), quantize (numbers to two planes of bytes), convolve.
//
// Work. quantize: a thread writes four channels of one pixel. The input's planes are its high and low part, the
// weight's are q / 2 and q % 2, both with the sign: 9 bits do not fit a byte. convolve: a warp takes 8 pixels by 16
// output channels, a thread 1 pixel by 4; per tap and four channels it loads one word of activations and 8 of weights
// for 8 dot products of four bytes. The low part is skipped by a warp none of whose gates is open.
//
// Bytes. quantize reads x once (twice with largest) and writes 2 bytes a number; convolve reads these once from memory
// where the caches hold the rows that taps and output channels share, and writes y once. No tensor cores yet.
#pragma once

#include <cmath>
#include <type_traits>

#include "../precision_gate_conv2d.h"
#include "launch.h"

namespace fastnets::gate {

constexpr int kThreads = 128;
constexpr int kOutputs = 4;                        // of a thread
constexpr int kWarpPixels = 8, kWarpOutputs = 16;  // 32 threads of kOutputs

// `most` of block b is the largest magnitude among its share of t; NaN if there is one. signed_: t as it is, of one.
template <typename T, typename A>
__global__ void __launch_bounds__(kThreads)
    largest(const T* __restrict__ t, A* __restrict__ most, const Four size, const Four step, const bool as_it_is) {
  FASTNETS_SHARED(A, shared, kThreads);
  const int64_t count = size.n * size.c * size.h * size.w;
  A value = 0;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < count; i += int64_t{kThreads} * gridDim.x) {
    const int64_t w = i % size.w, h = i / size.w % size.h, c = i / size.w / size.h % size.c;
    const int64_t n = i / size.w / size.h / size.c;
    const A v = static_cast<A>(t[n * step.n + c * step.c + h * step.h + w * step.w]), a = as_it_is || !(v < 0) ? v : -v;
    value = as_it_is ? a : (a <= value || value != value ? value : a);
  }
  shared[threadIdx.x] = value;
  barrier();
  if (threadIdx.x > 0) return;
  for (int i = 1; i < kThreads && !as_it_is; ++i) value = shared[i] <= value || value != value ? value : shared[i];
  most[blockIdx.x] = value;
}

// Planes [n][h][w][groups][words] of a tensor (n, groups * channels, h, w): the magnitude's upper bits and the lower
// `low_bits`, with the sign.
struct Planes {
  Four size, step;
  int64_t channels, words, groups;
  int levels, low_bits;

  __host__ __device__ int64_t count() const { return size.n * size.h * size.w * groups * words; }
};

template <typename A>
__device__ int magnitude(A v, A scale, A levels) {
  const A share = (v < 0 ? -v : v) / scale;
  const A clamped = share > 0 ? (share < 1 ? share : A(1)) : A(0);  // NaN: 0
  return static_cast<int>(std::rint(clamped * levels));
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    quantize(const T* __restrict__ t, const Sum<T>* __restrict__ scale, unsigned* __restrict__ high,
             unsigned* __restrict__ low, const Planes p, int64_t* __restrict__ to_clear) {
  const int64_t word = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (word == 0 && to_clear) *to_clear = 0;
  if (word >= p.count()) return;
  const int64_t first = word % p.words * 4, group = word / p.words % p.groups, pixel = word / p.words / p.groups;
  const int64_t w = pixel % p.size.w, h = pixel / p.size.w % p.size.h, n = pixel / p.size.w / p.size.h;
  t += n * p.step.n + h * p.step.h + w * p.step.w;
  unsigned upper = 0, lower = 0;
  for (int i = 0; i < 4 && first + i < p.channels; ++i) {
    const Sum<T> v = static_cast<Sum<T>>(t[(group * p.channels + first + i) * p.step.c]);
    const int m = magnitude<Sum<T>>(v, *scale, static_cast<Sum<T>>(p.levels)), sign = v < 0 ? -1 : 1;
    upper |= static_cast<unsigned>(sign * (m >> p.low_bits) & 0xff) << (8 * i);
    lower |= static_cast<unsigned>(sign * (m & ((1 << p.low_bits) - 1)) & 0xff) << (8 * i);
  }
  high[word] = upper;
  low[word] = lower;
}

struct Operands {
  const int *parts[2], *weights[2];  // planes
  int64_t words;                     // of a group's channels
  Four y;                            // strides
  int64_t threshold, bias;           // strides
};

// Sums over the part's words for kOutputs output channels from o on; those past the group's end repeat its last.
__device__ inline void sums_of(const Operands& t, const Convolution& g, int part, int64_t n, int64_t i, int64_t j,
                               int64_t group, int64_t o, int (&sums)[kOutputs]) {
  int upper[kOutputs] = {}, lower[kOutputs] = {};
  const int64_t last = g.m - 1;
  for (int64_t tap = 0; tap < g.kh * g.kw; ++tap) {
    const int64_t h = i * g.sh - g.ph + tap / g.kw * g.dh, w = j * g.sw - g.pw + tap % g.kw * g.dw;
    if (h < 0 || h >= g.h || w < 0 || w >= g.w) continue;
    const int* const x = t.parts[part] + (((n * g.h + h) * g.w + w) * g.groups + group) * t.words;
    for (int64_t word = 0; word < t.words; ++word) {
      const int four = x[word];
#pragma unroll
      for (int k = 0; k < kOutputs; ++k) {
        const int64_t at = ((group * g.m + min(o + k, last)) * g.kh * g.kw + tap) * t.words + word;
        upper[k] = dot4(four, t.weights[0][at], upper[k]);
        lower[k] = dot4(four, t.weights[1][at], lower[k]);
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kOutputs; ++k) sums[k] = 2 * upper[k] + lower[k];
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    convolve(const Operands t, const Sum<T>* __restrict__ scales, const T* __restrict__ threshold,
             const T* __restrict__ bias, T* __restrict__ y, int64_t* __restrict__ open, const Convolution g,
             const Bits bits) {
  using A = Sum<T>;
  const int64_t tiles = (g.m + kWarpOutputs - 1) / kWarpOutputs, lane = threadIdx.x % 32;
  const int64_t warp = blockIdx.x * int64_t{kThreads / 32} + threadIdx.x / 32;
  const int64_t group = warp / tiles % g.groups, o = (warp % tiles * (kWarpOutputs / kOutputs) + lane % 4) * kOutputs;
  const int64_t pixel = warp / tiles / g.groups * kWarpPixels + lane / 4;
  const int64_t n = pixel / (g.oh * g.ow), i = pixel / g.ow % g.oh, j = pixel % g.ow;
  const bool inside = n < g.n && o < g.m;
  const A factor = (scales[0] / static_cast<A>(bits.levels)) * (scales[1] / static_cast<A>(bits.weight_levels));

  int high[kOutputs] = {}, low[kOutputs] = {};
  if (inside) sums_of(t, g, 0, n, i, j, group, o, high);
  int64_t count = 0;
  bool gate[kOutputs];
#pragma unroll
  for (int k = 0; k < kOutputs; ++k) {
    const int64_t channel = group * g.m + o + k;
    high[k] *= 1 << bits.low;
    gate[k] = inside && o + k<g.m&& static_cast<A>(high[k]) * factor> static_cast<A>(threshold[channel * t.threshold]);
    count += gate[k];
  }
  if (ballot(count > 0) && inside) sums_of(t, g, 1, n, i, j, group, o, low);
#pragma unroll
  for (int k = 0; k < kOutputs; ++k) {
    if (!inside || o + k >= g.m) break;
    const int64_t channel = group * g.m + o + k;
    A value = static_cast<A>(high[k] + (gate[k] ? low[k] : 0)) * factor;
    if (bias) value += static_cast<A>(bias[channel * t.bias]);
    y[n * t.y.n + channel * t.y.c + i * t.y.h + j * t.y.w] = static_cast<T>(value);
  }
  for (int distance = 16; distance >= 1; distance /= 2) count += shuffle_xor(count, distance);
  if (lane == 0 && count > 0) atomic_add(open, count);
}

}  // namespace fastnets::gate
