// Means of rows and columns. Included by isa.h: no guard.
//
// Contiguous: lanes are columns. A task is an image; four rows at a time are added to four sums in registers and, added
// up, to the sums of the columns in the first-level cache. channels_last: lanes are channels. A task is a part of an
// image's rows (where threads lack work, of a chunk of the channels); four pixels of four rows at a time are added up
// in registers, and to the sums of rows and columns in the caches. Either way x is read once, bytes * n * c * h * w,
// and what is written is less by a factor of about h, w or a part's 16 rows.
#include <algorithm>
#include <numeric>
#include <vector>

namespace fastnets::FASTNETS_ISA::strip_pool {

using fastnets::Range;
using fastnets::share;
using strip::Pass;
using strip::Problem;

constexpr int64_t kBlock = 64;  // numbers of a sum that are added one after another

template <typename T>
T* at(void* data, int64_t offset) {
  return static_cast<T*>(data) + offset;
}

// to = sums / count
template <typename T>
FASTNETS_INLINE void write_means(const Sum<T>* sums, int64_t length, int64_t count, T* to) {
  using A = Sum<T>;
  constexpr int L = kLanes<A>;
  int64_t k = 0;
  for (; k + L <= length; k += L) store<T, L>(to + k, load<A, L>(sums + k) / A(count));
  for (; k < length; ++k) store<T, 1>(to + k, load<A, 1>(sums + k) / A(count));
}

// Adds sums of a block to those of the whole, and begins the next block: a sum of many numbers, taken one after
// another, would lose digits.
template <typename A>
FASTNETS_INLINE void fold(AlignedVector<A>& block, AlignedVector<A>& whole) {
  for (size_t k = 0; k < block.size(); ++k) whole[k] += block[k];
  std::fill(block.begin(), block.end(), A(0));
}

// Adds columns `from` to from + L of R rows (one or four) to the sums of these columns and to those of the rows;
// without the first `skip` of them, which have been added before.
template <typename T, int L, int R>
FASTNETS_INLINE void add_block(const T* x, int64_t pitch, int64_t from, int64_t skip, Sum<T>* columns,
                               Vec<Sum<T>, L> (&total)[R]) {
  using A = Sum<T>;
  Vec<A, L> v[R];
  for (int r = 0; r < R; ++r) v[r] = load<T, L>(x + r * pitch + from);
  if (skip > 0) {
    Vec<A, L> lane;
    for (int i = 0; i < L; ++i) lane[i] = A(i);
    for (int r = 0; r < R; ++r) v[r] = lane < A(skip) ? Vec<A, L>{} : v[r];
  }
  for (int r = 0; r < R; ++r) total[r] += v[r];
  Vec<A, L> column = v[0];
  if constexpr (R == 4) column = (v[0] + v[1]) + (v[2] + v[3]);
  store<A, L>(columns + from, load<A, L>(columns + from) + column);
}

template <typename T, int L, int R>
FASTNETS_INLINE void sum_rows(const T* x, int64_t width, Sum<T>* columns, T* rows) {
  using A = Sum<T>;
  A whole[R] = {};
  for (int64_t begin = 0; begin < width; begin += kBlock * L) {
    const int64_t end = std::min(begin + kBlock * L, width);
    Vec<A, L> total[R] = {};
    int64_t j = begin;
    for (; j + L <= end; j += L) add_block<T, L, R>(x, width, j, 0, columns, total);
    if (j < end) add_block<T, L, R>(x, width, end - L, j + L - end, columns, total);
    for (int r = 0; r < R; ++r) whole[r] += sum<A, L>(total[r]);
  }
  for (int r = 0; r < R; ++r) rows[r] = static_cast<T>(whole[r] / A(width));
}

template <typename T, int L>
void forward_image(const Problem& p, const T* x, T* rows, AlignedVector<Sum<T>>& block,
                   AlignedVector<Sum<T>>& columns) {
  for (int64_t begin = 0; begin < p.height; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, p.height);
    int64_t i = begin;
    for (; i + 4 <= end; i += 4) sum_rows<T, L, 4>(x + i * p.width, p.width, block.data(), rows + i);
    for (; i < end; ++i) sum_rows<T, L, 1>(x + i * p.width, p.width, block.data(), rows + i);
    fold(block, columns);
  }
}

template <typename T>
void forward_contiguous(const Problem& p, int64_t begin, int64_t end) {
  constexpr int L = kLanes<Sum<T>>;
  AlignedVector<Sum<T>> block(p.width), columns;
  for (int64_t image = begin; image < end; ++image) {
    const T* const x = at<T>(p.x, image * p.height * p.width);
    T* const rows = at<T>(p.rows, image * p.height);
    columns.assign(p.width, Sum<T>(0));
    p.width < L ? forward_image<T, 1>(p, x, rows, block, columns) : forward_image<T, L>(p, x, rows, block, columns);
    write_means<T>(columns.data(), p.width, p.height, at<T>(p.columns, image * p.width));
  }
}

