// What the CPU and the CUDA side of batch_moments and sync_batch_norm share: a dense input as (n, c, l), vectors of one
// value per channel, allocation.
#pragma once

#include <optional>

#include "tensor.h"

namespace fastnets {

// x (n, c, ...) with its l values in space as one dimension: planes [n][c][l], or [n][l][c] where channels are last.
struct Map {
  int64_t n, c, l;
  bool last;

  int64_t count() const { return n * l; }  // of values in a channel
};

inline Map map_of(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 2, "expected input (n, c, ...)");
  Map m{x.size(0), x.size(1), 1, false};
  for (int64_t i = 2; i < x.dim(); ++i) m.l *= x.size(i);
  const bool planes = is_dense(x, false);
  STD_TORCH_CHECK(planes || is_dense(x, true), "expected a dense input");
  m.last = !planes || m.l == 1;
  return m;
}

// Uninitialised, of the type, shape and layout of a dense tensor.
inline Tensor empty_dense(const Tensor& x) {
  const int64_t dims = x.dim();
  const bool planes = is_dense(x, false);
  std::vector<int64_t> sizes(x.sizes().begin(), x.sizes().end()), strides(dims);
  int64_t step = 1;
  const auto next = [&](int64_t i) { strides[i] = step, step *= sizes[i] > 1 ? sizes[i] : 1; };
  if (!planes) next(1);
  for (int64_t i = dims - 1; i >= 0; --i)
    if (i != 1 || planes) next(i);
  return empty_strided(x, sizes, strides, dtype_of(x));
}

// A vector for each channel, in the type of sums.
inline Tensor empty_sums(const Tensor& x, int64_t vectors = 1) {
  if (vectors == 1) return empty_strided(x, {x.size(1)}, {1}, sum_dtype(x));
  return empty_strided(x, {vectors, x.size(1)}, {x.size(1), 1}, sum_dtype(x));
}

// A vector (c) of x's type or that of its sums.
inline void check_vector(const Tensor& x, const Tensor& t) {
  const ScalarType sums = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == x.size(1), "expected a vector of ", x.size(1), " values");
  STD_TORCH_CHECK(t.scalar_type() == x.scalar_type() || t.scalar_type() == sums, "expected a vector of input's type");
  STD_TORCH_CHECK(t.device() == x.device(), "expected a vector on the input's device");
}

inline void check_gradient(const Tensor& x, const Tensor& dy) {
  bool same = dy.dim() == x.dim() && dy.scalar_type() == x.scalar_type() && dy.device() == x.device();
  for (int64_t i = 0; same && i < x.dim(); ++i) same = dy.size(i) == x.size(i);
  STD_TORCH_CHECK(same, "expected a gradient of the input's shape and type");
  STD_TORCH_CHECK(is_dense(dy, !is_dense(x, false)), "expected a gradient in the input's layout");
}

}  // namespace fastnets
