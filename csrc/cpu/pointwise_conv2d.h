// A pointwise convolution as its kernels are given it, for all instruction sets.
#pragma once

#include <algorithm>
#include <optional>

#include "../convolution.h"
#include "../packed.h"
#include "capability.h"
#include "levels.h"
#include "steps.h"

namespace fastnets::pointwise {

using packed::kPanel;  // also the channels that lie together in scratch

// Pixels: channel c of pixel i is at data[i * pixel + c / length * panel + c % length]. In an image in channels_last
// pixels are all its channels apart and panels kPanel; scratch mostly holds one panel after the other, its pixels
// kPanel apart.
template <typename T>
struct Pixels {
  T* data = nullptr;
  int64_t pixel = 0, panel = kPanel, length = kPanel;
};

// How many numbers of X are multiplied in a lane at a time: as many as have 4 bytes.
template <typename X>
inline constexpr int64_t kTogether = sizeof(float) / sizeof(X);

// Bytes are levels of float32 images, and are multiplied with signed ones.
template <typename X>
inline constexpr bool kIsBytes = std::is_same_v<X, uint8_t>;
template <typename X>
using Weight = std::conditional_t<kIsBytes<X>, int8_t, X>;
template <typename X>
using Number = std::conditional_t<kIsBytes<X>, float, X>;

// Of each pixel of x, `in` channels give `out` of y. What is multiplied is X, float32 or bfloat16, whose sums are
// float32, or bytes, of whose sums, integers, `scales` make numbers; these take `in` in multiples of kTogether.
template <typename X, typename Y = Number<X>>
struct ProblemOf {
  Pixels<const X> x;
  const Weight<X>* w = nullptr;   // [panel][in / kTogether][kPanel][kTogether], zeros after the last of `in` and `out`
  const float* scales = nullptr;  // [out]
  StoredLevels levels;            // where y is bytes
  const float* bias = nullptr;    // [out], or null
  Pixels<const Y> residual;
  Pixels<Y> y;
  int64_t in = 0, out = 0;
  Activation activation = Activation::kNone;
  bool streams = false;  // whether y is more than a third-level cache keeps for its reader
  bool fetches = false;  // whether the next tile's part of y is fetched, as it is in no near cache

  int64_t panels() const { return ceil_div(out, kPanel); }
  const Weight<X>* weights(int64_t panel) const {
    return w + panel * kPanel * ceil_div(in, kTogether<X>) * kTogether<X>;
  }
};
using Problem = ProblemOf<float>;

inline bool streams(const Four& y) { return y.n * y.c * y.h * y.w * static_cast<int64_t>(sizeof(float)) > kThirdLevel; }

// Blocks of pixels, each for every panel: `block` pixels to a task where tasks go panels first, else pixels first.
struct Tasks {
  int64_t pixels = 0, panels = 0, block = 1;
  bool panels_first = false;