constexpr int64_t kPixels = 4;  // of a row that are added up in registers

// Adds W vectors of up to kPixels pixels of R rows (one or four) to the sums of these columns and to those of the rows,
// which lie `count` apart.
template <typename T, int L, int R, int W>
FASTNETS_INLINE void add_pixels(const Problem& p, const T* x, int64_t pixels, Sum<T>* columns, Sum<T>* rows,
                                int64_t count) {
  using A = Sum<T>;
  Vec<A, L> total[R][W] = {};
  for (int64_t j = 0; j < pixels; ++j, x += p.lanes, columns += p.lanes) {
    Vec<A, L> column[W] = {};
    for (int r = 0; r < R; ++r)
      for (int k = 0; k < W; ++k) {
        const T* const from = x + r * p.pitch + k * L;
        __builtin_prefetch(from + kPixels * p.lanes);
        const Vec<A, L> v = load<T, L>(from);
        total[r][k] += v, column[k] += v;
      }
    for (int k = 0; k < W; ++k) store<A, L>(columns + k * L, load<A, L>(columns + k * L) + column[k]);
  }
  for (int r = 0; r < R; ++r)
    for (int k = 0; k < W; ++k) {
      A* const row = rows + r * count + k * L;
      store<A, L>(row, load<A, L>(row) + total[r][k]);
    }
}

// The same for `count` channels of any number of pixels. `whole` takes up what `block` has of the rows' sums.
template <typename T, int R>
void add_channels(const Problem& p, const T* x, int64_t count, int64_t pixels, Sum<T>* columns,
                  AlignedVector<Sum<T>>& block, AlignedVector<Sum<T>>& whole) {
  constexpr int L = kLanes<Sum<T>>;
  Sum<T>* const rows = block.data();
  for (int64_t j = 0; j < pixels; j += kPixels) {
    const int64_t some = std::min(kPixels, pixels - j), at = j * p.lanes;
    int64_t k = 0;
    for (; k + 2 * L <= count; k += 2 * L)
      add_pixels<T, L, R, 2>(p, x + at + k, some, columns + at + k, rows + k, count);
    for (; k + L <= count; k += L) add_pixels<T, L, R, 1>(p, x + at + k, some, columns + at + k, rows + k, count);
    for (; k < count; ++k) add_pixels<T, 1, R, 1>(p, x + at + k, some, columns + at + k, rows + k, count);
    if (j / kPixels % kBlock == kBlock - 1 || j + kPixels >= pixels) fold(block, whole);
  }
}

// Adds R rows of `count` channels to the sums of columns, and writes their means. Where all channels are no whole
// vectors, so many pixels as are such, `together`, are taken for one with all their channels; count is then all of
// them.
template <typename T, int R>
void add_rows(const Problem& p, const T* x, int64_t count, Sum<T>* columns, AlignedVector<Sum<T>>& block,
              AlignedVector<Sum<T>>& whole, T* means) {
  using A = Sum<T>;
  const int64_t together = kLanes<A> / std::gcd<int64_t>(p.lanes, kLanes<A>);
  const int64_t wide = together * count;
  block.assign(R * wide, A(0));
  whole.assign(R * wide, A(0));
  if (together == 1) {
    add_channels<T, R>(p, x, count, p.width, columns, block, whole);
  } else {
    Problem several = p;
    several.lanes = wide;
    const int64_t pixels = p.width / together, done = pixels * together, at = done * p.lanes;
    add_channels<T, R>(several, x, wide, pixels, columns, block, whole);
    block.assign(R * count, A(0));
    for (int64_t i = 0; i < R * together; ++i)
      for (int64_t k = 0; k < count; ++k) block[i / together * count + k] += whole[i * count + k];
    whole.assign(R * count, A(0));
    fold(block, whole);
    add_channels<T, R>(p, x + at, count, p.width - done, columns + at, block, whole);
  }
  for (int r = 0; r < R; ++r) write_means<T>(whole.data() + r * count, count, p.width, means + r * p.lanes);
}

template <typename T>
void forward_channels_last(const Problem& p, int64_t begin, int64_t end) {
  using A = Sum<T>;
  AlignedVector<A> block, whole;
  const int64_t pitch = p.width * p.lanes;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task / p.chunks, image = part / p.parts, first = task % p.chunks * p.chunk;
    const int64_t count = std::min(p.chunk, p.lanes - first);
    const Range r = share(p.height, part % p.parts, p.parts);
    A* const columns = at<A>(p.sums, part * pitch + first);
    for (int64_t j = 0; j < p.width; ++j) std::fill_n(columns + j * p.lanes, count, A(0));
    for (int64_t i = r.begin, step; i < r.end; i += step) {
      const T* const x = at<T>(p.x, (image * p.height + i) * pitch + first);
      T* const means = at<T>(p.rows, (image * p.height + i) * p.lanes + first);
      step = i + 4 <= r.end ? 4 : 1;
      step == 4 ? add_rows<T, 4>(p, x, count, columns, block, whole, means)
                : add_rows<T, 1>(p, x, count, columns, block, whole, means);
    }
  }
}

