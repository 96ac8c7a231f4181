// Weights to bytes, in panels of output channels as dot products want them. Lanes are output channels, whose weights
// are transposed in registers. Reads each weight once and writes a byte for it, and two more where its magnitude passes
// 127. Included by isa.h: no guard.

namespace fastnets::FASTNETS_ISA {

using gate::Excess;
using gate::kWindow;
using gate::Weights;

constexpr int64_t kPanel = gate::kLanes;

// Writes first + i for each lane i that is not 0, and up to a vector behind; returns where to go on.
FASTNETS_INLINE int32_t* list_lanes(Words v, int32_t first, int32_t* to) {
#if FASTNETS_VECTOR_BYTES == 64
  const __mmask16 mask = _mm512_test_epi32_mask(bits<__m512i>(v), bits<__m512i>(v));
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(lanes, _mm512_set1_epi32(first))));
  return to + __builtin_popcount(mask);
#else
  for (unsigned left = lane_bits(v != 0); left != 0; left &= left - 1) *to++ = first + __builtin_ctz(left);
  return to;
#endif
}

// Deals what the weights of a panel have beyond a byte to windows of a tap's channels: four places for each lane in an
// Excess, in as many of these as the fullest lane needs.
class Dealer {
 public:
  explicit Dealer(int64_t taps) : used_(taps * kPanel), count_(taps), at_(taps * kMost) {}

  void next_window() {
    std::fill(used_.begin(), used_.end(), 0);
    std::fill(count_.begin(), count_.end(), 0);
  }

  void add(int64_t tap, int64_t channel, int64_t lane, int32_t rest) {
    while (rest != 0) {  // 128, which no signed byte holds, takes two places
      const int32_t byte = std::min(rest, 127), place = used_[tap * kPanel + lane]++;
      if (place / 4 == count_[tap]) {
        at_[tap * kMost + count_[tap]++] = list.size();
        list.push_back({tap, channel / kWindow * kWindow, {}, {}});
      }
      Excess& e = list[at_[tap * kMost + place / 4]];
      e.index[4 * lane + place % 4] = static_cast<uint8_t>(channel % kWindow);
      e.weight[4 * lane + place % 4] = static_cast<int8_t>(byte);
      rest -= byte;
    }
  }

  std::vector<Excess> list;

 private:
  static constexpr int64_t kMost = 2 * kWindow / 4;
  std::vector<uint8_t> used_;   // places, [tap][lane]
  std::vector<uint8_t> count_;  // of the window's Excesses, [tap]
  std::vector<size_t> at_;      // where they are, [tap][kMost]
};

// The integers of `channels` channels from c on, at most kNumbers<T>, of the panel of output channels from o on, as
// [channel][tap][lane]; zeros where there is no output channel.
template <typename T>
void quantize_weights(const Problem& p, const Weights& weights, int64_t o, int64_t lanes, int64_t c, int64_t channels,
                      int32_t* out) {
  using A = Sum<T>;
  constexpr int N = kNumbers<T>;
  const Convolution& g = p.g;
  const Four& step = weights.stride;
  const A scale = static_cast<A>(p.w_scale), levels = static_cast<A>(p.bits.weight_levels);
  const int64_t taps = g.kh * g.kw;
  const bool dense = step.w == 1 && step.h == g.kw && step.c == taps;  // [channel][tap]: both in one row
  for (int64_t chunk = 0; chunk < taps; ++chunk) {
    const int64_t count = dense ? std::clamp<int64_t>(channels * taps - chunk * N, 0, N) : channels;
    const int64_t at = dense ? chunk * N : chunk / g.kw * step.h + chunk % g.kw * step.w;
    const T* const from = static_cast<const T*>(weights.from) + o * step.n + c * step.c + at;
    const int64_t next = dense ? 1 : step.c, to = dense ? kPanel : taps * kPanel;
    int32_t* const chunk_out = out + (dense ? chunk * N : chunk) * kPanel;
    for (int64_t lane = 0; lane < kPanel; lane += N) {
      const bool whole = next == 1 && count == N && lane + N <= lanes;
      Vec<A, N> v[N];
      if (whole) {
        for (int i = 0; i < N; ++i) v[i] = load<T, N>(from + (lane + i) * step.n);
      } else {
        for (int i = 0; i < N; ++i) v[i] = load_some<T>(from + (lane + i) * step.n, lane + i < lanes ? count : 0, next);
      }
      transpose<A, N>(v);
      for (int i = 0; i < count; ++i) {
        const Vec<int32_t, N> sign = __builtin_convertvector(v[i] < A(0), Vec<int32_t, N>);  // -1 or 0
        const Vec<int32_t, N> q = (magnitude<A>(v[i], scale, levels) ^ sign) - sign;
        std::memcpy(chunk_out + i * to + lane, &q, sizeof q);
      }
    }
  }
}

