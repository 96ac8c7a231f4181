// Weights to bytes, in vectors of output channels as dot products want them. Reads each weight once and writes a byte
// for it, and two more where its magnitude passes 127. Included by isa.h: no guard.

namespace fastnets::FASTNETS_ISA {

using gate::Excess;
using gate::kWindow;

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
#elif FASTNETS_VECTOR_BYTES == 32
  if constexpr (L == 8) return _mm256_movemask_ps(bits<__m256>(v != 0));
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
