// The product of matrices that a pointwise convolution is. Included by isa.h: no guard.
//
// Lanes are results. A tile is kRows pixels times one panel's results, in registers: for each input channel two loads
// of weights and kRows broadcasts serve 2 * kRows multiply-adds, so that those alone bind (14 rows on AVX-512: 16
// loads, 28 multiply-adds). Moves 4 bytes * (pixels * (in + out) + in * out), twice pixels * out where there is a
// residual; half of it in bfloat16, of which a lane multiplies two at a time, with as many loads and instructions,
// where the processor is quick at that, or else float32 that it is widened to. Of bytes a lane multiplies four at a
// time; a float32's multiply-add makes numbers of their sums.
#include "levels_kernels.h"
#include "pointwise_conv2d_multiply.h"

namespace fastnets::FASTNETS_ISA::pointwise {

using fastnets::pointwise::kIsBytes;
using fastnets::pointwise::kTogether;
using fastnets::pointwise::Weight;

constexpr int kRows = FASTNETS_VECTOR_BYTES == 64 ? 14 : 6;  // with two vectors each, as many as there are registers

// Half as many where products of bytes take registers for what they are widened to.
#if defined(FASTNETS_VNNI)
constexpr int kRowsOfBytes = kRows;
#else
constexpr int kRowsOfBytes = kRows / 2;
#endif

// What a lane multiplies at a time: a float32, or two bfloat16 or four bytes as the bits of a number.
template <typename X>
using Factor = std::conditional_t<std::is_same_v<X, float>, float, int32_t>;

template <typename X>
using Total = std::conditional_t<kIsBytes<X>, int32_t, float>;

template <typename X>
FASTNETS_INLINE Vec<Factor<X>, L> factors(const Weight<X>* p) {
  Vec<Factor<X>, L> v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// One of a pixel for all lanes; without kWhole there is one bfloat16 left.
template <bool kWhole, typename X>
FASTNETS_INLINE Vec<Factor<X>, L> factor(const X* p) {
  Factor<X> value{};
  std::memcpy(&value, p, kWhole ? sizeof value : sizeof(X));  // the low half: this is for little endian
  return splat<Factor<X>, L>(value);
}

FASTNETS_INLINE void multiply_add(Vec<float, L>& sum, const Vec<float, L>& x, const Vec<float, L>& w) { sum += x * w; }
FASTNETS_INLINE void multiply_add(Words& sum, const Words& x, const Words& w) { sum = dot(sum, x, bits<Bytes>(w)); }

#if defined(FASTNETS_BF16)
FASTNETS_INLINE void multiply_add(Vec<float, L>& sum, const Vec<int32_t, L>& x, const Vec<int32_t, L>& w) {
  sum = multiply_pairs(sum, x, w);
}
constexpr bool kDotsBfloat16 = true;
#else
constexpr bool kDotsBfloat16 = false;
#endif

// What is done to the sums of R pixels, W vectors each, is spelt out row by row: the compiler would unroll loops only
// after it has given z a place in memory, and then copy the registers there.
template <int R, int W, int r = 0, typename V>
FASTNETS_INLINE void begin(const V (&bias)[W], V (&z)[R][W]) {
  z[r][0] = bias[0], z[r][W - 1] = bias[W - 1];
  if constexpr (r + 1 < R) begin<R, W, r + 1>(bias, z);
}

// Numbers of sums of bytes.
template <int R, int W, int r = 0>
FASTNETS_INLINE void scale_all(const Vec<float, L> (&scale)[W], const Vec<float, L> (&bias)[W],
                               const Words (&sums)[R][W], Vec<float, L> (&z)[R][W]) {
  z[r][0] = __builtin_convertvector(sums[r][0], Vec<float, L>) * scale[0] + bias[0];
  if constexpr (W > 1) z[r][1] = __builtin_convertvector(sums[r][1], Vec<float, L>) * scale[1] + bias[1];
  if constexpr (r + 1 < R) scale_all<R, W, r + 1>(scale, bias, sums, z);
}

// kPart: of the last vector only `left` lanes are results. kPast: stored past the caches.
enum class Lanes { kPart, kWhole, kPast };

template <int R, int W, bool kWhole, int r = 0, typename Y>
FASTNETS_INLINE void add(const Y* residual, int64_t step, int64_t left, Vec<float, L> (&z)[R][W]) {
  constexpr int last = (W - 1) * L;
  if constexpr (W > 1) z[r][0] += load<Y, L>(residual);
  z[r][W - 1] += kWhole ? load<Y, L>(residual + last) : load_first<Y, L>(residual + last, left);
  if constexpr (r + 1 < R) add<R, W, kWhole, r + 1>(residual + step, step, left, z);
}

template <int R, int W, int r = 0>
FASTNETS_INLINE void clamp_all(float low, float high, Vec<float, L> (&z)[R][W]) {
  if constexpr (W > 1) z[r][0] = clamp<float, L>(z[r][0], low, high);
  z[r][W - 1] = clamp<float, L>(z[r][W - 1], low, high);
  if constexpr (r + 1 < R) clamp_all<R, W, r + 1>(low, high, z);
}

template <int R, int W, Lanes lanes, int r = 0, typename Y>
FASTNETS_INLINE void store_all(Y* y, int64_t step, int64_t left, const Vec<float, L> (&z)[R][W]) {
  constexpr int last = (W - 1) * L;
  if constexpr (lanes == Lanes::kPast) {
    if constexpr (W > 1) stream<Y, L>(y, z[r][0]);
    stream<Y, L>(y + last, z[r][W - 1]);
  } else {
    if constexpr (W > 1) store<Y, L>(y, z[r][0]);
    if constexpr (lanes == Lanes::kWhole)
      store<Y, L>(y + last, z[r][W - 1]);
    else
      store_first<Y, L>(y + last, z[r][W - 1], left);
  }
  if constexpr (r + 1 < R) store_all<R, W, lanes, r + 1>(y + step, step, left, z);
}

template <int R, int W, Lanes lanes, typename Y>
FASTNETS_INLINE void finish(const Y* residual, int64_t residual_step, const Activate<float>& activate, Y* y,
                            int64_t y_step, int64_t left, Vec<float, L> (&z)[R][W]) {
  if (residual) add<R, W, lanes != Lanes::kPart>(residual, residual_step, left, z);
  if (activate.kind != Activation::kNone) clamp_all(activate.low, activate.high, z);
  store_all<R, W, lanes>(y, y_step, left, z);
}

// Levels of `left` results or all lanes of them, counted in steps from that of zero. `low` and `high` are where levels,
// or the activation, end.
struct Steps {
  float residual, low, high;
  int32_t zero;
};
FASTNETS_INLINE void finish_levels(const uint8_t* residual, const Steps& steps, uint8_t* y, int64_t left,
                                   Vec<float, L> z) {
  if (residual) z += load_bytes(residual, left) * steps.residual;
  store_bytes<L>(y, nearest<float>(clamp<float, L>(z, steps.low, steps.high)) + steps.zero, left);
}

template <int R, int W, int r = 0>
FASTNETS_INLINE void finish_all_levels(const uint8_t* residual, int64_t residual_step, const Steps& steps, uint8_t* y,
                                       int64_t y_step, int64_t left, const Vec<float, L> (&z)[R][W]) {
  constexpr int last = (W - 1) * L;
  if constexpr (W > 1) finish_levels(residual, steps, y, L, z[r][0]);
  finish_levels(residual ? residual + last : nullptr, steps, y + last, left, z[r][W - 1]);
  if constexpr (r + 1 < R)
    finish_all_levels<R, W, r + 1>(residual ? residual + residual_step : nullptr, residual_step, steps, y + y_step,
                                   y_step, left, z);
}

// Makes numbers, of which the scales and biases are, steps of the results' levels.
template <int W>
FASTNETS_INLINE Steps in_steps(const StoredLevels& levels, const Activate<float>& activate, bool with_residual,
                               Vec<float, L> (&scale)[W], Vec<float, L> (&bias)[W]) {
  const Levels &y = levels.results, &residual = levels.residual;
  const float step = with_residual ? 1 / residual.inverse : 0;
  for (int i = 0; i < W; ++i) scale[i] *= y.inverse, bias[i] = (bias[i] - residual.zero * step) * y.inverse;
  return {step * y.inverse, std::max(-y.zero, activate.low),
          std::min(Levels::kMost - y.zero, activate.high * y.inverse), static_cast<int32_t>(y.zero)};
}

// The same of `rows` pixels in memory, where an activation takes more than a clamp.
template <int W, typename Y>
__attribute__((noinline)) void finish_any(const Y* residual, int64_t residual_step, const Activate<float>& activate,
                                          Y* y, int64_t y_step, int64_t left, Vec<float, L> (*z)[W], int rows) {
  for (int r = 0; residual && r < rows; ++r)
    for (int i = 0; i < W; ++i) z[r][i] += load_first<Y, L>(residual + r * residual_step + i * L, i + 1 < W ? L : left);
  activate.template finish<L>(z[0], rows * W);
  for (int r = 0; r < rows; ++r)
    for (int i = 0; i < W; ++i) store_first<Y, L>(y + r * y_step + i * L, z[r][i], i + 1 < W ? L : left);
}

// A lane's factors of R pixels, each with W vectors of weights; base[i] is the pixel i * kStep.
template <bool kWhole, int R, int W, int kStep, int kBases, typename X>
FASTNETS_INLINE void multiply_step(const X* (&base)[kBases], int64_t step, const Weight<X>*& w,
                                   Vec<Total<X>, L> (&z)[R][W]) {
  Vec<Factor<X>, L> weight[W];
  for (int i = 0; i < W; ++i) weight[i] = factors<X>(w + i * L * kTogether<X>);
  for (int r = 0; r < R; ++r) {
    const auto value = factor<kWhole>(base[r / kStep] + r % kStep * step);
    for (int i = 0; i < W; ++i) multiply_add(z[r][i], value, weight[i]);
  }
  for (int i = 0; i < kBases; ++i) base[i] += kTogether<X>;
  w += kPanel * kTogether<X>;
}

// Asks for weights of W vectors that come 8 KB later. In a large network a panel's come from memory, and the first tile
// would wait for them: processors do not look that far ahead.
template <int W, typename X>
FASTNETS_INLINE void fetch_ahead(const Weight<X>* w) {
  constexpr int64_t kAhead = (8 << 10) / sizeof(X);
  for (int i = 0; i < W; ++i) __builtin_prefetch(w + kAhead + i * L * kTogether<X>);
}

// The low or the high bfloat16 of each pair.
template <bool kHigh>
FASTNETS_INLINE Vec<float, L> half_of(Vec<int32_t, L> pairs) {
  return bits<Vec<float, L>>(kHigh ? pairs & ~0xffff : pairs << 16);
}

template <bool kHigh, int R, int W, int kStep>
FASTNETS_INLINE void multiply_half(const float* x, const BFloat16* w, Vec<float, L> (&z)[R][W]) {
  Vec<float, L> weight[W];
  for (int i = 0; i < W; ++i) weight[i] = half_of<kHigh>(factors<BFloat16>(w + i * L * kTogether<BFloat16>));
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < W; ++i) multiply_add(z[r][i], splat<float, L>(x[r * kStep + kHigh]), weight[i]);
}

// `count` bfloat16 of R pixels as float32: these are widened once for all W * L results, some at a time in the
// first-level cache, and weights once for all R pixels, so that float32's multiply-adds bind.
template <int R, int W>
FASTNETS_INLINE void multiply_widened(const BFloat16* x, int64_t step, int64_t count, bool fetches, const BFloat16*& w,
                                      Vec<float, L> (&z)[R][W]) {
  constexpr int kSome = 64;
  alignas(64) float wide[R * kSome];
  for (int64_t first = 0; first < count; first += kSome) {
    const int64_t some = std::min<int64_t>(kSome, count - first);
    for (int r = 0; r < R; ++r)
      for (int64_t k = 0; k < some; k += L)
        store<float, L>(wide + r * kSome + k, load_first<BFloat16, L>(x + r * step + first + k, some - k));
    for (int64_t k = 0; k < some; k += 2, w += 2 * kPanel) {
      if (fetches) fetch_ahead<W, BFloat16>(w);
      multiply_half<false, R, W, kSome>(wide + k, w, z);
      multiply_half<true, R, W, kSome>(wide + k, w, z);
    }
  }
}

// `count` numbers of R pixels.
template <int R, int W, typename X>
FASTNETS_INLINE void multiply_pixels(const X* x, int64_t step, int64_t count, bool fetches, const Weight<X>*& w,
                                     Vec<Total<X>, L> (&z)[R][W]) {
  constexpr int kStep = 3;  // rows to a pointer: more pointers than this would not fit the registers
  constexpr int kBases = (R + kStep - 1) / kStep;
  if constexpr (std::is_same_v<X, BFloat16> && !kDotsBfloat16) {
    multiply_widened(x, step, count, fetches, w, z);
  } else {
    const X* base[kBases];
    for (int i = 0; i < kBases; ++i) base[i] = x + i * kStep * step;
    for (int64_t k = 0; k < count / kTogether<X>; ++k) {
      if (fetches) fetch_ahead<W, X>(w);
      multiply_step<true, R, W, kStep>(base, step, w, z);
    }
    if (!kIsBytes<X> && count % kTogether<X>) multiply_step<false, R, W, kStep>(base, step, w, z);
  }
}

// W vectors, of the last only `left` lanes.
template <int W>
FASTNETS_INLINE void load_all(const float* from, int64_t left, Vec<float, L> (&to)[W]) {
  for (int i = 0; i < W; ++i) to[i] = from ? load_first<float, L>(from + i * L, i + 1 < W ? L : left) : Vec<float, L>{};
}

template <int R, int W, typename Y>
FASTNETS_INLINE void finish_numbers(const Y* residual, int64_t step, const Activate<float>& activate, bool streams,
                                    Y* y, int64_t y_step, int64_t left, Vec<float, L> (&z)[R][W]) {
  if (activate.kind <= Activation::kRelu6) {
    if (left < L) return finish<R, W, Lanes::kPart>(residual, step, activate, y, y_step, left, z);
    if (streams && can_stream<Y, L, W>(y, y_step))
      return finish<R, W, Lanes::kPast>(residual, step, activate, y, y_step, left, z);
    return finish<R, W, Lanes::kWhole>(residual, step, activate, y, y_step, left, z);
  }
  Vec<float, L> sums[R][W];
  store_all<R, W, Lanes::kWhole>(reinterpret_cast<float*>(sums), W * L, L, z);
  finish_any<W>(residual, step, activate, y, y_step, left, sums, R);
}

// R pixels from `pixel` on, W vectors of results from o on, whose weights begin at w; `first` of those that take them.
template <int R, int W, typename X, typename Y>
void tile(const ProblemOf<X, Y>& p, const Activate<float>& activate, int64_t pixel, int64_t o, const Weight<X>* w,
          bool first) {
  const int64_t step = p.x.pixel, in = p.in;
  const int64_t length = p.x.panel == p.x.length ? in : p.x.length;  // panels side by side are one long one
  const int64_t left = p.out - o - (W - 1) * L;                      // results in the last vector, or more
  const X* x = p.x.data + pixel * step;
  const float* const from = p.bias ? p.bias + o : nullptr;
  Y* const y = p.y.data + pixel * p.y.pixel + o / kPanel * p.y.panel + o % kPanel;
  const Y* const residual = p.residual.data ? p.residual.data + pixel * p.residual.pixel + o : nullptr;
  if (p.fetches)
    for (int r = 0; r < R; ++r)
      for (int i = 0; i < W; ++i) __builtin_prefetch(y + (r + R) * p.y.pixel + i * L, 1);
  Vec<float, L> bias[W], z[R][W];
  if constexpr (kIsBytes<X>) {
    Vec<float, L> scale[W];
    Words none[W] = {}, sums[R][W];
    begin(none, sums);
    for (int64_t k = 0; k < in; k += length, x += p.x.panel)
      multiply_pixels(x, step, std::min(length, in - k), first, w, sums);
    load_all(from, left, bias), load_all(p.scales + o, left, scale);
    if constexpr (kIsBytes<Y>) {
      const Steps steps = in_steps(p.levels, activate, residual, scale, bias);
      scale_all(scale, bias, sums, z);
      finish_all_levels(residual, p.residual.pixel, steps, y, p.y.pixel, left, z);
    } else {
      scale_all(scale, bias, sums, z);
      finish_numbers(residual, p.residual.pixel, activate, p.streams, y, p.y.pixel, left, z);
    }
  } else {
    load_all(from, left, bias);
    begin(bias, z);
    for (int64_t k = 0; k < in; k += length, x += p.x.panel)
      multiply_pixels(x, step, std::min(length, in - k), first, w, z);
    finish_numbers(residual, p.residual.pixel, activate, p.streams, y, p.y.pixel, left, z);
  }
}

// The last `rows` pixels, fewer than kRows.
template <int R, int W, typename X, typename Y>
void last_tile(const ProblemOf<X, Y>& p, const Activate<float>& activate, int64_t rows, int64_t pixel, int64_t o,
               const Weight<X>* w, bool first) {
  if (rows == R) return tile<R, W>(p, activate, pixel, o, w, first);
  if constexpr (R > 1) last_tile<R - 1, W>(p, activate, rows, pixel, o, w, first);
}

template <int R, int W, typename X, typename Y>
void tiles_of(const ProblemOf<X, Y>& p, const Activate<float>& activate, Range pixels, int64_t o, const Weight<X>* w) {
  int64_t pixel = pixels.begin;
  for (; pixel + R <= pixels.end; pixel += R) tile<R, W>(p, activate, pixel, o, w, pixel == pixels.begin);
  if (pixel < pixels.end) last_tile<R - 1, W>(p, activate, pixels.end - pixel, pixel, o, w, pixel == pixels.begin);
}

// Pixels a multiple of 4 KB apart share a set of the first-level cache, of 8 lines or 12; with half the rows the
// multiply-adds still bind.
template <int W, typename X, typename Y>
void tiles(const ProblemOf<X, Y>& p, const Activate<float>& activate, Range pixels, int64_t o, const Weight<X>* w) {
  constexpr int64_t kApart = 4 << 10, kLines = 8, kSize = sizeof(X);
  constexpr int kMost = kIsBytes<X> ? kRowsOfBytes : kRows;
  if constexpr (kMost > kLines)
    if (p.x.pixel * kSize % kApart == 0) return tiles_of<kMost / 2, W>(p, activate, pixels, o, w);
  tiles_of<kMost, W>(p, activate, pixels, o, w);
}

template <typename X, typename Y>
void multiply(const ProblemOf<X, Y>& p, Range pixels, int64_t panel) {
  const Activate<float> activate(p.activation);
  const int64_t results = std::min(kPanel, p.out - panel * kPanel);
  for (int64_t i = 0; i < results; i += 2 * L) {
    const int64_t o = panel * kPanel + i;
    const Weight<X>* const w = p.weights(panel) + i * kTogether<X>;
    if (results - i > L)
      tiles<2>(p, activate, pixels, o, w);
    else
      tiles<1>(p, activate, pixels, o, w);
  }
  if (p.streams) finish_streams();
}

// Each for the instruction sets that it is compiled for.
#if !defined(FASTNETS_BF16)
template void multiply(const ProblemOf<uint8_t, float>&, Range, int64_t);
template void multiply(const ProblemOf<uint8_t, uint8_t>&, Range, int64_t);
#endif
#if !defined(FASTNETS_BF16) && !defined(FASTNETS_VNNI)
template void multiply(const ProblemOf<float, float>&, Range, int64_t);
#endif
#if !defined(FASTNETS_VNNI)
template void multiply(const ProblemOf<float, BFloat16>&, Range, int64_t);
template void multiply(const ProblemOf<BFloat16, BFloat16>&, Range, int64_t);
#endif

}  // namespace fastnets::FASTNETS_ISA::pointwise
