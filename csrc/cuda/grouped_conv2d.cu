// Grouped convolution on CUDA: which kernel runs, over which grid; and registration. The kernels are in the .cuh.
#include <algorithm>
#include <tuple>

#include "grouped_conv2d.h"
#include "grouped_conv2d_walk.h"

namespace fastnets {

using std::vector;

namespace {

void check_alike(const Tensor& x, const Tensor& t, const char* name) {
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type() && t.device() == x.device(), "expected ", name,
                  " of the input's type, on its device");
}

// Kernels count pixels in 32 bits, with room to step over an edge; elements in 64.
int narrow(int64_t count) {
  STD_TORCH_CHECK(count < int64_t{1} << 30, "sizes, strides, paddings and dilations must be under 2^30, got ", count);
  return static_cast<int>(count);
}

Pixels pixels(int64_t h, int64_t w) { return {narrow(h), narrow(w)}; }

// Without the strides of y, which may not be allocated yet.
Correlation forward(const Convolution& g, const Tensor& x, const Tensor& w) {
  pixels(g.h + 2 * g.ph, g.w + 2 * g.pw);
  return {narrow(g.n),
          narrow(g.o),
          narrow(g.depth),
          narrow(g.m),
          pixels(g.h, g.w),
          pixels(g.oh, g.ow),
          pixels(g.kh, g.kw),
          pixels(g.sh, g.sw),
          pixels(g.ph, g.pw),
          pixels(g.dh, g.dw),
          /*up=*/{1, 1},
          strides_of(x),
          /*y=*/{},
          strides_of(w),
          /*group=*/g.m * w.stride(0),
          /*bias=*/0};
}

// The gradient of the input: dy, with zeros between for a stride, correlated with the kernels turned by 180 degrees.
Correlation turned(const Correlation& g, const Convolution& sizes, const Tensor& dx) {
  Correlation t = g;
  t.channels = narrow(sizes.c);
  std::swap(t.depth, t.share);
  std::swap(t.weight.n, t.weight.c);
  t.in = {(g.out.h - 1) * g.stride.h + 1, (g.out.w - 1) * g.stride.w + 1};
  t.out = g.in;
  t.padding = {g.dilation.h * (g.kernel.h - 1) - g.padding.h, g.dilation.w * (g.kernel.w - 1) - g.padding.w};
  t.up = g.stride;
  t.stride = {1, 1};
  t.x = g.y;
  t.y = strides_of(dx);
  t.weight.h = -g.weight.h;
  t.weight.w = -g.weight.w;
  return t;
}

template <typename T>
void run_correlate(const Stream& stream, const Operands<T>& t, const Correlation& g) {
  if (int64_t{g.n} * g.out.h * g.out.w == 0) return;
  if constexpr (!std::is_same_v<T, double>)
    if (try_walk(stream, t, g)) return;
  const Work work = plan(g, g.channels, 1, 1, 32, 2048, 8);
  launch(stream, {blocks(work), kThreads}, correlate<T>, t.x, t.w, t.bias, t.y, g, work, t.activation);
}

template <typename T, int K, int S>
void run_weight_gradient(const Stream& stream, const Tensor& dy, const Tensor& x, T* dw, T* db, const Correlation& g) {
  const int64_t pairs = int64_t{g.channels} * g.depth;
  const Work work = plan(g, narrow(pairs), 1, K ? 4 : 1, 32, 1024, INT64_MAX);
  const int taps = g.kernel.h * g.kernel.w, tap_groups = K || taps == 0 ? 1 : (taps - 1) / kGenericTaps + 1;
  const int64_t count = chunks(work), rows = pairs * (taps + 1);
  const Tensor partial = empty(x, rows * count * sizeof(Sum<T>) / sizeof(T));
  auto* sums = static_cast<Sum<T>*>(partial.mutable_data_ptr());
  if (count > 0)
    launch(stream, {blocks(work) * tap_groups, kThreads}, weight_gradient<T, K, S>, data<T>(dy), data<T>(x), sums, g,
           work);
  constexpr int kWarps = kThreads / 32;
  launch(stream, {static_cast<unsigned>((rows + kWarps - 1) / kWarps), kThreads}, sum_partials<T>, sums, dw, db, g,
         count);
}

template <typename T>
void run_weight_gradient(const Stream& stream, const Tensor& dy, const Tensor& x, T* dw, T* db, Correlation g) {
  if (!dw) g.kernel = {0, 0}, g.depth = 1;
  if constexpr (!std::is_same_v<T, double>) {
    const int k = g.kernel.h == g.kernel.w && g.dilation.h == 1 && g.dilation.w == 1 ? g.kernel.h : 0;
    const int s = g.stride.h;
    if (k == 3 && s == 1) return run_weight_gradient<T, 3, 1>(stream, dy, x, dw, db, g);
    if (k == 3 && s == 2) return run_weight_gradient<T, 3, 2>(stream, dy, x, dw, db, g);
    if (k == 5 && s == 1) return run_weight_gradient<T, 5, 1>(stream, dy, x, dw, db, g);
    if (k == 5 && s == 2) return run_weight_gradient<T, 5, 2>(stream, dy, x, dw, db, g);
  }
  run_weight_gradient<T, 0, 0>(stream, dy, x, dw, db, g);
}

}  // namespace

