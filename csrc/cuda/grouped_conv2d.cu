// Grouped convolution on CUDA: which kernel runs, over which grid; and registration. The kernels are in the .cuh.
#include <algorithm>
#include <tuple>

#include "grouped_conv2d.h"
#include "grouped_conv2d_walk.cuh"

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

// `width` channels and `rows` rows to a thread; about `blocks` blocks, of at most `most` rounds each.
Work plan(const Correlation& g, int64_t channels, int width, int rows, int64_t most_lanes, int64_t blocks,
          int64_t most) {
  const int64_t units = ceil_div(channels, width), runs = ceil_div(g.out.h, rows), items = g.n * runs * g.out.w;
  int64_t lanes = 1;
  while (g.y.c == 1 && lanes < std::min(units, most_lanes)) lanes *= 2;
  const int64_t groups = ceil_div(units, lanes), step = kThreads / lanes;
  const int64_t chunk = step * std::clamp<int64_t>(groups * ceil_div(items, step) / blocks, 1, most);
  return {static_cast<int>(lanes), static_cast<int>(groups), static_cast<int>(runs), items, chunk};
}

int64_t chunks(const Work& work) { return (work.items + work.chunk - 1) / work.chunk; }

unsigned blocks(const Work& work) { return static_cast<unsigned>(chunks(work) * work.groups); }

template <typename T>
struct Operands {
  const T *x, *w, *bias;
  T* y;
  Activation activation;
};

// Rows and columns change places: the kernels of the walk have neighbours in memory along their rows.
void transpose(Pixels& p) { std::swap(p.h, p.w); }

Four transposed(Four s) {
  std::swap(s.h, s.w);
  return s;
}

Correlation transposed(Correlation g) {
  for (Pixels* p : {&g.in, &g.out, &g.kernel, &g.stride, &g.padding, &g.dilation, &g.up}) transpose(*p);
  for (Four* s : {&g.x, &g.y, &g.weight}) *s = transposed(*s);
  return g;
}

// Packs of so many channels of so many bytes to a thread; about `blocks` blocks, of at most `most` rounds each.
Walk plan_walk(const Correlation& g, int width, int64_t bytes, int64_t blocks, int64_t most) {
  const int64_t most_lanes = std::max<int64_t>(8, 64 / bytes);  // 64 to 128 neighbouring bytes

  const int64_t columns = int64_t{g.n} * g.channels / width * ceil_div(g.out.h, kRows);
  int walks = 1;
  // Enough threads to hide what a load takes, as long as columns that two runs load are few.
  while (columns * walks < int64_t{1} << 18 && g.out.w / walks >= 16) walks *= 2;
  const int length = static_cast<int>(ceil_div(g.out.w, walks));
  Correlation runs = g;
  runs.out.w = static_cast<int>(ceil_div(g.out.w, length));
  return {plan(runs, g.channels, width, kRows, most_lanes, blocks, most), runs.out.w, length};
}

template <typename T, int V, int K, int S, int U>
void run(const Stream& stream, const Operands<T>& t, const Correlation& g) {
  const Walk work = plan_walk(g, V, V * sizeof(T), 2048, 8);
  launch(stream, {blocks(work), kThreads}, correlate_walk<T, V, K, S, U>, t.x, t.w, t.bias, t.y, g, work, t.activation);
}

// Whether every thread can load and store V neighbouring channels at once.
template <int V, typename T>
bool can_pack(const Correlation& g, const T* pointer, const Four& s) {
  const bool strides = s.n % V == 0 && s.h % V == 0 && s.w % V == 0;
  return s.c == 1 && strides && reinterpret_cast<uintptr_t>(pointer) % (V * sizeof(T)) == 0 && g.channels % V == 0 &&
         g.depth == 1 && g.share == 1;
}

template <int K, int S, int U, typename T>
void run_square(const Stream& stream, const Operands<T>& t, const Correlation& g) {
  constexpr int V = K == 3 ? 4 : 2;
  if (can_pack<V>(g, t.x, g.x) && can_pack<V>(g, t.y, g.y)) return run<T, V, K, S, U>(stream, t, g);
  run<T, 1, K, S, U>(stream, t, g.y.c == 1 ? g : transposed(g));
}

