// Kernels of batch_moments: moments_of_parts and merge_moments.
//
// Work. A block is 256 threads: `lanes` neighbouring channel packs times 256 / lanes items. A pack is V neighbouring
// values: of V channels at one pixel in channels_last, where 8 lanes are 128 to 512 neighbouring bytes; otherwise of
// one channel (lanes = 1) at V pixels. A thread walks over the items of its block's chunk, at most 64, and sums up x -
// p and (x - p)² with its first value p as pivot; the block merges its threads' moments in shared memory: first the
// mean, then m2 = sum of m2_i + count_i (mean_i - mean)². merge_moments merges the blocks' results, one thread for each
// channel. The cut depends on shapes and layout alone: the same bits on every run, without atomics.
//
// Bytes. Reads x once, b * n * c * l, and 8 to 16 bytes for each block and channel.
#pragma once

#include "../batch_moments.h"
#include "launch.h"
#include "pack.cuh"

namespace fastnets {
namespace batch_norm {

constexpr int kThreads = 256;

// How channel packs and items are dealt to blocks.
struct Work {
  Map map;
  int lanes, groups;            // channel packs in a block, blocks side by side in channels
  int64_t items, chunk, parts;  // items of a channel, in a chunk, and chunks
  int64_t across, ahead;        // a thread's step: pixels within a plane, and elements of x
};

// A thread's channel (the first of its V), and its items: where the next one lies, and how many there are.
struct Items {
  int64_t channel, at, pixel, left;

  __device__ void next(const Work& w) {
    at += w.ahead;
    pixel += w.across;
    if (!w.map.last && pixel >= w.map.l) pixel -= w.map.l, at += (w.map.c - 1) * w.map.l;
    --left;
  }
};

template <int V>
__device__ inline Items items_of_thread(const Work& w) {
  const int lane = static_cast<int>(threadIdx.x) % w.lanes, row = static_cast<int>(threadIdx.x) / w.lanes;
  const int block = static_cast<int>(blockIdx.x);
  const int64_t begin = block / w.groups * w.chunk, pack = int64_t{block % w.groups} * w.lanes + lane;
  const int64_t channel = w.map.last ? pack * V : pack, first = begin + row, rows = kThreads / w.lanes;
  const int64_t end = min(begin + w.chunk, w.items);
  // A lane beyond the last channel has no items.
  const int64_t left = channel < w.map.c && first < end ? (end - first - 1) / rows + 1 : 0;
  if (w.map.last || left == 0) return {channel, first * w.map.c + channel, 0, left};
  const int64_t n = first * V / w.map.l, pixel = first * V - n * w.map.l;
  return {channel, (n * w.map.c + channel) * w.map.l + pixel, pixel, left};
}

// The sum over the threads that share a lane, for all of them. A call would spill what the caller has in registers.
template <typename A>
__device__ __attribute__((always_inline)) inline A sum_rows(A value, int lanes) {
  FASTNETS_SHARED(A, shared, kThreads);
  const int t = static_cast<int>(threadIdx.x);
  shared[t] = value;
  for (int half = kThreads / 2; half >= lanes; half /= 2) {
    barrier();
    if (t < half) shared[t] += shared[t + half];
  }
  barrier();
  value = shared[t % lanes];
  barrier();  // the memory is used again
  return value;
}

// A channel's first value. What parts tell each other of their means is how far they are from it: where a mean is
// large, it is rounded to more than parts differ by.
template <typename T>
__device__ Sum<T> origin_of(const T* x, const Map& m, int64_t c) {
  return static_cast<Sum<T>>(x[m.last ? c : c * m.l]);
}

// parts [part][2][c]: mean, less the channel's first value, and m2.
template <typename T, int V>
__global__ void __launch_bounds__(kThreads)
    moments_of_parts(const T* __restrict__ x, Sum<T>* __restrict__ parts, const Work w) {
  using A = Sum<T>;
  Items items = items_of_thread<V>(w);
  A pivot[V] = {}, s[V] = {}, q[V] = {};
  // Divisions come before the loop, where few registers are in use.
  const int part = static_cast<int>(blockIdx.x) / w.groups, values = w.map.last ? 1 : V;  // of a channel in a pack
  const A whole = A(1) / static_cast<A>(min(w.chunk, w.items - part * w.chunk) * values);
  const A share = A(1) / static_cast<A>(items.left > 0 ? items.left : 1);
  A count = 0;
  for (; items.left > 0; items.next(w)) {
    const auto pack = *reinterpret_cast<const Pack<T, V>*>(x + items.at);
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const A value = static_cast<A>(pack.at[v]);
      if (count == A(0)) pivot[v] = value;
      const A d = value - pivot[v];
      s[v] += d;
      q[v] += d * d;
    }
    count += A(1);
  }
  const bool stores = static_cast<int>(threadIdx.x) < w.lanes && items.channel < w.map.c;
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (v > 0 && !w.map.last) break;
    const A origin = items.channel < w.map.c ? origin_of(x, w.map, items.channel + v) : A(0);
    A shift = 0, squares = 0;
#pragma unroll
    for (int u = 0; u < V; ++u)
      if (u == v || !w.map.last) shift += s[u] + count * (pivot[u] - origin);
    shift = sum_rows(shift, w.lanes) * whole;
#pragma unroll
    for (int u = 0; u < V; ++u) {
      if (u != v && w.map.last) continue;
      const A off = s[u] * share, d = (pivot[u] - origin) + off - shift;
      squares += q[u] - s[u] * off + count * d * d;
    }
    squares = sum_rows(squares, w.lanes);
    if (stores) {
      A* const to = parts + 2 * int64_t{part} * w.map.c + items.channel + v;
      to[0] = shift;
      to[w.map.c] = squares < A(0) ? A(0) : squares;
    }
  }
}

