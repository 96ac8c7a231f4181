// The inverted residual on CUDA: how images are cut, arguments, registration. The kernel is in the .cuh.
#include <algorithm>
#include <string>

#include "inverted_residual.cuh"

namespace fastnets {
namespace {

using namespace inverted;

constexpr int kShared =
    80 << 10;  // bytes of a block: two on an A100's multiprocessor, which has 164 KB, as on an H100's
constexpr int kAtOnce = 2 * 132;  // blocks that an H100 runs at once
constexpr int kChannels = 384;    // of x, at most, where they are expanded: the smallest tile then fits kShared

int narrow(int64_t count) {
  STD_TORCH_CHECK(count < int64_t{1} << 30, "sizes and paddings must be under 2^30, got ", count);
  return static_cast<int>(count);
}

int up(int64_t count, int64_t multiple) { return static_cast<int>(ceil_div(count, multiple) * multiple); }

// Pixels of x that a tile's side of that many results needs, inside the image.
int64_t source(int64_t results, int64_t kernel, int64_t stride, int64_t size) {
  return std::min((results - 1) * stride + kernel, size);
}

// A tile of tile_h x tile_w pixels: who does what, and what lies where.
Plan plan_of(const Convolution& g, int64_t c, bool expands, int64_t out, int64_t tile_h, int64_t tile_w) {
  Plan p;
  p.tile_h = static_cast<int>(tile_h), p.tile_w = static_cast<int>(tile_w);
  p.tiles_h = Divisor(ceil_div(g.oh, tile_h)), p.tiles_w = Divisor(ceil_div(g.ow, tile_w));
  p.column = Divisor(tile_w), p.runs = Divisor(ceil_div(tile_w, kRun));
  p.warps_m = tile_h * tile_w > 128 ? 3 : tile_h * tile_w > 64 ? 2 : 1;
  const int64_t warps_n = kWarps >> p.warps_m, shares = ceil_div(out, warps_n * kStage);
  p.results = up(ceil_div(out, shares), kPanel), p.share = Divisor(ceil_div(out, p.results));
  p.pairs = static_cast<int>(ceil_div(p.results / 16, warps_n));
  const int64_t pixels = source(tile_h, g.kh, g.sh, g.h) * source(tile_w, g.kw, g.sw, g.w);
  p.x_row = expands ? up(c, 16) + 8 : 0;
  p.hidden_row = static_cast<int>((std::max<int64_t>(tile_w, kRun) - 1) * g.sw + g.kw);
  int bytes = 0;
  const auto place = [&](int64_t count) { return bytes += up(count, 16), bytes - up(count, 16); };
  p.tile = place(sizeof(Tile));
  p.stage = p.x = place(2 * pixels * p.x_row);
  p.hidden = place(2 * kRow * ((up(tile_h, 2) - 1) * g.sh + g.kh) * p.hidden_row);
  p.deep = place(2 * kRow * tile_h * tile_w);
  p.expand = place(expands ? 2 * kRow * up(c, kPanel) : 0);
  p.project = place(2 * kPanel * (p.results + 8));
  p.taps = place(2 * kPanel * (g.kh * g.kw + 1));
  p.bias = place(2 * kPanel);
  p.spots = place(sizeof(Spot) * pixels);
  p.bytes = std::max<int>(bytes, p.stage + sizeof(float) * kWarps * 16 * kStageRow);
  return p;
}

// About the instructions of a warp scheduler that all blocks take, one round of kAtOnce after the other.
int64_t cost(const Convolution& g, const Plan& p) {
  constexpr int64_t kProduct = 48, kBarriers = 1500;  // of 32 pixels by 16 by 32 channels; what a panel takes beside
  const int64_t pixels = source(p.tile_h, g.kh, g.sh, g.h) * source(p.tile_w, g.kw, g.sw, g.w);
  const int64_t expand = p.x_row ? ceil_div(pixels, 32) * (p.x_row / 16 * kProduct + 250) : 0;
  const int64_t run = kRun * 2 * g.kh * g.kw + 3 * g.kh * ((kRun - 1) * g.sw + 2 * g.kw) + 60;
  const int64_t deep = ceil_div(p.tile_h, 2) * p.runs.size * run;
  const int64_t project = ceil_div(int64_t{p.tile_h} * p.tile_w, 32) * (p.results / 16) * kProduct;
  const int64_t blocks = g.n * p.tiles_h.size * p.tiles_w.size * p.share.size;
  return ceil_div(blocks, kAtOnce) * (expand + deep + project + kBarriers);
}

// The cheapest of some tiles of even size; those under a run are for many channels, which need room.
Plan cheapest(const Convolution& g, int64_t c, bool expands, int64_t out) {
  Plan best;
  int64_t least = INT64_MAX;
  const int64_t most = out > 128 ? 64 : out > 64 ? 128 : 256;  // pixels of which 8 warps hold all sums
  const auto goes_on = [&](int64_t size) { return size >= kRun || (size > 0 && least == INT64_MAX); };
  for (int64_t width = 4 * kRun; goes_on(width); width /= 2)
    for (int64_t pixels = most; goes_on(pixels); pixels /= 2) {
      const int64_t tile_w = ceil_div(g.ow, ceil_div(g.ow, width));
      const int64_t tile_h = ceil_div(g.oh, ceil_div(g.oh, std::max<int64_t>(1, pixels / tile_w)));
      const Plan p = plan_of(g, c, expands, out, tile_h, tile_w);
      if (p.bytes > kShared || cost(g, p) >= least) continue;
      best = p, least = cost(g, p);
    }
  STD_TORCH_CHECK(least < INT64_MAX, "expected at most ", kChannels, " channels");
  return best;
}

template <typename T>
bool aligned(const T* from) {
  return reinterpret_cast<uintptr_t>(from) % 16 == 0;
}

template <typename T>
void run(const Stream& stream, const Operands<T>& t, const Sizes& sizes, const Plan& p, const Convolution& g) {
  const int64_t blocks = g.n * p.tiles_h.size * p.tiles_w.size * p.share.size;
  STD_TORCH_CHECK(blocks < int64_t{1} << 31, "more blocks than a grid has");
  const Grid grid{static_cast<unsigned>(blocks), kThreads, static_cast<size_t>(p.bytes)};
  const auto start = [&](auto k, auto s) {
    if (g.kh == k && g.sh == s) launch(stream, grid, inverted::inverted_residual<T, k(), s()>, t, sizes, p);
  };
  using std::integral_constant;
  start(integral_constant<int, 3>(), integral_constant<int, 1>());
  start(integral_constant<int, 3>(), integral_constant<int, 2>());
  start(integral_constant<int, 5>(), integral_constant<int, 1>());
  start(integral_constant<int, 5>(), integral_constant<int, 2>());
}

// Weights are in panels as csrc/cpu/inverted_residual.h says; `into` and `channel` are as in pointwise_conv2d.
Tensor inverted_residual(const Tensor& x, const MaybeTensor& expand, const MaybeTensor& expand_bias,
                         const std::optional<Text>& expand_activation, const Tensor& depthwise, int64_t hidden,
                         const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                         const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation,
                         const std::optional<Text>& activation, const Tensor& project, const MaybeTensor& project_bias,
                         int64_t out, const MaybeTensor& residual, const std::optional<Text>& project_activation,
                         const std::vector<Tensor>& squeeze, const std::optional<Text>&, bool,
                         const std::vector<Tensor>& quantized, const MaybeTensor&, const MaybeTensor& into,
                         int64_t channel) {
  STD_TORCH_CHECK(squeeze.empty() && quantized.empty(), "expected no squeeze and excitation, and no int8");
  const Convolution g = inverted::check(x, expand, expand_bias, depthwise, hidden, kernel, stride, padding, dilation,
                                        project, project_bias, out, residual, {1, x.scalar_type()});
  STD_TORCH_CHECK((g.kh == 3 || g.kh == 5) && g.kw == g.kh && (g.sh == 1 || g.sh == 2) && g.sw == g.sh && g.dh == 1 &&
                      g.dw == 1 && (!expand || x.size(1) <= kChannels),
                  "expected a 3x3 or 5x5 kernel of stride 1 or 2 without dilation, and at most ", kChannels,
                  " channels to expand");
  packed::check_residual(residual, {g.n, out, g.oh, g.ow}, x.scalar_type());
  const Tensor y = packed::images_for(x, {g.n, out, g.oh, g.ow}, into, channel, dtype_of(x));
  STD_TORCH_CHECK(y.device() == x.device(), "expected images on the input's device");
  const Sizes sizes{narrow(g.h),  narrow(g.w),       narrow(g.oh),   narrow(g.ow), narrow(g.ph),
                    narrow(g.pw), narrow(x.size(1)), narrow(hidden), narrow(out)};
  narrow(g.h * g.w), narrow(y.size(1));
  const auto run_as = [&](auto zero) {
    using T = decltype(zero);
    const auto numbers = [](const MaybeTensor& t) { return t ? data<T>(*t) : nullptr; };
    Operands<T> t{data<T>(x),
                  numbers(expand),
                  numbers(expand_bias),
                  data<T>(depthwise),
                  data<T>(project),
                  numbers(project_bias),
                  numbers(residual),
                  mutable_data<T>(y) + channel,
                  int(y.size(1)),
                  x.size(1) % 8 == 0,
                  false,
                  parse_activation(expand_activation),
                  parse_activation(activation),
                  parse_activation(project_activation)};
    t.x_vectors = t.x_vectors && aligned(t.x);
    t.y_vectors = out % 8 == 0 && t.y_pixel % 8 == 0 && aligned(t.y) && aligned(t.residual);
    STD_TORCH_CHECK(aligned(t.expand) && aligned(t.expand_bias) && aligned(t.depthwise) && aligned(t.project),
                    "expected packed weights and a hidden bias that begin at a multiple of 16 bytes");
    if (y.numel() > 0) run(Stream(x), t, sizes, cheapest(g, sizes.c, expand.has_value(), out), g);
  };
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Half || x.scalar_type() == ScalarType::BFloat16,
                  "expected float16 or bfloat16");
  x.scalar_type() == ScalarType::Half ? run_as(Half()) : run_as(BFloat16());
  return y;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("inverted_residual", TORCH_BOX(&fastnets::inverted_residual));
}
