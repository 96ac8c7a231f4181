// Kernels of corner pooling: running maxima along one dimension of an image, or along both and added up.
//
// Work. A lane is one of n * c * width scans, width being that of the dimension not scanned; neighbouring lanes are
// neighbours in memory. `scan` gives a thread V of them, 16 bytes where the layout allows it, else one, and loads
// kAhead places before it uses the first. Where what is scanned lies side by side instead, `scan_rows` gives a row to a
// group of threads, 32 or as many as reach over it: each takes V places, and shuffles combine them; kRows rows at once.
// For a sum, a group walks over all rows of a plane with the maxima of its columns in registers. `sum_channels` does
// this in channels_last: a block walks over the rows of an image for kPacks packs of channels, and a thread has a few
// columns of one pack, whose maxima along the row go from thread to thread by shuffles, from warp to warp through
// shared memory.
//
// Bytes. x is read once and y written once, 2 * bytes a number; a sum 3 * bytes. A sum of rows too long for these, or
// of too few images for `sum_channels`, is two scans, of which the second adds to y: 5 * bytes.
#pragma once

#include <limits>

#include "../corner_pool.h"
#include "launch.h"
#include "pack.cuh"

namespace fastnets {

// kBlocks of them on a multiprocessor: the compiler has registers for loads well ahead of their use.
constexpr int kThreads = 128, kBlocks = 4, kAhead = 8, kRows = 4;
constexpr int kSumThreads = 512, kPacks = 8;  // 128 bytes of channels: whole cache lines

// Numbers of a thread side by side, and columns of a thread of sum_channels: at most 16 numbers in all.
template <typename T>
constexpr int kPack = sizeof(T) > 1 ? 16 / sizeof(T) : 8;
template <typename T>
constexpr int kColumns = sizeof(T) > 2 ? 4 : 2;

template <typename T>
using Number = std::conditional_t<std::is_integral_v<T>, std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, Sum<T>>;

// In elements, as scans go: along a dimension gone through from its end a stride is negative. A scan takes steps; w is
// the stride of the other dimension of the image.
struct Strides {
  int64_t origin, n, c, w, step;
};

struct Lanes {
  int64_t count, channels, width, length;
  bool channels_last;

  __device__ int64_t offset(int64_t lane, const Strides& s) const {
    const int64_t inner = channels_last ? channels : width, outer = channels_last ? width : channels;
    const int64_t i = lane % inner, j = lane / inner % outer, n = lane / inner / outer;
    return s.origin + n * s.n + (channels_last ? i : j) * s.c + (channels_last ? j : i) * s.w;
  }
};

// Rows dealt to groups of threads: a group takes a chunk of those of one plane.
struct Rows {
  int64_t planes, channels;
  int height, chunks, chunk, length, threads;  // chunks of a plane; threads of a group, a power of two
};

// One thread's part of them. The threads past the last group read what that reads, and write nothing.
struct Part {
  int64_t n, c;
  int row, rows, thread;  // of the group
  bool there;

  __device__ explicit Part(const Rows& g) {
    const int64_t index = blockIdx.x * int64_t{kThreads / g.threads} + threadIdx.x / g.threads;
    const int64_t group = min(index, g.planes * g.chunks - 1), plane = group / g.chunks;
    n = plane / g.channels, c = plane % g.channels;
    row = static_cast<int>(group % g.chunks) * g.chunk;
    rows = min(g.chunk, g.height - row);
    thread = threadIdx.x & (g.threads - 1);
    there = index == group;
  }

