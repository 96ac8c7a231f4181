// Corner pooling on CUDA: which kernel runs, over which grid; and registration. The kernels are in the .cuh.
#include "corner_pool.cuh"

namespace fastnets {
namespace {

Strides strides_along(const Tensor& t, bool vertical) {
  const Four s = strides_of(t);
  return {s.n, s.c, vertical ? s.w : s.h, vertical ? s.h : s.w};
}

// How the scan of x is written to a tensor of its sizes.
Scan geometry(const Tensor& x, const Direction& d, bool last, bool add) {
  const Four s = sizes_of(x);
  const int64_t width = d.vertical ? s.w : s.h;
  return {s.n * s.c * width, s.c, width, d.vertical ? s.h : s.w, last, d.reverse, add};
}

Grid grid_of(const Scan& g, bool rows) {
  const int64_t lanes = rows ? kThreads / 32 : kThreads, blocks = (g.lanes + lanes - 1) / lanes;
  STD_TORCH_CHECK(blocks < int64_t{1} << 31, "too many scans for one launch: ", g.lanes);
  return {static_cast<unsigned>(blocks), kThreads};
}

template <typename F>
void with_number(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Bool:
    case ScalarType::Byte:
      return f(uint8_t());
    case ScalarType::Char:
      return f(int8_t());
    case ScalarType::Short:
      return f(int16_t());
    case ScalarType::Int:
      return f(int32_t());
    case ScalarType::Long:
      return f(int64_t());
    default:
      return with_float(type, f);
  }
}

void pool(const Tensor& x, const Tensor& y, const Direction& d, bool last, bool add) {
  const Scan g = geometry(x, d, last, add);
  const Strides xs = strides_along(x, d.vertical), ys = strides_along(y, d.vertical);
  const bool rows = ys.step == 1 && ys.w != 1;
  const Stream stream(x);
  with_number(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch(stream, grid_of(g, rows), rows ? scan_rows<T> : scan<T>, data<T>(x), mutable_data<T>(y), xs, ys, g);
  });
}

Tensor corner_pool(const Tensor& x, const std::string& direction, const std::string& tie) {
  const Direction d = parse_direction(direction);
  takes_first(tie);
  check_image_batch(x);
  const bool last = is_channels_last(x);
  const Tensor y = empty(x, sizes_of(x), last);
  if (y.numel() > 0) pool(x, y, d, last, false);
  return y;
}

Tensor corner_pool_sum(const Tensor& vertical, const Tensor& horizontal, const std::string& corner) {
  const bool reverse = parse_corner(corner);
  check_image_batch(vertical);
  check_alike(vertical, horizontal);
  STD_TORCH_CHECK(vertical.scalar_type() != ScalarType::Bool, "bools cannot be added");
  const bool last = is_channels_last(vertical);
  const Tensor y = empty(vertical, sizes_of(vertical), last);
  if (y.numel() == 0) return y;
  pool(vertical, y, {true, reverse}, last, false);
  pool(horizontal, y, {false, reverse}, last, true);
  return y;
}

Tensor corner_pool_backward(const Tensor& dy, const Tensor& x, const std::string& direction, const std::string& tie) {
  const Direction d = parse_direction(direction);
  const bool first = takes_first(tie);
  check_image_batch(x);
  check_alike(x, dy);
  const bool last = is_channels_last(x);
  const Tensor dx = empty(x, sizes_of(x), last);
  if (dx.numel() == 0) return dx;
  const Scan g = geometry(x, d, last, false);
  const Strides dys = strides_along(dy, d.vertical), xs = strides_along(x, d.vertical);
  const Strides dxs = strides_along(dx, d.vertical);
  const bool rows = dxs.step == 1 && dxs.w != 1;
  const Stream stream(x);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch(stream, grid_of(g, rows), rows ? collect_rows<T> : collect<T>, data<T>(dy), data<T>(x), mutable_data<T>(dx),
           dys, xs, dxs, g, first);
  });
  return dx;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("corner_pool", TORCH_BOX(&fastnets::corner_pool));
  m.impl("corner_pool_backward", TORCH_BOX(&fastnets::corner_pool_backward));
  m.impl("corner_pool_sum", TORCH_BOX(&fastnets::corner_pool_sum));
}