  int64_t blocks() const { return ceil_div(pixels, block); }
  int64_t count() const { return blocks() * panels; }
  int64_t panel(int64_t task) const { return panels_first ? task % panels : task / blocks(); }
  Range range(int64_t task) const {
    const int64_t first = (panels_first ? task / panels : task % blocks()) * block;
    return {first, std::min(first + block, pixels)};
  }
  // The pixels of a task, and those of the tasks up to `end` that go on with its panel; `task` is then the next one.
  Range merged(int64_t& task, int64_t end) const {
    const int64_t first = task;
    Range all = range(task);
    for (++task; task < end && panel(task) == panel(first) && range(task).begin == all.end; ++task)
      all.end = range(task).end;
    return all;
  }
};

// Whether threads that share blocks of pixels are done sooner than those that share panels, the last of which takes
// half the time where it is half empty.
inline bool evens_by_block(int64_t pixels, int64_t block, int64_t out) {
  const int64_t panels = ceil_div(out, kPanel), threads = torch::stable::get_num_threads(), left = out % kPanel;
  const int64_t most = std::min(pixels, ceil_div(ceil_div(pixels, block), threads) * block);
  return left > 0 && left <= kPanel / 2 && most * (2 * panels - 1) * threads < 2 * pixels * panels;
}

// What is read again and again stays in a cache: the weights of one panel while the pixels, which are few, go by; or
// else a block of pixels, and the rows of results which that writes, while the panels go by. Of groups' panels few is
// what does not pay for packing each in every thread: results of two may share a cache line that two threads then
// write.
template <typename X, typename Y>
Tasks tasks_of(const ProblemOf<X, Y>& p, int64_t pixels, int64_t groups = 1) {
  constexpr int64_t kFirstLevel = 24 << 10, kSecondLevel = 512 << 10, kTile = 42;  // a multiple of 14 and of 6 pixels
  constexpr int64_t kSize = sizeof(X), kFew = 512;
  if (groups > 1 ? pixels < kFew : kSize * pixels * p.in <= kSecondLevel) {
    const int64_t block = capability() == Capability::kAvx512 ? 14 : 12;
    return {pixels, groups * p.panels(), block, groups == 1 && evens_by_block(pixels, block, p.out)};
  }
  return {pixels, groups * p.panels(), std::max<int64_t>(1, kFirstLevel / (kSize * (p.in + p.out)) / kTile) * kTile,
          true};
}

// Where a kernel makes what is multiplied: blocks of a tile's pixels, all about as many, which are made once for all
// panels, and read from the first-level cache; of three tiles' where the panels come from farther than the second.
template <typename T>
Tasks made_blocks(const ProblemOf<T>& p, int64_t pixels) {
  constexpr int64_t kSecondLevel = 512 << 10;
  const bool are_far = static_cast<int64_t>(sizeof(T)) * p.in * p.out > kSecondLevel;
  const int64_t most = (capability() == Capability::kAvx512 ? 14 : 12) * (are_far ? 3 : 1);
  return {pixels, p.panels(), ceil_div(pixels, std::max<int64_t>(1, ceil_div(pixels, most))), true};
}

// Of its pixels, of which whole vectors are written: a multiple of 2 KB apart they would share sets of that cache.
constexpr int64_t kLanes = 16;
inline int64_t made_step(int64_t in) { return ceil_div(in, kLanes) * kLanes + kLanes; }

// Runs a kernel on tasks that take so many multiply-adds together.
template <typename F>
void run(int64_t tasks, int64_t work, const F& kernel) {
  constexpr int64_t kTask = 1 << 16;  // multiply-adds that are worth a thread
  run_step(tasks, std::max<int64_t>(1, kTask * tasks / std::max<int64_t>(1, work)), kernel);
}

// The product for all pixels, with multiply_tasks of pointwise_conv2d_tile.h.
template <typename X, typename Y>
using Kernel = void (*)(const ProblemOf<X, Y>&, const Tasks&, int64_t begin, int64_t end);
template <typename X, typename Y>
void run(const ProblemOf<X, Y>& p, int64_t pixels, Kernel<X, Y> kernel) {
  const Tasks tasks = tasks_of(p, pixels);
  run(tasks.count(), pixels * p.in * p.out, [=](int64_t begin, int64_t end) { kernel(p, tasks, begin, end); });
}

template <typename T>
inline constexpr ScalarType kType = std::is_same_v<T, float>     ? ScalarType::Float
                                    : std::is_same_v<T, int8_t>  ? ScalarType::Char
                                    : std::is_same_v<T, uint8_t> ? ScalarType::Byte
                                                                 : ScalarType::BFloat16;

template <typename T>
int32_t dtype_for() {
  if constexpr (std::is_same_v<T, uint8_t>) return aoti_torch_dtype_uint8();
  return std::is_same_v<T, float> ? aoti_torch_dtype_float32() : aoti_torch_dtype_bfloat16();
}

// Calls f with a number of the type that images have: float32 or bfloat16.
template <typename F>
auto with_type(const Tensor& x, const F& f) {
  if (x.scalar_type() == ScalarType::BFloat16) return f(BFloat16());
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float, "expected float32 or bfloat16 images");
  return f(float());
}

// In int8, the same with one of the type that is stored: bytes where there are levels, which take no activation but a
// clamp.
template <typename F>
auto with_stored(const std::optional<Tensor>& levels, const std::optional<Text>& activation, const F& f) {
  if (!levels) return f(float());
  STD_TORCH_CHECK(parse_activation(activation) <= Activation::kRelu6, "expected no activation, relu or relu6");
  return f(uint8_t());
}

