// The axes of channel_shuffle and shuffle_split as strided copies. Shared by CPU and CUDA.
#pragma once

#include "strided_copy.h"

namespace fastnets {

// A result of x's sizes, in its layout.
inline Tensor empty_like(const Tensor& x) { return empty(x, sizes_of(x), is_channels_last(x)); }

inline void check_channel_shuffle(const Tensor& x, int64_t groups) {
  STD_TORCH_CHECK(x.dim() == 4, "expected an input (n, c, h, w), got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(groups > 0 && x.size(1) % groups == 0, "expected groups that divide the ", x.size(1),
                  " channels, got ", groups);
}

// Batch, rows and columns; strides in bytes.
inline std::vector<Axis> pixel_axes(const Tensor& x, const Tensor& y) {
  const Four n = sizes_of(x), from = strides_of(x), to = strides_of(y);
  const int64_t b = x.element_size();
  return {{n.n, from.n * b, to.n * b}, {n.h, from.h * b, to.h * b}, {n.w, from.w * b, to.w * b}};
}

// y[:, i * groups + j] = x[:, j * (c / groups) + i].
inline StridedCopy channel_shuffle_copy(const Tensor& x, const Tensor& y, int64_t groups) {
  const int64_t b = x.element_size(), each = x.size(1) / groups, from = x.stride(1) * b, to = y.stride(1) * b;
  StridedCopy copy{data<char>(x), mutable_data<char>(y), b, pixel_axes(x, y)};
  copy.axes.push_back({each, from, groups * to});
  copy.axes.push_back({groups, each * from, to});
  return copy;
}

struct Pair {
  Tensor first, second;
};

inline bool alike(const Pair& t) { return strides_of(t.first) == strides_of(t.second); }

inline int64_t distance(const Pair& t) { return data<char>(t.second) - data<char>(t.first); }

inline void check_shuffle_split(const Tensor& a, const Tensor& b) {
  STD_TORCH_CHECK(a.dim() == 4 && b.dim() == 4 && sizes_of(a) == sizes_of(b),
                  "expected two tensors of one shape (n, c, h, w)");
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type() && a.device() == b.device(),
                  "expected two tensors of one type, on one device");
}

inline StridedCopy between(const Tensor& x, const Tensor& y) {
  return {data<char>(x), mutable_data<char>(y), static_cast<int64_t>(x.element_size()), pixel_axes(x, y)};
}

// Channel t of y, the second half taken after the first, is channel t / 2 of x.first where t is even, of x.second where
// it is odd. For an even number c of channels in each: half of every source goes to every result, all in one copy.
inline StridedCopy shuffle_split_at_once(const Pair& x, const Pair& y) {
  StridedCopy copy = between(x.first, y.first);
  const int64_t half = x.first.size(1) / 2, from = x.first.stride(1) * copy.bytes, to = y.first.stride(1) * copy.bytes;
  copy.axes.push_back({half, from, 2 * to});
  copy.axes.push_back({2, distance(x), to});
  copy.axes.push_back({2, half * from, distance(y)});
  return copy;
}

// The channels of result q that come from source j.
inline StridedCopy shuffle_split_part(const Pair& x, const Pair& y, int q, int j) {
  StridedCopy copy = between(j ? x.second : x.first, q ? y.second : y.first);
  const int64_t c = x.first.size(1), from = (j ? x.second : x.first).stride(1) * copy.bytes;
  const int64_t to = (q ? y.second : y.first).stride(1) * copy.bytes, first = (q * c + j) % 2;
  copy.from += (q * c + first) / 2 * from;
  copy.to += first * to;
  copy.axes.push_back({(c - first + 1) / 2, from, 2 * to});
  return copy;
}

// From two sources of one shape to two results of it; inverse: from the results to the sources.
inline std::vector<StridedCopy> shuffle_split_copies(const Pair& x, const Pair& y, bool inverse) {
  const Pair &apart = inverse ? y : x, &mixed = inverse ? x : y;
  std::vector<StridedCopy> copies;
  if (x.first.size(1) % 2 == 0 && alike(x) && alike(y)) {
    copies.push_back(shuffle_split_at_once(apart, mixed));
  } else {
    for (int part = 0; part < 4; ++part) copies.push_back(shuffle_split_part(apart, mixed, part / 2, part % 2));
  }
  std::erase_if(copies, [](const StridedCopy& copy) { return copy.elements() == 0; });  // of one channel
  for (StridedCopy& copy : copies)
    if (inverse) copy = inverted(copy);
  return copies;
}

}  // namespace fastnets
