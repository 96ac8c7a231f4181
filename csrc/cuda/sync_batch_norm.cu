// Batch normalisation on CUDA: arguments, launches, registration. The kernels are in the .cuh.
#include <string>
#include <tuple>

#include "batch_moments.cuh"
#include "sync_batch_norm.cuh"

namespace fastnets {
namespace {

using namespace batch_norm;
using Optional = std::optional<Tensor>;
using Name = std::optional<Text>;

template <typename T>
Vector<T> vector(const Tensor& x, const Optional& t, Sum<T> otherwise) {
  if (!t) return {nullptr, 0, false, otherwise};
  check_vector(x, *t);
  return {memory(*t), t->stride(0), t->scalar_type() != x.scalar_type(), otherwise};
}

template <typename T>
Statistics<T> statistics(const Tensor& x, const Optional& mean, const Optional& var, const Optional& weight,
                         const Optional& bias, double eps, const Name& activation) {
  return {vector<T>(x, mean, 0), vector<T>(x, var, 1),     vector<T>(x, weight, 1),
          vector<T>(x, bias, 0), static_cast<Sum<T>>(eps), parse_activation(activation)};
}

template <typename T>
void run_normalize(const Stream& stream, const Tensor& x, const Tensor& y, const Statistics<T>& t) {
  if (x.numel() == 0) return;
  const Map map = map_of(x);
  with_pack<T>(
      [&](auto v, auto c) {
        constexpr int V = v, C = c;
        const Work w = plan(map, V);
        launch(stream, {blocks(w), kThreads}, normalize<T, V, C>, data<T>(x), mutable_data<T>(y), t, w);
      },
      map, x, y);
}

template <typename T>
void run_sums(const Stream& stream, const Tensor& dy, const Tensor& x, const Tensor& sums, const Statistics<T>& t) {
  const Map map = map_of(x);
  with_pack<T>(
      [&](auto v, auto c) {
        constexpr int V = v, C = c;
        const Work w = plan(map, V);
        const Tensor parts = empty_parts(sums, w);
        if (blocks(w) > 0)
          launch(stream, {blocks(w), kThreads}, gradient_sums<T, V, C>, data<T>(dy), data<T>(x),
                 mutable_data<double>(parts), t, w);
        launch(stream, {merging(map), kThreads}, merge_gradient_sums<T>, data<double>(parts),
               mutable_data<Sum<T>>(sums), t, w.parts, map.c);
      },
      map, dy, x);
}

// The sums are over `count` values, or over as many as the tensor `counted` says.
template <typename T>
void run_gradient(const Stream& stream, const Tensor& dy, const Tensor& x, const Tensor& dx, const Statistics<T>& t,
                  const Tensor& sums, int64_t count, const Optional& counted) {
  using A = Sum<T>;
  if (x.numel() == 0) return;
  const Map map = map_of(x);
  with_pack<T>(
      [&](auto v, auto c) {
        constexpr int V = v, C = c;
        const Work w = plan(map, V);
        launch(stream, {blocks(w), kThreads}, gradient<T, V, C>, data<T>(dy), data<T>(x), mutable_data<T>(dx), t,
               data<A>(sums), static_cast<A>(count), counted ? data<A>(*counted) : nullptr, w);
      },
      map, dy, x, dx);
}

// Count, group and layer are for the gradient.
Tensor sync_batch_norm(const Tensor& x, const Tensor& mean, const Tensor& var, const Optional& weight,
                       const Optional& bias, const Optional&, double eps, const Text&, const Text&,
                       const Name& activation) {
  map_of(x);
  const Tensor y = empty_dense(x);
  const Stream stream(x);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    run_normalize<T>(stream, x, y, statistics<T>(x, mean, var, weight, bias, eps, activation));
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> sync_batch_norm_local(const Tensor& x, const Optional& weight, const Optional& bias,
                                                         double eps, const Name& activation) {
  STD_TORCH_CHECK(eps > 0 && map_of(x).count() != 1, "expected more than 1 value per channel and a positive eps");
  const Tensor y = empty_dense(x), mean = empty_sums(x), var = empty_sums(x);
  const Stream stream(x);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Statistics<T> t = statistics<T>(x, mean, var, weight, bias, eps, activation);
    run_moments<T>(stream, x, mean, var, nullptr, /*variance=*/true);
    run_normalize<T>(stream, x, y, t);
  });
  return {y, mean, var};
}

Tensor sync_batch_norm_reduce(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                              const Optional& weight, const Optional& bias, double eps, const Name& activation) {
  check_gradient(x, dy);
  const Tensor sums = empty_sums(x, 2);
  const Stream stream(x);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    run_sums<T>(stream, dy, x, sums, statistics<T>(x, mean, var, weight, bias, eps, activation));
  });
  return sums;
}

Tensor sync_batch_norm_dx(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                          const Optional& weight, const Optional& bias, const Tensor& sums, const Tensor& count,
                          double eps, const Name& activation) {
  check_gradient(x, dy);
  STD_TORCH_CHECK(sums.numel() == 2 * x.size(1) && sums.is_contiguous() && count.numel() == 1 &&
                      dtype_of(sums) == sum_dtype(x) && dtype_of(count) == sum_dtype(x),
                  "expected sums (2, c) and a count, in the type of sums");
  const Tensor dx = empty_dense(x);
  const Stream stream(x);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    run_gradient<T>(stream, dy, x, dx, statistics<T>(x, mean, var, weight, bias, eps, activation), sums, 0, count);
  });
  return dx;
}

std::tuple<Tensor, Tensor> sync_batch_norm_local_backward(const Tensor& dy, const Tensor& x, const Tensor& mean,
                                                          const Tensor& var, const Optional& weight,
                                                          const Optional& bias, double eps, const Name& activation) {
  check_gradient(x, dy);
  const Tensor dx = empty_dense(x), sums = empty_sums(x, 2);
  const Stream stream(x);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const Statistics<T> t = statistics<T>(x, mean, var, weight, bias, eps, activation);
    run_sums<T>(stream, dy, x, sums, t);
    run_gradient<T>(stream, dy, x, dx, t, sums, map_of(x).count(), std::nullopt);
  });
  return {dx, sums};
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("sync_batch_norm", TORCH_BOX(&fastnets::sync_batch_norm));
  m.impl("sync_batch_norm_local", TORCH_BOX(&fastnets::sync_batch_norm_local));
  m.impl("sync_batch_norm_reduce", TORCH_BOX(&fastnets::sync_batch_norm_reduce));
  m.impl("sync_batch_norm_dx", TORCH_BOX(&fastnets::sync_batch_norm_dx));
  m.impl("sync_batch_norm_local_backward", TORCH_BOX(&fastnets::sync_batch_norm_local_backward));
}
