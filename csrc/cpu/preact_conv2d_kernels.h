// BatchNorm, ReLU, pooling by sums, pointwise convolution: a unit of DenseNet. Included by isa.h: no guard.
//
// A block of as many pixels as a tile has is normalised into scratch, which the product of pointwise_conv2d_tile.h
// reads from the first-level cache while the panels of weights go by. Pooling comes before the product, which it
// commutes with, so that there are as few products as results. A task is a panel of results of a block. Moves 4 bytes *
// (x + y); the weights come from the second-level cache.
#include "pointwise_conv2d_tile.h"

namespace fastnets::FASTNETS_ISA::preact {

using fastnets::preact::Problem;
using pointwise::L;

// max(x * scale + shift, 0) of one pixel into y, or added to what is there.
template <bool kFirst>
void add_pixel(const Problem& p, const float* x, float* y) {
  const float *const scale = p.norm, *const shift = p.norm + p.padded_channels();
  const Vec<float, L> zero{};
  for (int64_t c = 0; c < p.product.in; c += L) {
    Vec<float, L> z =
        load_first<float, L>(x + c, p.product.in - c) * load<float, L>(scale + c) + load<float, L>(shift + c);
    z = zero > z ? zero : z;  // NaN passes
    if constexpr (!kFirst) z += load<float, L>(y + c);
    store<float, L>(y + c, z);
  }
}

// A pixel of the result's: pool * pool of x.
inline void make_pixel(const Problem& p, int64_t pixel, float* y) {
  const int64_t oh = p.size.h / p.pool, ow = p.size.w / p.pool;
  const int64_t row = pixel / (oh * ow) * p.size.h + pixel / ow % oh * p.pool, column = pixel % ow * p.pool;
  for (int64_t i = 0; i < p.pool; ++i)
    for (int64_t j = 0; j < p.pool; ++j) {
      const float* const x = p.x + ((row + i) * p.size.w + column + j) * p.pixel;
      if (i + j == 0)
        add_pixel<true>(p, x, y);
      else
        add_pixel<false>(p, x, y);
    }
}

inline void forward(const Problem& p, int64_t begin, int64_t end) {
  const int64_t step = p.step();
  const std::unique_ptr<float[]> scratch(new float[p.tasks.block * step]);
  fastnets::pointwise::Problem product = p.product;
  product.x = {scratch.get(), step, 0, product.in};
  for (int64_t task = begin; task < end; ++task) {
    const Range pixels = p.tasks.range(task);
    if (task == begin || p.tasks.panel(task) == 0)
      for (int64_t i = pixels.begin; i < pixels.end; ++i) make_pixel(p, i, scratch.get() + (i - pixels.begin) * step);
    product.y.data = p.product.y.data + pixels.begin * product.y.pixel;
    pointwise::multiply(product, {0, pixels.end - pixels.begin}, p.tasks.panel(task));
  }
}

}  // namespace fastnets::FASTNETS_ISA::preact
