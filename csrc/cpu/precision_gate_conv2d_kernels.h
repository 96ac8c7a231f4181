// The convolution of precision_gate_conv2d as a product of matrices that are never written: rows are output pixels,
// columns output channels, and a pixel's row is read through its address in the padded input. Included by isa.h.
//
// Lanes are output channels. A tile is M pixels by N vectors, its sums in registers: under each tap, four channels of
// the M pixels are broadcast and meet the N vectors of weights. First the high part; then the low part, by the same
// code, unless all of the tile's gates are closed. An instruction does 64 multiply-adds with VNNI (fp32: 16), so the
// two parts cost half of a float32 convolution, and the excess of weights over a byte some 10 to 20 % of that. Weights
// are packed by panels of 16 output channels for every instruction set, so that who keeps them need not know which.
#include "bytes.h"
// Above: what the next is written with.
#include "precision_gate_conv2d_quantize.h"
#include "transpose.h"
// Above: what the next is written with.
#include "precision_gate_conv2d_pack.h"

namespace fastnets::FASTNETS_ISA {

#if defined(FASTNETS_VNNI)
constexpr int kTileSums = 24, kTileVectors = 4;
#elif FASTNETS_VECTOR_BYTES == 64
constexpr int kTileSums = 16, kTileVectors = 4;
#else
constexpr int kTileSums = 8, kTileVectors = 2;
#endif
template <int N>
inline constexpr int kPixels = std::min(kTileSums / N, 12);

// f of 0 to N - 1 as constants: of a loop the compiler would unroll too late to keep sums in registers.
template <int N, typename F>
FASTNETS_INLINE void unrolled(const F& f) {
  [&]<int... i>(std::integer_sequence<int, i...>) {
    (f(std::integral_constant<int, i>()), ...);
  }(std::make_integer_sequence<int, N>());
}

// Integer sums of `part` for N vectors of output channels from the `vector`th of all panels on, to out
// [pixel][N][lane]. `offset`: bytes of the pixels in the group's part of the padded input.
template <int N>
void tile(const Problem& p, int part, int64_t vector, const int64_t* offset, int32_t* out) {
  constexpr int M = kPixels<N>, L = kWords;
  constexpr int64_t V = gate::kLanes / L;  // vectors of a panel, of which the N are some if it has more than one
  static_assert(V == 1 || V % kTileVectors == 0);
  Words sums[M][N];
  unrolled<N>([&](auto n) {
    const Words start = words(p.sums + (vector + n) * L) * -p.zero(part);
    unrolled<M>([&](auto m) { sums[m][n] = start; });
  });
  const uint8_t* pixel[M];
  unrolled<M>([&](auto m) { pixel[m] = p.parts[part] + offset[m]; });
  const int64_t taps = p.g.kh * p.g.kw, channels = p.channels, lane = vector % V * L;
  const int64_t next = V == 1 ? p.panel_bytes() : 4 * L;  // vector
  const int8_t* weights = p.weights + vector / V * p.panel_bytes() + 4 * lane;
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t start = p.tap_offset[tap];
    for (int64_t c = start; c < start + channels; c += 4, weights += 4 * gate::kLanes) {
      Bytes w[N];
      unrolled<N>([&](auto n) { std::memcpy(&w[n], weights + n * next, sizeof w[n]); });
      unrolled<M>([&](auto m) {
        const Words a = four_activations(pixel[m] + c);
        unrolled<N>([&](auto n) { sums[m][n] = dot(sums[m][n], a, w[n]); });
      });
    }
  }
  unrolled<N>([&](auto n) {
    for (const Excess& e : p.excess[(vector + n) / V]) {
      const int64_t c = p.tap_offset[e.tap] + e.channel, at = 4 * ((vector + n) % V * L);
      Bytes w;
      std::memcpy(&w, e.weight + at, sizeof w);
      if (V > 1 && !any(w)) continue;  // it is there for other vectors of the panel
      unrolled<M>([&](auto m) { sums[m][n] = dot(sums[m][n], pick(pixel[m] + c, e.index + at), w); });
    }
  });
  unrolled<M>([&](auto m) { unrolled<N>([&](auto n) { put(sums[m][n], out + (m * N + n) * L); }); });
}

// What makes results of sums: numbers of `count` output channels, and of none up to all that a tile has.
template <typename T>
struct Finish {
  using A = Sum<T>;
  static constexpr int L = kNumbers<T>;
  using Numbers = Vec<A, L>;
  using Sums = Vec<int32_t, L>;

  Finish(const Problem& p, int64_t o, int64_t count_) : count(count_), step(p.y_stride.c), shift(p.bits.low) {
    factor = (static_cast<A>(p.x_scale) / static_cast<A>(p.bits.levels)) *
             (static_cast<A>(p.w_scale) / static_cast<A>(p.bits.weight_levels));
    const T *from = static_cast<const T*>(p.threshold), *b = static_cast<const T*>(p.bias);
    for (int64_t i = 0; i < kWords * kTileVectors; ++i) {
      threshold[i] = i < count ? static_cast<A>(from[(o + i) * p.threshold_step]) : A(INFINITY);  // stays closed
      bias[i] = b && i < count ? static_cast<A>(b[(o + i) * p.bias_step]) : A(-0.0);  // v + -0 is v, also for -0
    }
    streams = p.streams && count % L == 0 && can_stream<T, L>(static_cast<T*>(p.y) + o, p.y_stride.w);
  }

