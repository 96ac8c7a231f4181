// The inverted residual of MobileNetV2 in one kernel: pointwise, depthwise, pointwise convolution, in 16 bits.
//
// Work. A block of 8 warps takes a tile of pixels of the result of one image, and all of its channels (up to 256). What
// of x the tile needs lies in shared memory. The hidden channels go by in panels of 32: tensor cores expand the pixels
// inside the image (outside, the hidden tensor is zero, whatever bias and activation say), threads convolve two
// channels of 7 neighbouring pixels each, and tensor cores add the panel's share to the results, whose sums stay in
// registers. The weights of the next panel come while this one is computed: each kind has a phase in which nobody reads
// it. Both products have pixels as rows: some warps side by side on 32 pixels each, the others on other results.
//
// Bytes. Memory sees x read once, its halo again from the second-level cache, the residual, and y written once. The
// weights come from that cache, once for each block. A hidden number is written to and read from shared memory twice.
//
// Rounding. Sums are in float32; hidden numbers are rounded after each activation, as if they went through memory.
#pragma once

#include "../inverted_residual.h"
#include "activate.cuh"
#include "divisor.cuh"
#include "mma.cuh"
#include "pack.cuh"

namespace fastnets::inverted {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kPanel = packed::kPanel;
constexpr int kRow = 40;   // numbers from one row of a panel to the next: 80 bytes, so that 8 rows share no bank
constexpr int kRun = 7;    // neighbouring pixels of a thread; the maps of a 224 x 224 image are multiples of it
constexpr int kPairs = 4;  // of 8 results each, at most, that a warp sums up
constexpr int kStage = 16 * kPairs;  // results of a warp
constexpr int kStageRow = kStage + 8;

template <typename T>
struct Operands {
  const T *x, *expand, *expand_bias, *depthwise, *project, *project_bias, *residual;
  T* y;
  int y_pixel;                // channels of the images that y is part of
  bool x_vectors, y_vectors;  // whether 8 channels lie at a multiple of 16 bytes, in x; in y and the residual
  Activation expand_activation, activation, project_activation;
};

struct Sizes {
  int h, w, oh, ow, top, left;  // the last two: padding
  int c, hidden, out;
};

// How an image is cut, and where things lie in shared memory, in bytes.
struct Plan {
  int tile_h, tile_w;               // pixels of a block's result
  Divisor tiles_h, tiles_w, share;  // of an image, and of its channels
  Divisor column, runs;             // tile_w, and pieces of kRun in it
  int results, pairs;               // of a block; of a warp, 16 results each
  int warps_m;                      // binary logarithm
  int x_row;                        // numbers from pixel to pixel of x's tile
  int hidden_row;                   // pixels of a row of the hidden tile
  int tile, stage, x, hidden, deep, expand, project, taps, bias, spots, bytes;
};

// A pixel of x that a block needs: where it lies in the image, and in the hidden tile.
struct Spot {
  int source, place;
};

// A block's pixels, in coordinates of the result and of x. It lies in shared memory: registers are few.
struct Tile {
  int image, rows, columns, first_row, first_column, first_result;
  int top, left, height, width;  // what is inside the image of what is needed
  int place;                     // of its first pixel in the hidden tile

  __device__ int pixels() const { return height * width; }
};

__device__ inline Tile tile_of(const Sizes& g, const Plan& p, int kernel, int stride) {
  Tile t;
  uint32_t block = blockIdx.x;
  t.first_result = static_cast<int>(p.share.take(block)) * p.results;
  t.first_column = static_cast<int>(p.tiles_w.take(block)) * p.tile_w;
  t.first_row = static_cast<int>(p.tiles_h.take(block)) * p.tile_h;
  t.image = static_cast<int>(block);
  t.rows = min(p.tile_h, g.oh - t.first_row), t.columns = min(p.tile_w, g.ow - t.first_column);
  const int above = t.first_row * stride - g.top, before = t.first_column * stride - g.left;
  t.top = max(above, 0), t.left = max(before, 0);
  t.height = max(0, min(above + (t.rows - 1) * stride + kernel, g.h) - t.top);
  t.width = max(0, min(before + (t.columns - 1) * stride + kernel, g.w) - t.left);
  t.place = (t.top - above) * p.hidden_row + t.left - before;
  return t;
}

// A warp's part of the second product: 32 pixels from `first` on, `pairs` times 16 results of the block's.
struct Share {
  int first, column, pairs;

