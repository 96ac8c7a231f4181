// Pixel shuffle on a CPU: arguments and registration. The copy itself is in strided_copy.cpp.
#include "../pixel_shuffle.h"

#include <torch/csrc/stable/ops.h>

#include <memory>

#include "strided_copy.h"

#define FASTNETS_KERNELS "pixel_shuffle_kernels.h"
#include "isa.h"

namespace fastnets {
namespace {

Tensor pixel_shuffle(const Tensor& x, int64_t r) {
  const Tensor y = empty(x, fine_sizes(x, r), is_channels_last(x));
  if (y.numel() > 0) run(pixel_shuffle_copy(x, y, r));
  return y;
}

Tensor pixel_unshuffle(const Tensor& x, int64_t r) {
  const Tensor y = empty(x, coarse_sizes(x, r), is_channels_last(x));
  if (y.numel() > 0) run(inverted(pixel_shuffle_copy(y, x, r)));
  return y;
}

using QuantiseLine = void (*)(const char* from, int64_t step, char* to, int64_t count);

void quantise(QuantiseLine line, const Axis* axis, size_t axes, const char* from, char* to) {
  if (axes == 0) return line(from, 0, to, 1);
  if (axes == 1) return line(from, axis->from, to, axis->size);
  for (int64_t i = 0; i < axis->size; ++i) quantise(line, axis + 1, axes - 1, from + i * axis->from, to + i * axis->to);
}

// Through a buffer that holds the bytes in the order of x, the innermost axis of which comes first.
void run_band(QuantiseLine line, const char* from, char* to, const std::vector<Axis>& axes, char* buffer) {
  StridedCopy read{from, buffer, 1, axes}, write{buffer, to, 1, axes};
  int64_t step = 1;
  for (size_t i = 0; i < axes.size(); step *= axes[i++].size) read.axes[i].to = write.axes[i].from = step;
  read = simplified(read);
  quantise(line, read.axes.data(), read.axes.size(), read.from, read.to);
  const CopyPlan plan(write);
  plan.run(0, plan.blocks());
}

// A band is some rows of x, of all channels where these are neighbours and otherwise of one channel of the result: as
// much as the first-level cache has room for.
Tensor pixel_shuffle_to_uint8(const Tensor& x, int64_t r) {
  constexpr int64_t kBand = 16 << 10;
  const bool last = is_channels_last(x);
  const Tensor y = empty(x, fine_sizes(x, r), last, aoti_torch_dtype_uint8());
  if (y.numel() == 0) return y;
  const QuantiseLine line = FASTNETS_FOR_THIS_CPU(quantise_kernel)(x.scalar_type());
  const std::vector<Axis> all = pixel_shuffle_axes(x, y, r);
  const Axis n = all[0], c = all[1], h = all[2], w = all[3], i = all[4], j = all[5], planes = last ? Axis{1, 0, 0} : c;
  const std::vector<Axis> inner = last ? std::vector{j, i, c, w, h} : std::vector{w, h, j, i};
  const int64_t row = y.numel() / (n.size * planes.size * h.size), rows = std::clamp<int64_t>(kBand / row, 1, h.size);
  const int64_t pieces = (h.size + rows - 1) / rows;
  torch::stable::parallel_for(0, n.size * planes.size * pieces, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<char[]> buffer(new char[row * rows]);
    for (int64_t band = begin; band < end; ++band) {
      const int64_t first = band % pieces * rows, plane = band / pieces % planes.size,
                    image = band / pieces / planes.size;
      std::vector<Axis> axes = inner;
      axes[last ? 4 : 1].size = std::min(rows, h.size - first);
      run_band(line, data<char>(x) + image * n.from + plane * planes.from + first * h.from,
               mutable_data<char>(y) + image * n.to + plane * planes.to + first * h.to, axes, buffer.get());
    }
  });
  return y;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("pixel_shuffle", TORCH_BOX(&fastnets::pixel_shuffle));
  m.impl("pixel_unshuffle", TORCH_BOX(&fastnets::pixel_unshuffle));
  m.impl("pixel_shuffle_to_uint8", TORCH_BOX(&fastnets::pixel_shuffle_to_uint8));
}
