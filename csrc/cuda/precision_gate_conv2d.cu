// Precision gating on CUDA: scratch memory, grids, registration. The kernels are in the .cuh.
#include <algorithm>
#include <tuple>

#include "precision_gate_conv2d.cuh"

namespace fastnets {
namespace {

using namespace gate;

constexpr int64_t kPartials = 256;

unsigned blocks(int64_t threads) {
  STD_TORCH_CHECK(threads < (int64_t{1} << 31) * kThreads, "more blocks than a grid has");
  return static_cast<unsigned>(std::max<int64_t>(1, ceil_div(threads, kThreads)));
}

Tensor scratch(const Tensor& like, int64_t bytes) {
  return empty_strided(like, {bytes}, {1}, aoti_torch_dtype_uint8());
}

// *to = max|t|, without a word to the host.
template <typename T>
void find_largest(const Stream& stream, const Tensor& t, Sum<T>* partials, Sum<T>* to) {
  using A = Sum<T>;
  const int64_t count = std::min<int64_t>(kPartials, ceil_div(t.numel(), 8 * kThreads));
  launch(stream, {static_cast<unsigned>(count), kThreads}, largest<T, A>, data<T>(t), partials, sizes_of(t),
         strides_of(t), false);
  launch(stream, {1, kThreads}, largest<A, A>, static_cast<const A*>(partials), to, Four{1, 1, 1, count},
         Four{0, 0, 0, 1}, false);
}

// A tensor's two planes, one after the other.
template <typename T>
Tensor quantized(const Stream& stream, const Tensor& t, const Sum<T>* scale, const Planes& p, int64_t* to_clear) {
  const Tensor planes = scratch(t, 8 * p.count());
  unsigned* const high = mutable_data<unsigned>(planes);
  launch(stream, {blocks(p.count()), kThreads}, quantize<T>, data<T>(t), scale, high, high + p.count(), p, to_clear);
  return planes;
}

Tensor convolved(const Tensor& x, const Tensor& w, const Tensor& threshold, const MaybeTensor& bias,
                 const MaybeTensor& scale, const Convolution& g, const Bits& b, const Tensor& open) {
  const Tensor y = empty(x, {g.n, g.o, g.oh, g.ow}, is_channels_last(x));
  const Stream stream(x);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Sum<T>;
    const Tensor memory = scratch(x, (kPartials + 2) * sizeof(A));
    A* const scales = mutable_data<A>(memory);
    if (scale) {
      launch(stream, {1, kThreads}, largest<T, A>, data<T>(*scale), scales, Four{1, 1, 1, 1}, Four{}, true);
    } else if (x.numel() > 0) {
      find_largest<T>(stream, x, scales + 2, scales);
    }
    find_largest<T>(stream, w, scales + 2, scales + 1);
    const int64_t words = ceil_div(g.depth, 4);
    const Planes input{sizes_of(x), strides_of(x), g.depth, words, g.groups, b.levels, static_cast<int>(b.low)};
    const Planes weight{sizes_of(w), strides_of(w), g.depth, words, 1, b.weight_levels, 1};
    const Tensor parts = quantized<T>(stream, x, scales, input, nullptr);
    const Tensor weights = quantized<T>(stream, w, scales + 1, weight, mutable_data<int64_t>(open));
    const int64_t tiles = ceil_div(g.m, kWarpOutputs) * g.groups;
    const int64_t warps = ceil_div(g.n * g.oh * g.ow, kWarpPixels) * tiles;
    if (y.numel() == 0) return;
    const int *xs = data<int>(parts), *ws = data<int>(weights);
    const Operands operands{{xs, xs + input.count()}, {ws, ws + weight.count()}, words, strides_of(y),
                            threshold.stride(0),      bias ? bias->stride(0) : 0};
    launch(stream, {blocks(32 * warps), kThreads}, convolve<T>, operands, static_cast<const A*>(scales),
           data<T>(threshold), bias ? data<T>(*bias) : nullptr, mutable_data<T>(y), mutable_data<int64_t>(open), g, b);
  });
  return y;
}

std::tuple<Tensor, Tensor> precision_gate_conv2d(
    const Tensor& x, const Tensor& w, const Tensor& threshold, const MaybeTensor& bias, const MaybeTensor& scale,
    const std::vector<int64_t>& stride, const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
    int64_t groups, int64_t activation_bits, int64_t high_bits, int64_t weight_bits, bool /*sparse_backward*/) {
  const Convolution g = geometry(x, w, stride, padding, dilation, groups);
  const Bits b = bits(activation_bits, high_bits, weight_bits);
  check_numbers(x, w, w.numel(), "weight");
  check(x, threshold, bias, scale, g, b);
  const Tensor open = empty_strided(x, {}, {}, aoti_torch_dtype_int64());
  const Tensor y = convolved(x, w, threshold, bias, scale, g, b, open);
  return {y, open};
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("precision_gate_conv2d", TORCH_BOX(&fastnets::precision_gate_conv2d));
}
