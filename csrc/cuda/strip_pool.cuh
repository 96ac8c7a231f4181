// Kernels of strip pooling: the means of an image's rows and columns, and their gradient.
//
// Work. A warp takes kRows rows of an image and 32 lanes, what lies side by side: channels in channels_last
// (`strips_of_ channels`, whose blocks have one warp for every eighth column of the same rows), else columns of one
// channel, 32 after 32 (`strips_of_planes`, a warp alone). It adds up each row in a register, and each column of the
// strip in another, which goes to a scratch tensor; `finish` adds up the strips. `spread` gives a thread a number of
// dx.
//
// Bytes. x is read once; the scratch is written and read, 4 bytes a number of x / kRows. The gradient is written once.
// Sums are taken in an order that depends on sizes alone: no atomics, the same bits on every run.
#pragma once

#include "../tensor.h"
#include "launch.h"

namespace fastnets {

constexpr int kWarps = 8, kThreads = 32 * kWarps, kRows = 16;
constexpr int kColumns = 64;  // added one after another: a longer sum would lose digits

struct Images {
  Four size, x;  // sizes and strides of x or dx
  bool channels_last;

  __host__ __device__ int64_t strips() const { return (size.h + kRows - 1) / kRows; }
  // Where a mean of row or column `at` of `length` stands.
  __device__ int64_t mean(int64_t n, int64_t c, int64_t at, int64_t length) const {
    return channels_last ? (n * length + at) * size.c + c : (n * size.c + c) * length + at;
  }
};

// The sum of a strip's part of one column; adds its numbers to the rows' sums.
template <typename T>
__device__ Sum<T> add_column(const T* x, int64_t step, int rows, Sum<T> (&row)[kRows]) {
  Sum<T> column = 0;
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (r >= rows) continue;
    const Sum<T> v = static_cast<Sum<T>>(x[r * step]);
    row[r] += v;
    column += v;
  }
  return column;
}

// One warp for each image, channel and strip.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    strips_of_planes(const T* __restrict__ x, T* __restrict__ rows, Sum<T>* __restrict__ scratch, const Images g) {
  const int64_t task = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32, plane = task / g.strips();
  const int64_t strip = task % g.strips(), n = plane / g.size.c, c = plane % g.size.c;
  const bool there = n < g.size.n;
  const int lane = threadIdx.x % 32;
  const int count = there ? static_cast<int>(min(int64_t{kRows}, g.size.h - strip * kRows)) : 0;
  x += there ? n * g.x.n + c * g.x.c + strip * kRows * g.x.h : 0;
  scratch += strip * g.size.n * g.size.c * g.size.w;
  Sum<T> row[kRows] = {};
  for (int64_t w = lane; there && w < g.size.w; w += 32)
    scratch[g.mean(n, c, w, g.size.w)] = add_column(x + w * g.x.w, g.x.h, count, row);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    for (int distance = 16; distance >= 1; distance /= 2) row[r] += shuffle_xor(row[r], distance);
    if (lane == 0 && r < count)
      rows[g.mean(n, c, strip * kRows + r, g.size.h)] = static_cast<T>(row[r] / static_cast<Sum<T>>(g.size.w));
  }
}

// One block for each image, strip and 32 channels.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    strips_of_channels(const T* __restrict__ x, T* __restrict__ rows, Sum<T>* __restrict__ scratch, const Images g) {
  const int64_t groups = (g.size.c + 31) / 32, strip = blockIdx.x / groups % g.strips();
  const int64_t n = blockIdx.x / groups / g.strips(), c = blockIdx.x % groups * 32 + threadIdx.x % 32;
  const bool there = c < g.size.c;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int count = static_cast<int>(min(int64_t{kRows}, g.size.h - strip * kRows));
  x += there ? n * g.x.n + c * g.x.c + strip * kRows * g.x.h : 0;
  scratch += strip * g.size.n * g.size.c * g.size.w;
  FASTNETS_SHARED(Sum<T>, shared, kRows * kThreads);
#pragma unroll
  for (int r = 0; r < kRows; ++r) shared[(r * kWarps + warp) * 32 + lane] = 0;
  for (int64_t begin = warp; there && begin < g.size.w; begin += kWarps * kColumns) {
    Sum<T> row[kRows] = {};
    for (int64_t w = begin; w < min(begin + kWarps * kColumns, g.size.w); w += kWarps)
      scratch[g.mean(n, c, w, g.size.w)] = add_column(x + w * g.x.w, g.x.h, count, row);
#pragma unroll
    for (int r = 0; r < kRows; ++r) shared[(r * kWarps + warp) * 32 + lane] += row[r];
  }
  barrier();
  for (int r = warp; r < count && there; r += kWarps) {
    Sum<T> total = 0;
    for (int from = 0; from < kWarps; ++from) total += shared[(r * kWarps + from) * 32 + lane];
    rows[g.mean(n, c, strip * kRows + r, g.size.h)] = static_cast<T>(total / static_cast<Sum<T>>(g.size.w));
  }
}

// columns = the sum of the strips / height
template <typename T>
__global__ void __launch_bounds__(kThreads)
    finish(const Sum<T>* __restrict__ scratch, T* __restrict__ columns, const Images g) {
  const int64_t length = g.size.n * g.size.c * g.size.w, i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i >= length) return;
  Sum<T> total = 0;
  for (int64_t strip = 0; strip < g.strips(); ++strip) total += scratch[strip * length + i];
  columns[i] = static_cast<T>(total / static_cast<Sum<T>>(g.size.h));
}

// dx = drows / width + dcolumns / height; the strides of the gradients are any, those of dx dense.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    spread(const T* __restrict__ drows, const T* __restrict__ dcolumns, T* __restrict__ dx, const Images g,
           const Four rows, const Four columns) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i >= g.size.n * g.size.c * g.size.h * g.size.w) return;
  const int64_t c = g.channels_last ? i % g.size.c : i / (g.size.h * g.size.w) % g.size.c;
  const int64_t pixel = g.channels_last ? i / g.size.c : i;
  const int64_t w = pixel % g.size.w, h = pixel / g.size.w % g.size.h, n = i / (g.size.c * g.size.h * g.size.w);
  const auto row = static_cast<Sum<T>>(drows[n * rows.n + c * rows.c + h * rows.h]);
  const auto column = static_cast<Sum<T>>(dcolumns[n * columns.n + c * columns.c + w * columns.w]);
  dx[i] = static_cast<T>(row / static_cast<Sum<T>>(g.size.w) + column / static_cast<Sum<T>>(g.size.h));
}

}  // namespace fastnets