// With the type that is multiplied, and that.
template <typename F>
auto with_types(const Tensor& x, const std::vector<Tensor>& quantized, const std::optional<Tensor>& levels,
                const std::optional<Text>& activation, const F& f) {
  if (!quantized.empty()) return with_stored(levels, activation, [&](auto stored) { return f(uint8_t(), stored); });
  STD_TORCH_CHECK(!levels, "expected no levels of results but in int8");
  return with_type(x, [&](auto type) { return f(type, type); });
}

template <typename X = float>
const Weight<X>* check_panels(const Tensor& w, int64_t in, int64_t out) {
  packed::check_panels(w, in, out, kType<Weight<X>>, kTogether<X>);
  return data<Weight<X>>(w);
}

// The bias' numbers, or null.
inline const float* check_bias(const std::optional<Tensor>& bias, int64_t out) {
  packed::check_bias(bias, out, ScalarType::Float);
  return bias ? data<float>(*bias) : nullptr;
}

template <typename T = float>
void check_images(const Tensor& x) {
  packed::check_images(x, kType<T>);
}

// The pixels of images in channels_last, or of some of the channels of such.
template <typename T = float>
Pixels<const T> check_slice(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4 && x.scalar_type() == kType<T>, "expected images of the type that the kernel takes");
  const Four n = sizes_of(x), s = strides_of(x);
  const int64_t pixel = n.w > 1 ? s.w : n.h > 1 ? s.h : n.n > 1 ? s.n : n.c;
  const bool fits = (n.c == 1 || s.c == 1) && pixel >= n.c && (n.h == 1 || s.h == n.w * pixel) &&
                    (n.n == 1 || s.n == n.h * n.w * pixel);
  STD_TORCH_CHECK(fits || x.numel() == 0, "expected channels of images in channels_last");
  return {data<T>(x), pixel};
}

// Where x is as bytes: itself, if it is made of them, or scratch, of all its pixels by a step with kernels of
// levels_kernels.h. Only those of a direct convolution may lie in planes.
struct Quantize {
  void (*pixels)(const Pixels<const float>& x, int64_t channels, const Levels& levels, uint8_t* to, int64_t bytes,
                 int64_t begin, int64_t end);
  void (*planes)(const float* x, int64_t plane, int64_t channels, const Levels& levels, uint8_t* to, int64_t bytes,
                 int64_t begin, int64_t end) = nullptr;
};
struct BytesOf {
  BytesOf(const Tensor& x, const Levels& levels, const Quantize& kernel) {
    const int64_t channels = x.size(1), pixels = x.numel() / channels, bytes = bytes_of(channels);
    if (x.scalar_type() == ScalarType::Byte) {
      STD_TORCH_CHECK(channels == bytes, "expected bytes of channels in fours");
      found = check_slice<uint8_t>(x);
      return;
    }
    made.emplace(x, pixels * bytes, aoti_torch_dtype_uint8());
    uint8_t* const to = made->data<uint8_t>();
    found = {to, bytes};
    if (kernel.planes && !is_dense(x, true))
      run(pixels, x.numel(), [=, plane = x.size(2) * x.size(3), from = data<float>(x)](int64_t begin, int64_t end) {
        kernel.planes(from, plane, channels, levels, to, bytes, begin, end);
      });
    else
      run(pixels, x.numel(), [=, from = check_slice(x)](int64_t begin, int64_t end) {
        kernel.pixels(from, channels, levels, to, bytes, begin, end);
      });
  }
  std::optional<StepScratch> made;
  Pixels<const uint8_t> found;
};

// The residual's pixels, or none.
template <typename T = float>
Pixels<const T> check_residual(const std::optional<Tensor>& residual, const Four& size) {
  packed::check_residual(residual, size, kType<T>);
  if (!residual) return {};
  return {data<T>(*residual), size.c};
}

// Where results of this size go: new images, or channels of larger ones, from `channel` on.
template <typename T = float>
struct Results {
  Results(const Tensor& like, const Four& size, const std::optional<Tensor>& into, int64_t channel)
      : images(packed::images_for(like, size, into, channel, dtype_for<T>())),
        pixels{mutable_data<T>(images) + channel, images.size(1)} {}
  Tensor images;
  Pixels<T> pixels;
};

}  // namespace fastnets::pointwise
