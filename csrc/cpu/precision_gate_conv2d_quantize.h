// Numbers to integers: the input to two planes of bytes, weights to vectors of output channels. Reads each number once
// and writes two bytes for it, or one. Included by isa.h: no guard.

namespace fastnets::FASTNETS_ISA {

using gate::Convolution;
using gate::Excess;
using gate::kWindow;
using gate::Problem;

// As many numbers as a vector of their sums' type has.
template <typename T>
inline constexpr int kNumbers = kLanes<Sum<T>>;

template <typename A>
FASTNETS_INLINE Vec<int32_t, kLanes<A>> nearest(Vec<A, kLanes<A>> v) {  // ties to even
  constexpr int L = kLanes<A>;
  if constexpr (std::is_same_v<A, float>) {
#if FASTNETS_VECTOR_BYTES == 64
    return bits<Vec<int32_t, L>>(_mm512_cvtps_epi32(bits<__m512>(v)));
#elif FASTNETS_VECTOR_BYTES == 32
    return bits<Vec<int32_t, L>>(_mm256_cvtps_epi32(bits<__m256>(v)));
#endif
  }
  Vec<int32_t, L> rounded;
  for (int i = 0; i < L; ++i) rounded[i] = static_cast<int32_t>(std::lrint(v[i]));
  return rounded;
}

// round(clamp(|v| / scale, 0, 1) * levels); 0 where |v| / scale is NaN.
template <typename A>
FASTNETS_INLINE Vec<int32_t, kLanes<A>> magnitude(Vec<A, kLanes<A>> v, A scale, A levels) {
  constexpr int L = kLanes<A>;
  const Vec<A, L> zero{}, one = zero + A(1);
  Vec<A, L> share = (v < zero ? -v : v) / scale;
  share = share < one ? share : (share >= one ? one : zero);
  share = share > zero ? share : zero;
  return nearest<A>(share * levels);
}

// The first `count` numbers, zeros behind them.
template <typename T>
FASTNETS_INLINE Vec<Sum<T>, kNumbers<T>> load_some(const T* from, int64_t count, int64_t step) {
  constexpr int L = kNumbers<T>;
  if (count >= L) return load_strided<T, L>(from, step);
  Vec<Sum<T>, L> v{};
  for (int i = 0; i < count; ++i) v[i] = static_cast<Sum<T>>(from[i * step]);
  return v;
}

template <typename T>
double largest(const void* from, int64_t count, int64_t step) {
  using A = Sum<T>;
  constexpr int L = kNumbers<T>;
  Vec<A, L> most{};
  for (int64_t i = 0; i < count; i += L) {
    const Vec<A, L> v = load_some<T>(static_cast<const T*>(from) + i * step, count - i, step), size = v < A(0) ? -v : v;
    most = size <= most ? most : size;  // NaN fails the comparison and stays
    most = v == v ? most : v;
  }
  A result = most[0];
  for (int i = 1; i < L; ++i) result = most[i] <= result || result != result ? result : most[i];
  return result;
}

// One row of the padded input.
template <typename T>
void quantize_row(const Problem& p, int64_t n, int64_t padded_row) {
  using A = Sum<T>;
  constexpr int L = kNumbers<T>;
  const Convolution& g = p.g;
  uint8_t* const high = p.parts[0] + n * p.image + padded_row * p.row;
  uint8_t* const low = p.parts[1] + n * p.image + padded_row * p.row;
  const int64_t h = padded_row - g.ph, channels = g.group_in();
  const bool outside = h < 0 || h >= g.h;
  const int64_t left = outside ? p.row : g.pw * p.pixel, right = g.pw * p.pixel;
  std::memset(high, p.zero(0), left), std::memset(low, p.zero(1), left);
  if (outside) return;
  std::memset(high + p.row - right, p.zero(0), right), std::memset(low + p.row - right, p.zero(1), right);
  const T* const x = static_cast<const T*>(p.x) + n * p.x_stride.n + h * p.x_stride.h;
  const A scale = static_cast<A>(p.x_scale), levels = static_cast<A>(p.bits.levels());
  const int32_t low_bits = static_cast<int32_t>(p.bits.low), low_mask = (1 << low_bits) - 1;
  const int32_t zero_high = p.zero(0), zero_low = p.zero(1);
  // Lanes are channels where these are neighbours, otherwise columns.
  const bool lanes_are_channels = p.x_stride.c == 1 && channels > 1;
  for (int64_t group = 0; group < g.groups; ++group) {
    const int64_t outer = lanes_are_channels ? g.w : channels, inner = lanes_are_channels ? channels : g.w;
    for (int64_t i = 0; i < outer; ++i)
      for (int64_t j = 0; j < inner; j += L) {
        const int64_t w = lanes_are_channels ? i : j, c = lanes_are_channels ? j : i;
        const T* const from = x + (group * channels + c) * p.x_stride.c + w * p.x_stride.w;
        const Vec<A, L> v = load_some<T>(from, inner - j, lanes_are_channels ? 1 : p.x_stride.w);
        const Vec<int32_t, L> m = magnitude<A>(v, scale, levels);
        // The parts with the sign of v, which is -1 or 0 in s.
        const Vec<int32_t, L> s = __builtin_convertvector(v < A(0), Vec<int32_t, L>);
        const Vec<int32_t, L> h1 = (((m >> low_bits) ^ s) - s) + zero_high, l1 = (((m & low_mask) ^ s) - s) + zero_low;
        const auto h8 = __builtin_convertvector(h1, Vec<uint8_t, L>), l8 = __builtin_convertvector(l1, Vec<uint8_t, L>);
        const int64_t at = (g.pw + w) * p.pixel + group * p.channels + c;
        if (lanes_are_channels && inner - j >= L) {
          std::memcpy(high + at, &h8, L), std::memcpy(low + at, &l8, L);
        } else {
          const int64_t step = lanes_are_channels ? 1 : p.pixel;
          for (int64_t k = 0; k < std::min<int64_t>(L, inner - j); ++k) {
            high[at + k * step] = h8[k];
            low[at + k * step] = l8[k];
          }
        }
      }
    for (int64_t w = 0; channels < p.channels && w < g.w; ++w) {
      const int64_t at = (g.pw + w) * p.pixel + group * p.channels + channels;
      std::memset(high + at, zero_high, p.channels - channels), std::memset(low + at, zero_low, p.channels - channels);
    }
  }
}

template <typename T>
void quantize(const Problem& p, int64_t begin, int64_t end) {
  const int64_t rows = p.image / p.row;
  for (int64_t i = begin; i < end; ++i) quantize_row<T>(p, i / rows, i % rows);
}

// The weights of one output channel as [channel][tap].
template <typename T>
void quantize_weights(const Problem& p, int64_t o, int16_t* out) {
  using A = Sum<T>;
  constexpr int L = kNumbers<T>;
  const Convolution& g = p.g;
  const T* const w = static_cast<const T*>(p.w) + o * p.w_stride.n;
  const A scale = static_cast<A>(p.w_scale), levels = static_cast<A>(p.bits.weight_levels());
  const int64_t channels = g.group_in(), count = channels * g.taps();
  const bool dense = p.w_stride.w == 1 && p.w_stride.h == g.kw && p.w_stride.c == g.taps();
  A values[L];
  for (int64_t k = 0; k < count; k += L) {
    const int64_t some = std::min<int64_t>(L, count - k);
    for (int64_t i = 0; !dense && i < some; ++i) {
      const int64_t c = (k + i) / g.taps(), tap = (k + i) % g.taps();
      values[i] = static_cast<A>(w[c * p.w_stride.c + tap / g.kw * p.w_stride.h + tap % g.kw * p.w_stride.w]);
    }
    const Vec<A, L> v = dense ? load_some<T>(w + k, some, 1) : load_some<A>(values, some, 1);
    const Vec<int32_t, L> m = magnitude<A>(v, scale, levels), s = __builtin_convertvector(v < A(0), Vec<int32_t, L>);
    const auto q = __builtin_convertvector((m ^ s) - s, Vec<int16_t, L>);
    std::memcpy(out + k, &q, some * sizeof(int16_t));
  }
}

// Puts what passes a byte into the next free place of a lane, and opens a new Excess where all are taken.
struct ExcessWriter {
  std::vector<Excess>& list;
  size_t first;
  int64_t tap, channel;