  __device__ Share(const Sizes& g, const Plan& p, const Tile& tile) {
    const int warp = threadIdx.x / 32, all = (min(p.results, g.out - tile.first_result) + 15) / 16;
    const int before = (warp >> p.warps_m) * p.pairs;
    first = (warp & ((1 << p.warps_m) - 1)) * 32, column = before * 16;
    pairs = first < tile.rows * p.tile_w ? max(0, min(p.pairs, all - before)) : 0;
  }
};

// What lies in shared memory.
template <typename T>
struct Shared {
  T *x, *hidden, *deep, *expand, *project, *taps, *bias;
  Tile* tile;
  Spot* spots;
  float* stage;  // in the place of all others but the tile

  __device__ Shared(unsigned char* memory, const Plan& p) {
    const auto at = [&](int offset) { return reinterpret_cast<T*>(memory + offset); };
    x = at(p.x), hidden = at(p.hidden), deep = at(p.deep), expand = at(p.expand), project = at(p.project);
    taps = at(p.taps), bias = at(p.bias), tile = reinterpret_cast<Tile*>(memory + p.tile);
    spots = reinterpret_cast<Spot*>(memory + p.spots), stage = reinterpret_cast<float*>(memory + p.stage);
  }
};

template <typename T>
__device__ void load_pair(float (&to)[2], const T* from) {
  widen_pair<T>(to, *reinterpret_cast<const unsigned*>(from));
}

// As activate() within some units of float32, which 16 bits do not show, and in few instructions: a division by the
// book is a call. The clamps let NaN pass.
template <Activation kF>
__device__ float apply(float z) {
  const auto relu6 = [](float v) { return minimum(maximum(v, 0.0f), 6.0f); };
  if constexpr (kF == Activation::kRelu) return maximum(z, 0.0f);
  if constexpr (kF == Activation::kRelu6) return relu6(z);
  if constexpr (kF == Activation::kSilu) return quotient(z, 1.0f + std::exp(-z));
  if constexpr (kF == Activation::kHardswish) return z * relu6(z + 3.0f) * (1.0f / 6.0f);
  if constexpr (kF == Activation::kSigmoid) return quotient(1.0f, 1.0f + std::exp(-z));
  return activate(z, kF);
}

// ---- copies to shared memory -----------------------------------------------------------------

// Eight numbers, of which those from `count` on are zeros.
template <typename T>
__device__ void fetch_eight(T* to, const T* from, int count, bool vectors) {
  if (vectors) return copy_async(to, from, count > 0);
  for (int i = 0; i < 8; ++i) to[i] = i < count ? from[i] : static_cast<T>(0.0f);
}

// The hidden tile is cleared once: what is outside the image stays zero.
template <typename T>
__device__ void prepare(const Shared<T>& s, const Sizes& g, const Plan& p, const Tile& tile) {
#pragma unroll 1
  for (int i = threadIdx.x; i < (p.deep - p.hidden) / 16; i += kThreads)
    reinterpret_cast<Pack<float, 4>*>(s.hidden)[i] = {};
#pragma unroll 1
  for (int i = threadIdx.x; i < tile.pixels(); i += kThreads) {
    const int row = i / tile.width, column = i % tile.width;
    s.spots[i] = {(tile.top + row) * g.w + tile.left + column, tile.place + row * p.hidden_row + column};
  }
}

// x's tile, its channels filled up with zeros to a multiple of 16.
template <typename T>
__device__ void fetch_x(const Operands<T>& t, const Shared<T>& s, const Sizes& g, const Plan& p, const Tile& tile) {
  const T* const image = t.x + static_cast<int64_t>(tile.image) * g.h * g.w * g.c;
  const int eights = p.x_row / 8 - 1;
#pragma unroll 1
  for (int i = threadIdx.x; i < tile.pixels() * eights; i += kThreads) {
    const int pixel = i / eights, c = i % eights * 8;
    const T* const from = image + static_cast<int64_t>(s.spots[pixel].source) * g.c + (c < g.c ? c : 0);
    fetch_eight(s.x + pixel * p.x_row + c, from, g.c - c, t.x_vectors);
  }
}

// A panel of x in the place of expanded channels.
template <typename T>
__device__ void fetch_hidden(const Operands<T>& t, const Shared<T>& s, const Sizes& g, const Tile& tile, int panel) {
  const T* const image = t.x + static_cast<int64_t>(tile.image) * g.h * g.w * g.c + panel * kPanel;
  const int eights = min(kPanel, g.hidden - panel * kPanel) / 8;
#pragma unroll 1
  for (int i = threadIdx.x; i < tile.pixels() * 4; i += kThreads) {
    const Spot spot = s.spots[i / 4];
    if (i % 4 < eights)
      fetch_eight(s.hidden + spot.place * kRow + i % 4 * 8, image + static_cast<int64_t>(spot.source) * g.c + i % 4 * 8,
                  8, t.x_vectors);
  }
}

// A warp fetches 32 rows of a panel of weights, those from `live` on as zeros.
template <typename T>
__device__ void fetch_rows(T* to, int to_row, const T* from, int live) {
  const int row = threadIdx.x % 32 / 4, at = threadIdx.x % 4 * 8;
#pragma unroll
  for (int i = row; i < row + 32; i += 8)
    copy_async(to + i * to_row + at, from + (i < live ? i : 0) * kPanel + at, i < live);
}

template <typename T>
__device__ void fetch_expand(const Operands<T>& t, const Shared<T>& s, const Sizes& g, int panel) {
#pragma unroll 1
  for (int c = threadIdx.x / 32 * 32; c < g.c; c += 32 * kWarps)
    fetch_rows(s.expand + c * kRow, kRow, t.expand + (static_cast<int64_t>(panel) * g.c + c) * kPanel, g.c - c);
}

// The depthwise weights and biases of a panel, and the biases before them.
template <typename T>
__device__ void fetch_taps(const Operands<T>& t, const Shared<T>& s, const Sizes& g, int taps, int panel) {
  const int channels = min(kPanel, g.hidden - panel * kPanel), count = (taps + 1) * channels / 8;
  const T* const from = t.depthwise + panel * kPanel * (taps + 1);
#pragma unroll 1
  for (int i = threadIdx.x; i < count; i += kThreads) copy_async(s.taps + i * 8, from + i * 8, true);
  const bool biased = t.expand_bias && static_cast<int>(threadIdx.x) < channels / 8;
  if (threadIdx.x < kPanel / 8)
    copy_async(s.bias + threadIdx.x * 8, biased ? t.expand_bias + panel * kPanel + threadIdx.x * 8 : from, biased);
}

template <typename T>
__device__ void fetch_project(const Operands<T>& t, const Shared<T>& s, const Sizes& g, const Plan& p, int first_result,
                              int panel) {
  const int n = threadIdx.x / 32 * 32, results = first_result + n;  // 8 warps, 256 results at most
  if (n >= p.results || results >= g.out) return;
  const int64_t row = static_cast<int64_t>(results / kPanel) * g.hidden + panel * kPanel;
  fetch_rows(s.project + n, p.results + 8, t.project + row * kPanel, g.hidden - panel * kPanel);
}

// ---- the three steps -------------------------------------------------------------------------

// Adds a product to a warp's sums: 32 rows of a from `first` on, the last of `rows` standing in for those past it, by
// 16 * `pairs` columns of b, over `depth` numbers, a multiple of 16.
template <typename T, int kColumns>
__device__ void multiply(float (&sum)[2][kColumns][4], const T* a, int a_row, int first, int rows, const T* b,
                         int b_row, int depth, int pairs) {
  const int row = threadIdx.x % 16, half = threadIdx.x % 32 / 16 * 8;  // that this lane gives load_fragments
  const T* const from[] = {a + min(first + row, rows - 1) * a_row + half,
                           a + min(first + 16 + row, rows - 1) * a_row + half};
  b += row * b_row + half;
#pragma unroll 1
  for (int k = 0; k < depth; k += 16, b += 16 * b_row) {
    unsigned left[2][4];
    load_fragments<false>(left[0], from[0] + k);
    load_fragments<false>(left[1], from[1] + k);
#pragma unroll
    for (int i = 0; i < kColumns / 2; ++i) {
      if (i >= pairs) break;
      unsigned right[4];
      load_fragments<true>(right, b + 16 * i);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        multiply_fragments<T>(sum[m][2 * i], left[m], right[0], right[1]);
        multiply_fragments<T>(sum[m][2 * i + 1], left[m], right[2], right[3]);
      }
    }
  }
}

