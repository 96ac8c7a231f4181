// How a grouped convolution is dealt to blocks; and which kernel of grouped_conv2d_walk.cuh runs, if one does.
#pragma once

#include <algorithm>

#include "grouped_conv2d_walk.cuh"

namespace fastnets {

// `width` channels and `rows` rows to a thread; about `blocks` blocks, of at most `most` rounds each.
inline Work plan(const Correlation& g, int64_t channels, int width, int rows, int64_t most_lanes, int64_t blocks,
                 int64_t most) {
  const int64_t units = ceil_div(channels, width), runs = ceil_div(g.out.h, rows), items = g.n * runs * g.out.w;
  int64_t lanes = 1;
  while (g.y.c == 1 && lanes < std::min(units, most_lanes)) lanes *= 2;
  const int64_t groups = ceil_div(units, lanes), step = kThreads / lanes;
  const int64_t chunk = step * std::clamp<int64_t>(groups * ceil_div(items, step) / blocks, 1, most);
  return {static_cast<int>(lanes), static_cast<int>(groups), static_cast<int>(runs), items, chunk};
}

inline int64_t chunks(const Work& work) { return (work.items + work.chunk - 1) / work.chunk; }

inline unsigned blocks(const Work& work) { return static_cast<unsigned>(chunks(work) * work.groups); }

template <typename T>
struct Operands {
  const T *x, *w, *bias;
  T* y;
  Activation activation;
};

// Rows and columns change places: the kernels of the walk have neighbours in memory along their rows.
inline void transpose(Pixels& p) { std::swap(p.h, p.w); }

inline Four transposed(Four s) {
  std::swap(s.h, s.w);
  return s;
}

inline Correlation transposed(Correlation g) {
  for (Pixels* p : {&g.in, &g.out, &g.kernel, &g.stride, &g.padding, &g.dilation, &g.up}) transpose(*p);
  for (Four* s : {&g.x, &g.y, &g.weight}) *s = transposed(*s);
  return g;
}

// Packs of so many channels of so many bytes to a thread; about `blocks` blocks, of at most `most` rounds each.
inline Walk plan_walk(const Correlation& g, int width, int64_t bytes, int64_t blocks, int64_t most) {
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

inline bool is_square(const Correlation& g, int k) {
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

// Computes y if this convolution is of that kind, and says whether it did. T is not double.
template <typename T>
bool try_walk(const Stream& stream, const Operands<T>& t, const Correlation& g) {
  return try_square<3>(stream, t, g) || try_square<5>(stream, t, g);
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

template <int K, typename T>
bool try_square_gradients(const Stream& stream, const Tensor& like, const Gradients<T>& t, const Correlation& g) {
  const auto inside = [](const Pixels& p) { return 0 <= p.h && p.h < K && 0 <= p.w && p.w < K; };
  if (!is_square(g, K) || g.share != 1 || !inside(g.padding)) return false;
  if (g.up.h == 1) return run_square_gradients<K, 1>(stream, like, t, g), true;
  if (g.up.h == 2) return run_square_gradients<K, 2>(stream, like, t, g), true;
  return false;
}

// The same for all gradients of a depthwise convolution in one pass; g is the correlation of dy to dx.
template <typename T>
bool try_gradient_walk(const Stream& stream, const Tensor& like, const Gradients<T>& t, const Correlation& g) {
  return try_square_gradients<3>(stream, like, t, g) || try_square_gradients<5>(stream, like, t, g);
}

}  // namespace fastnets
