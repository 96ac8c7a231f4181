// Images in channels_last that are added, and put beside each other, on a CPU: arguments and registration. The kernel
// of sums is in the header, copies are in strided_copy.cpp.
#include <optional>

#include "../strided_copy.h"
#include "pointwise_conv2d.h"
#include "strided_copy.h"

namespace fastnets::images {

template <typename T>
struct Sum {
  pointwise::Pixels<const T> a, b;
  pointwise::Pixels<T> y;
  int64_t channels = 0;
  Activation activation = Activation::kNone;
};

}  // namespace fastnets::images

#define FASTNETS_KERNELS "images_kernels.h"
#include "isa.h"
#define FASTNETS_BF16
#include "isa_avx512.h"

namespace fastnets {
namespace {

// The activation of a + b, as channels of `into` from `channel` on where that is given.
Tensor add_images(const Tensor& a, const Tensor& b, const std::optional<Text>& activation,
                  const std::optional<Tensor>& into, int64_t channel) {
  return pointwise::with_type(a, [&](auto type) {
    using T = decltype(type);
    images::Sum<T> p;
    p.a = pointwise::check_slice<T>(a), p.b = pointwise::check_slice<T>(b);
    const Four size = sizes_of(a);
    STD_TORCH_CHECK(sizes_of(b) == size, "expected two images of one shape");
    const pointwise::Results<T> y(a, size, into, channel);
    p.y = y.pixels, p.channels = size.c, p.activation = parse_activation(activation);
    if (a.numel() > 0)
      pointwise::run(size.n * size.h * size.w, a.numel(),
                     [p, kernel = FASTNETS_FOR_THIS_CPU_AND(T, images::add<T>)](int64_t begin, int64_t end) {
                       kernel(p, begin, end);
                     });
    return y.images;
  });
}

// Writes each of xs into channels of `into`, from the given one on.
Tensor concat_images(const Tensor& into, const std::vector<Tensor>& xs, const std::vector<int64_t>& channels) {
  STD_TORCH_CHECK(xs.size() == channels.size(), "expected a channel for each image");
  for (size_t i = 0; i < xs.size(); ++i) {
    const Tensor& x = xs[i];
    STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == into.scalar_type(), "expected images of one type");
    packed::images_for(x, sizes_of(x), into, channels[i], dtype_of(x));
    const Four n = sizes_of(x), from = strides_of(x), to = strides_of(into);
    const int64_t b = x.element_size();
    const StridedCopy copy{
        data<char>(x),
        mutable_data<char>(into) + channels[i] * b,
        b,
        {{n.n, from.n * b, to.n * b}, {n.h, from.h * b, to.h * b}, {n.w, from.w * b, to.w * b}, {n.c, from.c * b, b}}};
    if (x.numel() > 0) run(copy);
  }
  return into;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("add_images", TORCH_BOX(&fastnets::add_images));
  m.impl("concat_images", TORCH_BOX(&fastnets::concat_images));
}