// A panel of hidden channels of all pixels: a warp takes 32 by 32, or 16 channels where pixels are few.
template <typename T>
__device__ void expand(const Operands<T>& t, const Shared<T>& s, const Plan& p, int pixels) {
  const int halves = pixels <= 16 * kWarps, pairs = 2 >> halves;
  const int row = threadIdx.x % 32 / 4, channel = threadIdx.x % 4 * 2;
  for (int item = threadIdx.x / 32; item < (pixels + 31) / 32 << halves; item += kWarps) {
    const int first = (item >> halves) * 32, column = halves ? item % 2 * 16 : 0;
    float sum[2][4][4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float bias[2] = {};
      if (j < 2 * pairs) load_pair(bias, s.bias + column + 8 * j + channel);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i / 4][j][i % 4] = bias[i % 2];
    }
    multiply(sum, s.x, p.x_row, first, pixels, s.expand + column, kRow, p.x_row - 8, pairs);
    with_activation(t.expand_activation, [&](auto f) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int pixel = first + 8 * i + row;
        if (pixel >= pixels) break;
        T* const to = s.hidden + s.spots[pixel].place * kRow + column + channel;
#pragma unroll
        for (int j = 0; j < 4; ++j)
          if (j < 2 * pairs) {
            const float* const two = sum[i / 2][j] + i % 2 * 2;
            *reinterpret_cast<unsigned*>(to + 8 * j) =
                round_pair<T>(apply<decltype(f)::value>(two[0]), apply<decltype(f)::value>(two[1]));
          }
      }
    });
  }
}

