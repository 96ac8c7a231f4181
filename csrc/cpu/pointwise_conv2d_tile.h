// The product of matrices that a pointwise convolution is. Included by isa.h: no guard.
//
// Lanes are results. A tile is kRows pixels times one panel's results, in registers: for each input channel two loads
// of weights and kRows broadcasts serve 2 * kRows multiply-adds, so that those alone bind (14 rows on AVX-512: 16
// loads, 28 multiply-adds). Moves 4 bytes * (pixels * (in + out) + in * out), twice pixels * out where there is a
// residual.
#include "activate.h"

namespace fastnets::FASTNETS_ISA::pointwise {

using fastnets::pointwise::kPanel;
using fastnets::pointwise::Problem;

constexpr int L = kLanes<float>;
constexpr int kRows = FASTNETS_VECTOR_BYTES == 64 ? 14 : 6;  // with two vectors each, as many as there are registers

// What is done to the sums of R pixels, W vectors each, is spelt out row by row: the compiler would unroll loops only
// after it has given z a place in memory, and then copy the registers there.
template <int R, int W, int r = 0>
FASTNETS_INLINE void begin(const Vec<float, L> (&bias)[W], Vec<float, L> (&z)[R][W]) {
  z[r][0] = bias[0], z[r][W - 1] = bias[W - 1];
  if constexpr (r + 1 < R) begin<R, W, r + 1>(bias, z);
}

// kPart: of the last vector only `left` lanes are results. kPast: stored past the caches.
enum class Lanes { kPart, kWhole, kPast };

template <int R, int W, bool kWhole, int r = 0>
FASTNETS_INLINE void add(const float* residual, int64_t step, int64_t left, Vec<float, L> (&z)[R][W]) {
  constexpr int last = (W - 1) * L;
  if constexpr (W > 1) z[r][0] += load<float, L>(residual);
  z[r][W - 1] += kWhole ? load<float, L>(residual + last) : load_first<float, L>(residual + last, left);
  if constexpr (r + 1 < R) add<R, W, kWhole, r + 1>(residual + step, step, left, z);
}

template <int R, int W, int r = 0>
FASTNETS_INLINE void clamp_all(float low, float high, Vec<float, L> (&z)[R][W]) {
  if constexpr (W > 1) z[r][0] = clamp<float, L>(z[r][0], low, high);
  z[r][W - 1] = clamp<float, L>(z[r][W - 1], low, high);
  if constexpr (r + 1 < R) clamp_all<R, W, r + 1>(low, high, z);
}

template <int R, int W, Lanes lanes, int r = 0>
FASTNETS_INLINE void store_all(float* y, int64_t step, int64_t left, const Vec<float, L> (&z)[R][W]) {
  constexpr int last = (W - 1) * L;
  if constexpr (lanes == Lanes::kPast) {
    if constexpr (W > 1) stream<float, L>(y, z[r][0]);
    stream<float, L>(y + last, z[r][W - 1]);
  } else {
    if constexpr (W > 1) store<float, L>(y, z[r][0]);
    if constexpr (lanes == Lanes::kWhole)
      store<float, L>(y + last, z[r][W - 1]);
    else
      store_first<float, L>(y + last, z[r][W - 1], left);
  }
  if constexpr (r + 1 < R) store_all<R, W, lanes, r + 1>(y + step, step, left, z);
}

template <int R, int W, Lanes lanes>
FASTNETS_INLINE void finish(const float* residual, int64_t residual_step, const Activate<float>& activate, float* y,
                            int64_t y_step, int64_t left, Vec<float, L> (&z)[R][W]) {
  if (residual) add<R, W, lanes != Lanes::kPart>(residual, residual_step, left, z);
  if (activate.kind != Activation::kNone) clamp_all(activate.low, activate.high, z);
  store_all<R, W, lanes>(y, y_step, left, z);
}

// The same where an activation takes more than a clamp.
template <int W>
__attribute__((noinline)) void finish_any(const float* residual, int64_t residual_step, const Activate<float>& activate,
                                          float* y, int64_t y_step, int64_t left, const float* sums, int rows) {
  Vec<float, L> z[W];
  for (int r = 0; r < rows; ++r, sums += W * L) {
    for (int i = 0; i < W; ++i) z[i] = load<float, L>(sums + i * L);
    for (int i = 0; residual && i < W; ++i)
      z[i] += load_first<float, L>(residual + r * residual_step + i * L, i + 1 < W ? L : left);
    activate.template operator()<L, W>(z);
    for (int i = 0; i < W; ++i) store_first<float, L>(y + r * y_step + i * L, z[i], i + 1 < W ? L : left);
  }
}

// R pixels from `pixel` on, W vectors of results from o on, whose weights begin at w.
template <int R, int W>
void tile(const Problem& p, const Activate<float>& activate, int64_t pixel, int64_t o, const float* w) {
  constexpr int kStep = 3;  // rows to a pointer: more pointers than this would not fit the registers
  constexpr int kBases = (R + kStep - 1) / kStep;
  const int64_t step = p.x.pixel, in = p.in;
  const int64_t length = p.x.panel == p.x.length ? in : p.x.length;  // panels side by side are one long one
  const int64_t left = p.out - o - (W - 1) * L;                      // results in the last vector, or more
  const float* x = p.x.data + pixel * step;
  Vec<float, L> bias[W] = {}, z[R][W];
  if (p.bias)
    for (int i = 0; i < W; ++i) bias[i] = load_first<float, L>(p.bias + o + i * L, i + 1 < W ? L : left);
  begin(bias, z);
  for (int64_t first = 0; first < in; first += length, x += p.x.panel) {
    const float* base[kBases];
    for (int i = 0; i < kBases; ++i) base[i] = x + i * kStep * step;
    const int64_t count = std::min(length, in - first);
    for (int64_t k = 0; k < count; ++k, w += kPanel) {
      Vec<float, L> weight[W];
      for (int i = 0; i < W; ++i) weight[i] = load<float, L>(w + i * L);
      for (int r = 0; r < R; ++r) {
        const Vec<float, L> value = splat<float, L>(base[r / kStep][r % kStep * step]);
        for (int i = 0; i < W; ++i) z[r][i] += value * weight[i];
      }
      for (int i = 0; i < kBases; ++i) ++base[i];
    }
  }
  const float* const residual = p.residual.data ? p.residual.data + pixel * p.residual.pixel + o : nullptr;
  float* const y = p.y.data + pixel * p.y.pixel + o / kPanel * p.y.panel + o % kPanel;
  if (activate.kind <= Activation::kRelu6) {
    const int64_t step = p.residual.pixel;
    if (left < L) return finish<R, W, Lanes::kPart>(residual, step, activate, y, p.y.pixel, left, z);
    if (p.streams && can_stream<float, L, W>(y, p.y.pixel))
      return finish<R, W, Lanes::kPast>(residual, step, activate, y, p.y.pixel, left, z);
    return finish<R, W, Lanes::kWhole>(residual, step, activate, y, p.y.pixel, left, z);
  }
  float sums[R * W * L];
  store_all<R, W, Lanes::kWhole>(sums, W * L, L, z);
  finish_any<W>(residual, p.residual.pixel, activate, y, p.y.pixel, left, sums, R);
}

// The last `rows` pixels, fewer than kRows.
template <int R, int W>
void last_tile(const Problem& p, const Activate<float>& activate, int64_t rows, int64_t pixel, int64_t o,
               const float* w) {
  if (rows == R) return tile<R, W>(p, activate, pixel, o, w);
  if constexpr (R > 1) last_tile<R - 1, W>(p, activate, rows, pixel, o, w);
}

template <int W>
void tiles(const Problem& p, const Activate<float>& activate, Range pixels, int64_t o, const float* w) {
  int64_t pixel = pixels.begin;
  for (; pixel + kRows <= pixels.end; pixel += kRows) tile<kRows, W>(p, activate, pixel, o, w);
  if (pixel < pixels.end) last_tile<kRows - 1, W>(p, activate, pixels.end - pixel, pixel, o, w);
}

// A panel of results of some pixels.
inline void multiply(const Problem& p, Range pixels, int64_t panel) {
  const Activate<float> activate(p.activation);
  const int64_t results = std::min(kPanel, p.out - panel * kPanel);
  for (int64_t i = 0; i < results; i += 2 * L) {
    const int64_t o = panel * kPanel + i;
    const float* const w = p.w + panel * kPanel * p.in + i;
    if (results - i > L)
      tiles<2>(p, activate, pixels, o, w);
    else
      tiles<1>(p, activate, pixels, o, w);
  }
  if (p.streams) finish_streams();
}

// Panels of results of blocks of pixels; blocks that follow one another are one.
inline void multiply_tasks(const Problem& p, const fastnets::pointwise::Tasks& tasks, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end;) {
    const int64_t panel = tasks.panel(task);
    multiply(p, tasks.merged(task, end), panel);
  }
}

}  // namespace fastnets::FASTNETS_ISA::pointwise
