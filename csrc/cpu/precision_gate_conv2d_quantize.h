// Numbers to integers; the input to its two parts, planes of bytes. Reads each number once and writes two bytes for it.
// Included by isa.h: no guard.

namespace fastnets::FASTNETS_ISA {

using gate::Problem;

// As many numbers as a vector of their sums' type has.
template <typename T>
inline constexpr int kNumbers = kLanes<Sum<T>>;

template <typename A>
using Integer = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;

// |v| as integers, whose order is that of the numbers; a NaN is above all.
template <typename A>
FASTNETS_INLINE Vec<Integer<A>, kLanes<A>> absolute(Vec<A, kLanes<A>> v) {
  return bits<Vec<Integer<A>, kLanes<A>>>(v) & std::numeric_limits<Integer<A>>::max();
}

// round(clamp(|v| / scale, 0, 1) * levels); 0 where |v| / scale is NaN.
template <typename A>
FASTNETS_INLINE Vec<int32_t, kLanes<A>> magnitude(Vec<A, kLanes<A>> v, A scale, A levels) {
  using Numbers = Vec<A, kLanes<A>>;
  Numbers zero{}, one = zero + A(1);
  hold(zero), hold(one);  // against what is not known to be 0 or 1 the compiler takes a maximum, else a comparison
  Numbers share = bits<Numbers>(absolute<A>(v)) / scale;
  share = share > zero ? share : zero;  // NaN fails the comparison
  return nearest<A>((share < one ? share : one) * levels);
}

// The first `count` numbers, zeros behind them.
template <typename T>
FASTNETS_INLINE Vec<Sum<T>, kNumbers<T>> load_some(const T* from, int64_t count, int64_t step) {
  constexpr int L = kNumbers<T>;
  if (step == 1) return load_first<T, L>(from, count);
  if (count >= L) return load_strided<T, L>(from, step);
  Vec<Sum<T>, L> v{};
  for (int i = 0; i < count; ++i) v[i] = static_cast<Sum<T>>(from[i * step]);
  return v;
}

template <typename T>
double largest(const void* from, int64_t count, int64_t step) {
  using A = Sum<T>;
  using I = Integer<A>;
  constexpr int L = kNumbers<T>;
  Vec<I, L> most{};
  for (int64_t i = 0; i < count; i += L) {
    const Vec<I, L> size = absolute<A>(load_some<T>(static_cast<const T*>(from) + i * step, count - i, step));
    most = size > most ? size : most;
  }
  I result = 0;
  for (int i = 0; i < L; ++i) result = std::max<I>(result, most[i]);
  return bits<A>(result);
}

// Numbers of the input to their two parts, each with the sign and raised to be positive.
template <typename T>
struct Split {
  using A = Sum<T>;
  using Numbers = Vec<int32_t, kNumbers<T>>;
  A scale, levels;
  int32_t low_bits, zero_high, zero_low;

  explicit Split(const Problem& p)
      : scale(static_cast<A>(p.x_scale)),
        levels(static_cast<A>(p.bits.levels)),
        low_bits(static_cast<int32_t>(p.bits.low)),
        zero_high(p.zero(0)),
        zero_low(p.zero(1)) {}

  FASTNETS_INLINE void operator()(Vec<A, kNumbers<T>> v, Numbers& high, Numbers& low) const {
    const Numbers m = magnitude<A>(v, scale, levels);
    const Numbers sign = __builtin_convertvector(v < A(0), Numbers);  // -1 or 0
    high = (((m >> low_bits) ^ sign) - sign) + zero_high;
    low = (((m & ((1 << low_bits) - 1)) ^ sign) - sign) + zero_low;
  }
};

// A row of pixels whose channels are neighbours. Lanes are channels.
template <typename T>
void quantize_channels(const Problem& p, const T* x, uint8_t* high, uint8_t* low) {
  constexpr int L = kNumbers<T>;
  const Split<T> split(p);
  const int64_t channels = p.g.depth;
  for (int64_t w = 0; w < p.g.w; ++w, x += p.x_stride.w)
    for (int64_t group = 0; group < p.g.groups; ++group, high += p.channels, low += p.channels) {
      for (int64_t c = 0; c < p.channels; c += L) {
        Vec<int32_t, L> h, l;
        // The channels that fill up a word of four may be a vector of their own.
        split(load_some<T>(x + group * channels + c, std::max<int64_t>(0, channels - c), 1), h, l);
        store_bytes<L>(high + c, h, p.channels - c), store_bytes<L>(low + c, l, p.channels - c);
      }
    }
}

// A row of pixels whose channels are not. Lanes are pixels; four channels are put together in a lane.
template <typename T>
void quantize_pixels(const Problem& p, const T* x, uint8_t* high, uint8_t* low) {
  constexpr int L = kNumbers<T>;
  const Split<T> split(p);
  for (int64_t group = 0; group < p.g.groups; ++group)
    for (int64_t c = 0; c < p.channels; c += 4)
      for (int64_t w = 0; w < p.g.w; w += L) {
        const int64_t count = std::min<int64_t>(L, p.g.w - w), at = w * p.pixel + group * p.channels + c;
        Vec<int32_t, L> high4{}, low4{};
        for (int64_t k = 0; k < 4; ++k) {
          const T* const from = x + (group * p.g.depth + c + k) * p.x_stride.c + w * p.x_stride.w;
          Vec<Sum<T>, L> v{};
          if (c + k < p.g.depth) v = load_some<T>(from, count, p.x_stride.w);
          Vec<int32_t, L> h, l;
          split(v, h, l);
          high4 |= h << (8 * k), low4 |= l << (8 * k);
        }
        for (int64_t i = 0; i < count; ++i) {
          const int32_t h = high4[i], l = low4[i];
          std::memcpy(high + at + i * p.pixel, &h, 4), std::memcpy(low + at + i * p.pixel, &l, 4);
        }
      }
}

// One row of the padded input.
template <typename T>
void quantize_row(const Problem& p, int64_t n, int64_t padded_row) {
  const Convolution& g = p.g;
  const int64_t at = n * p.image + padded_row * p.row, h = padded_row - g.ph, border = g.pw * p.pixel;
  uint8_t *const high = p.parts[0] + at, *const low = p.parts[1] + at;
  if (h < 0 || h >= g.h) {
    std::memset(high, p.zero(0), p.row), std::memset(low, p.zero(1), p.row);
    return;
  }
  for (const int64_t start : {int64_t{0}, p.row - border})
    std::memset(high + start, p.zero(0), border), std::memset(low + start, p.zero(1), border);
  const T* const x = static_cast<const T*>(p.x) + (p.first_image + n) * p.x_stride.n + h * p.x_stride.h;
  const bool neighbours = p.x_stride.c == 1 && g.depth > 1;
  neighbours ? quantize_channels(p, x, high + border, low + border)
             : quantize_pixels(p, x, high + border, low + border);
}

template <typename T>
void quantize(const Problem& p, int64_t begin, int64_t end) {
  const int64_t rows = p.image / p.row;
  for (int64_t i = begin; i < end; ++i) quantize_row<T>(p, i / rows, i % rows);
}

}  // namespace fastnets::FASTNETS_ISA