Tensor grouped_conv2d(const Tensor& x, const Tensor& w, const std::optional<Tensor>& bias,
                      const vector<int64_t>& stride, const vector<int64_t>& padding, const vector<int64_t>& dilation,
                      int64_t groups, const std::optional<Text>& activation) {
  const Convolution sizes = geometry(x, w, stride, padding, dilation, groups);
  check_alike(x, w, "weight");
  if (bias) {
    check_alike(x, *bias, "bias");
    STD_TORCH_CHECK(bias->dim() == 1 && bias->size(0) == sizes.o, "expected a bias of ", sizes.o, " values");
  }
  Correlation g = forward(sizes, x, w);
  const Tensor y = empty(x, {sizes.n, sizes.o, sizes.oh, sizes.ow}, is_channels_last(x));
  g.y = strides_of(y);
  g.bias = bias ? bias->stride(0) : 0;
  const Stream stream(x);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    run_correlate(stream,
                  Operands<T>{data<T>(x), data<T>(w), bias ? data<T>(*bias) : nullptr,
                              static_cast<T*>(y.mutable_data_ptr()), parse_activation(activation)},
                  g);
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> grouped_conv2d_backward(const Tensor& dy, const Tensor& x, const Tensor& w,
                                                           const vector<int64_t>& stride,
                                                           const vector<int64_t>& padding,
                                                           const vector<int64_t>& dilation, int64_t groups,
                                                           bool need_dx, bool need_dw, bool need_db) {
  const Convolution sizes = geometry(x, w, stride, padding, dilation, groups);
  check_alike(x, w, "weight");
  check_alike(x, dy, "gradient");
  const Four expected{sizes.n, sizes.o, sizes.oh, sizes.ow};
  const bool fits = dy.dim() == 4 && std::equal(&expected.n, &expected.n + 4, dy.sizes().begin());
  STD_TORCH_CHECK(fits, "expected a gradient of the output's shape");
  Correlation g = forward(sizes, x, w);
  g.y = strides_of(dy);
  const Tensor dx = need_dx ? empty(x, sizes_of(x), is_channels_last(x)) : empty(x, 0);
  const Tensor dw = need_dw ? empty(w, sizes_of(w), is_channels_last(w)) : empty(x, 0);
  const Tensor db = empty(x, need_db ? sizes.o : 0);
  const Stream stream(x);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const auto output = [](const Tensor& t, bool needed) {
      return needed ? static_cast<T*>(t.mutable_data_ptr()) : nullptr;
    };
    const auto last_tap = [&](auto* t, const Four& strides) {
      return t + (g.kernel.h - 1) * strides.h + (g.kernel.w - 1) * strides.w;
    };
    const T* last_w = last_tap(data<T>(w), g.weight);
    const Correlation back = need_dx ? turned(g, sizes, dx) : g;
    if constexpr (!std::is_same_v<T, double>)
      if (need_dx && need_dw) {
        const Four s = strides_of(dw);
        const Gradients<T> t{data<T>(dy),
                             data<T>(x),
                             last_w,
                             output(dx, true),
                             last_tap(output(dw, true), s),
                             output(db, need_db),
                             strides_of(x),
                             {s.n, s.c, -s.h, -s.w}};
        if (try_gradient_walk(stream, x, t, back)) return;
      }
    if (need_dx)
      run_correlate(stream, Operands<T>{data<T>(dy), last_w, nullptr, output(dx, true), Activation::kNone}, back);
    if (need_dw || need_db) {
      Correlation out = g;
      out.weight = strides_of(need_dw ? dw : w);
      run_weight_gradient(stream, dy, x, output(dw, need_dw), output(db, need_db), out);
    }
  });
  return {dx, dw, db};
}

}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("grouped_conv2d", TORCH_BOX(&fastnets::grouped_conv2d));
  m.impl("grouped_conv2d_backward", TORCH_BOX(&fastnets::grouped_conv2d_backward));
}
