// Strip pooling where the channels of x lie apart: a tile is of one channel.
//
// Work. A team of 1 to 32 neighbouring threads takes every `teams`th row of the tile, 16 bytes to a thread. Rows may
// begin anywhere: packs are counted from the last multiple of 16 bytes before a row, and what is not of the row is left
// out. As the number of teams is a multiple of V, all rows of a team lie alike, and a thread keeps its columns: it adds
// them up in registers, and the team its rows by shuffles. At the end the teams' columns are added up in shared memory.
#pragma once

#include "strip_pool.cuh"

namespace fastnets {
namespace strips {

constexpr int kPlaneThreads = 256, kPlaneRows = 512;  // of which a thread adds up at most 64

// What a thread has of a tile: rows from `row` on, every `teams`th, and of each a pack.
template <int V>
struct Place {
  int row, teams, lane;
  int column;      // at which the pack begins: below 0 where that is before the row
  int begin, end;  // of the pack, what is of the row
};

// Where a tile begins in x or dx.
__device__ inline int64_t corner_of(const Tiles& g, const Tile& tile) {
  return tile.n * g.x.n + tile.c * g.x.c + tile.h * g.x.h + tile.w * g.x.w;
}

// How far a place in x is from the last multiple of V numbers.
template <int V>
__device__ int skew(int64_t place) {
  return static_cast<int>(place & (V - 1));
}

template <int V>
__device__ Place<V> place_of_thread(const Tiles& g, const Tile& tile, int64_t corner) {
  const int thread = static_cast<int>(threadIdx.x), row = thread / g.lanes, lane = thread % g.lanes;
  const int column = lane * V - skew<V>(corner + (row < tile.rows ? row : 0) * g.x.h);
  return {row, g.threads / g.lanes, lane, column, max(-column, 0), max(min(tile.columns - column, V), 0)};
}

// The memory of x begins and ends with a multiple of 16 bytes, or V is 1: a pack may reach out of a row, not of x.
template <typename T, int V>
__global__ void __launch_bounds__(kPlaneThreads, 3)
    pool_planes(const T* __restrict__ x, const Means<T> rows, const Means<T> columns, const Tiles g) {
  using A = Sum<T>;
  constexpr int U = 4, kPitch = kPlaneThreads + 32 / V;  // rows at once; a pitch that spreads V numbers over the banks
  FASTNETS_SHARED(A, column_sums, V * kPitch);
  FASTNETS_SHARED(A, row_sums, kPlaneRows);
  const Tile tile = tile_of_block(g);
  const int64_t corner = corner_of(g, tile);
  const Place<V> at = place_of_thread<V>(g, tile, corner);
  const unsigned mine = (1u << at.end) - (1u << min(at.begin, at.end));  // a bit for each number of the pack
  // Where a thread has nothing it loads what another has, and drops it: loads that hang on no branch go out together.
  const T* const first =
      x + corner + (at.row < tile.rows ? at.row : 0) * g.x.h + (at.column - (mine ? 0 : at.lane * V)) * g.x.w;
  const int64_t step = at.teams * g.x.h;
  A column[V] = {};
  const T* from = first;
  for (int row = at.row; row - at.row < tile.rows; row += U * at.teams, from += U * step) {
    Pack<T, V> pack[U];
    A sum[U] = {};
#pragma unroll
    for (int u = 0; u < U; ++u) pack[u] = load_pack<V>(row + u * at.teams < tile.rows ? from + u * step : first);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      const unsigned kept = row + u * at.teams < tile.rows ? mine : 0;
#pragma unroll
      for (int v = 0; v < V; ++v) {
        const A value = kept >> v & 1 ? static_cast<A>(pack[u].at[v]) : A(0);
        column[v] += value;
        sum[u] += value;
      }
    }
    for (int distance = g.lanes / 2; distance >= 1; distance /= 2)
#pragma unroll
      for (int u = 0; u < U; ++u) sum[u] += shuffle_xor(sum[u], distance);
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (at.lane == 0 && row + u * at.teams < tile.rows) row_sums[row + u * at.teams] = sum[u];
  }
#pragma unroll
  for (int v = 0; v < V; ++v) column_sums[v * kPitch + threadIdx.x] = column[v];
  barrier();
  const int64_t plane = tile.n * g.size.c + tile.c;
  for (int w = static_cast<int>(threadIdx.x); w < tile.columns; w += g.threads) {
    A sum = 0;
    for (int team = 0; team < at.teams; ++team) {
      const int i = w + skew<V>(corner + team * g.x.h);
      sum += column_sums[i % V * kPitch + team * g.lanes + i / V];
    }
    columns.write(plane * g.size.w + tile.w + w, tile.band, Pack<A, 1>{sum});
  }
  for (int h = static_cast<int>(threadIdx.x); h < tile.rows; h += g.threads)
    rows.write(plane * g.size.h + tile.h + h, tile.chunk, Pack<A, 1>{row_sums[h]});
}

// dx = drows / width + dcolumns / height; the strides of the gradients are any, those of dx dense. A pack with the end
// of one row and the beginning of the next is written whole, with the latter; a row has V numbers or more.
template <typename T, int V>
__global__ void __launch_bounds__(kPlaneThreads, 4)
    spread_planes(const T* __restrict__ drows, const T* __restrict__ dcolumns, T* __restrict__ dx, const Tiles g,
                  const Four rows, const Four columns) {
  using A = Sum<T>;
  const Tile tile = tile_of_block(g);
  const int64_t corner = corner_of(g, tile);
  const Place<V> at = place_of_thread<V>(g, tile, corner);
  const A height = static_cast<A>(g.size.h), width = static_cast<A>(g.size.w);
  drows += tile.n * rows.n + tile.c * rows.c + tile.h * rows.h;
  dcolumns += tile.n * columns.n + tile.c * columns.c;
  A column[V];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    const int64_t w = tile.w + at.column + v, around = w < 0 ? w + g.size.w : w;
    column[v] = around < g.size.w ? static_cast<A>(dcolumns[around * columns.w]) / height : A(0);
  }
  const bool joins = at.begin > 0 && tile.w == 0, leaves = at.end < V && tile.w + tile.columns == g.size.w;
  // Counted in packs: a compiler that takes the skew off a place sees no multiple of V, and breaks up the stores.
  T* to = dx + ((corner + at.row * g.x.h) / V + at.lane) * V;
  for (int h = at.row; h < tile.rows; h += at.teams, to += at.teams * g.x.h) {
    const bool joined = joins && h > 0, left = leaves && h + 1 < tile.rows;
    const A row = static_cast<A>(drows[h * rows.h]) / width;
    A value[V];
#pragma unroll
    for (int v = 0; v < V; ++v) value[v] = row + column[v];
    if (joined) {
      const A above = static_cast<A>(drows[(h - 1) * rows.h]) / width;
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (v < at.begin) value[v] = above + column[v];
    }
    const int begin = joined ? 0 : at.begin, end = left ? 0 : at.end;
    if (end - begin == V) {
      Pack<T, V> pack;
#pragma unroll
      for (int v = 0; v < V; ++v) pack.at[v] = static_cast<T>(value[v]);
      store_pack(to, pack);
    } else {
#pragma unroll
      for (int v = 0; v < V; ++v)
        if (v >= begin && v < end) to[v] = static_cast<T>(value[v]);
    }
  }
}

// Tiles for packs of `width` numbers; aligned: every row begins with one.
inline Tiles tiles_of_planes(const Four& size, const Four& x, int width, bool aligned) {
  const Cut chunks = cut(size.w, aligned ? 32 * width : 31 * width, width);
  // Two blocks or more for each of 132 multiprocessors, as far as that leaves 128 rows to a block.
  const int64_t shared = size.h * size.n * size.c * chunks.pieces / 264;
  const Cut bands = cut(size.h, shared < 128 ? 128 : shared > kPlaneRows ? kPlaneRows : shared, 1);
  int lanes = 1;
  while (lanes * width < chunks.size + (aligned ? 0 : width - 1)) lanes *= 2;
  int teams = 32 / lanes > width ? 32 / lanes : width;
  while (lanes * teams < kPlaneThreads && teams * 16 < bands.size) teams *= 2;
  return {size, x, size.c, chunks.pieces, bands.pieces, 1, chunks.size, bands.size, lanes, lanes * teams};
}

}  // namespace strips
}  // namespace fastnets
