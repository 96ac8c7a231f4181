// Mean and sum of squared deviations of channels, from one read. Included by isa.h: no guard.
//
// A block is summed up as s = sum(x - p) and q = sum((x - p)²), with the mean p of the blocks before it as pivot:
// mean += s / n, m2 += q - s² / n. A pivot far away costs no digits that count: the distance is then itself a part of
// the variance, of the order of q. The first block takes its pivot from a first look at some of its planes or rows, m
// of its n values: where just these lie apart from all others, q is up to n / m times m2, and m2 loses as much.
//
// Planes: lanes are pixels, a block is at most 4096 of them. Channels_last: lanes are channels, 4 vectors of them at a
// time go down a block of rows. Both read b * n * c * l bytes.

namespace fastnets::FASTNETS_ISA::moments {

using fastnets::Range;
using fastnets::share;
using fastnets::moments::Cut;
using fastnets::moments::Problem;

// v with its first L - `left` lanes replaced by zeros.
template <typename A, int L>
FASTNETS_INLINE Vec<A, L> keep_last(Vec<A, L> v, int64_t left) {
  using I = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  Vec<I, L> lane;
  for (int i = 0; i < L; ++i) lane[i] = i;
  const Vec<I, L> keep = lane >= Vec<I, L>{} + static_cast<I>(L - left);
  return bits<Vec<A, L>>(bits<Vec<I, L>>(v) & keep);
}

template <typename A>
struct Sums {
  A s = 0, q = 0;
};

// What a reduction over a plane adds to its two sums, of values i to i + L.
template <typename T>
struct Deviations {
  const T* x;
  Sum<T> pivot;

  template <int L>
  FASTNETS_INLINE void at(int64_t i, Vec<Sum<T>, L>& s, Vec<Sum<T>, L>& q) const {
    const Vec<Sum<T>, L> d = load<T, L>(x + i) - pivot;
    s += d, q += d * d;
  }
  // Only the last `left` of the L values.
  template <int L>
  FASTNETS_INLINE void last(int64_t i, int64_t left, Vec<Sum<T>, L>& s, Vec<Sum<T>, L>& q) const {
    const Vec<Sum<T>, L> d = keep_last<Sum<T>, L>(load<T, L>(x + i) - pivot, left);
    s += d, q += d * d;
  }
  FASTNETS_INLINE void fetch(int64_t i) const { __builtin_prefetch(x + i); }
  FASTNETS_INLINE void next(int64_t stride) { x += stride; }
};

// The two sums of `terms` (see Deviations) over `planes` planes of `length` values, `stride` apart.
template <typename Terms, typename A, int L>
Sums<A> reduce_planes(Terms terms, int64_t planes, int64_t stride, int64_t length) {
  constexpr int W = L > 1 ? 4 : 1;
  Vec<A, L> s[W] = {}, q[W] = {};
  Sums<A> rest;
  for (int64_t n = 0; n < planes; ++n, terms.next(stride)) {
    int64_t i = 0;
    for (; i + W * L <= length; i += W * L)
      for (int k = 0; k < W; ++k) terms.template at<L>(i + k * L, s[k], q[k]);
    if constexpr (L > 1) {
      for (int k = 0; k + 1 < W; ++k)
        if (i + L <= length) terms.fetch(i + length), terms.template at<L>(i, s[k], q[k]), i += L;
      if (i < length && length >= L) {
        terms.template last<L>(length - L, length - i, s[W - 1], q[W - 1]);
        continue;
      }
    }
    for (; i < length; ++i) {
      Vec<A, 1> s1{}, q1{};
      terms.template at<1>(i, s1, q1);
      rest.s += s1[0], rest.q += q1[0];
    }
  }
  for (int k = 1; k < W; ++k) s[0] += s[k], q[0] += q[k];
  return {sum<A, L>(s[0]) + rest.s, sum<A, L>(q[0]) + rest.q};
}

constexpr int64_t kLook = 64;  // values at least that the first look at a channel is at: whole planes of a block

template <typename A>
struct Moments {
  A mean = 0, m2 = 0;
};

// Of blocks [begin, end) of channel c.
template <typename T>
Moments<Sum<T>> channel_moments(const Cut& cut, const T* x, int64_t c, Range blocks) {
  using A = Sum<T>;
  const int64_t l = cut.map.l, stride = cut.map.c * l;
  Moments<A> m;
  int64_t count = 0;
  for (int64_t i = blocks.begin; i < blocks.end; ++i) {
    const Range planes = cut.planes_of(i), piece = cut.piece_of(i);
    const int64_t n = planes.end - planes.begin, length = piece.end - piece.begin;
    const T* block = x + planes.begin * stride + c * l + piece.begin;
    if (i == blocks.begin) {
      const A first = static_cast<A>(*block);
      const int64_t look = std::min(n, ceil_div(kLook, length));
      m.mean =
          first + reduce_planes<Deviations<T>, A, kLanes<A>>({block, first}, look, stride, length).s / (look * length);
    }
    const Sums<A> sums = reduce_planes<Deviations<T>, A, kLanes<A>>({block, m.mean}, n, stride, length);
    count += n * length;
    const A shift = sums.s / count;
    m.mean += shift;
    m.m2 += sums.q - sums.s * shift;
  }
  if (m.m2 < 0) m.m2 = 0;
  return m;
}

template <typename T>
void planes(const Problem& p, int64_t begin, int64_t end) {
  using A = Sum<T>;
  const Cut& cut = p.cut;
  A* moments = static_cast<A*>(p.moments);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t c = task / cut.parts, part = task % cut.parts;
    const Moments<A> m = channel_moments<T>(cut, static_cast<const T*>(p.x), c, share(cut.blocks, part, cut.parts));
    moments[2 * part * cut.map.c + c] = m.mean - fastnets::moments::origin<T>(cut.map, p.x, c);
    moments[(2 * part + 1) * cut.map.c + c] = m.m2;
  }
}