bool is_square(const Correlation& g, int k) {
  return g.kernel.h == k && g.kernel.w == k && g.depth == 1 && g.dilation.h == 1 && g.dilation.w == 1 &&
         g.stride.h == g.stride.w && g.up.h == g.up.w;
}

template <int K, typename T>
bool try_square(const Stream& stream, const Operands<T>& t, const Correlation& g) {
  if (!is_square(g, K)) return false;
  if (g.up.h == 1 && g.stride.h == 1) return run_square<K, 1, 1>(stream, t, g), true;
  if (g.up.h == 1 && g.stride.h == 2) return run_square<K, 2, 1>(stream, t, g), true;
  if (g.up.h == 2) return run_square<K, 1, 2>(stream, t, g), true;
  return false;
}

template <typename T>
void run_correlate(const Stream& stream, const Operands<T>& t, const Correlation& g) {
  if (int64_t{g.n} * g.out.h * g.out.w == 0) return;
  if constexpr (!std::is_same_v<T, double>)
    if (try_square<3>(stream, t, g) || try_square<5>(stream, t, g)) return;
  const Work work = plan(g, g.channels, 1, 1, 32, 2048, 8);
  launch(stream, {blocks(work), kThreads}, correlate<T>, t.x, t.w, t.bias, t.y, g, work, t.activation);
}

// What gradients are computed of, w by its last tap, and to: dx, the last tap of dw, and db or none.
template <typename T>
struct Gradients {
  const T *dy, *x, *w;
  T *dx, *dw, *db;
  Four x_strides, dw_strides;
};

template <typename T, int V, int K, int U>
void run_gradients(const Stream& stream, const Tensor& like, const Gradients<T>& t, Correlation g) {
  const Walk work = plan_walk(g, V, V * sizeof(T), 1024, INT64_MAX);
  const int64_t count = chunks(work), rows = int64_t{g.channels} * (K * K + 1);
  const Tensor partial = empty(like, rows * count * sizeof(Sum<T>) / sizeof(T));
  auto* sums = static_cast<Sum<T>*>(partial.mutable_data_ptr());
  if (count > 0)
    launch(stream, {blocks(work), kThreads}, gradient_walk<T, V, K, U>, t.dy, t.x, t.w, t.dx, sums, g, t.x_strides,
           work);
  g.weight = t.dw_strides;
  constexpr int kWarps = kThreads / 32;
  launch(stream, {static_cast<unsigned>(ceil_div(rows, kWarps)), kThreads}, sum_partials<T>, sums, t.dw, t.db, g,
         count);
}

template <int K, int U, typename T>
void run_square_gradients(const Stream& stream, const Tensor& like, Gradients<T> t, Correlation g) {
  constexpr int V = K == 3 ? 2 : 1;
  if (g.y.c != 1) {
    g = transposed(g);
    t.x_strides = transposed(t.x_strides), t.dw_strides = transposed(t.dw_strides);
  }
  const bool packs = can_pack<V>(g, t.dy, g.x) && can_pack<V>(g, t.x, t.x_strides) && can_pack<V>(g, t.dx, g.y);
  return packs ? run_gradients<T, V, K, U>(stream, like, t, g) : run_gradients<T, 1, K, U>(stream, like, t, g);
}

// All gradients in one pass; g is turned.
template <int K, typename T>
bool try_square_gradients(const Stream& stream, const Tensor& like, const Gradients<T>& t, const Correlation& g) {
  const auto inside = [](const Pixels& p) { return 0 <= p.h && p.h < K && 0 <= p.w && p.w < K; };
  if (!is_square(g, K) || g.share != 1 || !inside(g.padding)) return false;
  if (g.up.h == 1) return run_square_gradients<K, 1>(stream, like, t, g), true;
  if (g.up.h == 2) return run_square_gradients<K, 2>(stream, like, t, g), true;
  return false;
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
                      int64_t groups, const std::optional<std::string>& activation) {
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
        const Gradients<T> t{data<T>(dy),        data<T>(x),         last_w,       output(dx, true),
                             last_tap(output(dw, true), s), output(db, need_db), strides_of(x), {s.n, s.c, -s.h, -s.w}};
        if (try_square_gradients<3>(stream, x, t, back) || try_square_gradients<5>(stream, x, t, back)) return;
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
