// What ops on packed weights check of their arguments, on a CPU and on CUDA.
#pragma once

#include <optional>

#include "tensor.h"

namespace fastnets::packed {

using MaybeTensor = std::optional<Tensor>;

constexpr int64_t kPanel = 32;  // results or hidden channels whose weights lie together

inline void check_images(const Tensor& x, ScalarType type) {
  STD_TORCH_CHECK(x.dim() == 4 && is_dense(x, true) && x.scalar_type() == type,
                  "expected images in channels_last, of the type that the kernel takes");
}

// Weights of `in` channels for `out` results, those of `together` channels side by side.
inline void check_panels(const Tensor& w, int64_t in, int64_t out, ScalarType type, int64_t together = 1) {
  const int64_t panels = ceil_div(out, kPanel), padded = ceil_div(in, together) * together;
  const bool lies = together == 1 || (w.dim() > 0 && w.size(w.dim() - 1) == together);
  STD_TORCH_CHECK(
      lies && w.is_contiguous() && w.numel() == panels * padded * kPanel && w.scalar_type() == type && in > 0,
      "expected ", panels, " panels of weights of ", in, " channels, ", together,
      " side by side, of the type that the kernel multiplies");
}

inline void check_bias(const MaybeTensor& bias, int64_t out, ScalarType type) {
  STD_TORCH_CHECK(!bias || (bias->is_contiguous() && bias->numel() == out && bias->scalar_type() == type),
                  "expected a bias of ", out, " numbers, of the type of sums");
}

inline void check_residual(const MaybeTensor& residual, const Four& size, ScalarType type) {
  if (!residual) return;
  check_images(*residual, type);
  STD_TORCH_CHECK(sizes_of(*residual) == size, "expected a residual of the result's shape");
}

// Where results of this size and type go: new images, or larger ones that have room for them from `channel` on.
inline Tensor images_for(const Tensor& like, const Four& size, const MaybeTensor& into, int64_t channel,
                         int32_t dtype) {
  if (!into) return empty(like, size, true, dtype);
  STD_TORCH_CHECK(dtype_of(*into) == dtype, "expected images of the type of the results");
  check_images(*into, into->scalar_type());
  const Four all = sizes_of(*into);
  const bool fits = all.n == size.n && all.h == size.h && all.w == size.w && 0 <= channel && channel + size.c <= all.c;
  STD_TORCH_CHECK(fits, "expected images of ", size.n, " x ", size.h, " x ", size.w, " with room for ", size.c,
                  " channels from ", channel, " on");
  return *into;
}

}  // namespace fastnets::packed
