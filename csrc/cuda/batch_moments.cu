// batch_moments on CUDA: results, registration. The kernels are in the .cuh.
#include <tuple>

#include "batch_moments.cuh"

namespace fastnets {
namespace {

std::tuple<Tensor, Tensor, Tensor> batch_moments(const Tensor& x) {
  map_of(x);
  const Tensor mean = empty_sums(x), m2 = empty_sums(x), count = empty_strided(x, {}, {}, aoti_torch_dtype_int64());
  const Stream stream(x);
  with_float(x.scalar_type(), [&](auto zero) {
    batch_norm::run_moments<decltype(zero)>(stream, x, mean, m2, mutable_data<int64_t>(count), /*variance=*/false);
  });
  return {mean, m2, count};
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("batch_moments", TORCH_BOX(&fastnets::batch_moments));
}
