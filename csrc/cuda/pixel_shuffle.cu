// Pixel shuffle on CUDA: arguments and registration. The copy itself is in strided_copy.cuh.
#include <cmath>

#include "../pixel_shuffle.h"
#include "strided_copy.cuh"

namespace fastnets {
namespace {

Tensor pixel_shuffle(const Tensor& x, int64_t r) {
  const Tensor y = empty(x, fine_sizes(x, r), is_channels_last(x));
  if (y.numel() > 0) run(Stream(x), pixel_shuffle_copy(x, y, r));
  return y;
}

Tensor pixel_unshuffle(const Tensor& x, int64_t r) {
  const Tensor y = empty(x, coarse_sizes(x, r), is_channels_last(x));
  if (y.numel() > 0) run(Stream(x), inverted(pixel_shuffle_copy(y, x, r)));
  return y;
}

// As x.clamp(0, 1).mul(255).round() in T: the product is rounded to T. NaN becomes 0: it fails the first comparison.
template <typename T>
struct Quantise {
  __device__ uint8_t operator()(T x) const {
    using A = Sum<T>;
    A value = static_cast<A>(x);
    value = value > A(0) ? value : A(0);
    value = value < A(1) ? value : A(1);
    return static_cast<uint8_t>(std::rint(static_cast<A>(static_cast<T>(value * A(255)))));
  }
};

Tensor pixel_shuffle_to_uint8(const Tensor& x, int64_t r) {
  const Tensor y = empty(x, fine_sizes(x, r), is_channels_last(x), aoti_torch_dtype_uint8());
  if (y.numel() == 0) return y;
  with_float(x.scalar_type(), [&](auto zero) {  // never widened: neighbours in x are not the result's, of one byte
    using T = decltype(zero);
    launch_copy<T, uint8_t>(Stream(x), simplified(pixel_shuffle_copy(x, y, r)), Quantise<T>());
  });
  return y;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("pixel_shuffle", TORCH_BOX(&fastnets::pixel_shuffle));
  m.impl("pixel_unshuffle", TORCH_BOX(&fastnets::pixel_unshuffle));
  m.impl("pixel_shuffle_to_uint8", TORCH_BOX(&fastnets::pixel_shuffle_to_uint8));
}
