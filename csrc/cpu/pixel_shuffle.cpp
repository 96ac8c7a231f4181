// Pixel shuffle on a CPU: arguments and registration. The copy itself is in strided_copy.cpp.
#include "../pixel_shuffle.h"

#include <torch/csrc/stable/ops.h>

#include <memory>
#include <optional>

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

// A band is some rows of x, of all channels where these are neighbours and otherwise of one channel of the result: as
// much as the first-level cache has room for. It goes through a buffer that holds the bytes in the order of x, the
// innermost axis of which comes first.
class Bands {
 public:
  Bands(const Tensor& x, const Tensor& y, int64_t r) : x_(data<char>(x)), y_(mutable_data<char>(y)) {
    constexpr int64_t kBand = 16 << 10;
    const bool last = is_channels_last(x);
    const std::vector<Axis> all = pixel_shuffle_axes(x, y, r);
    const Axis c = all[1], w = all[3], i = all[4], j = all[5];
    n_ = all[0], h_ = all[2], planes_ = last ? Axis{1, 0, 0} : c;
    axes_ = last ? std::vector{j, i, c, w, h_} : std::vector{w, h_, j, i};
    rows_of_ = last ? 4 : 1;
    row_ = y.numel() / (n_.size * planes_.size * h_.size);
    rows_ = std::clamp<int64_t>(kBand / row_, 1, h_.size);
    pieces_ = ceil_div(h_.size, rows_);
  }

  int64_t count() const { return n_.size * planes_.size * pieces_; }

  void run(QuantiseLine line, int64_t begin, int64_t end) const {
    const std::unique_ptr<char[]> buffer(new char[row_ * rows_]);
    std::optional<CopyPlan> plan;  // of as many rows as the last band
    int64_t planned = 0, at = 0;
    for (int64_t band = begin; band < end; ++band) {
      const int64_t first = band % pieces_ * rows_, plane = band / pieces_ % planes_.size,
                    image = band / pieces_ / planes_.size, rows = std::min(rows_, h_.size - first),
                    to = image * n_.to + plane * planes_.to + first * h_.to;
      StridedCopy read{x_ + image * n_.from + plane * planes_.from + first * h_.from, buffer.get(), 1, axes_};
      read.axes[rows_of_].size = rows;
      StridedCopy write{buffer.get(), y_ + to, 1, read.axes};
      int64_t step = 1;
      for (size_t i = 0; i < axes_.size(); step *= read.axes[i++].size) read.axes[i].to = write.axes[i].from = step;
      read = simplified(read);
      quantise(line, read.axes.data(), read.axes.size(), read.from, read.to);
      if (rows == planned)
        plan->move_result(to - at);
      else
        plan.emplace(write), planned = rows;
      at = to;
      plan->run(0, plan->blocks());
    }
  }

 private:
  const char* x_;
  char* y_;
  Axis n_, h_, planes_;
  std::vector<Axis> axes_;
  int64_t rows_of_;     // which of the axes is that of rows
  int64_t row_, rows_;  // bytes of a row; rows in a band
  int64_t pieces_;      // bands of a plane
};

Tensor pixel_shuffle_to_uint8(const Tensor& x, int64_t r) {
  const Tensor y = empty(x, fine_sizes(x, r), is_channels_last(x), aoti_torch_dtype_uint8());
  if (y.numel() == 0) return y;
  const QuantiseLine line = FASTNETS_FOR_THIS_CPU(quantise_kernel)(x.scalar_type());
  const Bands bands(x, y, r);
  torch::stable::parallel_for(0, bands.count(), 1, [&](int64_t begin, int64_t end) { bands.run(line, begin, end); });
  return y;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("pixel_shuffle", TORCH_BOX(&fastnets::pixel_shuffle));
  m.impl("pixel_unshuffle", TORCH_BOX(&fastnets::pixel_unshuffle));
  m.impl("pixel_shuffle_to_uint8", TORCH_BOX(&fastnets::pixel_shuffle_to_uint8));
}