  void add(int64_t lane, int64_t& taken, int64_t index, int32_t weight) {
    const size_t at = first + taken / 4;
    if (at == list.size()) list.push_back({tap, channel, {}, {}});
    list[at].index[4 * lane + taken % 4] = static_cast<uint8_t>(index);
    list[at].weight[4 * lane + taken % 4] = static_cast<int8_t>(weight);
    ++taken;
  }
};

template <typename T>
void pack_vector(Problem& p, int64_t vector) {
  constexpr int L = kLanes<int32_t>;
  const Convolution& g = p.g;
  const int64_t first = vector % p.vectors * L, lanes = std::min<int64_t>(L, g.group_out() - first);
  const int64_t o = vector / p.vectors * g.group_out() + first, channels = g.group_in(), taps = g.taps();
  std::vector<int16_t> rows(lanes * channels * taps);
  for (int64_t lane = 0; lane < lanes; ++lane)
    quantize_weights<T>(p, o + lane, rows.data() + lane * channels * taps);
  int8_t* const packed = p.weights + vector * p.vector_bytes();
  std::memset(packed, 0, p.vector_bytes());
  int32_t* const sums = p.sums + vector * L;
  std::fill(sums, sums + L, 0);
  for (int64_t tap = 0; tap < taps; ++tap)
    for (int64_t c0 = 0; c0 < channels; c0 += kWindow) {
      ExcessWriter excess{p.excess[vector], p.excess[vector].size(), tap, c0};
      for (int64_t lane = 0; lane < lanes; ++lane) {
        const int16_t* const row = rows.data() + lane * channels * taps + tap;
        int8_t* const to = packed + tap * p.channels * L + 4 * lane;
        int64_t taken = 0;
        for (int64_t c = c0; c < std::min(channels, c0 + kWindow); ++c) {
          const int32_t q = row[c * taps];
          int32_t rest = q < -128 ? q + 128 : q > 127 ? q - 127 : 0;
          to[c / 4 * (4 * L) + c % 4] = static_cast<int8_t>(q - rest);
          sums[lane] += q;
          if (rest == 128) excess.add(lane, taken, c - c0, 1), --rest;
          if (rest != 0) excess.add(lane, taken, c - c0, rest);
        }
      }
    }
}

template <typename T>
void pack(Problem& p, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) pack_vector<T>(p, i);
}

}  // namespace fastnets::FASTNETS_ISA