// Writes mean, and m2 or (variance) m2 / count; and the count where it is asked for.
template <typename T>
__global__ void __launch_bounds__(kThreads)
    merge_moments(const T* __restrict__ x, const Sum<T>* __restrict__ parts, Sum<T>* __restrict__ mean,
                  Sum<T>* __restrict__ m2, int64_t* __restrict__ count, const Work w, const int width,
                  const bool variance) {
  using A = Sum<T>;
  const int64_t c = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (c == 0 && count) *count = w.map.n * w.map.l;
  if (c >= w.map.c) return;
  double count_so_far = 0, mean_so_far = 0, m2_so_far = 0;  // each merge rounds, and there may be thousands
  for (int64_t p = 0; p < w.parts; ++p) {
    const double more = static_cast<double>(min(w.chunk, w.items - p * w.chunk) * (w.map.last ? 1 : width));
    const double share = more / (count_so_far + more), delta = parts[2 * p * w.map.c + c] - mean_so_far;
    mean_so_far += delta * share;
    m2_so_far += parts[(2 * p + 1) * w.map.c + c] + delta * delta * (count_so_far * share);
    count_so_far += more;
  }
  mean[c] = w.parts > 0 ? static_cast<A>(mean_so_far + origin_of(x, w.map, c)) : A(0);
  m2[c] = static_cast<A>(variance && w.parts > 0 ? m2_so_far / count_so_far : m2_so_far);
}

inline Work plan(const Map& map, int width, int64_t most) {
  Work w{map, 1, 0, map.count(), 1, 0, 0, 0};
  int64_t groups = map.c;
  if (map.last) {
    const int64_t packs = map.c / width;
    while (w.lanes < 32 / (width > 1 ? 4 : 1) && w.lanes < packs) w.lanes *= 2;
    groups = ceil_div(packs, w.lanes);
  } else {
    w.items /= width;
  }
  // About 1024 blocks, of at most `most` items to a thread.
  const int64_t step = kThreads / w.lanes, rounds = ceil_div(w.items * groups, step * 1024);
  STD_TORCH_CHECK(groups < int64_t{1} << 31, "too many channels");
  w.groups = static_cast<int>(groups);
  w.chunk = step * (rounds < 1 ? 1 : rounds > most ? most : rounds);
  w.parts = ceil_div(w.items, w.chunk);
  w.ahead = step * map.c;
  if (!map.last && map.l > 0) {
    w.across = step * width % map.l;
    w.ahead = step * width / map.l * map.c * map.l + w.across;
  }
  return w;
}

inline unsigned blocks(const Work& w) { return static_cast<unsigned>(w.parts * w.groups); }

// Whether tensors of this map can be read and written in packs of V.
template <int V, typename T, typename... Tensors>
bool can_pack(const Map& map, const Tensors&... tensors) {
  const auto aligned = [](const Tensor& t) {
    return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % (V * sizeof(T)) == 0;
  };
  return (map.last ? map.c : map.l) % V == 0 && (aligned(tensors) && ...);
}

// Calls f with the number of values in a pack, 16 bytes of them or one, as a constant.
template <typename T, typename F, typename... Tensors>
void with_pack(const F& f, const Map& map, const Tensors&... tensors) {
  constexpr int V = 16 / sizeof(T);
  if (can_pack<V, T>(map, tensors...)) return f(std::integral_constant<int, V>());
  f(std::integral_constant<int, 1>());
}

// Writes mean and m2 (or the variance) of x; count may be null.
template <typename T>
void run_moments(const Stream& stream, const Tensor& x, const Tensor& mean, const Tensor& m2, int64_t* count,
                 bool variance) {
  const Map map = map_of(x);
  with_pack<T>(
      [&](auto pack) {
        using A = Sum<T>;
        constexpr int V = pack;
        const Work w = plan(map, V, 64);
        const Tensor parts = empty_strided(mean, {w.parts, 2, map.c}, {2 * map.c, map.c, 1}, dtype_of(mean));
        if (blocks(w) > 0)
          launch(stream, {blocks(w), kThreads}, moments_of_parts<T, V>, data<T>(x), mutable_data<A>(parts), w);
        const unsigned merging = static_cast<unsigned>(map.c / kThreads + 1);
        launch(stream, {merging, kThreads}, merge_moments<T>, data<T>(x), data<A>(parts), mutable_data<A>(mean),
               mutable_data<A>(m2), count, w, V, variance);
      },
      map, x);
}

}  // namespace batch_norm
}  // namespace fastnets
