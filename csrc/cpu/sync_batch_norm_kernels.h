// Batch normalisation and the activation after it: y of x; sums over dy and x; dx of both. Included by isa.h: no guard.
//
// Planes: lanes are pixels. One process takes a channel at a time, sums first, then result: the second pass finds the
// channel in the caches, and memory sees it read once and written once, 2 b n c l bytes forward and 3 b n c l backward.
// Channels_last: lanes are channels, 4 vectors of them at a time go down a block of rows. Here both passes go over
// the whole tensor, 3 and 5 b n c l bytes; the second goes backwards, and meets in the caches what the first left.
#include "activate.h"
#include "batch_moments_kernels.h"
#include "batch_norm_rows.h"

namespace fastnets::FASTNETS_ISA::batch_norm {

using fastnets::Range;
using fastnets::share;
using fastnets::batch_norm::Kernels;
using fastnets::batch_norm::Problem;
using fastnets::moments::Cut;

template <typename T>
FASTNETS_INLINE Sum<T>* vector(void* values) {
  return static_cast<Sum<T>*>(values);
}
template <typename T>
FASTNETS_INLINE const Sum<T>* vector(const void* values) {
  return static_cast<const Sum<T>*>(values);
}

// y = f((x - mean) * scale + bias) of one channel.
template <typename T>
struct Normalize {
  const T* x;
  T* out;
  Sum<T> mean, scale, bias;
  Activate<Sum<T>> activate;

  template <int L>
  FASTNETS_INLINE Vec<Sum<T>, L> at(int64_t i) const {
    Vec<Sum<T>, L> z[1] = {(load<T, L>(x + i) - mean) * scale + bias};
    activate.template operator()<L, 1>(z);
    return z[0];
  }
  FASTNETS_INLINE void fetch(int64_t i) const { __builtin_prefetch(x + i, 0, 2); }
};

// dx = (dz - shift - (x - mean) * slope) * scale of one channel.
template <typename T>
struct Gradient {
  const T *dy, *x;
  T* out;
  Sum<T> mean, scale, bias, shift, slope;
  ActivateBackward<Sum<T>> backward;

  template <int L>
  FASTNETS_INLINE Vec<Sum<T>, L> at(int64_t i) const {
    const Vec<Sum<T>, L> d = load<T, L>(x + i) - mean;
    return (dz_of<Sum<T>, L>(backward, load<T, L>(dy + i), d, scale, bias) - shift - d * slope) * scale;
  }
  FASTNETS_INLINE void fetch(int64_t i) const { __builtin_prefetch(x + i, 0, 2), __builtin_prefetch(dy + i, 0, 2); }
};

// Writes a plane. A stream writes whole cache lines: W vectors at a time, single values before the first line and
// behind the last, which a plane of a few lines is not worth.
template <typename T, typename F>
FASTNETS_INLINE void write_plane(const F& f, int64_t length, bool streams) {
  constexpr int64_t L = kLanes<Sum<T>>, W = 64 / FASTNETS_VECTOR_BYTES, kLeast = 512 / sizeof(T);
  int64_t i = 0;
  if (length >= kLeast && streams && are_lines<T, L, W>) {
    for (; i < length && !can_stream<T, L, W>(f.out + i, W * L); ++i) store<T, 1>(f.out + i, f.template at<1>(i));
    for (; i + W * L <= length; i += W * L) {
      f.fetch(i + length);
      for (int64_t k = i; k < i + W * L; k += L) stream<T, L>(f.out + k, f.template at<L>(k));
    }
  } else if (length >= L) {
    for (; i + L <= length; i += L) f.fetch(i + length), store<T, L>(f.out + i, f.template at<L>(i));
    if (i < length) store<T, L>(f.out + length - L, f.template at<L>(length - L));
    return;
  }
  for (; i < length; ++i) store<T, 1>(f.out + i, f.template at<1>(i));
}

template <typename T>
Normalize<T> normalize(const Problem& p, int64_t c, int64_t offset) {
  return {static_cast<const T*>(p.x) + offset,
          static_cast<T*>(p.out) + offset,
          vector<T>(p.mean)[c],
          vector<T>(p.scale)[c],
          vector<T>(p.bias)[c],
          Activate<Sum<T>>(p.activation)};
}

template <typename T>
Gradient<T> gradient(const Problem& p, int64_t c, int64_t offset) {
  return {static_cast<const T*>(p.dy) + offset,
          static_cast<const T*>(p.x) + offset,
          static_cast<T*>(p.out) + offset,
          vector<T>(p.mean)[c],
          vector<T>(p.scale)[c],
          vector<T>(p.bias)[c],
          vector<T>(p.shift)[c],
          vector<T>(p.slope)[c],
          ActivateBackward<Sum<T>>(p.activation)};
}

// What `reduce` adds up (see moments::reduce_planes): dz and dz * (x - mean).
template <typename T>
struct Products {
  const T *dy, *x;
  Sum<T> mean, scale, bias;
  ActivateBackward<Sum<T>> backward;

