// Images as bytes, and back. Reads 4 bytes a number and writes one, or the other way. Included by isa.h: no guard.
#include "bytes.h"

namespace fastnets::FASTNETS_ISA {

using fastnets::pointwise::Pixels;

// The levels of a vector of numbers; a NaN's is that of 0.
struct ToLevels {
  explicit ToLevels(const Levels& levels)
      : inverse(levels.inverse),
        low(-levels.zero),
        high(Levels::kMost - levels.zero),
        zero(splat<int32_t, kWords>(static_cast<int32_t>(levels.zero))) {}
  FASTNETS_INLINE Words operator()(Vec<float, kWords> v) const {
    return nearest<float>(clamp<float, kWords>(v * inverse, low, high)) + zero;
  }
  float inverse, low, high;
  Words zero;
};

FASTNETS_INLINE void quantize(const float* from, int64_t count, const ToLevels& levels, uint8_t* to) {
  int64_t i = 0;
  for (; i + kWords <= count; i += kWords) store_bytes<kWords>(to + i, levels(load<float, kWords>(from + i)), kWords);
  if (i < count) store_bytes<kWords>(to + i, levels(load_first<float, kWords>(from + i, count - i)), count - i);
}

// Levels of `channels` of pixels [begin, end), which begin `pixel` bytes apart; zeros fill up the last word of each.
inline void quantize_pixels(const Pixels<const float>& x, int64_t channels, const Levels& of, uint8_t* to,
                            int64_t pixel, int64_t begin, int64_t end) {
  const ToLevels levels(of);
  const float* from = x.data + begin * x.pixel;
  to += begin * pixel;
  if (x.pixel == channels && pixel == channels) return quantize(from, (end - begin) * channels, levels, to);
  int64_t i = begin;
  if (x.pixel == channels && channels < 4 && pixel == 4) {  // of photos, whose words are spread
    const int32_t mask = (1 << 8 * channels) - 1;
    uint8_t some[4 * kWords];
    for (; i + kWords <= end; i += kWords, from += kWords * channels) {
      quantize(from, kWords * channels, levels, some);
      for (int64_t k = 0; k < kWords; ++k, to += 4) {
        int32_t word;
        std::memcpy(&word, some + k * channels, sizeof word);
        word &= mask;
        std::memcpy(to, &word, sizeof word);
      }
    }
  }
  for (; i < end; ++i, from += x.pixel, to += pixel) {
    quantize(from, channels, levels, to);
    for (int64_t c = channels; c < bytes_of(channels); ++c) to[c] = 0;
  }
}

// Of images whose channels are planes of `plane` pixels, those of pixels [begin, end) of all.
inline void quantize_planes(const float* x, int64_t plane, int64_t channels, const Levels& of, uint8_t* to,
                            int64_t pixel, int64_t begin, int64_t end) {
  const ToLevels levels(of);
  for (int64_t i = begin, count; i < end; i += count) {
    const float* const from = x + i / plane * plane * channels + i % plane;
    count = std::min<int64_t>({kWords, end - i, plane - i % plane});
    for (int64_t c = 0; c < channels; c += 4) {
      Words word{};  // four channels of each pixel
      for (int64_t k = 0; k < std::min<int64_t>(4, channels - c); ++k)
        word |= levels(load_first<float, kWords>(from + (c + k) * plane, count)) << static_cast<int32_t>(8 * k);
      if (count == kWords && pixel == sizeof(int32_t)) {
        put(word, reinterpret_cast<int32_t*>(to + i * pixel));
        continue;
      }
      int32_t words[kWords];
      put(word, words);
      for (int64_t k = 0; k < count; ++k) std::memcpy(to + (i + k) * pixel + c, words + k, sizeof(int32_t));
    }
  }
}

// Numbers of `channels` of pixels that are bytes.
inline void number_pixels(const Pixels<const uint8_t>& x, int64_t channels, const Levels& levels, float* to,
                          int64_t pixel, int64_t pixels) {
  const float step = 1 / levels.inverse, zero = levels.zero;
  const uint8_t* from = x.data;
  for (int64_t i = 0; i < pixels; ++i, from += x.pixel, to += pixel)
    for (int64_t c = 0; c < channels; c += kWords)
      store_first<float, kWords>(to + c, (load_bytes(from + c, channels - c) - zero) * step, channels - c);
}

}  // namespace fastnets::FASTNETS_ISA
