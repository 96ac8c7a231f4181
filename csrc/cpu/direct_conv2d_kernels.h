// A dense convolution as the product of pointwise_conv2d_tile.h. Included by isa.h: no guard.
//
// In channels_last the kw * c numbers under one kernel row lie side by side, and those of the next output pixel
// stride * c further on: pixels of the product overlap, and its panels are the kernel's rows. So that there is no
// border, the rows that a row of the result needs are copied between zeros first, of an image in planes interleaved on
// the way; the copies stay in the first-level cache. A task is a panel of a row of the result. Moves the bytes of
// (kh / stride * x + y), and of the weights for each row of y, from the second-level cache as long as they fit there.
#include "interleave.h"
#include "levels_kernels.h"
#include "pointwise_conv2d_multiply.h"
#include "pool2d_kernels.h"

namespace fastnets::FASTNETS_ISA::direct {

using fastnets::direct::Problem;

// `count` pixels of G planes, each `plane` after the one before, to side by side.
template <int G, typename T>
void interleave_row(const T* x, int64_t plane, int64_t count, float* to) {
  using pointwise::L;
  int64_t i = 0;
  for (; i + L <= count; i += L, to += G * L) {
    Vec<float, L> v[G];
    for (int k = 0; k < G; ++k) v[k] = load<T, L>(x + k * plane + i);
    interleave<G, L>(v);
    for (int k = 0; k < G; ++k) store<float, L>(to + k * L, v[k]);
  }
  for (; i < count; ++i)
    for (int k = 0; k < G; ++k) *to++ = static_cast<float>(x[k * plane + i]);
}

template <typename X, typename T, typename Y>
void copy_row(const Problem<X, T, Y>& p, int64_t image, int64_t row, X* to) {
  const Convolution& g = p.g;
  const int64_t plane = g.h * g.w, count = g.w * g.c;
  const T* const x = p.x + image * plane * g.c + row * (p.in_planes ? g.w : count);
  if (!p.in_planes) {
    std::copy_n(x, count, to);
    return;
  }
  if constexpr (std::is_same_v<X, float>) {
    if (g.c == 2) return interleave_row<2>(x, plane, g.w, to);
    if (g.c == 3) return interleave_row<3>(x, plane, g.w, to);
    if (g.c == 4) return interleave_row<4>(x, plane, g.w, to);
  }
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<X>(x[i % g.c * plane + i / g.c]);
}

// Makes rows of results. What a row reads, `take` lays between zeros.
template <typename X, typename T, typename Y>
class Rows {
 public:
  explicit Rows(const Problem<X, T, Y>& p)
      : p_(p),
        width_(std::max(p.g.pw + p.g.w, (p.g.ow - 1) * p.g.sw + p.g.kw) * p.g.c),
        padded_(new X[p.g.kh * width_]),
        product_(p.product) {
    std::fill_n(padded_.get(), p.g.kh * width_, p.zero);
    product_.x = {padded_.get(), p.g.sw * p.g.c, width_, p.g.kw * p.g.c};
  }

  void take(int64_t image, int64_t row) {
    const Convolution& g = p_.g;
    for (int64_t i = 0; i < g.kh; ++i) {
      const int64_t from = row * g.sh - g.ph + i;
      X* const to = padded_.get() + i * width_ + g.pw * g.c;
      if (from < 0 || from >= g.h)
        std::fill_n(to, g.w * g.c, p_.zero);
      else
        copy_row(p_, image, from, to);
    }
  }

  // A panel of a row whose first pixel is y and, where there is a residual, that of all results.
  void multiply(int64_t panel, Y* y, int64_t row) {
    product_.y.data = y;
    if (p_.product.residual.data)
      product_.residual.data = p_.product.residual.data + row * p_.g.ow * product_.residual.pixel;
    pointwise::multiply(product_, {0, p_.g.ow}, panel);
  }

 private:
  const Problem<X, T, Y>& p_;
  const int64_t width_;
  const std::unique_ptr<X[]> padded_;
  fastnets::pointwise::ProblemOf<X, Y> product_;
};

template <typename X, typename T, typename Y>
void convolve(const Problem<X, T, Y>& p, int64_t begin, int64_t end) {
  const int64_t panels = p.product.panels();
  Rows<X, T, Y> rows(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t row = task / panels, panel = task % panels;
    if (task == begin || panel == 0) rows.take(row / p.g.oh, row % p.g.oh);
    rows.multiply(panel, p.product.y.data + row * p.g.ow * p.product.y.pixel, row);
  }
}

// A task is a row of maxima. The rows that it has in common with the one before are still there.
template <typename X, typename T, typename Y>
void convolve_and_pool(const Problem<X, T, Y>& p, int64_t begin, int64_t end) {
  const Convolution& g = p.pool.g;
  const int64_t length = g.w * g.c;
  const Scratch<Y> scratch(g.kh * length);
  Y* const kept = scratch.data;
  Rows<X, T, Y> rows(p);
  int64_t first = 0, last = 0;  // the rows that are kept
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / g.oh;
    const pool::Part h = pool::part(task % g.oh, g.sh, g.ph, g.kh, g.h);
    if (task == begin || task % g.oh == 0 || last < h.begin) first = last = h.begin;
    std::copy(kept + (h.begin - first) * length, kept + (last - first) * length, kept);
    for (first = h.begin; last < h.end; ++last) {
      rows.take(image, last);
      for (int64_t panel = 0; panel < p.product.panels(); ++panel)
        rows.multiply(panel, kept + (last - first) * length, 0);
    }
    pool::result_row<false>(p.pool, h, kept, p.pool.y.data + task * g.ow * p.pool.y.pixel);
  }
}

template <typename X, typename T, typename Y>
void run(const Problem<X, T, Y>& p, int64_t begin, int64_t end) {
  p.pools() ? convolve_and_pool(p, begin, end) : convolve(p, begin, end);
}

// Multiplied in float32.
template <typename T>
void forward(const Problem<float, T>& p, int64_t begin, int64_t end) {
  run(p, begin, end);
}

// Multiplied in the type of the images.
template <typename T>
void forward_as_it_is(const Problem<T, T>& p, int64_t begin, int64_t end) {
  run(p, begin, end);
}

// Bytes.
template <typename X, typename Y>
void forward_in_bytes(const Problem<X, X, Y>& p, int64_t begin, int64_t end) {
  convolve(p, begin, end);
}

}  // namespace fastnets::FASTNETS_ISA::direct