// Two channels of kRun pixels of R rows. The last run of a row begins early enough to find its pixels in the tile, and
// leaves those of the run before alone; below, the hidden tile has a row more where their number is odd.
template <typename T, int K, int S, int R>
__device__ void depthwise_rows(const Operands<T>& t, const Shared<T>& s, const Plan& p, const Tile& tile,
                               int channels) {
  const int channel = threadIdx.x % 16 * 2;
  if (channel >= channels) return;
  const T* const taps = s.taps + channel;
  for (uint32_t item = threadIdx.x / 16; item < (tile.rows + R - 1) / R * p.runs.size; item += kThreads / 16) {
    uint32_t piece = item;
    const int start = static_cast<int>(p.runs.take(piece)) * kRun, first = max(0, min(start, p.tile_w - kRun));
    const int row = static_cast<int>(piece) * R;
    const T* from = s.hidden + (row * S * p.hidden_row + first * S) * kRow + channel;
    float sum[R][kRun][2], w[K][K][2], bias[2];
    load_pair(bias, taps + K * K * channels);
#pragma unroll
    for (int q = 0; q < kRun * R; ++q) sum[q / kRun][q % kRun][0] = bias[0], sum[q / kRun][q % kRun][1] = bias[1];
#pragma unroll
    for (int i = 0; i < (R - 1) * S + K; ++i, from += p.hidden_row * kRow) {
#pragma unroll
      for (int j = 0; j < K && i < K; ++j) load_pair(w[i][j], taps + (i * K + j) * channels);
#pragma unroll
      for (int column = 0; column < (kRun - 1) * S + K; ++column) {
        float v[2];
        load_pair(v, from + column * kRow);
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int q = 0; q < kRun; ++q) {
            const int k = i - r * S, j = column - q * S;
            if (k >= 0 && k < K && j >= 0 && j < K)
              sum[r][q][0] += w[k][j][0] * v[0], sum[r][q][1] += w[k][j][1] * v[1];
          }
      }
    }
    T* const to = s.deep + (row * p.tile_w + first) * kRow + channel;
    with_activation(t.activation, [&](auto f) {
#pragma unroll
      for (int r = 0; r < R; ++r)
#pragma unroll
        for (int q = 0; q < kRun; ++q) {
          const float* const two = sum[r][q];
          const unsigned pair = round_pair<T>(apply<decltype(f)::value>(two[0]), apply<decltype(f)::value>(two[1]));
          if (row + r < p.tile_h && static_cast<unsigned>(first + q - start) < static_cast<unsigned>(p.tile_w - start))
            *reinterpret_cast<unsigned*>(to + (r * p.tile_w + q) * kRow) = pair;
        }
    });
  }
}