// Means of columns, out of the sums of parts. A task is a column of an image.
template <typename T>
void merge(const Problem& p, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / p.width, pitch = p.width * p.lanes;
    Sum<T>* const sums = at<Sum<T>>(p.sums, (image * p.parts * p.width + task % p.width) * p.lanes);
    for (int64_t part = 1; part < p.parts; ++part)
      for (int64_t k = 0; k < p.lanes; ++k) sums[k] += sums[part * pitch + k];
    write_means<T>(sums, p.lanes, p.height, at<T>(p.columns, task * p.lanes));
  }
}

// from / count, in the type of sums
template <typename T>
void scale(const T* from, int64_t length, int64_t count, AlignedVector<Sum<T>>& to) {
  to.resize(length);
  for (int64_t k = 0; k < length; ++k) to[k] = static_cast<Sum<T>>(from[k]) / Sum<T>(count);
}

// dx = the gradient of each of R rows (one number for all of a row where kOne) + each column's, both scaled.
template <typename T, bool kOne, int R>
FASTNETS_INLINE void spread(const Problem& p, const Sum<T>* rows, const Sum<T>* columns, int64_t length, T* dx,
                            bool streams) {
  using A = Sum<T>;
  constexpr int L = kLanes<A>;
  constexpr int64_t kAhead = 512 / sizeof(T);  // of lines to write, which are in no near cache
  const int64_t lanes = p.lanes, pitch = p.pitch;
  for (int64_t k = 0; k < length; k += L) {
    const int64_t left = length - k;
    const Vec<A, L> column = load_first<A, L>(columns + k, left);
    for (int r = 0; r < R; ++r) {
      const A* const row = rows + r * lanes;
      T* const to = dx + r * pitch + k;
      const Vec<A, L> sum = column + (kOne ? splat<A, L>(*row) : load_first<A, L>(row + (kOne ? 0 : k), left));
      if (!streams) __builtin_prefetch(to + kAhead, 1);
      streams ? stream<T, L>(to, sum) : store_first<T, L>(to, sum, left);
    }
  }
}

// A task is some rows of an image, of all lanes. Where these are many, the columns' gradients are more than a
// first-level cache: they are loaded once for kTogether rows.
template <typename T, bool kOne>
void backward(const Problem& p, int64_t begin, int64_t end) {
  constexpr int kTogether = kOne ? 1 : 4;
  const int64_t pixels = kOne ? p.width : 1, length = kOne ? p.width : p.lanes;  // of a row at once; numbers in them
  AlignedVector<Sum<T>> rows, columns;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / p.chunks, first = task % p.chunks * p.chunk,
                  last = std::min(first + p.chunk, p.height);
    const int64_t row = image * p.height + first;
    scale(at<const T>(p.columns, image * p.width * p.lanes), p.width * p.lanes, p.height, columns);
    scale(at<const T>(p.rows, row * p.lanes), (last - first) * p.lanes, p.width, rows);
    for (int64_t i = 0, step; i < last - first; i += step) {
      T* const dx = at<T>(p.x, (row + i) * p.pitch);
      const bool streams = p.streams && can_stream<T, kLanes<Sum<T>>>(dx, length);
      step = i + kTogether <= last - first ? kTogether : 1;
      for (int64_t j = 0; j < p.width; j += pixels) {
        const Sum<T>*row = rows.data() + i * p.lanes, *column = columns.data() + j * p.lanes;
        step == 1 ? spread<T, kOne, 1>(p, row, column, length, dx + j * p.lanes, streams)
                  : spread<T, kOne, kTogether>(p, row, column, length, dx + j * p.lanes, streams);
      }
    }
  }
  if (p.streams) finish_streams();
}

template <typename T>
strip::Kernel kernel(bool channels_last, Pass pass) {
  if (pass == Pass::merge) return &merge<T>;
  if (pass == Pass::forward) return channels_last ? &forward_channels_last<T> : &forward_contiguous<T>;
  return channels_last ? &backward<T, false> : &backward<T, true>;
}

}  // namespace fastnets::FASTNETS_ISA::strip_pool

namespace fastnets::FASTNETS_ISA {

inline strip::Kernel strip_pool_kernel(ScalarType type, bool channels_last, strip::Pass pass) {
  switch (type) {
    case ScalarType::Float:
      return strip_pool::kernel<float>(channels_last, pass);
    case ScalarType::Double:
      return strip_pool::kernel<double>(channels_last, pass);
    case ScalarType::BFloat16:
      return strip_pool::kernel<BFloat16>(channels_last, pass);
    case ScalarType::Half:
      return strip_pool::kernel<Half>(channels_last, pass);
    default:
      STD_TORCH_CHECK(false, "strip_pool takes float32, float64, bfloat16 and float16");
  }
}

}  // namespace fastnets::FASTNETS_ISA
