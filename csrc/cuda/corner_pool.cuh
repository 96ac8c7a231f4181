// Kernels of corner pooling: running maxima along one dimension of an image, and their gradient.
//
// Work. A lane is one of n * c * width scans, width being that of the dimension not scanned; neighbouring lanes are
// neighbours in memory. `scan` and `collect` give a thread a lane, so that the threads of a warp read adjacent numbers.
// Where what is scanned lies side by side instead, `scan_rows` and `collect_rows` give a warp a lane, whose threads
// take 32 places at once and combine them by shuffles.
//
// Bytes. Forward 2 * bytes a number; the second scan of a sum adds to y, 3 * bytes, of which y comes from L2 where it
// fits. Backward 3 * bytes: x and dy are read once, dx written once. When a maximum ends, the sum of its dy goes to its
// place, and the other places receive 0: no atomics, the same bits on every run.
#pragma once

#include <cmath>

#include "../corner_pool.h"
#include "launch.h"

namespace fastnets {

constexpr int kThreads = 128;

template <typename T>
using Number = std::conditional_t<std::is_integral_v<T>, std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, Sum<T>>;

// Strides in elements: of a lane's coordinates, and of the scan.
struct Strides {
  int64_t n, c, w, step;
};

struct Scan {
  int64_t lanes, channels, width, length;
  bool channels_last, reverse, add;

  __device__ int64_t offset(int64_t lane, const Strides& s) const {
    const int64_t inner = channels_last ? channels : width, outer = channels_last ? width : channels;
    const int64_t i = lane % inner, j = lane / inner % outer, n = lane / inner / outer;
    return n * s.n + (channels_last ? i : j) * s.c + (channels_last ? j : i) * s.w;
  }

