// Strip pooling on CUDA: which kernel runs, over which grid; and registration. The kernels are in the .cuh.
#include <tuple>

#include "strip_pool.cuh"

namespace fastnets {
namespace {

Grid grid_of(int64_t items, int64_t in_a_block) {
  const int64_t blocks = (items + in_a_block - 1) / in_a_block;
  STD_TORCH_CHECK(blocks < int64_t{1} << 31, "too many numbers for one launch: ", items);
  return {static_cast<unsigned>(blocks), kThreads};
}

template <typename T>
void pool(const Stream& stream, const Tensor& x, const Tensor& rows, const Tensor& columns, const Images& g) {
  const Four& s = g.size;
  const Tensor scratch = empty(x, g.strips() * columns.numel() * static_cast<int64_t>(sizeof(Sum<T>) / sizeof(T)));
  auto* const sums = reinterpret_cast<Sum<T>*>(mutable_data<T>(scratch));
  const int64_t planes = s.n * s.c * g.strips(), groups = s.n * ((s.c + 31) / 32) * g.strips();
  if (groups > 0 && g.channels_last)
    launch(stream, grid_of(groups, 1), strips_of_channels<T>, data<T>(x), mutable_data<T>(rows), sums, g);
  else if (planes > 0)
    launch(stream, grid_of(planes, kWarps), strips_of_planes<T>, data<T>(x), mutable_data<T>(rows), sums, g);
  if (columns.numel() > 0)
    launch(stream, grid_of(columns.numel(), kThreads), finish<T>, sums, mutable_data<T>(columns), g);
}

std::tuple<Tensor, Tensor> strip_pool(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "expected x (n, c, h, w)");
  const bool last = is_channels_last(x);
  const Four s = sizes_of(x);
  const Tensor rows = empty(x, {s.n, s.c, s.h, 1}, last), columns = empty(x, {s.n, s.c, 1, s.w}, last);
  const Stream stream(x);
  with_float(x.scalar_type(),
             [&](auto zero) { pool<decltype(zero)>(stream, x, rows, columns, {s, strides_of(x), last}); });
  return {rows, columns};
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
    launch(stream, grid_of(dx.numel(), kThreads), spread<T>, data<T>(drows), data<T>(dcolumns), mutable_data<T>(dx),
           Images{s, strides_of(dx), channels_last}, strides_of(drows), strides_of(dcolumns));
  });
  return dx;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("strip_pool", TORCH_BOX(&fastnets::strip_pool));
  m.impl("strip_pool_backward", TORCH_BOX(&fastnets::strip_pool_backward));
}
