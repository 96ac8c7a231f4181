// Means of rows and columns. Included by isa.h: no guard.
//
// Contiguous: lanes are columns. A task is an image; four rows at a time are added to four sums in registers and, added
// up, to the sums of the columns in the first-level cache. channels_last: lanes are channels. A task is a chunk of them
// in one image; a pixel is added to the sums of its row and of its column, which lie in the caches. Either way x is
// read once, bytes * n * c * h * w, and what is written is less by a factor of about h or w.
#include <algorithm>
#include <vector>

namespace fastnets::FASTNETS_ISA::strip_pool {

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
FASTNETS_INLINE void fold(std::vector<A>& block, std::vector<A>& whole) {
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
void forward_image(const Problem& p, const T* x, T* rows, std::vector<Sum<T>>& block, std::vector<Sum<T>>& columns) {
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
  std::vector<Sum<T>> block(p.width), columns;
  for (int64_t image = begin; image < end; ++image) {
    const T* const x = at<T>(p.x, image * p.height * p.width);
    T* const rows = at<T>(p.rows, image * p.height);
    columns.assign(p.width, Sum<T>(0));
    p.width < L ? forward_image<T, 1>(p, x, rows, block, columns) : forward_image<T, L>(p, x, rows, block, columns);
    write_means<T>(columns.data(), p.width, p.height, at<T>(p.columns, image * p.width));
  }
}

// Adds the pixel of `count` channels to the sums of its row and of its column.
template <typename T>
FASTNETS_INLINE void add_pixel(const T* x, int64_t count, Sum<T>* row, Sum<T>* column) {
  using A = Sum<T>;
  constexpr int L = kLanes<A>;
  int64_t k = 0;
  for (; k + L <= count; k += L) {
    const Vec<A, L> v = load<T, L>(x + k);
    store<A, L>(row + k, load<A, L>(row + k) + v);
    store<A, L>(column + k, load<A, L>(column + k) + v);
  }
  for (; k < count; ++k) row[k] += static_cast<A>(x[k]), column[k] += static_cast<A>(x[k]);
}

template <typename T>
void forward_channels_last(const Problem& p, int64_t begin, int64_t end) {
  using A = Sum<T>;
  std::vector<A> row_block, row, block, columns;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / p.chunks, first = task % p.chunks * p.chunk;
    const int64_t count = std::min(p.chunk, p.lanes - first);
    row_block.assign(count, A(0));
    block.assign(p.width * count, A(0));
    columns.assign(p.width * count, A(0));
    for (int64_t i = 0; i < p.height; ++i) {
      const T* const x = at<T>(p.x, (image * p.height + i) * p.width * p.lanes + first);
      row.assign(count, A(0));
      for (int64_t j = 0; j < p.width; ++j) {
        add_pixel<T>(x + j * p.lanes, count, row_block.data(), block.data() + j * count);
        if (j % kBlock == kBlock - 1 || j == p.width - 1) fold(row_block, row);
      }
      if (i % kBlock == kBlock - 1 || i == p.height - 1) fold(block, columns);
      write_means<T>(row.data(), count, p.width, at<T>(p.rows, (image * p.height + i) * p.lanes + first));
    }
    for (int64_t j = 0; j < p.width; ++j)
      write_means<T>(columns.data() + j * count, count, p.height,
                     at<T>(p.columns, (image * p.width + j) * p.lanes + first));
  }
}

// from / count, in the type of sums
template <typename T>
void scale(const T* from, int64_t length, int64_t count, std::vector<Sum<T>>& to) {
  to.resize(length);
  for (int64_t k = 0; k < length; ++k) to[k] = static_cast<Sum<T>>(from[k]) / Sum<T>(count);
}

// dx = a row's gradient (one for all where kOne) + each column's, both scaled.
template <typename T, bool kOne>
FASTNETS_INLINE void spread(const Sum<T>* row, const Sum<T>* columns, int64_t length, T* dx, bool streams) {
  using A = Sum<T>;
  constexpr int L = kLanes<A>;
  int64_t k = 0;
  for (; k + L <= length; k += L) {
    const Vec<A, L> r = kOne ? splat<A, L>(*row) : load<A, L>(row + (kOne ? 0 : k));
    const Vec<A, L> sum = r + load<A, L>(columns + k);
    streams ? stream<T, L>(dx + k, sum) : store<T, L>(dx + k, sum);
  }
  for (; k < length; ++k) store<T, 1>(dx + k, load<A, 1>(row + (kOne ? 0 : k)) + load<A, 1>(columns + k));
}

// A task is some rows of an image, of all lanes.
template <typename T, bool kOne>
void backward(const Problem& p, int64_t begin, int64_t end) {
  const int64_t pixels = kOne ? p.width : 1, step = kOne ? p.width : p.lanes;  // of a row at once; numbers in them
  std::vector<Sum<T>> rows, columns;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / p.chunks, first = task % p.chunks * p.chunk,
                  last = std::min(first + p.chunk, p.height);
    scale(at<const T>(p.columns, image * p.width * p.lanes), p.width * p.lanes, p.height, columns);
    for (int64_t i = first; i < last; ++i) {
      const int64_t row = image * p.height + i;
      scale(at<const T>(p.rows, row * p.lanes), p.lanes, p.width, rows);
      T* const dx = at<T>(p.x, row * p.width * p.lanes);
      const bool streams = p.streams && can_stream<T, kLanes<Sum<T>>>(dx, step);
      for (int64_t j = 0; j < p.width; j += pixels)
        spread<T, kOne>(rows.data(), columns.data() + j * p.lanes, step, dx + j * p.lanes, streams);
    }
  }
  if (p.streams) finish_streams();
}

template <typename T>
strip::Kernel forward_kernel(bool channels_last) {
  return channels_last ? &forward_channels_last<T> : &forward_contiguous<T>;
}

template <typename T>
strip::Kernel backward_kernel(bool channels_last) {
  return channels_last ? &backward<T, false> : &backward<T, true>;
}

}  // namespace fastnets::FASTNETS_ISA::strip_pool

namespace fastnets::FASTNETS_ISA {

template <typename T>
strip::Kernel strip_pool_kernel_of(bool channels_last, bool is_backward) {
  return is_backward ? strip_pool::backward_kernel<T>(channels_last) : strip_pool::forward_kernel<T>(channels_last);
}

inline strip::Kernel strip_pool_kernel(ScalarType type, bool channels_last, bool is_backward) {
  switch (type) {
    case ScalarType::Float:
      return strip_pool_kernel_of<float>(channels_last, is_backward);
    case ScalarType::Double:
      return strip_pool_kernel_of<double>(channels_last, is_backward);
    case ScalarType::BFloat16:
      return strip_pool_kernel_of<BFloat16>(channels_last, is_backward);
    case ScalarType::Half:
      return strip_pool_kernel_of<Half>(channels_last, is_backward);
    default:
      STD_TORCH_CHECK(false, "strip_pool takes float32, float64, bfloat16 and float16");
  }
}

}  // namespace fastnets::FASTNETS_ISA
