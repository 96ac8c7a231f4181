// batch_moments on a CPU: results, registration. The kernels are in the headers.
#include "batch_moments.h"

#include <tuple>

#define FASTNETS_KERNELS "batch_moments_kernels.h"
#include "isa.h"

namespace fastnets {
namespace {

template <typename T>
void batch_moments_of(const Tensor& x, const Map& map, const Tensor& mean, const Tensor& m2) {
  using A = Sum<T>;
  const moments::Kernel kernel = FASTNETS_FOR_THIS_CPU(moments::kernel<T>)(map.last);
  moments::moments_of<T>(kernel, moments::Cut(map, sizeof(T)), memory(x), mutable_data<A>(mean), mutable_data<A>(m2));
}

std::tuple<Tensor, Tensor, Tensor> batch_moments(const Tensor& x) {
  const Map map = map_of(x);
  const Tensor mean = empty_sums(x), m2 = empty_sums(x), count = empty_strided(x, {}, {}, aoti_torch_dtype_int64());
  *mutable_data<int64_t>(count) = map.count();
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    if (map.count() > 0) return batch_moments_of<T>(x, map, mean, m2);
    std::fill_n(mutable_data<Sum<T>>(mean), map.c, Sum<T>(0));
    std::fill_n(mutable_data<Sum<T>>(m2), map.c, Sum<T>(0));
  });
  return {mean, m2, count};
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("batch_moments", TORCH_BOX(&fastnets::batch_moments)); }