// Two rows share what they load, where that leaves work for all warps; those of 5x5 have no registers for it.
template <typename T, int K, int S>
__device__ void depthwise(const Operands<T>& t, const Shared<T>& s, const Sizes& g, const Plan& p, const Tile& tile,
                          int panel) {
  const int channels = min(kPanel, g.hidden - panel * kPanel);
  if (K == 3 && p.tile_h * p.runs.size > kRun) return depthwise_rows<T, K, S, K == 3 ? 2 : 1>(t, s, p, tile, channels);
  depthwise_rows<T, K, S, 1>(t, s, p, tile, channels);
}

// ---- results ---------------------------------------------------------------------------------

// Up to eight neighbouring results: the residual, the activation, the store.
template <typename T>
__device__ void finish(const Operands<T>& t, const float* sums, int64_t pixel, int channel, int out) {
  const int count = min(8, out - channel);
  T* const to = t.y + pixel * t.y_pixel + channel;
  const T* const residual = t.residual ? t.residual + pixel * out + channel : nullptr;
  Pack<T, 8> eight = {};
  if (residual && t.y_vectors) eight = load_pack<8>(residual);
  if (residual && !t.y_vectors)
    for (int i = 0; i < 8; ++i) eight.at[i] = residual[min(i, count - 1)];
  with_activation(t.project_activation, [&](auto f) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const float low = sums[i] + static_cast<float>(eight.at[i]),
                  high = sums[i + 1] + static_cast<float>(eight.at[i + 1]);
      reinterpret_cast<unsigned*>(&eight)[i / 2] =
          round_pair<T>(apply<decltype(f)::value>(low), apply<decltype(f)::value>(high));
    }
  });
  if (t.y_vectors) return store_pack(to, eight);
#pragma unroll
  for (int i = 0; i < 8; ++i)
    if (i < count) to[i] = eight.at[i];
}

