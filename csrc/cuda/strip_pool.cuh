// What the kernels of strip pooling share: tiles of x, and means that tiles have parts of. The kernels for channels
// that lie apart are in strip_pool_planes.cuh, those for channels side by side in strip_pool_channels.cuh.
//
// Work. A block takes a tile: rows and columns of an image, and one channel or 128 bytes of channels. It writes the
// sums of the tile's rows and columns. Where a tile has an image's whole rows or columns, these are the means; else
// they go to a scratch tensor, and `finish` adds them up.
//
// Bytes. x is read once, or dx written once; the scratch is written and read, 4 bytes for each row or column of a tile.
// Sums are taken in an order that depends on sizes, strides and alignment alone: the same bits on every run.
#pragma once

#include "../tensor.h"
#include "launch.h"
#include "pack.cuh"

namespace fastnets {
namespace strips {

// How x or dx is cut into tiles.
struct Tiles {
  Four size, x;                     // sizes and strides of x or dx
  int64_t groups, chunks, bands;    // tiles side by side in channels, columns and rows
  int64_t channels, columns, rows;  // of a tile, at most
  int lanes, threads;               // threads side by side in a row of a plane, or in channels; threads of a block
};

struct Tile {
  int64_t n, c, h, w;  // where it begins
  int columns, rows;
  unsigned chunk, band;
};

__device__ inline Tile tile_of_block(const Tiles& g) {
  unsigned rest = blockIdx.x;
  const auto take = [&](int64_t size) {  // fewer than 2^31: so many blocks are there
    const unsigned whole = rest;
    rest /= static_cast<unsigned>(size);
    return whole - rest * static_cast<unsigned>(size);
  };
  const unsigned group = take(g.groups), chunk = take(g.chunks), band = take(g.bands);
  const int64_t c = group * g.channels, h = band * g.rows, w = chunk * g.columns;
  const int columns = static_cast<int>(min(g.size.w - w, g.columns));
  return {int64_t{rest}, c, h, w, columns, static_cast<int>(min(g.size.h - h, g.rows)), chunk, band};
}

// The means of rows or of columns.
template <typename T>
struct Means {
  T* means;
  Sum<T>* sums;           // [part][count], or null: a tile has all of a sum
  int64_t count, length;  // how many there are, and of how many numbers each

  template <int V>
  __device__ void write(int64_t at, unsigned part, const Pack<Sum<T>, V>& sum) const {
    if (sums) {
      store_pack(sums + part * count + at, sum);
      return;
    }
    Pack<T, V> mean;
#pragma unroll
    for (int v = 0; v < V; ++v) mean.at[v] = static_cast<T>(sum.at[v] / static_cast<Sum<T>>(length));
    store_pack(means + at, mean);
  }
};

constexpr int kFinishThreads = 128;

template <typename T>
__global__ void __launch_bounds__(kFinishThreads) finish(const Means<T> to, const int64_t parts) {
  const int64_t i = blockIdx.x * int64_t{kFinishThreads} + threadIdx.x;
  if (i >= to.count) return;
  double total = 0;  // there may be thousands, and a long sum of floats would lose digits
#pragma unroll 4
  for (int64_t part = 0; part < parts; ++part) total += to.sums[part * to.count + i];
  to.means[i] = static_cast<T>(static_cast<Sum<T>>(total / static_cast<double>(to.length)));
}

// The number of pieces of a length and their size: a multiple, not above `most`, and as equal as that allows.
struct Cut {
  int64_t pieces, size;
};

inline Cut cut(int64_t length, int64_t most, int64_t multiple) {
  const int64_t pieces = ceil_div(length, most) > 0 ? ceil_div(length, most) : 1;
  const int64_t size = ceil_div(ceil_div(length, pieces), multiple) * multiple;
  return {size > 0 ? ceil_div(length, size) : 0, size};
}

}  // namespace strips
}  // namespace fastnets
