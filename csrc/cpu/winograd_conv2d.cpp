// Winograd's 3x3 convolution on a CPU: arguments, the cut into chunks, registration. The kernels are in the header.
#include "winograd_conv2d.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>

#define FASTNETS_KERNELS "winograd_conv2d_kernels.h"
#include "isa.h"

namespace fastnets {
namespace {

using winograd::Problem;

// Each result is one sum, whatever the cut.
void run(Problem& p, const Tensor& x) {
  constexpr int64_t kChunk = 28;  // tiles that share a pass over the weights: twice the rows of a register tile
  const int64_t threads = torch::stable::get_num_threads(), pieces = ceil_div(p.tiles(), kChunk);
  const int64_t transforms = p.points() * p.tiles() * p.g.c, products = transforms * p.g.o;
  p.chunk = ceil_div(p.tiles(), pieces < threads ? pieces : ceil_div(pieces, threads) * threads);
  if (pieces >= threads)
    return pointwise::run(
        p.chunks(), products,
        [p, kernel = FASTNETS_FOR_THIS_CPU(winograd::chunks)](int64_t begin, int64_t end) { kernel(p, begin, end); });
  const StepScratch points(x, p.chunks() * p.x_chunk());
  float* const v = points.data<float>();
  pointwise::run(p.tiles(), transforms,
                 [p, v, kernel = FASTNETS_FOR_THIS_CPU(winograd::tiles)](int64_t begin, int64_t end) {
                   kernel(p, v, begin, end);
                 });
  pointwise::run(p.chunks() * p.product.panels(), products,
                 [p, v, kernel = FASTNETS_FOR_THIS_CPU(winograd::panels)](int64_t begin, int64_t end) {
                   kernel(p, v, begin, end);
                 });
}

// Of x in channels_last and weights in panels, [panel][point][channel][32], for tiles of 2 (16 points) or 4 (36). The
// results, or the pixels of the image `upscale_factor` times as fine that they are, are channels of `into` from
// `channel` on where that is given.
Tensor winograd_conv2d(const Tensor& x, const Tensor& panels, int64_t out, const std::vector<int64_t>& padding,
                       const std::optional<Tensor>& bias, const std::optional<Tensor>& residual,
                       const std::optional<Text>& activation, int64_t upscale_factor, const std::optional<Tensor>& into,
                       int64_t channel) {
  Problem p;
  p.x = pointwise::check_slice(x);
  p.g = geometry(sizes_of(x), {out, x.size(1), 3, 3}, {1, 1}, padding, {1, 1}, 1);
  const Convolution& g = p.g;
  STD_TORCH_CHECK(panels.dim() > 1 && (panels.size(1) == 16 || panels.size(1) == 36),
                  "expected the weights of 16 or 36 points");
  p.side = panels.size(1) == 16 ? 2 : 4;
  pointwise::check_panels(panels, p.points() * g.c, out);
  const Four size{g.n, out, g.oh, g.ow};
  const pointwise::Results<> y(x, fine_size(g.n, out, g.oh, g.ow, upscale_factor), into, channel);
  p.fine = {upscale_factor, out, g.ow, y.pixels.pixel};
  STD_TORCH_CHECK(!residual || upscale_factor == 1, "expected no residual where results are pixels of a finer image");
  p.product.w = data<float>(panels), p.product.bias = pointwise::check_bias(bias, out);
  p.product.residual = pointwise::check_residual(residual, size), p.product.y = y.pixels;
  p.product.in = g.c, p.product.out = out, p.product.activation = parse_activation(activation);
  p.zeros = std::make_shared<const std::vector<float>>(g.c);
  if (p.tiles() > 0) run(p, x);
  return y.images;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) { m.impl("winograd_conv2d", TORCH_BOX(&fastnets::winograd_conv2d)); }
