// How the kernels of batch_moments and sync_batch_norm deal channels and their values to threads, and add up over them.
//
// A block is 256 threads: `lanes` neighbouring channel packs times 256 / lanes items. A pack is V neighbouring values:
// of V channels at one pixel in channels_last (C = V), where 8 lanes are 128 neighbouring bytes; otherwise of one
// channel (C = 1, lanes = 1) at V pixels. A thread walks over the items of its block's chunk, at most 32, with the
// loads of several under way at once. Sums of a thread are taken in Sum<T>, those over threads and blocks in float64,
// in an order that depends on shapes and layout alone: the same bits on every run, without atomics.
#pragma once

#include "../batch_moments.h"
#include "launch.h"
#include "pack.cuh"

namespace fastnets {
namespace batch_norm {

constexpr int kThreads = 256, kWarp = 32;
constexpr int kMost = 32;      // items of a thread: their sums are taken in float
constexpr int kChannels = 64;  // of a block
constexpr int kMerged = 8;     // channels whose parts a block merges: 64 neighbouring bytes

// How channel packs and items are dealt to blocks.
struct Work {
  Map map;
  int lanes, groups;            // channel packs in a block, blocks side by side in channels
  int64_t items, chunk, parts;  // items of a channel, in a chunk, and chunks
  int64_t across, ahead;        // a thread's step: pixels within a plane, and elements of x
};

template <int C>
__device__ int64_t first_channel(const Work& w, int block) {
  return int64_t{block % w.groups} * w.lanes * C;
}

// A thread's channel (the first of its C), and its items: where the next one lies, and how many there are.
template <int V, int C>
struct Items {
  int64_t channel, at = 0, pixel = 0;
  int left = 0;

  static __device__ bool last(const Work& w) { return V > 1 ? C > 1 : w.map.last; }

  __device__ Items(const Work& w, int block) {
    const int lane = static_cast<int>(threadIdx.x) % w.lanes, row = static_cast<int>(threadIdx.x) / w.lanes;
    const int64_t begin = block / w.groups * w.chunk, first = begin + row, rows = kThreads / w.lanes;
    const int64_t end = min(begin + w.chunk, w.items);
    channel = first_channel<C>(w, block) + lane * C;
    if (channel >= w.map.c || first >= end) return;
    left = static_cast<int>((end - first - 1) / rows + 1);
    if (!last(w)) {
      const int64_t n = first * V / w.map.l;
      pixel = first * V - n * w.map.l;
      at = (n * w.map.c + channel) * w.map.l + pixel;
    } else {
      at = first * w.map.c + channel;
    }
  }

  __device__ int64_t next(const Work& w) {
    const int64_t here = at;
    at += w.ahead;
    pixel += w.across;
    if (!last(w) && pixel >= w.map.l) pixel -= w.map.l, at += (w.map.c - 1) * w.map.l;
    return here;
  }