// The bytes of these integers to the panel's weights; adds the integers to `sums`; returns how many do not fit a byte,
// whose places it lists.
inline int64_t pack_bytes(const Problem& p, const int32_t* integers, int64_t channels, int8_t* weights, Words* sums,
                          int32_t* places) {
  const int64_t taps = p.g.kh * p.g.kw, step = taps * kPanel;  // between channels
  int32_t* end = places;
  for (int64_t k = 0; k < channels; k += 4)
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t lane = 0; lane < kPanel; lane += kWords) {
        const int64_t from = k * step + tap * kPanel + lane;
        Words four{}, sum{};
        for (int j = 0; j < 4; ++j) {
          const Words q = words(integers + from + j * step);
          const Words low = q < -128 ? Words{} - 128 : q, byte = low > 127 ? Words{} + 127 : low;
          sum += q;
          four |= (byte & 255) << (8 * j);
          end = list_lanes(q ^ byte, static_cast<int32_t>(from + j * step), end);
        }
        sums[lane / kWords] += sum;
        std::memcpy(weights + (tap * p.channels + k) * kPanel + 4 * lane, &four, sizeof four);
      }
  return end - places;
}

template <typename T>
void pack(const Problem& p, Weights& to, int64_t begin, int64_t end) {
  constexpr int N = kNumbers<T>, B = std::max(N, 4);  // of four channels, bytes are written together
  const Convolution& g = p.g;
  const int64_t taps = g.kh * g.kw, size = B * taps * kPanel;
  std::vector<int32_t> integers(size), places(size + kWords);
  Dealer dealer(taps);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t first = panel % p.panels * kPanel, lanes = std::min<int64_t>(kPanel, g.m - first);
    int8_t* const bytes = to.bytes + panel * p.panel_bytes();
    Words sums[kPanel / kWords]{};
    dealer.list.clear();
    for (int64_t c = 0; c < g.depth; c += B) {
      const int64_t channels = std::min<int64_t>(B, g.depth - c);
      if (c % kWindow == 0) dealer.next_window();
      for (int64_t k = 0; k < channels; k += N)
        quantize_weights<T>(p, to, panel / p.panels * g.m + first, lanes, c + k, std::min<int64_t>(N, channels - k),
                            integers.data() + k * taps * kPanel);
      std::fill(integers.begin() + channels * taps * kPanel, integers.end(), 0);
      const int64_t count = pack_bytes(p, integers.data(), channels, bytes + c * kPanel, sums, places.data());
      for (int64_t i = 0; i < count; ++i) {
        const uint32_t place = static_cast<uint32_t>(places[i]), at = place / kPanel;
        const uint32_t channel = at / static_cast<uint32_t>(taps), tap = at - channel * static_cast<uint32_t>(taps);
        const int32_t q = integers[place];
        dealer.add(tap, c + channel, place % kPanel, q > 0 ? q - 127 : q + 128);
      }
    }
    std::memcpy(to.sums + panel * kPanel, sums, sizeof sums);
    to.excess[panel].assign(dealer.list.begin(), dealer.list.end());
  }
}

// The bytes of a window that `index` names, which may be any bytes: nothing else is read.
FASTNETS_INLINE Words pick(const uint8_t* window, const uint8_t* index) {
#if defined(FASTNETS_VNNI)
  return bits<Words>(_mm512_permutexvar_epi8(_mm512_loadu_si512(index), _mm512_loadu_si512(window)));
#elif FASTNETS_VECTOR_BYTES == 32
  // A shuffle reads one table of 16 bytes, by the low bits of an index, and gives 0 where its top bit is set: here
  // where the index is of another table.
  const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(index)), top = _mm256_set1_epi8(0x70);
  __m256i picked = _mm256_setzero_si256();
  for (int i = 0; i < 64; i += 16) {
    const __m256i from_table = _mm256_adds_epu8(_mm256_sub_epi8(all, _mm256_set1_epi8(static_cast<char>(i))), top);
    const __m128i table = _mm_loadu_si128(reinterpret_cast<const __m128i*>(window + i));
    picked = _mm256_or_si256(picked, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), from_table));
  }
  return bits<Words>(picked);
#else
  uint8_t picked[sizeof(Words)];
  for (size_t i = 0; i < sizeof picked; ++i) picked[i] = window[index[i] % gate::kWindow];
  Words words;
  std::memcpy(&words, picked, sizeof words);
  return words;
#endif
}

}  // namespace fastnets::FASTNETS_ISA