  __device__ int64_t place(int64_t step) const { return reverse ? length - 1 - step : step; }
};

// Whether x becomes the maximum after m: NaN exceeds all else and equals NaN; of equal ones the first or the last.
template <typename A>
__device__ bool takes(A m, A x, bool first) {
  if (first) return x > m || (x != x && m == m);
  return x >= m || x != x;
}

template <typename A>
__device__ A later(A m, A x) {
  return takes(m, x, false) ? x : m;
}

template <typename T>
__device__ void write(T* y, Number<T> m, bool add) {
  *y = static_cast<T>(add ? static_cast<Number<T>>(*y) + m : m);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    scan(const T* __restrict__ x, T* __restrict__ y, const Strides xs, const Strides ys, const Scan g) {
  using A = Number<T>;
  const int64_t lane = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (lane >= g.lanes) return;
  x += g.offset(lane, xs);
  y += g.offset(lane, ys);
  A m = static_cast<A>(x[g.place(0) * xs.step]);
#pragma unroll 8
  for (int64_t i = 0; i < g.length; ++i) {
    m = later(m, static_cast<A>(x[g.place(i) * xs.step]));
    write(y + g.place(i) * ys.step, m, g.add);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    scan_rows(const T* __restrict__ x, T* __restrict__ y, const Strides xs, const Strides ys, const Scan g) {
  using A = Number<T>;
  const int64_t lane = blockIdx.x * int64_t{kThreads / 32} + threadIdx.x / 32;
  const bool there = lane < g.lanes;
  const int thread = threadIdx.x % 32;
  x += there ? g.offset(lane, xs) : 0;
  y += there ? g.offset(lane, ys) : 0;
  A carry = there ? static_cast<A>(x[g.place(0) * xs.step]) : A(0);
  for (int64_t start = 0; start < g.length; start += 32) {
    const bool inside = there && start + thread < g.length;
    // Threads past the end repeat what is known: no maximum changes.
    A m = inside ? static_cast<A>(x[g.place(start + thread) * xs.step]) : carry;
    for (int distance = 1; distance < 32; distance *= 2) {
      const A before = shuffle(m, max(thread - distance, 0));
      m = thread >= distance ? later(before, m) : m;
    }
    m = later(carry, m);
    if (inside) write(y + g.place(start + thread) * ys.step, m, g.add);
    carry = shuffle(m, 31);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    collect(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, const Strides dys, const Strides xs,
            const Strides dxs, const Scan g, const bool first) {
  using A = Number<T>;
  const int64_t lane = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (lane >= g.lanes) return;
  dy += g.offset(lane, dys);
  x += g.offset(lane, xs);
  dx += g.offset(lane, dxs);
  int64_t begin = g.place(0);  // where the maximum so far is
  A m = static_cast<A>(x[begin * xs.step]), sum = static_cast<A>(dy[begin * dys.step]);
#pragma unroll 4
  for (int64_t i = 1; i < g.length; ++i) {
    const int64_t place = g.place(i);
    const A v = static_cast<A>(x[place * xs.step]), d = static_cast<A>(dy[place * dys.step]);
    const bool ends = takes(m, v, first);
    dx[(ends ? begin : place) * dxs.step] = static_cast<T>(ends ? sum : A(0));
    begin = ends ? place : begin;
    sum = ends ? d : sum + d;
    m = ends ? v : m;
  }
  dx[begin * dxs.step] = static_cast<T>(sum);
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    collect_rows(const T* __restrict__ dy, const T* __restrict__ x, T* __restrict__ dx, const Strides dys,
                 const Strides xs, const Strides dxs, const Scan g, const bool first) {
  using A = Number<T>;
  const int64_t lane = blockIdx.x * int64_t{kThreads / 32} + threadIdx.x / 32;
  const bool there = lane < g.lanes;
  const int thread = threadIdx.x % 32;
  dy += there ? g.offset(lane, dys) : 0;
  x += there ? g.offset(lane, xs) : 0;
  dx += there ? g.offset(lane, dxs) : 0;
  int64_t begin = g.place(0);
  A carry = there ? static_cast<A>(x[begin * xs.step]) : A(0), sum = 0;
  for (int64_t start = 0; start < g.length; start += 32) {
    const int64_t place = g.place(start + thread);
    const bool inside = there && start + thread < g.length;
    const A v = inside ? static_cast<A>(x[place * xs.step]) : A(0);
    A m = inside ? v : carry;
    for (int distance = 1; distance < 32; distance *= 2) {
      const A before = shuffle(m, max(thread - distance, 0));
      m = thread >= distance ? later(before, m) : m;
    }
    m = later(carry, m);
    const A left = shuffle(m, max(thread - 1, 0));
    const bool starts = inside && start + thread > 0 && takes(thread > 0 ? left : carry, v, first);
    const unsigned starting = ballot(starts);
    // The sum of dy from each place to the next one where a maximum starts.
    A total = inside ? static_cast<A>(dy[place * dys.step]) : A(0);
    for (int distance = 1; distance < 32; distance *= 2) {
      const int other = min(thread + distance, 31);
      const A after = shuffle(total, other);
      const unsigned between = ((2u << other) - 1) & ~((2u << thread) - 1);
      if (thread + distance < 32 && !(starting & between)) total += after;
    }
    carry = shuffle(m, 31);
    const int newest = starting ? highest_bit(starting) : -1;
    const A head = shuffle(total, 0), tail = shuffle(total, max(newest, 0));
    // The maximum of before takes what comes before the first start; here it ends, or goes on.
    if (!(starting & 1)) sum += head;
    if (inside && !starts && place != begin) dx[place * dxs.step] = T(0);
    if (starts && thread != newest) dx[place * dxs.step] = static_cast<T>(total);
    if (starting) {
      if (there && thread == 0) dx[begin * dxs.step] = static_cast<T>(sum);
      begin = g.place(start + newest);
      sum = tail;
    }
  }
  if (there && thread == 0) dx[begin * dxs.step] = static_cast<T>(sum);
}

}  // namespace fastnets
