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

int64_t lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

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
  const char* const from = static_cast<const char*>(memory(t));
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

// All that follows from the geometry alone.
Problem problem(const Convolution& g, const gate::Bits& bits) {
  Problem p{};
  p.g = g, p.bits = bits;
  p.channels = (g.depth + 3) / 4 * 4, p.panels = (g.m + gate::kLanes - 1) / gate::kLanes;
  p.pixel = g.groups * p.channels, p.row = (g.w + 2 * g.pw) * p.pixel, p.image = (g.h + 2 * g.ph) * p.row;
  for (int64_t tap = 0; tap < g.kh * g.kw; ++tap)
    p.tap_offset.push_back(tap / g.kw * g.dh * p.row + tap % g.kw * g.dw * p.pixel);
  return p;
}

// Memory for the parts of a group of images, and where they lie in it.
Tensor lay_out(Problem& p, const Tensor& x) {
  p.images = std::clamp<int64_t>(kGroup / (2 * p.image), 1, p.g.n);
  const int64_t part = lines(p.images * p.image + gate::kWindow);  // a window of the last pixel passes its end
  const Tensor memory = empty_strided(x, {2 * part}, {1}, aoti_torch_dtype_uint8());
  p.parts[0] = mutable_data<uint8_t>(memory), p.parts[1] = p.parts[0] + part;
  // Some tasks for each thread, with the padded input under one of them in the second-level cache.
  const int64_t wanted = 8 * torch::stable::get_num_threads() / (p.g.groups * p.blocks()) + 1;
  p.chunk = std::clamp<int64_t>(p.pixels() / wanted + 1, 12, 1024);
  return memory;
}

void pack(const Problem& p, const Kernels& kernel, const Tensor& w, gate::Weights& to) {
  const int64_t panels = p.g.groups * p.panels;
  to.from = memory(w), to.stride = strides_of(w), to.excess.resize(panels);
  run(panels, p.panel_bytes(), [&](int64_t begin, int64_t end) { kernel.pack(p, to, begin, end); });
}

// y and the number of open gates, of a problem whose weights and scales are known.
std::tuple<Tensor, Tensor> convolve(Problem& p, const Kernels& kernel, const Tensor& x, const Tensor& threshold,
                                    const MaybeTensor& bias) {
  const Convolution& g = p.g;
  const Tensor y = empty(x, {g.n, g.o, g.oh, g.ow}, is_channels_last(x));
  const Tensor open = empty_strided(x, {}, {}, aoti_torch_dtype_int64());
  *mutable_data<int64_t>(open) = 0;
  if (y.numel() == 0) return {y, open};
  p.x = memory(x), p.x_stride = strides_of(x), p.y = mutable_memory(y), p.y_stride = strides_of(y);
  p.threshold = memory(threshold), p.threshold_step = threshold.stride(0);
  p.bias = bias ? memory(*bias) : nullptr, p.bias_step = bias ? bias->stride(0) : 0;
  p.streams = y.numel() * static_cast<int64_t>(y.element_size()) > kThirdLevel;
  p.fetches = !p.streams && p.y_stride.c == 1;
  const Tensor memory = lay_out(p, x);
  const int64_t rows = g.h + 2 * g.ph, terms = g.kh * g.kw * g.depth;
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

std::tuple<Tensor, Tensor> precision_gate_conv2d(
    const Tensor& x, const Tensor& w, const Tensor& threshold, const MaybeTensor& bias, const MaybeTensor& scale,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    int64_t groups, int64_t activation_bits, int64_t high_bits, int64_t weight_bits, bool /*sparse_backward*/) {
  const Convolution g = geometry(x, w, stride, padding, dilation, groups);
  const gate::Bits bits = gate::bits(activation_bits, high_bits, weight_bits);
  gate::check_numbers(x, w, w.numel(), "weight");
  gate::check(x, threshold, bias, scale, g, bits);
  Problem p = problem(g, bits);
  const Kernels kernel = kernels(x.scalar_type());
  p.x_scale = scale ? number(*scale) : largest(x, kernel), p.w_scale = largest(w, kernel);
  const int64_t panels = g.groups * p.panels, bytes = panels * p.panel_bytes();  // of whole cache lines
  const Tensor memory = empty_strided(x, {bytes + panels * gate::kLanes * 4}, {1}, aoti_torch_dtype_uint8());
  gate::Weights weights{};
  weights.bytes = reinterpret_cast<int8_t*>(mutable_data<uint8_t>(memory)), p.weights = weights.bytes;
  weights.sums = reinterpret_cast<int32_t*>(weights.bytes + bytes), p.sums = weights.sums;
  if (g.n > 0) pack(p, kernel, w, weights);
  p.excess.assign(weights.excess.begin(), weights.excess.end());
  return convolve(p, kernel, x, threshold, bias);
}

// The tensors that the reference in fastnets/ops/_packed_precision_gate_conv2d.py makes, but for the order of Excesses.
std::vector<Tensor> pack_precision_gate_conv2d(const Tensor& w, int64_t groups, int64_t weight_bits) {
  STD_TORCH_CHECK(w.dim() == 4, "expected weights (o, c / groups, kh, kw)");
  const Four size = sizes_of(w);
  const Convolution g = geometry({1, size.c * groups, size.h, size.w}, size, {1, 1}, {0, 0}, {1, 1}, groups);
  Problem p = problem(g, gate::bits(2, 1, weight_bits));
  const Kernels kernel = kernels(w.scalar_type());
  p.w_scale = largest(w, kernel);
  const int64_t panels = groups * p.panels, taps = g.kh * g.kw, lanes = gate::kLanes, step = p.panel_bytes();
  const Tensor bytes = empty_strided(w, {panels, taps, p.channels / 4, lanes, 4},
                                     {step, p.channels * lanes, 4 * lanes, 4, 1}, aoti_torch_dtype_int8());
  const Tensor sums = empty_strided(w, {panels, lanes}, {lanes, 1}, aoti_torch_dtype_int32());
  gate::Weights weights{};
  weights.bytes = mutable_data<int8_t>(bytes), weights.sums = mutable_data<int32_t>(sums);
  pack(p, kernel, w, weights);

  const Tensor starts = empty_strided(w, {panels + 1}, {1}, aoti_torch_dtype_int64());
  int64_t* const start = mutable_data<int64_t>(starts);
  start[0] = 0;
  for (int64_t i = 0; i < panels; ++i) start[i + 1] = start[i] + std::ssize(weights.excess[i]);
  const int64_t row = sizeof(gate::Excess);
  const Tensor excess = empty_strided(w, {start[panels], row}, {row, 1}, aoti_torch_dtype_uint8());
  gate::Excess* const list = reinterpret_cast<gate::Excess*>(mutable_data<uint8_t>(excess));
  for (int64_t i = 0; i < panels; ++i) std::copy(weights.excess[i].begin(), weights.excess[i].end(), list + start[i]);
  const Tensor scale = empty_strided(w, {}, {}, dtype_of(w));
  with_float(w.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    *mutable_data<T>(scale) = static_cast<T>(p.w_scale);
  });
  return {bytes, sums, starts, excess, scale};
}