  template <int L>
  FASTNETS_INLINE void at(int64_t i, Vec<Sum<T>, L>& s, Vec<Sum<T>, L>& q) const {
    const Vec<Sum<T>, L> d = load<T, L>(x + i) - mean,
                         g = dz_of<Sum<T>, L>(backward, load<T, L>(dy + i), d, scale, bias);
    s += g, q += g * d;
  }
  template <int L>
  FASTNETS_INLINE void last(int64_t i, int64_t left, Vec<Sum<T>, L>& s, Vec<Sum<T>, L>& q) const {
    const Vec<Sum<T>, L> d = load<T, L>(x + i) - mean,
                         g = dz_of<Sum<T>, L>(backward, load<T, L>(dy + i), d, scale, bias);
    s += moments::keep_last<Sum<T>, L>(g, left), q += moments::keep_last<Sum<T>, L>(g * d, left);
  }
  FASTNETS_INLINE void fetch(int64_t i) const { __builtin_prefetch(x + i), __builtin_prefetch(dy + i); }
  FASTNETS_INLINE void next(int64_t stride) { dy += stride, x += stride; }
};

template <typename T>
FASTNETS_INLINE Sum<T> r_of(const Problem& p, int64_t c) {
  return Sum<T>(1) / std::sqrt(vector<T>(p.var)[c] + static_cast<Sum<T>>(p.eps));
}

template <typename T>
moments::Sums<Sum<T>> channel_products(const Problem& p, int64_t c, Range blocks) {
  using A = Sum<T>;
  const Cut& cut = p.cut;
  const int64_t l = cut.map.l, stride = cut.map.c * l;
  moments::Sums<A> sums;
  for (int64_t i = blocks.begin; i < blocks.end; ++i) {
    const Range planes = cut.planes_of(i), piece = cut.piece_of(i);
    const int64_t at = planes.begin * stride + c * l + piece.begin;
    const Products<T> products{static_cast<const T*>(p.dy) + at,
                               static_cast<const T*>(p.x) + at,
                               vector<T>(p.mean)[c],
                               vector<T>(p.scale)[c],
                               vector<T>(p.bias)[c],
                               ActivateBackward<A>(p.activation)};
    const moments::Sums<A> more = moments::reduce_planes<Products<T>, A, kLanes<A>>(products, planes.end - planes.begin,
                                                                                    stride, piece.end - piece.begin);
    sums.s += more.s, sums.q += more.q;
  }
  return sums;
}

template <typename T>
void reduce_planes(const Problem& p, int64_t begin, int64_t end) {
  const Cut& cut = p.cut;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c = task / cut.parts, part = task % cut.parts;
    const auto sums = channel_products<T>(p, c, share(cut.blocks, part, cut.parts));
    vector<T>(p.sums)[2 * part * cut.map.c + c] = sums.s;
    vector<T>(p.sums)[(2 * part + 1) * cut.map.c + c] = sums.q;
  }
}

template <typename T>
void forward_planes(const Problem& p, int64_t begin, int64_t end) {
  const Map& m = p.cut.map;
  for (int64_t i = begin; i < end; ++i) write_plane<T>(normalize<T>(p, i % m.c, i * m.l), m.l, p.streams);
  finish_streams();
}