  // Sums of the high part are in units of 2^low bits.
  FASTNETS_INLINE Sums high_sums(const int32_t* high) const {
    Sums sum;
    std::memcpy(&sum, high, sizeof sum);
    return sum << shift;
  }
  FASTNETS_INLINE Numbers number(Sums sum) const { return __builtin_convertvector(sum, Numbers) * factor; }
  FASTNETS_INLINE Sums open(Sums high, int64_t i) const {  // -1 or 0
    return __builtin_convertvector(number(high) > load<A, L>(threshold + i), Sums);
  }

  // Of the K sums of a pixel.
  template <int K>
  FASTNETS_INLINE Sums count_open(const int32_t* high) const {
    Sums count{};
    for (int i = 0; i < K; i += L) count -= open(high_sums(high + i), i);
    return count;
  }

  template <int K>
  FASTNETS_INLINE void write(const int32_t* high, const int32_t* low, T* y) const {
    for (int i = 0; i < K && i < count; i += L) {
      Sums sum = high_sums(high + i);
      if (low) {
        Sums rest;
        std::memcpy(&rest, low + i, sizeof rest);
        sum += rest & open(sum, i);
      }
      const Numbers result = number(sum) + load<A, L>(bias + i);
      if (step == 1)
        streams ? stream<T, L>(y + i, result) : store_first<T, L>(y + i, result, count - i);
      else
        for (int64_t k = 0; k < L && k < count - i; ++k) y[(i + k) * step] = static_cast<T>(result[k]);
    }
  }

  int64_t count, step;
  int32_t shift;
  A factor, threshold[kWords * kTileVectors], bias[kWords * kTileVectors];
  bool streams;  // whether y is whole cache lines, and more than the caches keep
};

// Output pixels [begin, end) of N vectors of a group; returns how many gates are open.
template <typename T, int N>
int64_t convolve_block(const Problem& p, int64_t group, int64_t vector, int64_t begin, int64_t end) {
  constexpr int M = kPixels<N>, K = N * kWords;
  const Convolution& g = p.g;
  const int64_t first = vector * kWords, count = std::min<int64_t>(K, g.m - first);
  const int64_t o = group * g.m + first, at = group * p.panels * (gate::kLanes / kWords) + vector;
  const Finish<T> finish(p, o, count);
  alignas(64) int32_t high[M * K], low[M * K];
  int64_t open = 0, n = begin / (g.oh * g.ow), i = begin / g.ow % g.oh, j = begin % g.ow;
  for (int64_t from = begin; from < end; from += M) {
    int64_t offset[M], out[M];
    for (int64_t m = 0; m < M; ++m) {
      offset[m] = n * p.image + i * g.sh * p.row + j * g.sw * p.pixel + group * p.channels;
      out[m] = (p.first_image + n) * p.y_stride.n + o * p.y_stride.c + i * p.y_stride.h + j * p.y_stride.w;
      if (from + m + 1 >= end) continue;  // beyond the end: the last pixel again
      if (++j == g.ow) j = 0, ++i;
      if (i == g.oh) i = 0, ++n;
    }
    const int64_t valid = std::min<int64_t>(M, end - from);
    if (p.fetches)
      for (int64_t m = 0; m < valid; ++m)
        for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(static_cast<T*>(p.y) + out[m] + i, 1);
    tile<N>(p, 0, at, offset, high);
    typename Finish<T>::Sums opened{};
    for (int64_t m = 0; m < valid; ++m) opened += finish.template count_open<K>(high + m * K);
    const int64_t here = sum<int32_t, kNumbers<T>>(opened);
    if (here > 0) tile<N>(p, 1, at, offset, low);
    for (int64_t m = 0; m < valid; ++m)
      finish.template write<K>(high + m * K, here > 0 ? low + m * K : nullptr, static_cast<T*>(p.y) + out[m]);
    open += here;
  }
  return open;
}

template <typename T>
int64_t convolve(const Problem& p, int64_t begin, int64_t end) {
  int64_t open = 0;
  const int64_t blocks = p.g.groups * p.blocks(), vectors = (p.g.m + kWords - 1) / kWords;
  constexpr int64_t kBlock = gate::kMostPanels * gate::kLanes / kWords;  // vectors
  for (int64_t task = begin; task < end; ++task) {
    const int64_t block = task % blocks, group = block / p.blocks(), first = task / blocks * p.chunk;
    const int64_t last = std::min(p.pixels(), first + p.chunk), from = block % p.blocks() * kBlock;
    const int64_t to = std::min(vectors, from + kBlock);
    for (int64_t v = from; v < to; v += kTileVectors) switch (std::min<int64_t>(kTileVectors, to - v)) {
        case 1:
          open += convolve_block<T, 1>(p, group, v, first, last);
          break;
        case 2:
          open += convolve_block<T, 2>(p, group, v, first, last);
          break;
#if FASTNETS_VECTOR_BYTES == 64
        case 3:
          open += convolve_block<T, 3>(p, group, v, first, last);
          break;
        case 4:
          open += convolve_block<T, 4>(p, group, v, first, last);
          break;
#endif
      }
  }
  if (p.streams) finish_streams();
  return open;
}

template <typename T>
gate::Kernels kernels_of() {
  return {largest<T>, quantize<T>, pack<T>, convolve<T>};
}

inline gate::Kernels precision_gate_kernels(ScalarType type) {
  return with_float(type, [](auto zero) { return kernels_of<decltype(zero)>(); });
}

}  // namespace fastnets::FASTNETS_ISA
