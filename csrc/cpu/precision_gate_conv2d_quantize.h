// Numbers to integers: the input to two planes of bytes, weights to vectors of output channels. Reads each number once
// and writes two bytes for it, or one. Included by isa.h: no guard.

namespace fastnets::FASTNETS_ISA {

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
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<T, float>)
    if (step == 1) return bits<Vec<float, L>>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << count) - 1), from));
#endif
  Vec<Sum<T>, L> v{};
  for (int i = 0; i < count; ++i) v[i] = static_cast<Sum<T>>(from[i * step]);
  return v;
}

// The first `count` numbers as bytes.
template <int L>
FASTNETS_INLINE void store_bytes(void* to, Vec<int32_t, L> v, int64_t count) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (L == 16) {
    const __mmask16 mask = static_cast<__mmask16>(count >= L ? 0xffff : (1 << count) - 1);
    return _mm512_mask_cvtepi32_storeu_epi8(to, mask, bits<__m512i>(v));
  }
#endif
  const auto narrow = __builtin_convertvector(v, Vec<int8_t, L>);
  std::memcpy(to, &narrow, std::min<int64_t>(L, count));
}

template <typename T>
double largest(const void* from, int64_t count, int64_t step) {
  using A = Sum<T>;
  constexpr int L = kNumbers<T>;
  Vec<A, L> most{};
  for (int64_t i = 0; i < count; i += L) {
    const Vec<A, L> v = load_some<T>(static_cast<const T*>(from) + i * step, count - i, step), size = v < A(0) ? -v : v;
    most = (size <= most) | (most != most) ? most : size;  // NaN fails the comparison, enters and stays
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
  const int64_t h = padded_row - g.ph, channels = g.depth;
  const bool outside = h < 0 || h >= g.h;
  const int64_t left = outside ? p.row : g.pw * p.pixel, right = g.pw * p.pixel;
  std::memset(high, p.zero(0), left), std::memset(low, p.zero(1), left);
  if (outside) return;
  std::memset(high + p.row - right, p.zero(0), right), std::memset(low + p.row - right, p.zero(1), right);
  const T* const x = static_cast<const T*>(p.x) + n * p.x_stride.n + h * p.x_stride.h;
  const A scale = static_cast<A>(p.x_scale), levels = static_cast<A>(p.bits.levels);
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
        const int64_t at = (g.pw + w) * p.pixel + group * p.channels + c;
        if (lanes_are_channels) {
          store_bytes<L>(high + at, h1, inner - j), store_bytes<L>(low + at, l1, inner - j);
        } else {
          for (int64_t k = 0; k < std::min<int64_t>(L, inner - j); ++k) {
            high[at + k * p.pixel] = static_cast<uint8_t>(h1[k]);
            low[at + k * p.pixel] = static_cast<uint8_t>(l1[k]);
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

// What a weight has beyond a byte. A window is one of a tap's kWindow channels.
struct Rest {
  uint32_t window;
  uint8_t lane, index;
  int16_t value;
};

// A bit for each number that is not 0.
template <int L>
FASTNETS_INLINE uint32_t nonzero(Vec<int32_t, L> v) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (L == 16) return _mm512_test_epi32_mask(bits<__m512i>(v), bits<__m512i>(v));
#endif
  uint32_t mask = 0;
  for (int i = 0; i < L; ++i) mask |= uint32_t{v[i] != 0} << i;
  return mask;
}

// The weights of one output channel as [channel][tap]: their bytes to out, the rests to `rests`; returns their sum.
template <typename T>
int32_t quantize_weights(const Problem& p, int64_t o, int64_t lane, int8_t* out, std::vector<Rest>& rests) {
  using A = Sum<T>;
  constexpr int L = kNumbers<T>;
  const Convolution& g = p.g;
  const T* const w = static_cast<const T*>(p.w) + o * p.w_stride.n;
  const A scale = static_cast<A>(p.w_scale), levels = static_cast<A>(p.bits.weight_levels);
  const int64_t area = g.kh * g.kw, count = g.depth * area;
  const bool dense = p.w_stride.w == 1 && p.w_stride.h == g.kw && p.w_stride.c == area;
  const uint32_t taps = static_cast<uint32_t>(area), windows = static_cast<uint32_t>(p.windows());
  A values[L];
  Vec<int32_t, L> sums{};
  for (int64_t k = 0; k < count; k += L) {
    const int64_t some = std::min<int64_t>(L, count - k);
    for (int64_t i = 0; !dense && i < some; ++i) {
      const int64_t c = (k + i) / area, tap = (k + i) % area;
      values[i] = static_cast<A>(w[c * p.w_stride.c + tap / g.kw * p.w_stride.h + tap % g.kw * p.w_stride.w]);
    }
    const Vec<A, L> v = dense ? load_some<T>(w + k, some, 1) : load_some<A>(values, some, 1);
    const Vec<int32_t, L> m = magnitude<A>(v, scale, levels), s = __builtin_convertvector(v < A(0), Vec<int32_t, L>);
    const Vec<int32_t, L> q = (m ^ s) - s, low = q < -128 ? Vec<int32_t, L>{} - 128 : q,
                          byte = low > 127 ? Vec<int32_t, L>{} + 127 : low;
    const Vec<int32_t, L> rest = q - byte;
    sums += q;
    store_bytes<L>(out + k, byte, some);
    for (uint32_t left = nonzero<L>(rest); left != 0; left &= left - 1) {
      const int i = __builtin_ctz(left);
      const uint32_t at = static_cast<uint32_t>(k + i), c = at / taps, window = (at - c * taps) * windows + c / kWindow;
      rests.push_back(
          {window, static_cast<uint8_t>(lane), static_cast<uint8_t>(c % kWindow), static_cast<int16_t>(rest[i])});
    }
  }
  int32_t total = 0;
  for (int i = 0; i < L; ++i) total += sums[i];
  return total;
}

// Deals the rests of a vector to windows of channels: four places for each lane in an Excess, in as many of these as
// the fullest lane needs. 128, which no signed byte holds, takes two places.
inline void pack_rests(const Problem& p, const std::vector<Rest>& rests, std::vector<Excess>& list) {
  constexpr int L = kLanes<int32_t>;
  const int64_t windows = p.windows(), count = p.g.kh * p.g.kw * windows;
  std::vector<uint8_t> taken(count * L);
  std::vector<size_t> first(count + 1);
  for (const Rest& r : rests) {
    const size_t used = taken[r.window * L + r.lane] += r.value == 128 ? 2 : 1;
    first[r.window + 1] = std::max(first[r.window + 1], (used + 3) / 4);
  }
  for (int64_t window = 0; window < count; ++window) first[window + 1] += first[window];
  list.resize(first[count]);
  for (int64_t window = 0; window < count; ++window)
    for (size_t i = first[window]; i < first[window + 1]; ++i)
      list[i].tap = window / windows, list[i].channel = window % windows * kWindow;
  std::fill(taken.begin(), taken.end(), 0);
  for (const Rest& r : rests) {
    for (int32_t left = r.value; left != 0; left -= std::min(left, 127)) {
      const size_t place = taken[r.window * L + r.lane]++;
      Excess& e = list[first[r.window] + place / 4];
      e.index[4 * r.lane + place % 4] = r.index;
      e.weight[4 * r.lane + place % 4] = static_cast<int8_t>(std::min(left, 127));
    }
  }
}

template <typename T>
void pack_vector(Problem& p, int64_t vector, std::vector<int8_t>& rows, std::vector<Rest>& rests) {
  constexpr int L = kLanes<int32_t>;
  const Convolution& g = p.g;
  const int64_t first = vector % p.vectors * L, lanes = std::min<int64_t>(L, g.m - first);
  const int64_t o = vector / p.vectors * g.m + first, taps = g.kh * g.kw, count = p.channels * taps;
  rows.assign(L * count, 0);  // zeros beyond the group's channels
  rests.clear();
  int32_t* const sums = p.sums + vector * L;
  std::fill(sums, sums + L, 0);
  for (int64_t lane = 0; lane < lanes; ++lane)
    sums[lane] = quantize_weights<T>(p, o + lane, lane, rows.data() + lane * count, rests);
  int8_t* const packed = p.weights + vector * p.vector_bytes();
  for (int64_t c = 0; c < p.channels; c += 4)
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t lane = 0; lane < L; ++lane) {
        const int8_t* const from = rows.data() + lane * count + c * taps + tap;
        int8_t* const to = packed + (tap * p.channels + c) * L + 4 * lane;
        if (taps == 1) {
          std::memcpy(to, from, 4);
        } else {
          const int8_t four[4] = {from[0], from[taps], from[2 * taps], from[3 * taps]};
          std::memcpy(to, four, 4);
        }
      }
  pack_rests(p, rests, p.excess[vector]);
}

template <typename T>
void pack(Problem& p, int64_t begin, int64_t end) {
  std::vector<int8_t> rows;
  std::vector<Rest> rests;
  for (int64_t i = begin; i < end; ++i) pack_vector<T>(p, i, rows, rests);
}

}  // namespace fastnets::FASTNETS_ISA