template <typename T>
void dx_planes(const Problem& p, int64_t begin, int64_t end) {
  const Map& m = p.cut.map;
  for (int64_t i = begin; i < end; ++i) write_plane<T>(gradient<T>(p, i % m.c, i * m.l), m.l, p.streams);
  finish_streams();
}

template <typename T>
void local_planes(const Problem& p, int64_t begin, int64_t end) {
  const Map& m = p.cut.map;
  for (int64_t c = begin; c < end; ++c) {
    const auto moments = moments::channel_moments<T>(p.cut, static_cast<const T*>(p.x), c, {0, p.cut.blocks});
    vector<T>(p.mean)[c] = moments.mean;
    vector<T>(p.var)[c] = moments.m2 / m.count();
    vector<T>(p.scale)[c] = vector<T>(p.weight)[c] * r_of<T>(p, c);
    for (int64_t n = m.n - 1; n >= 0; --n) write_plane<T>(normalize<T>(p, c, (n * m.c + c) * m.l), m.l, p.streams);
  }
  finish_streams();
}

// Shift and slope of the gradient, out of the sums over all values.
template <typename T>
void gradient_of_sums(const Problem& p, int64_t begin, int64_t end) {
  using A = Sum<T>;
  const A *sums = vector<T>(p.sums), count = static_cast<A>(p.count);
  for (int64_t c = begin; c < end; ++c) {
    vector<T>(p.shift)[c] = sums[c] / count;
    vector<T>(p.slope)[c] = r_of<T>(p, c) * (sums[p.cut.map.c + c] / count);
  }
}

template <typename T>
void local_backward_planes(const Problem& p, int64_t begin, int64_t end) {
  const Map& m = p.cut.map;
  for (int64_t c = begin; c < end; ++c) {
    vector<T>(p.scale)[c] = vector<T>(p.weight)[c] * r_of<T>(p, c);
    reduce_planes<T>(p, c, c + 1);
    vector<T>(p.sums)[m.c + c] *= r_of<T>(p, c);
    gradient_of_sums<T>(p, c, c + 1);
    for (int64_t n = m.n - 1; n >= 0; --n) write_plane<T>(gradient<T>(p, c, (n * m.c + c) * m.l), m.l, p.streams);
  }
  finish_streams();
}

template <typename T>
struct GradientRows {
  const T *dy, *x;
  T* dx;
  int64_t rows, step;
  const Sum<T>*mean, *scale, *bias, *shift, *slope;
  ActivateBackward<Sum<T>> backward;
  bool streams;

  template <int L, int W>
  FASTNETS_INLINE void at(int64_t c, int64_t) const {
    using A = Sum<T>;
    Vec<A, L> m[W], s[W], b[W], h[W], o[W];
    for (int k = 0; k < W; ++k) {
      m[k] = load<A, L>(mean + c + k * L), s[k] = load<A, L>(scale + c + k * L), b[k] = load<A, L>(bias + c + k * L);
      h[k] = load<A, L>(shift + c + k * L), o[k] = load<A, L>(slope + c + k * L);
    }
    const ActivateBackward<A> f = backward;
    const T *gradient = dy + c, *from = x + c;
    T* to = dx + c;
    const bool past = streams && can_stream<T, L, W>(to, step);
    for (int64_t r = rows, down = step; r > 0; --r, gradient += down, from += down, to += down)
      for (int k = 0; k < W; ++k) {
        const Vec<A, L> d = load<T, L>(from + k * L) - m[k];
        const Vec<A, L> g = dz_of<A, L>(f, load<T, L>(gradient + k * L), d, s[k], b[k]);
        put<T, L>(to + k * L, (g - h[k] - d * o[k]) * s[k], past);
      }
  }
};

// Copies slots to channels.
template <typename T>
struct SumsOfSlots {
  const Sum<T>*s, *q;
  Sum<T>*sum_dz, *sum_dz_d;

  template <int L, int W>
  void at(int64_t c, int64_t slot) const {
    std::copy_n(s + slot, W * L, sum_dz + c), std::copy_n(q + slot, W * L, sum_dz_d + c);
  }
};