  __device__ int64_t offset(const Strides& s) const { return s.origin + n * s.n + c * s.c + row * s.w; }
};

// Where V numbers lie that a scan along a row takes from a place on: more than one only where its steps are 1, or -1.
template <int V>
__device__ int64_t offset_in_row(int place, int64_t step, bool reverse) {
  return V == 1 ? place * step : reverse ? -place - (V - 1) : place;
}

// In memory's order, or from the last to the first.
template <int V, typename T>
__device__ Pack<T, V> load(const T* x, bool reverse = false) {
  const auto in = load_pack<V>(x);
  Pack<T, V> out;
#pragma unroll
  for (int v = 0; v < V; ++v) out.at[v] = reverse ? in.at[V - 1 - v] : in.at[v];
  return out;
}

template <typename T, int V>
__device__ void store(T* y, const Pack<Number<T>, V>& m, bool reverse = false) {
  Pack<T, V> out;
#pragma unroll
  for (int v = 0; v < V; ++v) out.at[v] = static_cast<T>(reverse ? m.at[V - 1 - v] : m.at[v]);
  store_pack(y, out);
}

template <typename T, int V>
__device__ Pack<Number<T>, V> numbers(const Pack<T, V>& x) {
  Pack<Number<T>, V> out;
#pragma unroll
  for (int v = 0; v < V; ++v) out.at[v] = static_cast<Number<T>>(x.at[v]);
  return out;
}

// Whether x becomes the maximum after m: NaN exceeds all else and equals NaN; of equal ones the first or the last.
template <typename A>
__device__ bool takes(A m, A x, bool first) {
  if (first) return !(x <= m) && m == m;
  return x >= m || x != x;
}

template <typename A>
__device__ A later(A m, A x) {
  if constexpr (std::is_same_v<A, float>)
    return maximum(m, x);
  else
    return takes(m, x, false) ? x : m;
}

template <typename A, int V>
__device__ Pack<A, V> later(const Pack<A, V>& m, const Pack<A, V>& x) {
  Pack<A, V> out;
#pragma unroll
  for (int v = 0; v < V; ++v) out.at[v] = later(m.at[v], x.at[v]);
  return out;
}

template <typename A, int V>
__device__ Pack<A, V> operator+(const Pack<A, V>& a, const Pack<A, V>& b) {
  Pack<A, V> out;
#pragma unroll
  for (int v = 0; v < V; ++v) out.at[v] = a.at[v] + b.at[v];
  return out;
}

// Every number becomes the maximum after it.
template <typename A>
constexpr A kLowest =
    std::numeric_limits<A>::has_infinity ? -std::numeric_limits<A>::infinity() : std::numeric_limits<A>::lowest();

template <int V, typename A>
__device__ Pack<A, V> splat(A value) {
  Pack<A, V> out;
#pragma unroll
  for (int v = 0; v < V; ++v) out.at[v] = value;
  return out;
}

template <typename A, int V>
__device__ Pack<A, V> lowest() {
  return splat<V>(kLowest<A>);
}

// The maximum of the lanes before this one, a multiple of `step` apart, among `width` neighbours; m becomes that with
// its own.
template <typename A>
__device__ A maximum_before(A& m, int width, int step = 1) {
#pragma unroll
  for (int distance = step; distance < 32; distance *= 2) m = later(shuffle_up(m, distance, width), m);
  const A before = shuffle_up(m, step, width);
  return static_cast<int>(threadIdx.x & (width - 1)) < step ? kLowest<A> : before;
}

template <typename T, int V, bool kAdds>
__global__ void __launch_bounds__(kThreads, kBlocks)
    scan(const T* __restrict__ x, T* y, const Strides xs, const Strides ys, const Lanes g) {
  const int64_t lane = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * V;
  if (lane >= g.count) return;
  x += g.offset(lane, xs);
  y += g.offset(lane, ys);
  auto m = lowest<Number<T>, V>();
  const auto take = [&]<int kPlaces>(std::integral_constant<int, kPlaces>) {
    Pack<T, V> in[kPlaces], old[kPlaces];
#pragma unroll
    for (int k = 0; k < kPlaces; ++k) {
      in[k] = load<V>(x + k * xs.step);
      if (kAdds) old[k] = load<V>(y + k * ys.step);
    }
#pragma unroll
    for (int k = 0; k < kPlaces; ++k) {
      m = later(m, numbers(in[k]));
      store(y + k * ys.step, kAdds ? m + numbers(old[k]) : m);
    }
    x += kPlaces * xs.step;
    y += kPlaces * ys.step;
  };
  int64_t left = g.length;
  for (; left >= kAhead; left -= kAhead) take(std::integral_constant<int, kAhead>());
  for (; left > 0; --left) take(std::integral_constant<int, 1>());
}

// y = the maxima of x along its rows, plus, if it adds, the maxima of `other` along the height, or `other` itself.
template <typename T, int V, bool kAdds>
__global__ void __launch_bounds__(kThreads, kBlocks)
    scan_rows(const T* __restrict__ x, const T* other, T* y, const Strides xs, const Strides os, const Strides ys,
              const Rows g, const bool pools_other) {
  using A = Number<T>;
  const Part part(g);
  const bool reverse = ys.step < 0;
  x += part.offset(xs);
  other += part.offset(os);
  y += part.offset(ys);
  auto down = lowest<A, V>();
  for (int row = 0; row < g.chunk; row += kRows) {
    auto carry = lowest<A, kRows>();
    for (int start = 0; start < g.length; start += g.threads * V) {
      const int place = start + part.thread * V, near = min(place, g.length - V);
      const int64_t xi = offset_in_row<V>(near, xs.step, reverse);
      const int64_t oi = offset_in_row<V>(near, os.step, reverse);
      Pack<T, V> in[kRows], more[kRows];
      Pack<A, V> m[kRows];
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        const int at = min(row + k, part.rows - 1);
        in[k] = load<V>(x + at * xs.w + xi, reverse);
        if (kAdds) more[k] = load<V>(other + at * os.w + oi, reverse);
      }
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        m[k] = numbers(in[k]);
#pragma unroll
        for (int v = 1; v < V; ++v) m[k].at[v] = later(m[k].at[v - 1], m[k].at[v]);
        A total = m[k].at[V - 1];
        m[k] = later(splat<V>(later(carry.at[k], maximum_before(total, g.threads))), m[k]);
        carry.at[k] = shuffle(m[k].at[V - 1], 31);
        if (kAdds) m[k] = m[k] + (down = later(pools_other ? down : lowest<A, V>(), numbers(more[k])));
      }
#pragma unroll
      for (int k = 0; k < kRows; ++k) {
        if (part.there && row + k < part.rows && place == near)
          store(y + (row + k) * ys.w + offset_in_row<V>(place, ys.step, reverse), m[k], reverse);
      }
    }
  }
}