// Calls f.at<L, W>(c, slot) for all channels: W = 4 vectors at a time, then 2, which are a cache line on AVX2, then
// single ones, shorter where channels are fewer. The last vector overlaps the one before: it computes some channels
// again rather than fewer at a time. Slots do not overlap: sums of c are kept there.
template <typename A, int L = kLanes<A>, typename F>
FASTNETS_INLINE void for_channels(int64_t channels, const F& f) {
  if constexpr (L > 1)
    if (channels < L) return for_channels<A, L / 2>(channels, f);
  int64_t c = 0;
  if constexpr (L == kLanes<A>) {
    for (; c + 4 * L <= channels; c += 4 * L) f.template at<L, 4>(c, c);
    if (c + 2 * L <= channels) f.template at<L, 2>(c, c), c += 2 * L;
  }
  for (; c < channels; c += L) f.template at<L, 1>(std::min<int64_t>(c, channels - L), c);
}

// The rows of a part are summed up in blocks of so many, all channels of one before the next, and the next is fetched
// meanwhile: processors do not foresee this order. `tensors` are read at once. What is fetched goes to the second-level
// cache: rows a page apart fall into a few sets of the first, and waiting for memory would take all of its buffers.
template <typename T>
int64_t rows_in_block(int64_t channels, int64_t tensors) {
  return std::clamp<int64_t>((8 << 10) / (tensors * channels * static_cast<int64_t>(sizeof(T))), 8 / tensors, 64);
}

// Sums of a block of rows that lie `step` apart: of x - pivot and its square, added to s and q.
template <typename T>
struct BlockDeviations {
  const T* x;
  int64_t rows, step;
  const Sum<T>* pivot;
  Sum<T>*s, *q;

  template <int L, int W>
  FASTNETS_INLINE void at(int64_t c, int64_t slot) const {
    using A = Sum<T>;
    Vec<A, L> p[W], s0[W] = {}, q0[W] = {};
    for (int k = 0; k < W; ++k) p[k] = load<A, L>(pivot + slot + k * L);
    const T* from = x + c;
    for (int64_t r = rows, down = step; r > 0; --r, from += down)
      for (int k = 0; k < W; ++k) {
        __builtin_prefetch(from + k * L + rows * down, 0, 2);
        const Vec<A, L> d = load<T, L>(from + k * L) - p[k];
        s0[k] += d, q0[k] += d * d;
      }
    for (int k = 0; k < W; ++k) {
      store<A, L>(s + slot + k * L, load<A, L>(s + slot + k * L) + s0[k]);
      store<A, L>(q + slot + k * L, load<A, L>(q + slot + k * L) + q0[k]);
    }
  }
};

// Copies slots to channels: the mean (less the channel's first value) and m2 that sums from a pivot amount to.
template <typename T>
struct MomentsOfSums {
  using A = Sum<T>;
  const T* first;
  int64_t count;
  const A *pivot, *s, *q;
  A *mean, *m2;

  template <int L, int W>
  void at(int64_t c, int64_t slot) const {
    for (int k = 0; k < W * L; ++k) {
      const A shift = s[slot + k] / count, squares = q[slot + k] - s[slot + k] * shift;
      mean[c + k] = pivot[slot + k] - static_cast<A>(first[c + k]) + shift;
      m2[c + k] = squares < 0 ? A(0) : squares;
    }
  }
};

// Copies channels to slots.
template <typename T>
struct FirstRow {
  const T* x;
  Sum<T>* pivot;

  template <int L, int W>
  void at(int64_t c, int64_t slot) const {
    for (int k = 0; k < W * L; ++k) pivot[slot + k] = static_cast<Sum<T>>(x[c + k]);
  }
};

template <typename T>
void rows(const Problem& p, int64_t begin, int64_t end) {
  using A = Sum<T>;
  const Cut& cut = p.cut;
  const int64_t c = cut.map.c, slots = c + kLanes<A>, block = rows_in_block<T>(c, 1);
  std::vector<A> work(3 * slots);
  A *const pivot = work.data(), *const s = pivot + slots, *const q = s + slots;
  for (int64_t part = begin; part < end; ++part) {
    const Range r = share(cut.blocks, part, cut.parts);
    const T* const x = static_cast<const T*>(p.x) + r.begin * c;
    const int64_t count = r.end - r.begin, first = std::min(block, count);
    std::fill(s, s + 2 * slots, A(0));
    for_channels<A>(c, FirstRow<T>{x, pivot});
    for_channels<A>(c, BlockDeviations<T>{x, first, c, pivot, s, q});
    for (int64_t i = 0; i < slots; ++i) pivot[i] += s[i] / first;
    std::fill(s, s + 2 * slots, A(0));
    for (int64_t i = 0; i < count; i += block)
      for_channels<A>(c, BlockDeviations<T>{x + i * c, std::min(block, count - i), c, pivot, s, q});
    A* const mean = static_cast<A*>(p.moments) + 2 * part * c;
    for_channels<A>(c, MomentsOfSums<T>{static_cast<const T*>(p.x), count, pivot, s, q, mean, mean + c});
  }
}

template <typename T>
fastnets::moments::Kernel kernel(bool last) {
  return last ? &rows<T> : &planes<T>;
}

}  // namespace fastnets::FASTNETS_ISA::moments