// A warp's results, 16 pixels at a time by way of shared memory: there a lane finds eight neighbouring channels.
template <typename T>
__device__ void store(const Operands<T>& t, const Shared<T>& s, const Sizes& g, const Plan& p, const Tile& tile,
                      const float (&sum)[2][2 * kPairs][4]) {
  const Share share(g, p, tile);
  const int lane = threadIdx.x % 32;
  float* const stage = s.stage + threadIdx.x / 32 * 16 * kStageRow;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    warp_barrier();
#pragma unroll
    for (int j = 0; j < 2 * kPairs; ++j)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        store_pack(stage + (lane / 4 + 8 * half) * kStageRow + 8 * j + lane % 4 * 2,
                   Pack<float, 2>{sum[m][j][2 * half], sum[m][j][2 * half + 1]});
    warp_barrier();
    for (int i = lane; i < 16 * 2 * kPairs; i += 32) {
      uint32_t row = share.first + 16 * m + i / (2 * kPairs);
      const int at = static_cast<int>(p.column.take(row));
      const int channel = tile.first_result + share.column + i % (2 * kPairs) * 8;
      if (static_cast<int>(row) >= tile.rows || at >= tile.columns) continue;
      if (i % (2 * kPairs) >= 2 * share.pairs || channel >= g.out) continue;
      const int64_t pixel = (static_cast<int64_t>(tile.image) * g.oh + tile.first_row + row) * g.ow + tile.first_column;
      finish(t, stage + i / (2 * kPairs) * kStageRow + i % (2 * kPairs) * 8, pixel + at, channel, g.out);
    }
  }
}

// A warp's sums begin with the biases of their columns, of which this lane has two in each eight.
template <typename T>
__device__ void begin(float (&sum)[2][2 * kPairs][4], const T* bias, int first, int count) {
#pragma unroll
  for (int j = 0; j < 2 * kPairs; ++j)
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int n = first + 8 * j + i % 2;
      sum[i / 4][j][i % 4] = bias && n < count ? static_cast<float>(bias[n]) : 0.0f;
    }
}

template <typename T, int K, int S>
__global__ void __launch_bounds__(kThreads, 2) inverted_residual(const Operands<T> t, const Sizes g, const Plan p) {
  FASTNETS_DYNAMIC_SHARED(unsigned char, memory);
  const Shared<T> s(memory, p);
  const Tile& tile = *s.tile;
  if (threadIdx.x == 0) *s.tile = tile_of(g, p, K, S);
  barrier();
  prepare(s, g, p, tile);
  fetch_taps(t, s, g, K * K, 0);
  barrier();
  if (t.expand) {
    fetch_x(t, s, g, p, tile);
    fetch_expand(t, s, g, 0);
  } else {
    fetch_hidden(t, s, g, tile, 0);
  }
  float sum[2][2 * kPairs][4];
  begin(sum, t.project_bias, tile.first_result + Share(g, p, tile).column + threadIdx.x % 4 * 2, g.out);
  const int panels = (g.hidden + kPanel - 1) / kPanel;
#pragma unroll 1
  for (int panel = 0; panel < panels; ++panel) {
    wait_for_copies();
    barrier();  // x or the panel's weights of the first two steps are there, the last panel is done
    fetch_project(t, s, g, p, tile.first_result, panel);
    if (t.expand) {
      expand(t, s, p, tile.pixels());
      barrier();
      if (panel + 1 < panels) fetch_expand(t, s, g, panel + 1);
    }
    depthwise<T, K, S>(t, s, g, p, tile, panel);
    wait_for_copies();
    barrier();
    if (panel + 1 < panels) {
      fetch_taps(t, s, g, K * K, panel + 1);
      if (!t.expand) fetch_hidden(t, s, g, tile, panel + 1);
    }
    const Share share(g, p, tile);
    multiply(sum, s.deep, kRow, share.first, tile.rows * p.tile_w, s.project + share.column, p.results + 8,
             min(kPanel, g.hidden - panel * kPanel), share.pairs);
  }
  barrier();
  store(t, s, g, p, tile, sum);
}

}  // namespace fastnets::inverted
