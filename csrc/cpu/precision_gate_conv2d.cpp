// Precision gating on a CPU: arguments, scratch memory, the cut into tasks, registration. The kernels are in the
// headers; beside the three instruction sets of isa.h they are compiled for AVX-512 with VNNI and VBMI.
#include "precision_gate_conv2d.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <tuple>

#define FASTNETS_KERNELS "precision_gate_conv2d_kernels.h"
#include "isa.h"
#define FASTNETS_VNNI
#include "isa_avx512.h"

namespace fastnets {
namespace {

using gate::Kernels;
using gate::MaybeTensor;
using gate::Problem;

Kernels kernels(ScalarType type) {
#if defined(__x86_64__)
  if (has_vnni()) return avx512vnni::precision_gate_kernels(type);
#endif
  return FASTNETS_FOR_THIS_CPU(precision_gate_kernels)(type);
}

constexpr int64_t kGroup = 2 << 20;  // bytes of the parts of a group of images

// Runs f(begin, end) over `count` tasks of `work` steps each; a thread is worth some 2^15.
template <typename F>
void run(int64_t count, int64_t work, const F& f) {
  torch::stable::parallel_for(0, count, std::max<int64_t>(1, (1 << 15) / std::max<int64_t>(1, work)), f);
}

// max|t|: of a dense tensor in equal pieces, of any other row by row.
double largest(const Tensor& t, const Kernels& kernels) {
  if (t.numel() == 0) return 0;
  const Four size = sizes_of(t), step = strides_of(t);
  const bool contiguous = step.w == 1 && step.h == size.w && step.c == size.h * size.w && step.n == size.c * step.c;
  const bool last = step.c == 1 && step.w == size.c && step.h == size.w * step.w && step.n == size.h * step.h;
  const bool dense = contiguous || last;
  const int64_t piece = dense ? 1 << 14 : size.w, pieces = (t.numel() + piece - 1) / piece;
  const char* const from = static_cast<const char*>(t.const_data_ptr());
  std::vector<double> most(pieces);
  run(pieces, piece, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % size.h * step.h + i / size.h % size.c * step.c + i / size.h / size.c * step.n;
      const int64_t at = dense ? i * piece : row, count = std::min(piece, t.numel() - i * piece);
      most[i] = kernels.largest(from + at * t.element_size(), count, dense ? 1 : step.w);
    }
  });
  double result = 0;
  for (const double value : most) result = value <= result || std::isnan(result) ? result : value;
  return result;
}

double number(const Tensor& t) {
  return with_float(t.scalar_type(), [&](auto zero) { return static_cast<double>(*data<decltype(zero)>(t)); });
}

// Fills in where everything lies; returns the memory.
Tensor lay_out(Problem& p, const Kernels& kernels, const Tensor& x) {
  const Convolution& g = p.g;
  p.channels = (g.depth + 3) / 4 * 4, p.lanes = kernels.lanes;
  p.vectors = (g.m + p.lanes - 1) / p.lanes;
  p.pixel = g.groups * p.channels, p.row = (g.w + 2 * g.pw) * p.pixel, p.image = (g.h + 2 * g.ph) * p.row;
  const auto lines = [](int64_t bytes) { return (bytes + 63) / 64 * 64; };
  p.images = std::clamp<int64_t>(kGroup / (2 * p.image), 1, g.n);
  const int64_t part = lines(p.images * p.image + gate::kWindow);  // a window of the last pixel passes its end
  const int64_t weights = lines(g.groups * p.vectors * p.vector_bytes());
  const int64_t sums = g.groups * p.vectors * p.lanes * sizeof(int32_t);
  const Tensor memory = empty_strided(x, {2 * part + weights + sums}, {1}, aoti_torch_dtype_uint8());
  p.parts[0] = mutable_data<uint8_t>(memory), p.parts[1] = p.parts[0] + part;
  p.weights = reinterpret_cast<int8_t*>(p.parts[1] + part);
  p.sums = reinterpret_cast<int32_t*>(p.weights + weights);
  p.excess.resize(g.groups * p.vectors);
  for (int64_t tap = 0; tap < g.kh * g.kw; ++tap)
    p.tap_offset.push_back(tap / g.kw * g.dh * p.row + tap % g.kw * g.dw * p.pixel);
  // Some tasks for each thread, with the padded input under one of them in the second-level cache.
  const int64_t wanted = 8 * torch::stable::get_num_threads() / (g.groups * p.blocks()) + 1;
  p.chunk = std::clamp<int64_t>(p.pixels() / wanted + 1, 12, 1024);
  return memory;
}

std::tuple<Tensor, Tensor> precision_gate_conv2d(
    const Tensor& x, const Tensor& w, const Tensor& threshold, const MaybeTensor& bias, const MaybeTensor& scale,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    int64_t groups, int64_t activation_bits, int64_t high_bits, int64_t weight_bits, bool /*sparse_backward*/) {
  Problem p{};
  p.g = geometry(x, w, stride, padding, dilation, groups);
  p.bits = gate::bits(activation_bits, high_bits, weight_bits);
  gate::check(x, w, threshold, bias, scale, p.g, p.bits);
  const Convolution& g = p.g;
  const Tensor y = empty(x, {g.n, g.o, g.oh, g.ow}, is_channels_last(x));
  const Tensor open = empty_strided(x, {}, {}, aoti_torch_dtype_int64());
  *mutable_data<int64_t>(open) = 0;
  if (y.numel() == 0) return {y, open};

  const Kernels kernel = kernels(x.scalar_type());
  p.x = x.const_data_ptr(), p.w = w.const_data_ptr(), p.y = y.mutable_data_ptr();
  p.threshold = threshold.const_data_ptr(), p.bias = bias ? bias->const_data_ptr() : nullptr;
  p.x_stride = strides_of(x), p.w_stride = strides_of(w), p.y_stride = strides_of(y);
  p.streams = y.numel() * static_cast<int64_t>(y.element_size()) > kThirdLevel;
  p.threshold_step = threshold.stride(0), p.bias_step = bias ? bias->stride(0) : 0;
  p.x_scale = scale ? number(*scale) : largest(x, kernel), p.w_scale = largest(w, kernel);
  const Tensor memory = lay_out(p, kernel, x);

  const int64_t rows = g.h + 2 * g.ph, terms = g.kh * g.kw * g.depth;
  run(g.groups * p.vectors, terms * p.lanes, [&](int64_t begin, int64_t end) { kernel.pack(p, begin, end); });
  std::atomic<int64_t> count{0};
  for (const int64_t group = p.images; p.first_image < g.n; p.first_image += group) {
    p.images = std::min(group, g.n - p.first_image);
    run(p.images * rows, p.row, [&](int64_t begin, int64_t end) { kernel.quantize(p, begin, end); });
    run(p.chunks() * g.groups * p.blocks(), p.chunk * terms,
        [&](int64_t begin, int64_t end) { count += kernel.convolve(p, begin, end); });
  }
  *mutable_data<int64_t>(open) = count;
  return {y, open};
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("precision_gate_conv2d", TORCH_BOX(&fastnets::precision_gate_conv2d));
}