// Calls f with the first of some rows and their number: the last part first, as the pass before left it in the caches.
// Rows that go by together share what a channel has to load: 32 of a few vectors, four of a page or more, and of those
// between single ones, since processors fetch ahead only where a page is gone through in order.
template <typename T, typename F>
FASTNETS_INLINE void for_rows(const Cut& cut, Range parts, const F& f) {
  constexpr int64_t kFew = 4 * kLanes<Sum<T>>, kPage = 4096 / sizeof(T);
  const int64_t c = cut.map.c, block = c <= kFew ? 32 : c < kPage ? 1 : 4;
  for (int64_t part = parts.end - 1; part >= parts.begin; --part) {
    const Range r = share(cut.blocks, part, cut.parts);
    for (int64_t i = r.begin; i < r.end; i += block) f(i, std::min(block, r.end - i));
  }
}

template <typename T>
void forward_rows(const Problem& p, int64_t begin, int64_t end) {
  const int64_t c = p.cut.map.c;
  for_rows<T>(p.cut, {begin, end}, [&](int64_t first, int64_t count) {
    const int64_t at = first * c;
    const NormalizeRows<T> rows{static_cast<const T*>(p.x) + at,
                                static_cast<T*>(p.out) + at,
                                count,
                                c,
                                c,
                                vector<T>(p.mean),
                                vector<T>(p.scale),
                                vector<T>(p.bias),
                                Activate<Sum<T>>(p.activation),
                                p.streams};
    moments::for_channels<Sum<T>>(c, rows);
  });
  finish_streams();
}

template <typename T>
void dx_rows(const Problem& p, int64_t begin, int64_t end) {
  const int64_t c = p.cut.map.c;
  for_rows<T>(p.cut, {begin, end}, [&](int64_t first, int64_t count) {
    const int64_t at = first * c;
    const GradientRows<T> rows{static_cast<const T*>(p.dy) + at,
                               static_cast<const T*>(p.x) + at,
                               static_cast<T*>(p.out) + at,
                               count,
                               c,
                               vector<T>(p.mean),
                               vector<T>(p.scale),
                               vector<T>(p.bias),
                               vector<T>(p.shift),
                               vector<T>(p.slope),
                               ActivateBackward<Sum<T>>(p.activation),
                               p.streams};
    moments::for_channels<Sum<T>>(c, rows);
  });
  finish_streams();
}

template <typename T>
void reduce_rows(const Problem& p, int64_t begin, int64_t end) {
  using A = Sum<T>;
  const Cut& cut = p.cut;
  const int64_t c = cut.map.c, slots = c + kLanes<A>, block = moments::rows_in_block<T>(c, 2);
  std::vector<A> work(2 * slots);
  A *const s = work.data(), *const q = s + slots;
  for (int64_t part = begin; part < end; ++part) {
    const Range r = share(cut.blocks, part, cut.parts);
    std::fill(work.begin(), work.end(), A(0));
    for (int64_t i = r.begin; i < r.end; i += block) {
      const BlockProducts<T, false> products{static_cast<const T*>(p.dy) + i * c,
                                             static_cast<const T*>(p.x) + i * c,
                                             nullptr,
                                             std::min(block, r.end - i),
                                             c,
                                             c,
                                             vector<T>(p.mean),
                                             vector<T>(p.scale),
                                             vector<T>(p.bias),
                                             ActivateBackward<A>(p.activation),
                                             false,
                                             s,
                                             q};
      moments::for_channels<A>(c, products);
    }
    A* const sums = vector<T>(p.sums) + 2 * part * c;
    moments::for_channels<A>(c, SumsOfSlots<T>{s, q, sums, sums + c});
  }
}

template <typename T>
Kernels kernels(const Cut& cut) {
  const auto moments = moments::kernel<T>(cut.map.last);
  if (cut.map.last) return {moments, &forward_rows<T>, nullptr, &reduce_rows<T>, &dx_rows<T>, nullptr};
  const bool one = cut.parts == 1;
  return {moments,           &forward_planes<T>, one ? &local_planes<T> : nullptr,
          &reduce_planes<T>, &dx_planes<T>,      one ? &local_backward_planes<T> : nullptr};
}

}  // namespace fastnets::FASTNETS_ISA::batch_norm
