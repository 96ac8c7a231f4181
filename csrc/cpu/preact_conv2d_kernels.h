// BatchNorm, ReLU, pooling by sums, pointwise convolution: a unit of DenseNet. Included by isa.h: no guard.
//
// A block of as many pixels as a tile has is normalised into scratch, which the product of pointwise_conv2d_tile.h
// reads from the first-level cache while the panels of weights go by. Its channels come from several images, whose
// concatenation nobody needs; these are too many streams for the processor to foresee, so what the next block reads is
// fetched with this one. Pooling comes before the product, with which it commutes: there are as few products as
// results. A task is a panel of results of a block. Moves the bytes of x and y; the weights come from the second-level
// cache.
#include "pointwise_conv2d_multiply.h"

namespace fastnets::FASTNETS_ISA::preact {

using fastnets::pointwise::made_step;
using fastnets::preact::Part;
using fastnets::preact::Problem;
using pointwise::L;

// A block of pixels: which of x's each is, or the first of those that are added up.
using Sources = std::vector<int64_t>;

template <typename T>
void find(const Problem<T>& p, Range pixels, Sources& sources) {
  const int64_t oh = p.size.h / p.pool, ow = p.size.w / p.pool;
  sources.clear();
  for (int64_t i = pixels.begin; i < pixels.end; ++i) {
    const int64_t image = i / (oh * ow), row = i / ow % oh, column = i % ow;
    sources.push_back((image * p.size.h + row * p.pool) * p.size.w + column * p.pool);
  }
}

template <typename T>
FASTNETS_INLINE Vec<float, L> rectified(const T* x, int64_t left, const Vec<float, L>& scale,
                                        const Vec<float, L>& shift, int64_t ahead) {
  __builtin_prefetch(x + ahead, 0, 2);
  const Vec<float, L> zero{}, z = load_first<T, L>(x, left) * scale + shift;
  return zero > z ? zero : z;  // NaN passes
}

// A part of each pixel of a block, whose scales and shifts begin at `scale` and `shift`, into y.
template <bool kPools, typename T>
void normalise(const Problem<T>& p, const Part<T>& part, const Sources& sources, const float* scale, const float* shift,
               T* y) {
  const int64_t c = part.channels, pool = p.pool, width = p.size.w, step = made_step(p.product.in),
                ahead = p.tasks.block * pool * c;
  const int64_t pixels = sources.size();
  const int64_t* const source = sources.data();
  for (int64_t k = 0; k < c; k += L) {
    const Vec<float, L> by = load<float, L>(scale + k), more = load<float, L>(shift + k);
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      const T* const x = part.data + source[pixel] * c + k;
      Vec<float, L> z = rectified(x, c - k, by, more, ahead);
      for (int64_t i = 1; kPools && i < pool * pool; ++i)
        z += rectified(x + (i / pool * width + i % pool) * c, c - k, by, more, ahead);
      store<T, L>(y + pixel * step + k, z);  // past c too, where the next part comes, or nothing
    }
  }
}

template <typename T>
void make_block(const Problem<T>& p, const Sources& sources, T* y) {
  const float *scale = p.norm, *shift = p.norm + p.product.in + fastnets::pointwise::kLanes;
  for (const Part<T>& part : p.parts) {
    if (p.pool > 1)
      normalise<true>(p, part, sources, scale, shift, y);
    else
      normalise<false>(p, part, sources, scale, shift, y);
    scale += part.channels, shift += part.channels, y += part.channels;
  }
}

template <typename T>
void forward(const Problem<T>& p, int64_t begin, int64_t end) {
  const int64_t step = made_step(p.product.in);
  const Scratch<T> scratch(p.tasks.block * step);
  Sources sources;
  fastnets::pointwise::ProblemOf<T> product = p.product;
  product.x = {scratch.data, step, 0, product.in};
  for (int64_t task = begin; task < end; ++task) {
    const Range pixels = p.tasks.range(task);
    if (task == begin || p.tasks.panel(task) == 0) {
      find(p, pixels, sources);
      make_block(p, sources, scratch.data);
    }
    product.y.data = p.product.y.data + pixels.begin * product.y.pixel;
    pointwise::multiply(product, {0, pixels.end - pixels.begin}, p.tasks.panel(task));
  }
}

}  // namespace fastnets::FASTNETS_ISA::preact
