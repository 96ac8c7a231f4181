// Images as bytes. Reads 4 bytes a number and writes one. Included by isa.h: no guard.
#include "bytes.h"

namespace fastnets::FASTNETS_ISA {

// The levels of `count` numbers; a NaN's is that of 0.
inline void quantize(const float* from, int64_t count, const Levels& levels, uint8_t* to) {
  constexpr int L = kLanes<float>;
  const Vec<int32_t, L> zero = splat<int32_t, L>(static_cast<int32_t>(levels.zero));
  for (int64_t i = 0; i < count; i += L) {
    const Vec<float, L> steps = load_first<float, L>(from + i, count - i) * levels.inverse;
    const Vec<float, L> kept = clamp<float, L>(steps, -levels.zero, Levels::kMost - levels.zero);
    store_bytes<L>(to + i, nearest<float>(kept) + zero, count - i);
  }
}

// Those of `channels` of pixels [begin, end), to `bytes` for each, of which those that are left over are zeros.
inline void quantize_pixels(const fastnets::pointwise::Pixels<const float>& x, int64_t channels, const Levels& levels,
                            uint8_t* to, int64_t bytes, int64_t begin, int64_t end) {
  const float* from = x.data + begin * x.pixel;
  to += begin * bytes;
  if (x.pixel == channels && bytes == channels) return quantize(from, (end - begin) * channels, levels, to);
  for (int64_t i = begin; i < end; ++i, from += x.pixel, to += bytes) {
    quantize(from, channels, levels, to);
    std::fill(to + channels, to + bytes, uint8_t{0});
  }
}

// Of the first `left` pixels of a plane.
FASTNETS_INLINE Words levels_in_plane(const float* from, int64_t left, const Levels& levels) {
  const Vec<float, kWords> steps = load_first<float, kWords>(from, left) * levels.inverse;
  return nearest<float>(clamp<float, kWords>(steps, -levels.zero, Levels::kMost - levels.zero)) +
         static_cast<int32_t>(levels.zero);
}

// Levels of images whose channels are planes of `plane` pixels, of pixels [begin, end) of all. Four channels make a
// word of each pixel.
inline void quantize_planes(const float* x, int64_t plane, int64_t channels, const Levels& levels, uint8_t* to,
                            int64_t bytes, int64_t begin, int64_t end) {
  for (int64_t i = begin, count; i < end; i += count) {
    const float* const from = x + i / plane * plane * channels + i % plane;
    count = std::min<int64_t>({kWords, end - i, plane - i % plane});
    for (int64_t c = 0; c < channels; c += 4) {
      Words word{};
      for (int64_t k = 0; k < std::min<int64_t>(4, channels - c); ++k)
        word |= levels_in_plane(from + (c + k) * plane, count, levels) << static_cast<int32_t>(8 * k);
      for (int64_t k = 0; k < count; ++k) {
        const int32_t four = word[k];
        std::memcpy(to + (i + k) * bytes + c, &four, sizeof four);
      }
    }
  }
}

// Numbers of `channels` of pixels that are bytes.
inline void number_pixels(const fastnets::pointwise::Pixels<const uint8_t>& x, int64_t channels, const Levels& levels,
                          float* to, int64_t pixel, int64_t pixels) {
  constexpr int L = kLanes<float>;
  const uint8_t* from = x.data;
  for (int64_t i = 0; i < pixels; ++i, from += x.pixel, to += pixel)
    for (int64_t c = 0; c < channels; c += L)
      store_first<float, L>(to + c, (load_bytes(from + c, channels - c) - levels.zero) * (1 / levels.inverse),
                            channels - c);
}

}  // namespace fastnets::FASTNETS_ISA