  // Calls f with where U items lie, whose loads can be under way at once, and at the end with one at a time.
  template <int U, typename F>
  __device__ void walk(const Work& w, const F& f) {
    for (; left >= U; left -= U) {
      int64_t several[U];
#pragma unroll
      for (int u = 0; u < U; ++u) several[u] = next(w);
      f(several);
    }
    for (; left > 0; --left) {
      const int64_t one[1] = {next(w)};
      f(one);
    }
  }
};

template <typename T, int V, int U>
__device__ void load(const T* x, const int64_t (&at)[U], Pack<T, V> (&to)[U]) {
#pragma unroll
  for (int u = 0; u < U; ++u) to[u] = load_pack<V>(x + at[u]);
}

// Adds up over the threads of a lane. Thread j gets the two totals of the block's channel j.
template <int C>
__device__ void sum_rows(const double (&of)[2][C], int lanes, double (&total)[2]) {
  FASTNETS_SHARED(double, shared, kThreads / kWarp * 2 * kChannels);
  const int t = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int k = 0; k < 2 * C; ++k) {
    double sum = of[k / C][k % C];
    for (int mask = kWarp / 2; mask >= lanes; mask /= 2) sum += shuffle_xor(sum, mask);
    if (t % kWarp < lanes) shared[(t / kWarp * 2 + k / C) * kChannels + t % lanes * C + k % C] = sum;
  }
  barrier();
  total[0] = total[1] = 0;
  if (t >= lanes * C) return;
#pragma unroll
  for (int i = 0; i < kThreads / kWarp * 2; ++i) total[i % 2] += shared[i * kChannels + t];
}

// The same of all blocks: parts [part][2][c].
template <int C>
__device__ void store_part(const double (&of)[2][C], double* parts, const Work& w) {
  double total[2];
  sum_rows(of, w.lanes, total);
  const int block = static_cast<int>(blockIdx.x), t = static_cast<int>(threadIdx.x);
  const int64_t c = first_channel<C>(w, block) + t;
  if (t >= w.lanes * C || c >= w.map.c) return;
  double* const to = parts + int64_t{block / w.groups} * 2 * w.map.c + c;
  to[0] = total[0];
  to[w.map.c] = total[1];
}

// Adds up parts. Returns the channel whose totals a thread gets, or -1.
__device__ inline int64_t sum_parts(const double* parts, int64_t count, int64_t channels, double (&total)[2]) {
  const int t = static_cast<int>(threadIdx.x);
  const int64_t c = int64_t{blockIdx.x} * kMerged + t % kMerged;
  double sums[2][1] = {};
#pragma unroll 8
  for (int64_t p = t / kMerged; p < (c < channels ? count : 0); p += kThreads / kMerged)
    for (int k = 0; k < 2; ++k) sums[k][0] += parts[(2 * p + k) * channels + c];
  sum_rows(sums, kMerged, total);
  return t < kMerged && c < channels ? c : -1;
}

inline Work plan(const Map& map, int width) {
  Work w{map, 1, 0, map.count(), 1, 0, 0, 0};
  int64_t groups = map.c;
  if (map.last) {
    const int64_t packs = map.c / width;
    while (w.lanes < (width > 1 ? 8 : kWarp) && w.lanes < packs) w.lanes *= 2;
    groups = ceil_div(packs, w.lanes);
  } else {
    w.items /= width;
  }
  // About 2048 blocks, or more.
  const int64_t step = kThreads / w.lanes, rounds = ceil_div(w.items * groups, step * 2048);
  STD_TORCH_CHECK(groups < int64_t{1} << 31, "too many channels");
  w.groups = static_cast<int>(groups);
  w.chunk = step * (rounds < 1 ? 1 : rounds > kMost ? kMost : rounds);
  w.parts = ceil_div(w.items, w.chunk);
  w.ahead = step * map.c;
  if (!map.last && map.l > 0) {
    w.across = step * width % map.l;
    w.ahead = step * width / map.l * map.c * map.l + w.across;
  }
  return w;
}

inline unsigned blocks(const Work& w) { return static_cast<unsigned>(w.parts * w.groups); }

inline unsigned merging(const Map& map) { return static_cast<unsigned>(map.c / kMerged + 1); }

inline Tensor empty_parts(const Tensor& like, const Work& w) {
  return empty_strided(like, {w.parts, 2, w.map.c}, {2 * w.map.c, w.map.c, 1}, aoti_torch_dtype_float64());
}

// Whether tensors of this map can be read and written in packs of V.
template <int V, typename T, typename... Tensors>
bool can_pack(const Map& map, const Tensors&... tensors) {
  const auto aligned = [](const Tensor& t) {
    return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % (V * sizeof(T)) == 0;
  };
  return (map.last ? map.c : map.l) % V == 0 && (aligned(tensors) && ...);
}

// Calls f with the numbers of values (16 bytes of them, or one) and of channels in a pack, as constants.
template <typename T, typename F, typename... Tensors>
void with_pack(const F& f, const Map& map, const Tensors&... tensors) {
  constexpr std::integral_constant<int, 16 / sizeof(T)> several;
  constexpr std::integral_constant<int, 1> one;
  if (!can_pack<several, T>(map, tensors...)) return f(one, one);
  if (map.last) return f(several, several);
  f(several, one);
}

}  // namespace batch_norm
}  // namespace fastnets
