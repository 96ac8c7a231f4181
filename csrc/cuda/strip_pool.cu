// Strip pooling on CUDA: which kernel runs, over which grid; and registration. The kernels are in the .cuh.
#include <initializer_list>
#include <tuple>

#include "strip_pool_channels.cuh"
#include "strip_pool_planes.cuh"

namespace fastnets {
namespace {

using namespace strips;

Grid grid_of(int64_t blocks, int threads) {
  STD_TORCH_CHECK(blocks < int64_t{1} << 31, "too many numbers for one launch: ", blocks, " blocks");
  return {static_cast<unsigned>(blocks), static_cast<unsigned>(threads)};
}

Grid grid_of(const Tiles& g) { return grid_of(g.size.n * g.groups * g.chunks * g.bands, g.threads); }

// Whether x and all rows, planes or pixels that are so far apart begin with 16 bytes of their own.
template <typename T>
bool aligned(const T* x, std::initializer_list<int64_t> strides) {
  bool fits = reinterpret_cast<uintptr_t>(x) % 16 == 0;
  for (const int64_t stride : strides) fits = fits && stride * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  return fits;
}

// Means of `length` numbers each, of which tiles have `parts` parts.
template <typename T>
struct Result {
  int64_t parts;
  Tensor sums;
  Means<T> means;

  Result(const Tensor& to, int64_t parts, int64_t length)
      : parts(parts),
        sums(empty_strided(to, {parts == 1 ? 0 : parts * to.numel()}, {1}, sum_dtype(to))),
        means{mutable_data<T>(to), parts == 1 ? nullptr : mutable_data<Sum<T>>(sums), to.numel(), length} {}

  void finish(const Stream& stream) const {
    if (parts == 1 || means.count == 0) return;
    launch(stream, grid_of(ceil_div(means.count, kFinishThreads), kFinishThreads), strips::finish<T>, means, parts);
  }
};

template <typename T, int V>
void pool(const Stream& stream, const Tensor& x, const Tensor& rows, const Tensor& columns, bool channels_last) {
  const Four size = sizes_of(x), s = strides_of(x);
  const T* const from = data<T>(x);
  const Tiles g = channels_last ? tiles_of_channels<V>(size, s, kChannelRows)
                                : tiles_of_planes(size, s, V, V == 1 || aligned(from, {s.n, s.c, s.h}));
  const Result<T> row(rows, g.chunks, size.w), column(columns, g.bands, size.h);
  if (x.numel() > 0 && channels_last) {
    launch(stream, grid_of(g), pool_channels<T, V>, from, row.means, column.means, g);
  } else if (x.numel() > 0) {
    launch(stream, grid_of(g), pool_planes<T, V>, from, row.means, column.means, g);
  }
  row.finish(stream);
  column.finish(stream);
}

std::tuple<Tensor, Tensor> strip_pool(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "expected x (n, c, h, w)");
  const bool last = is_channels_last(x);
  const Four size = sizes_of(x), s = strides_of(x);
  const Tensor rows = empty(x, {size.n, size.c, size.h, 1}, last);
  const Tensor columns = empty(x, {size.n, size.c, 1, size.w}, last);
  const Stream stream(x);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = 16 / sizeof(T);
    const int64_t end = (size.n - 1) * s.n + (size.c - 1) * s.c + (size.h - 1) * s.h + size.w;
    const bool packs = last ? s.c == 1 && size.c % V == 0 && aligned(data<T>(x), {s.n, s.h, s.w})
                            : s.w == 1 && aligned(data<T>(x), {end});
    (packs ? pool<T, V> : pool<T, 1>)(stream, x, rows, columns, last);
  });
  return {rows, columns};
}

template <typename T, int V>
void spread(const Stream& stream, const Tensor& drows, const Tensor& dcolumns, const Tensor& dx, bool channels_last) {
  const Four size = sizes_of(dx), s = strides_of(dx);
  const Tiles g =
      channels_last ? tiles_of_channels<V>(size, s, kSpreadRows) : tiles_of_planes(size, s, V, size.w % V == 0);
  launch(stream, grid_of(g), channels_last ? spread_channels<T, V> : spread_planes<T, V>, data<T>(drows),
         data<T>(dcolumns), mutable_data<T>(dx), g, strides_of(drows), strides_of(dcolumns));
}

Tensor strip_pool_backward(const Tensor& drows, const Tensor& dcolumns, bool channels_last) {
  STD_TORCH_CHECK(drows.dim() == 4 && dcolumns.dim() == 4, "expected gradients of four dimensions");
  const Four s{drows.size(0), drows.size(1), drows.size(2), dcolumns.size(3)};
  STD_TORCH_CHECK(drows.size(3) == 1 && dcolumns.size(2) == 1 && dcolumns.size(0) == s.n && dcolumns.size(1) == s.c &&
                      drows.scalar_type() == dcolumns.scalar_type() && drows.device() == dcolumns.device(),
                  "expected gradients (n, c, h, 1) and (n, c, 1, w) of one type and device");
  const Tensor dx = empty(drows, s, channels_last);
  if (dx.numel() == 0) return dx;
  const Stream stream(drows);
  with_float(drows.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    constexpr int V = 16 / sizeof(T);
    const bool packs = channels_last ? s.c % V == 0 : s.w >= V;
    (packs ? spread<T, V> : spread<T, 1>)(stream, drows, dcolumns, dx, channels_last);
  });
  return dx;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("strip_pool", TORCH_BOX(&fastnets::strip_pool));
  m.impl("strip_pool_backward", TORCH_BOX(&fastnets::strip_pool_backward));
}
