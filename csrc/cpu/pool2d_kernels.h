// Maximum and mean of windows. Included by isa.h: no guard.
//
// Lanes are channels. A task is a row of the result; of each window, four vectors of channels are kept in registers
// while its pixels go by, row by row: PyTorch's order, and but for the sign of zeros in bfloat16 its bits. Rows that
// windows share come from the second-level cache. Moves the bytes of x and y.
#include <algorithm>

namespace fastnets::FASTNETS_ISA::pool {

using fastnets::pool::Problem;

constexpr int L = kLanes<float>;

// The part of the windows of a row or a column that lies within the image, and its length with the padding.
struct Part {
  int64_t begin, end, padded;
};
inline Part part(int64_t i, int64_t stride, int64_t padding, int64_t kernel, int64_t size) {
  const int64_t first = i * stride - padding, last = std::min(first + kernel, size + padding);
  return {std::max<int64_t>(first, 0), std::min(last, size), last - first};
}

// `count` channels of U vectors, of a window whose first pixel x is; rows are `row` apart, pixels `pixel`. Where these
// are all, the compiler is told, or each load would ask how many are left.
template <bool Mean, int U, bool All, typename T>
FASTNETS_INLINE void window(const T* x, int64_t rows, int64_t columns, int64_t row, int64_t pixel, float divisor, T* y,
                            int64_t count) {
  if (All) count = U * L;
  Vec<float, L> sums[U];  // or maxima
  Vec<int32_t, L> nan[U] = {};
  for (int u = 0; u < U; ++u) sums[u] = splat<float, L>(Mean ? 0.0f : -std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < rows; ++i) {
    const T* from = x + i * row;
    for (int64_t j = 0; j < columns; ++j, from += pixel)
      for (int u = 0; u < U; ++u) {
        const Vec<float, L> v = load_first<T, L>(from + u * L, count - u * L);
        sums[u] = Mean ? sums[u] + v : v > sums[u] ? v : sums[u];
        if (!Mean) nan[u] |= v != v;  // all bits set are a NaN
      }
  }
  for (int u = 0; u < U; ++u) {
    const auto y_u = Mean ? sums[u] / divisor : bits<Vec<float, L>>(nan[u] | bits<Vec<int32_t, L>>(sums[u]));
    store_first<T, L>(y + u * L, y_u, count - u * L);
  }
}

// The bits of bfloat16 as integers in the order of the numbers, and back. A NaN is above all, or below if negative.
using Keys = Vec<int16_t, 2 * L>;
FASTNETS_INLINE Keys keys(Keys v) { return v ^ ((v >> 15) & int16_t{0x7fff}); }

// Of the first `count` numbers.
FASTNETS_INLINE Keys load_keys(const BFloat16* p, int64_t count) {
  Keys v{};
#if FASTNETS_VECTOR_BYTES == 64
  v = bits<Keys>(_mm512_maskz_loadu_epi16(~__mmask32{0} >> (2 * L - std::min<int64_t>(count, 2 * L)), p));
#else
  std::memcpy(&v, p, std::min<size_t>(count * sizeof *p, sizeof v));
#endif
  return keys(v);
}

FASTNETS_INLINE void store_keys(BFloat16* p, Keys v, int64_t count) {
  v = keys(v);
#if FASTNETS_VECTOR_BYTES == 64
  _mm512_mask_storeu_epi16(p, ~__mmask32{0} >> (2 * L - std::min<int64_t>(count, 2 * L)), bits<__m512i>(v));
#else
  std::memcpy(p, &v, std::min<size_t>(count * sizeof *p, sizeof v));
#endif
}

// The maximum of bfloat16, twice as many channels to a vector; of zeros the positive one.
template <int U, bool All>
FASTNETS_INLINE void window_of_keys(const BFloat16* x, int64_t rows, int64_t columns, int64_t row, int64_t pixel,
                                    BFloat16* y, int64_t count) {
  constexpr int V = 2 * L;
  constexpr int16_t kLowest = -0x7f81;  // minus infinity
  if (All) count = U * V;
  Keys high[U], low[U];
  for (int u = 0; u < U; ++u) high[u] = low[u] = kLowest - Keys{};
  for (int64_t i = 0; i < rows; ++i) {
    const BFloat16* from = x + i * row;
    for (int64_t j = 0; j < columns; ++j, from += pixel)
      for (int u = 0; u < U; ++u) {
        const Keys v = load_keys(from + u * V, count - u * V);
        high[u] = v > high[u] ? v : high[u];
        low[u] = v < low[u] ? v : low[u];
      }
  }
  for (int u = 0; u < U; ++u) store_keys(y + u * V, low[u] < kLowest ? low[u] : high[u], count - u * V);
}

// The maximum of bytes, four times as many channels to a vector.
template <int U, bool All>
FASTNETS_INLINE void window_of_bytes(const uint8_t* x, int64_t rows, int64_t columns, int64_t row, int64_t pixel,
                                     uint8_t* y, int64_t count) {
  constexpr int V = 4 * L;
  using Levels = Vec<uint8_t, V>;
  if (All) count = U * V;
  Levels high[U] = {};
  for (int64_t i = 0; i < rows; ++i) {
    const uint8_t* from = x + i * row;
    for (int64_t j = 0; j < columns; ++j, from += pixel)
      for (int u = 0; u < U; ++u) {
        Levels v{};
        std::memcpy(&v, from + u * V, All ? V : std::min<int64_t>(count - u * V, V));
        high[u] = v > high[u] ? v : high[u];
      }
  }
  for (int u = 0; u < U; ++u) std::memcpy(y + u * V, &high[u], All ? V : std::min<int64_t>(count - u * V, V));
}

// The windows whose rows h are, the first of which x is.
template <bool Mean, typename T>
FASTNETS_INLINE void result_row(const Problem<T>& p, const Part& h, const T* x, T* y) {
  constexpr int V = Mean ? L : L * static_cast<int>(sizeof(float) / sizeof(T));  // channels to a vector
  const Convolution& g = p.g;
  const int64_t pixel = p.x.pixel, row = g.w * pixel;
  for (int64_t i = 0; i < g.ow; ++i, y += p.y.pixel) {
    const Part w = part(i, g.sw, g.pw, g.kw, g.w);
    const int64_t rows = h.end - h.begin, columns = w.end - w.begin;
    const float divisor = p.counts_padding ? h.padded * w.padded : rows * columns;
    for (int64_t c = 0; c < g.c; c += 4 * V) {
      const T* const from = x + w.begin * pixel + c;
      const int64_t count = std::min<int64_t>(4 * V, g.c - c);
      const auto take = [&](auto vectors) {
        constexpr int U = decltype(vectors)::value;
        const auto run = [&](auto all) {
          if constexpr (V > 2 * L)
            window_of_bytes<U, decltype(all)::value>(from, rows, columns, row, pixel, y + c, count);
          else if constexpr (V > L)
            window_of_keys<U, decltype(all)::value>(from, rows, columns, row, pixel, y + c, count);
          else
            window<Mean, U, decltype(all)::value>(from, rows, columns, row, pixel, divisor, y + c, count);
        };
        if (count == U * V) return run(std::true_type());
        run(std::false_type());
      };
      switch (ceil_div(count, V)) {
        case 4:
          take(std::integral_constant<int, 4>());
          break;
        case 3:
          take(std::integral_constant<int, 3>());
          break;
        case 2:
          take(std::integral_constant<int, 2>());
          break;
        default:
          take(std::integral_constant<int, 1>());
      }
    }
  }
}

template <typename T>
void rows(const Problem<T>& p, int64_t begin, int64_t end) {
  const Convolution& g = p.g;
  for (int64_t task = begin; task < end; ++task) {
    const Part h = part(task % g.oh, g.sh, g.ph, g.kh, g.h);
    const T* const x = p.x.data + (task / g.oh * g.h + h.begin) * g.w * p.x.pixel;
    T* const y = p.y.data + task * g.ow * p.y.pixel;
    if constexpr (!std::is_same_v<T, uint8_t>)
      if (p.mean) {
        result_row<true>(p, h, x, y);
        continue;
      }
    result_row<false>(p, h, x, y);
  }
}

}  // namespace fastnets::FASTNETS_ISA::pool