// y = the maxima of x along its rows plus those of `other` along its height, in channels_last.
template <typename T, int V>
__global__ void __launch_bounds__(kSumThreads)
    sum_channels(const T* __restrict__ x, const T* __restrict__ other, T* __restrict__ y, const Strides xs,
                 const Strides os, const Strides ys, const Four size) {
  using A = Number<T>;
  using Values = Pack<A, V>;
  constexpr int K = kColumns<T>, kWarps = kSumThreads / 32;
  FASTNETS_SHARED(Values, totals, 2 * kWarps * kPacks);  // of each warp, in this row and the one before
  const int groups = static_cast<int>((size.c + kPacks * V - 1) / (kPacks * V)), width = static_cast<int>(size.w);
  const int pack = threadIdx.x % kPacks, first = threadIdx.x / kPacks * K, warp = threadIdx.x / 32;
  const int64_t n = blockIdx.x / groups, channel = (blockIdx.x % groups * int64_t{kPacks} + pack) * V;
  const int64_t c = min(channel, size.c - V);
  const int columns = c == channel ? width - first : 0;
  x += xs.origin + n * xs.n + c * xs.c;
  other += os.origin + n * os.n + c * os.c;
  y += ys.origin + n * ys.n + c * ys.c + first * ys.step;
  Pack<T, V> in[K], more[K];
  Values down[K], m[K];
#pragma unroll
  for (Values& d : down) d = lowest<A, V>();
  const auto read = [&](int64_t row) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int column = min(first + k, width - 1);
      in[k] = load<V>(x + row * xs.w + column * xs.step);
      more[k] = load<V>(other + row * os.w + column * os.step);
    }
  };
  read(0);
  for (int64_t row = 0; row < size.h; ++row, y += ys.w) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      down[k] = later(down[k], numbers(more[k]));
      m[k] = later(k > 0 ? m[k - 1] : lowest<A, V>(), numbers(in[k]));
    }
    read(min(row + 1, size.h - 1));  // while this row is worked on
    Values total = m[K - 1], before = lowest<A, V>(), left;
#pragma unroll
    for (int v = 0; v < V; ++v) left.at[v] = maximum_before(total.at[v], 32, kPacks);
    Values* const of_row = totals + row % 2 * (kWarps * kPacks) + pack;
    if (threadIdx.x % 32 >= 32 - kPacks) of_row[warp * kPacks] = total;
    barrier();
    for (int w = 0; w < warp; ++w) before = later(before, of_row[w * kPacks]);
    before = later(before, left);
#pragma unroll
    for (int k = 0; k < K; ++k)
      if (k < columns) store(y + k * ys.step, later(before, m[k]) + down[k]);
  }
}

}  // namespace fastnets
