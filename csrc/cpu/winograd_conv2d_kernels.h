// A dense 3x3 convolution of stride 1 by Winograd's minimal filtering. Included by isa.h: no guard.
//
// Results come in tiles of 4x4 (or 2x2): a tile's 6x6 (4x4) numbers of a channel are taken to 36 (16) points by B d
// B^T, at each point the channels are multiplied by its own matrix of weights, which is pointwise_conv2d_tile.h's
// product with tiles for pixels, and A^T m A takes the sums back. 36 multiply-adds stand for 144 (16 for 36). Points of
// the axes: 0, ±√½, ±√2, ∞ (0, ±1, ∞); the roots keep the transforms' numbers near 1 and float32's error a quarter of
// that of the usual 0, ±1, ±2, ∞. Lanes are channels. A task is a chunk of tiles, whose transformed numbers stay in the
// second-level cache while the panels of weights go by; where there are few tiles, first those of all, then for each
// panel. Moves 4 bytes * (x, its borders twice + y), and the weights, 4 (1.8) times as many as the kernel's, a chunk.
#include "pointwise_conv2d_multiply.h"
#include "sub_pixels_kernels.h"

namespace fastnets::FASTNETS_ISA::winograd {

using fastnets::pointwise::kPanel;
using fastnets::pointwise::Pixels;
using fastnets::winograd::Problem;
using pointwise::L;

using Lanes = Vec<float, L>;
constexpr float kInner = 0.70710678f, kOuter = 1.41421356f;

FASTNETS_INLINE void put(float* to, const Lanes& v) { store<float, L>(to, v); }

// One axis of B d: numbers d of an input tile to its points, which are `step` apart.
template <int side>
FASTNETS_INLINE void to_points(const Lanes (&d)[side + 2], float* to, int64_t step) {
  if constexpr (side == 2) {
    put(to, d[2] - d[0]);
    put(to + step, d[2] + d[1]);
    put(to + 2 * step, d[2] - d[1]);
    put(to + 3 * step, d[3] - d[1]);
  } else {
    const Lanes even_inner = d[4] - 2.0f * d[2], odd_inner = kInner * (d[3] - 2.0f * d[1]);
    const Lanes even_outer = d[4] - 0.5f * d[2], odd_outer = kOuter * (d[3] - 0.5f * d[1]);
    put(to, d[0] - 2.5f * d[2] + d[4]);
    put(to + step, even_inner + odd_inner);
    put(to + 2 * step, even_inner - odd_inner);
    put(to + 3 * step, even_outer + odd_outer);
    put(to + 4 * step, even_outer - odd_outer);
    put(to + 5 * step, d[1] - 2.5f * d[3] + d[5]);
  }
}

// One axis of A^T m.
template <int side>
FASTNETS_INLINE void from_points(const Lanes (&m)[side + 2], Lanes (&y)[side]) {
  const Lanes sum = m[1] + m[2], difference = m[1] - m[2];
  if constexpr (side == 2) {
    y[0] = m[0] + sum;
    y[1] = difference + m[3];
  } else {
    const Lanes outer_sum = m[3] + m[4], outer_difference = kOuter * (m[3] - m[4]);
    const Lanes inner_difference = kInner * difference;
    y[0] = m[0] + sum + outer_sum;
    y[1] = inner_difference + outer_difference;
    y[2] = 0.5f * sum + 2.0f * outer_sum;
    y[3] = 0.5f * inner_difference + 2.0f * outer_difference + m[5];
  }
}

struct Place {
  int64_t image, row, column;  // of the tile's first result
};

inline Place place(const Problem& p, int64_t tile) {
  const int64_t row = tile / p.columns();
  return {row / p.rows(), row % p.rows() * p.side, tile % p.columns() * p.side};
}

// A tile of x, all channels, to its points in v.
template <int side, bool kWhole>
void transform_tile(const Problem& p, int64_t tile, float* v) {
  constexpr int n = side + 2;
  const Convolution& g = p.g;
  const Place at = place(p, tile);
  const float* from[n][n];
  for (int i = 0; i < n; ++i) {
    const int64_t h = at.row - g.ph + i;
    for (int j = 0; j < n; ++j) {
      const int64_t w = at.column - g.pw + j;
      const bool inside = h >= 0 && h < g.h && w >= 0 && w < g.w;
      from[i][j] = inside ? p.x.data + ((at.image * g.h + h) * g.w + w) * p.x.pixel : p.zeros->data();
    }
  }
  const int64_t panel = p.chunk * kPanel, point = p.x_point();
  alignas(64) float half[n * n * L];
  for (int64_t c = 0; c < g.c; c += L) {
    Lanes d[n];
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j)
        d[j] = kWhole ? load<float, L>(from[i][j] + c) : load_first<float, L>(from[i][j] + c, g.c - c);
      to_points<side>(d, half + i * n * L, L);
    }
    float* const to = v + c / kPanel * panel + c % kPanel;
    for (int j = 0; j < n; ++j) {
      for (int i = 0; i < n; ++i) d[i] = load<float, L>(half + (i * n + j) * L);
      to_points<side>(d, to + j * point, n * point);
    }
  }
}