// Sets the weights, their sums, excess and scale, from what pack_precision_gate_conv2d returned.
void take(const std::vector<Tensor>& packed, const Tensor& x, Problem& p) {
  STD_TORCH_CHECK(packed.size() == 5, "expected five tensors of packed weights");
  const Convolution& g = p.g;
  const Tensor &bytes = packed[0], &sums = packed[1], &starts = packed[2], &excess = packed[3], &scale = packed[4];
  const int64_t panels = g.groups * p.panels;
  const auto is = [](const Tensor& t, ScalarType type, int64_t count) {
    return t.is_cpu() && t.is_contiguous() && t.scalar_type() == type && t.numel() == count;
  };
  STD_TORCH_CHECK(is(bytes, ScalarType::Char, panels * p.panel_bytes()) &&
                      is(sums, ScalarType::Int, panels * gate::kLanes) && is(starts, ScalarType::Long, panels + 1) &&
                      excess.dim() == 2 &&
                      is(excess, ScalarType::Byte, excess.size(0) * static_cast<int64_t>(sizeof(gate::Excess))),
                  "expected packed weights of ", panels, " panels of ", p.panel_bytes(), " bytes");
  p.weights = data<int8_t>(bytes), p.sums = data<int32_t>(sums);
  const int64_t* const start = data<int64_t>(starts);
  const auto* const list = reinterpret_cast<const gate::Excess*>(data<uint8_t>(excess));
  STD_TORCH_CHECK(start[0] == 0 && std::is_sorted(start, start + panels + 1) && start[panels] == excess.size(0) &&
                      std::all_of(list, list + start[panels],
                                  [&](const gate::Excess& e) {
                                    return 0 <= e.tap && e.tap < g.kh * g.kw && 0 <= e.channel && e.channel < g.depth;
                                  }),
                  "expected what packed weights exceed a byte by, at taps and channels of the kernel");
  for (int64_t i = 0; i < panels; ++i) p.excess.emplace_back(list + start[i], list + start[i + 1]);
  gate::check_numbers(x, scale, 1, "the weights' scale");
  p.w_scale = number(scale);
}

// Of weights of these sizes.
std::tuple<Tensor, Tensor> packed_precision_gate_conv2d(
    const Tensor& x, const std::vector<Tensor>& weights, const std::vector<int64_t>& sizes, const Tensor& threshold,
    const MaybeTensor& bias, const Tensor& scale, const std::vector<int64_t>& stride,
    const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation, int64_t groups, int64_t activation_bits,
    int64_t high_bits, int64_t weight_bits) {
  STD_TORCH_CHECK(x.dim() == 4 && sizes.size() == 4, "expected images, and sizes of weights (o, c / groups, kh, kw)");
  const Convolution g =
      geometry(sizes_of(x), {sizes[0], sizes[1], sizes[2], sizes[3]}, stride, padding, dilation, groups);
  const gate::Bits bits = gate::bits(activation_bits, high_bits, weight_bits);
  gate::check(x, threshold, bias, scale, g, bits);
  Problem p = problem(g, bits);
  take(weights, x, p);
  p.x_scale = number(scale);
  return convolve(p, kernels(x.scalar_type()), x, threshold, bias);
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("precision_gate_conv2d", TORCH_BOX(&fastnets::precision_gate_conv2d));
  m.impl("pack_precision_gate_conv2d", TORCH_BOX(&fastnets::pack_precision_gate_conv2d));
  m.impl("packed_precision_gate_conv2d", TORCH_BOX(&fastnets::packed_precision_gate_conv2d));
}
