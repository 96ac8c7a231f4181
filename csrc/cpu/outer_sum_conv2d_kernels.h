// The pointwise convolution of relu(row + column), strips of an image spread over it: SPNet's gate. Included by isa.h:
// no guard.
//
// A block of as many pixels as a tile has is added up in scratch, which the product of pointwise_conv2d_tile.h reads
// from the first-level cache while the panels of weights go by. Where an image is multiplied by the results, a panel of
// a block's waits in scratch for that. A task is a panel of results of a block. Moves the bytes of y, and of the
// factor; rows, columns and weights come from the caches.
#include "pointwise_conv2d_multiply.h"

namespace fastnets::FASTNETS_ISA::outer_sum {

using fastnets::outer_sum::Problem;
using fastnets::pointwise::made_step;
using pointwise::kPanel;
using pointwise::L;

template <typename T>
void make_block(const Problem<T>& p, Range pixels, T* y) {
  const int64_t c = p.product.in, step = made_step(c);
  const Vec<float, L> zero{};
  for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel, y += step) {
    const T* const row = p.rows + pixel / p.width * c;
    const T* const column = p.columns + (pixel / (p.height * p.width) * p.width + pixel % p.width) * c;
    for (int64_t k = 0; k < c; k += L) {
      const Vec<float, L> z = load_first<T, L>(row + k, c - k) + load_first<T, L>(column + k, c - k);
      store<T, L>(y + k, zero > z ? zero : z);  // NaN passes
    }
  }
}

// A panel of a block's results, times the factor.
template <typename T>
void multiply_by(const T* factor, int64_t step, Range pixels, int64_t results, const T* from, T* y, int64_t y_step) {
  for (int64_t pixel = pixels.begin; pixel < pixels.end; ++pixel, from += kPanel)
    for (int64_t k = 0; k < results; k += L) {
      const Vec<float, L> by = load_first<T, L>(factor + pixel * step + k, results - k);
      store_first<T, L>(y + pixel * y_step + k, load<T, L>(from + k) * by, results - k);
    }
}

template <typename T>
void forward(const Problem<T>& p, int64_t begin, int64_t end) {
  const int64_t step = made_step(p.product.in), out = p.product.out;
  const Scratch<T> made(p.tasks.block * step), gate(p.tasks.block * kPanel);
  fastnets::pointwise::ProblemOf<T> product = p.product;
  product.x = {made.data, step, 0, product.in};
  if (p.factor) product.y = {gate.data, kPanel, 0};
  for (int64_t task = begin; task < end; ++task) {
    const Range pixels = p.tasks.range(task);
    const int64_t panel = p.tasks.panel(task), first = panel * kPanel;
    if (task == begin || panel == 0) make_block(p, pixels, made.data);
    if (!p.factor) product.y.data = p.product.y.data + pixels.begin * product.y.pixel;
    pointwise::multiply(product, {0, pixels.end - pixels.begin}, panel);
    if (p.factor)
      multiply_by(p.factor + first, out, pixels, std::min(kPanel, out - first), gate.data, p.product.y.data + first,
                  p.product.y.pixel);
  }
}

}  // namespace fastnets::FASTNETS_ISA::outer_sum
