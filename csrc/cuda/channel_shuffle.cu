// Channel shuffle on CUDA: arguments and registration. The copy itself is in strided_copy.cuh.
#include <tuple>

#include "../channel_shuffle.h"
#include "strided_copy.cuh"

namespace fastnets {
namespace {

Tensor channel_shuffle(const Tensor& x, int64_t groups) {
  check_channel_shuffle(x, groups);
  const Tensor y = empty_like(x);
  if (y.numel() > 0) run(Stream(x), channel_shuffle_copy(x, y, groups));
  return y;
}

std::tuple<Tensor, Tensor> shuffle_split(const Tensor& a, const Tensor& b, bool inverse) {
  check_shuffle_split(a, b);
  const Pair y{empty_like(a), empty_like(a)};  // both in the layout of the first source
  if (a.numel() > 0)
    for (const StridedCopy& copy : shuffle_split_copies({a, b}, y, inverse)) run(Stream(a), copy);
  return {y.first, y.second};
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("channel_shuffle", TORCH_BOX(&fastnets::channel_shuffle));
  m.impl("shuffle_split", TORCH_BOX(&fastnets::shuffle_split));
}
