// Strip pooling where channels lie side by side: a tile is of 8 threads' channels, 128 bytes; of 32 threads' where each
// has but one channel.
//
// Work. A thread has V channels of two columns of the tile. It goes down the rows, and has its columns' sums in
// registers. What it has of each row is added up over the warp by shuffles, and over the block in shared memory.
#pragma once

#include "strip_pool.cuh"

namespace fastnets {
namespace strips {

constexpr int kChannelThreads = 512, kAcross = 2, kDown = 4;  // columns and rows that a thread loads at once
constexpr int kChannelRows = 64 * kDown;                      // a longer sum would lose digits
constexpr int kSpreadRows = 16;

template <int V>
constexpr int kLanes = V == 1 ? 32 : 8;

// A thread's channels and columns of a tile.
template <int V>
struct Share {
  int lane, slot, slots;
  int64_t channel;
  bool there[kAcross];

  __device__ int column(int k) const { return slot + k * slots; }
};

template <int V>
__device__ Share<V> share_of_thread(const Tiles& g, const Tile& tile) {
  const int thread = static_cast<int>(threadIdx.x);
  Share<V> share{thread % kLanes<V>, thread / kLanes<V>, g.threads / kLanes<V>, tile.c + thread % kLanes<V> * V, {}};
#pragma unroll
  for (int k = 0; k < kAcross; ++k) share.there[k] = share.channel < g.size.c && share.column(k) < tile.columns;
  return share;
}

// Adds up what the warps have of `count` rows, sums [row][warp][channel]; the first mean of these goes to place `at`.
template <typename T, int V>
__device__ void write_rows(const Sum<T>* sums, int count, int channels, const Means<T>& means, int64_t at,
                           unsigned chunk, const Tiles& g) {
  constexpr int kChannels = kLanes<V> * V;
  const int warps = g.threads / 32;
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < count * kChannels; i += g.threads) {
    const int row = i / kChannels, c = i % kChannels;
    if (c >= channels) continue;
    Sum<T> total = 0;
    for (int warp = 0; warp < warps; ++warp) total += sums[(row * warps + warp) * kChannels + c];
    means.write(at + row * g.size.c + c, chunk, Pack<Sum<T>, 1>{total});
  }
}

template <typename T, int V>
__global__ void __launch_bounds__(kChannelThreads, sizeof(T) == 4 ? 2 : 1)
    pool_channels(const T* __restrict__ x, const Means<T> rows, const Means<T> columns, const Tiles g) {
  using A = Sum<T>;
  constexpr int kChannels = kLanes<V> * V, kSums = kDown * (kChannelThreads / 32) * kChannels;
  FASTNETS_SHARED(A, shared, 2 * kSums);  // while some threads read sums, others write those of the next rows
  const Tile tile = tile_of_block(g);
  const Share<V> mine = share_of_thread<V>(g, tile);
  const int warp = static_cast<int>(threadIdx.x) / 32, warps = g.threads / 32;
  const int channels = static_cast<int>(min(g.size.c - tile.c, int64_t{kChannels}));
  const int64_t row_at = (tile.n * g.size.h + tile.h) * g.size.c + tile.c;
  const int64_t column_at = (tile.n * g.size.w + tile.w) * g.size.c + mine.channel;
  // Where a thread has nothing it loads what another has, and drops it: loads that hang on no branch go out together.
  const T* from[kAcross];
#pragma unroll
  for (int k = 0; k < kAcross; ++k) {
    const int64_t c = tile.c + (mine.there[k] ? mine.lane * V : 0), w = tile.w + (mine.there[k] ? mine.column(k) : 0);
    from[k] = x + tile.n * g.x.n + c * g.x.c + tile.h * g.x.h + w * g.x.w;
  }
  Pack<A, V> column[kAcross] = {};
  for (int first = 0; first < tile.rows; first += kDown) {
    A* const sums = shared + first / kDown % 2 * kSums;
    Pack<T, V> pack[kDown][kAcross];
#pragma unroll
    for (int k = 0; k < kAcross; ++k) {
#pragma unroll
      for (int u = 0; u < kDown; ++u) pack[u][k] = load_pack<V>(from[k] + (first + u < tile.rows ? u : 0) * g.x.h);
      from[k] += kDown * g.x.h;
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      A row[kDown] = {};
#pragma unroll
      for (int k = 0; k < kAcross; ++k) {
        A down = 0;
#pragma unroll
        for (int u = 0; u < kDown; ++u) {
          const bool there = mine.there[k] && first + u < tile.rows;
          const A value = there ? static_cast<A>(pack[u][k].at[v]) : A(0);
          row[u] += value;
          down += value;
        }
        column[k].at[v] += down;
      }
#pragma unroll
      for (int u = 0; u < kDown; ++u) {
#pragma unroll
        for (int distance = 16; distance >= kLanes<V>; distance /= 2) row[u] += shuffle_xor(row[u], distance);
        if (threadIdx.x % 32 < kLanes<V>) sums[(u * warps + warp) * kChannels + mine.lane * V + v] = row[u];
      }
    }
    barrier();
    const int count = min(tile.rows - first, kDown);
    write_rows<T, V>(sums, count, channels, rows, row_at + first * g.size.c, tile.chunk, g);
  }
#pragma unroll
  for (int k = 0; k < kAcross; ++k)
    if (mine.there[k]) columns.write(column_at + mine.column(k) * g.size.c, tile.band, column[k]);
}

// dx = drows / width + dcolumns / height; the strides of the gradients are any, those of dx dense.
template <typename T, int V>
__global__ void __launch_bounds__(kChannelThreads, 2)
    spread_channels(const T* __restrict__ drows, const T* __restrict__ dcolumns, T* __restrict__ dx, const Tiles g,
                    const Four rows, const Four columns) {
  using A = Sum<T>;
  using Sums = Pack<A, V>;
  constexpr int kChannels = kLanes<V> * V;
  FASTNETS_SHARED(Sums, row, kSpreadRows * kLanes<V>);
  const Tile tile = tile_of_block(g);
  const Share<V> mine = share_of_thread<V>(g, tile);
  const A height = static_cast<A>(g.size.h), width = static_cast<A>(g.size.w);
  drows += tile.n * rows.n + tile.h * rows.h;
  for (int i = static_cast<int>(threadIdx.x); i < tile.rows * kChannels; i += g.threads) {
    const int64_t c = tile.c + i % kChannels;
    const A d = c < g.size.c ? static_cast<A>(drows[c * rows.c + i / kChannels * rows.h]) : A(0);
    row[i / V].at[i % V] = d / width;
  }
  dcolumns += tile.n * columns.n + mine.channel * columns.c + tile.w * columns.w;
  A column[kAcross][V] = {};
#pragma unroll
  for (int k = 0; k < kAcross; ++k)
#pragma unroll
    for (int v = 0; v < V; ++v)
      if (mine.there[k]) column[k][v] = static_cast<A>(dcolumns[v * columns.c + mine.column(k) * columns.w]) / height;
  barrier();
  dx += tile.n * g.x.n + mine.channel + tile.h * g.x.h + (tile.w + mine.slot) * g.x.w;
  for (int h = 0; h < tile.rows; ++h, dx += g.x.h) {
    const Sums here = row[h * kLanes<V> + mine.lane];
#pragma unroll
    for (int k = 0; k < kAcross; ++k) {
      Pack<T, V> pack;
#pragma unroll
      for (int v = 0; v < V; ++v) pack.at[v] = static_cast<T>(here.at[v] + column[k][v]);
      if (mine.there[k]) store_pack(dx + k * mine.slots * g.x.w, pack);
    }
  }
}

// Tiles of `most` rows, or fewer where that gives less than 512 threads to each of 128 multiprocessors.
template <int V>
Tiles tiles_of_channels(const Four& size, const Four& x, int64_t most) {
  constexpr int kChannels = kLanes<V> * V, kSlots = 32 / kLanes<V>;  // slots of a warp
  const int64_t groups = ceil_div(size.c, kChannels);
  const Cut chunks = cut(size.w, kAcross * kChannelThreads / kLanes<V>, 1);
  const int threads = static_cast<int>(ceil_div(chunks.size, kAcross * kSlots)) * 32;
  const int64_t shared = size.h * size.n * groups * chunks.pieces * threads / (128 * 512);
  const Cut bands = cut(size.h, shared < 8 ? 8 : shared > most ? most : shared, kDown);
  return {size, x, groups, chunks.pieces, bands.pieces, kChannels, chunks.size, bands.size, kLanes<V>, threads};
}

}  // namespace strips
}  // namespace fastnets