// The sums of a tile's points, of `count` <= L channels from o on, to its results.
template <int side>
void finish_tile(const Problem& p, const Activate<float>& activate, int64_t tile, int64_t o, const float* sums,
                 const Pieces<float, L>& pieces) {
  constexpr int n = side + 2;
  const Convolution& g = p.g;
  const Place at = place(p, tile);
  const Pixels<const float>& residual = p.product.residual;
  const int64_t point = p.y_point(), count = g.o - o;
  const Lanes bias = p.product.bias ? load_first<float, L>(p.product.bias + o, count) : Lanes{};
  alignas(64) float half[side * n * L];
  for (int j = 0; j < n; ++j) {
    Lanes m[n], y[side];
    for (int i = 0; i < n; ++i) m[i] = load<float, L>(sums + (i * n + j) * point);
    from_points<side>(m, y);
    for (int i = 0; i < side; ++i) store<float, L>(half + (i * n + j) * L, y[i]);
  }
  const int64_t rows = std::min<int64_t>(side, g.oh - at.row), columns = std::min<int64_t>(side, g.ow - at.column);
  for (int64_t i = 0; i < rows; ++i) {
    Lanes m[n], y[side];
    for (int j = 0; j < n; ++j) m[j] = load<float, L>(half + (i * n + j) * L);
    from_points<side>(m, y);
    const int64_t row = at.image * g.oh + at.row + i, first = row * g.ow + at.column;
    float* const to = p.product.y.data + p.fine.offset(row, at.column);
    for (int j = 0; j < side; ++j) y[j] += bias;
    // Loops of a fixed length, so that y stays in registers.
    for (int j = 0; j < side; ++j)
      if (residual.data && j < columns)
        y[j] += load_first<float, L>(residual.data + (first + j) * residual.pixel + o, count);
    activate.template operator()<L, side>(y);
    for (int j = 0; j < side; ++j)
      if (j < columns) pieces.store(to + j * p.fine.r * p.fine.pixel, y[j]);
  }
}

// Tiles to v, where the chunk of the first begins.
template <int side>
void transform(const Problem& p, Range tiles, float* v) {
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const int64_t chunk = tile / p.chunk - tiles.begin / p.chunk;
    float* const to = v + chunk * p.x_chunk() + tile % p.chunk * kPanel;
    p.g.c % L == 0 ? transform_tile<side, true>(p, tile, to) : transform_tile<side, false>(p, tile, to);
  }
}

inline void transform(const Problem& p, Range tiles, float* v) {
  p.side == 2 ? transform<2>(p, tiles, v) : transform<4>(p, tiles, v);
}

template <int side>
void finish(const Problem& p, Range tiles, int64_t panel, const float* sums) {
  const Activate<float> activate(p.product.activation);
  std::vector<Pieces<float, L>> pieces;
  for (int64_t o = panel * kPanel; o < std::min((panel + 1) * kPanel, p.g.o); o += L) pieces.emplace_back(p.fine, o);
  const int64_t vectors = pieces.size();
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile, sums += kPanel)
    for (int64_t i = 0; i < vectors; ++i)
      finish_tile<side>(p, activate, tile, panel * kPanel + i * L, sums + i * L, pieces[i]);
}

// A panel of results of a chunk whose points are v.
inline void multiply(const Problem& p, Range tiles, int64_t panel, const float* v, float* sums) {
  fastnets::pointwise::Problem product = p.product;
  product.bias = nullptr, product.residual = {}, product.activation = Activation::kNone;
  const int64_t weights = kPanel * p.g.c;
  product.w += panel * (p.points() - 1) * weights;  // those of a panel lie together, point after point
  for (int64_t i = 0; i < p.points(); ++i, product.w += weights) {
    product.x = {const_cast<float*>(v) + i * p.x_point(), kPanel, p.chunk * kPanel};
    product.y = {sums + i * p.y_point(), kPanel, 0};
    pointwise::multiply(product, {0, tiles.end - tiles.begin}, panel);
  }
  p.side == 2 ? finish<2>(p, tiles, panel, sums) : finish<4>(p, tiles, panel, sums);
}

// Tiles of all chunks to v.
inline void tiles(const Problem& p, float* v, int64_t begin, int64_t end) {
  transform(p, {begin, end}, v + begin / p.chunk * p.x_chunk());
}

// Panels of results of chunks in v, all chunks of a panel one after the other.
inline void panels(const Problem& p, const float* v, int64_t begin, int64_t end) {
  const Scratch<float> sums(p.points() * p.y_point());
  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task % p.chunks();
    multiply(p, p.range(chunk), task / p.chunks(), v + chunk * p.x_chunk(), sums.data);
  }
}

// Chunks with all their steps.
inline void chunks(const Problem& p, int64_t begin, int64_t end) {
  const Scratch<float> v(p.x_chunk()), sums(p.points() * p.y_point());
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    transform(p, p.range(chunk), v.data);
    for (int64_t panel = 0; panel < p.product.panels(); ++panel) multiply(p, p.range(chunk), panel, v.data, sums.data);
  }
}

}  // namespace fastnets::FASTNETS_ISA::winograd
