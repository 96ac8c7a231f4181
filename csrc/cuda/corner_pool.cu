// Corner pooling on CUDA: which kernel runs, over which grid; and registration. The kernels are in the .cuh.
#include <initializer_list>

#include "corner_pool_backward.cuh"

namespace fastnets {
namespace {

// With fewer blocks, too few multiprocessors have work: two scans are faster.
constexpr int64_t kFewBlocks = 32;
// Rows that a group of threads takes one after another: they share the divisions that lead to them.
constexpr int64_t kChunk = 16;

// `both`: the other dimension is gone through like the one scanned.
Strides strides_along(const Tensor& t, const Direction& d, bool both = false) {
  const Four size = sizes_of(t), s = strides_of(t);
  Strides along{0, s.n, s.c, d.vertical ? s.w : s.h, d.vertical ? s.h : s.w};
  const auto turn = [&](int64_t& stride, int64_t places) {
    along.origin += (places - 1) * stride;
    stride = -stride;
  };
  if (d.reverse) turn(along.step, d.vertical ? size.h : size.w);
  if (d.reverse && both) turn(along.w, d.vertical ? size.w : size.h);
  return along;
}

Lanes lanes_of(const Tensor& x, const Direction& d, bool last) {
  const Four s = sizes_of(x);
  const int64_t width = d.vertical ? s.w : s.h;
  return {s.n * s.c * width, s.c, width, d.vertical ? s.h : s.w, last};
}

Rows rows_of(const Tensor& x, int64_t most, int pack) {
  const Four s = sizes_of(x);
  const int height = static_cast<int>(s.h), length = static_cast<int>(s.w);
  const int chunk = static_cast<int>(most < s.h ? most : s.h);
  int threads = 1;
  while (threads < 32 && threads * pack < length) threads *= 2;
  return {s.n * s.c, s.c, height, (height + chunk - 1) / chunk, chunk, length, threads};
}

Grid grid_of(int64_t items, int64_t in_a_block, unsigned threads = kThreads) {
  const int64_t blocks = ceil_div(items, in_a_block);
  STD_TORCH_CHECK(blocks < int64_t{1} << 31, "too many scans for one launch: ", items);
  return {static_cast<unsigned>(blocks), threads};
}

Grid grid_of(const Rows& g) { return grid_of(g.planes * g.chunks, kThreads / g.threads); }

// Whether what is scanned lies side by side, and is counted in 32 bits.
bool are_rows(const Tensor& y, const Direction& d) {
  return !d.vertical && y.stride(3) == 1 && y.stride(2) != 1 && y.size(2) >> 30 == 0 && y.size(3) >> 30 == 0;
}

template <typename F>
void with_number(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Bool:
    case ScalarType::Byte:
      return f(uint8_t());
    case ScalarType::Char:
      return f(int8_t());
    case ScalarType::Short:
      return f(int16_t());
    case ScalarType::Int:
      return f(int32_t());
    case ScalarType::Long:
      return f(int64_t());
    default:
      return with_float(type, f);
  }
}

// Calls f with how many numbers a thread takes at once, as a constant: kPack where they lie side by side, else one.
// `neighbours`: whether a thread takes those along the width, or in channels_last those along the channels.
template <typename T, typename F>
void with_pack(bool last, bool neighbours, std::initializer_list<Tensor> tensors, const F& f) {
  constexpr int V = kPack<T>;
  bool fits = neighbours;
  for (const Tensor& t : tensors) {
    const Four size = sizes_of(t), s = strides_of(t);
    const bool dense = (last ? s.c : s.w) == 1, whole = (last ? size.c : size.w) % V == 0;
    const bool aligned = reinterpret_cast<uintptr_t>(t.const_data_ptr()) % (V * sizeof(T)) == 0;
    fits = fits && dense && whole && aligned && (s.n | s.h | (last ? s.w : s.c)) % V == 0;
  }
  fits ? f(std::integral_constant<int, V>()) : f(std::integral_constant<int, 1>());
}

void pool(const Tensor& x, const Tensor& y, const Direction& d, bool last, bool add) {
  const Strides xs = strides_along(x, d), ys = strides_along(y, d);
  const bool rows = are_rows(y, d);
  const Stream stream(x);
  with_number(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(last, last || d.vertical || rows, {x, y}, [&](auto pack) {
      constexpr int V = pack;
      const T* const from = data<T>(x);
      T* const to = mutable_data<T>(y);
      if (rows) {
        const Rows g = rows_of(x, kChunk, V);
        const auto kernel = add ? scan_rows<T, V, true> : scan_rows<T, V, false>;
        launch(stream, grid_of(g), kernel, from, to, to, xs, ys, ys, g, false);
      } else {
        const Lanes g = lanes_of(x, d, last);
        launch(stream, grid_of(g.count, kThreads * V), add ? scan<T, V, true> : scan<T, V, false>, from, to, xs, ys, g);
      }
    });
  });
}

// Whether one kernel did it all.
bool sum_at_once(const Tensor& vertical, const Tensor& horizontal, const Tensor& y, bool reverse, bool last) {
  const Direction d{false, reverse};
  const Strides vs = strides_along(vertical, d, true), hs = strides_along(horizontal, d, true);
  const Strides ys = strides_along(y, d, true);
  const Four size = sizes_of(y);
  const Stream stream(y);
  bool done = false;
  with_number(y.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(last, true, {vertical, horizontal, y}, [&](auto pack) {
      constexpr int V = pack;
      const T *const v = data<T>(vertical), *const h = data<T>(horizontal);
      if (!last && size.w <= 32 * V && size.h >> 30 == 0) {
        const Rows g = rows_of(y, size.h, V);
        launch(stream, grid_of(g), scan_rows<T, V, true>, h, v, mutable_data<T>(y), hs, vs, ys, g, true);
        done = true;
      }
      if constexpr (V > 1) {
        const int64_t threads = ceil_div(kPacks * ceil_div(size.w, kColumns<T>), 32) * 32;
        const int64_t blocks = size.n * ceil_div(size.c, kPacks * V);
        if (!last || threads > kSumThreads || blocks < kFewBlocks) return;
        launch(stream, grid_of(blocks, 1, static_cast<unsigned>(threads)), sum_channels<T, V>, h, v, mutable_data<T>(y),
               hs, vs, ys, size);
        done = true;
      }
    });
  });
  return done;
}

Tensor corner_pool(const Tensor& x, const Text& direction, const Text& tie) {
  const Direction d = parse_direction(direction);
  takes_first(tie);
  check_image_batch(x);
  const bool last = is_channels_last(x);
  const Tensor y = empty(x, sizes_of(x), last);
  if (y.numel() > 0) pool(x, y, d, last, false);
  return y;
}

Tensor corner_pool_sum(const Tensor& vertical, const Tensor& horizontal, const Text& corner) {
  const bool reverse = parse_corner(corner);
  check_image_batch(vertical);
  check_alike(vertical, horizontal);
  STD_TORCH_CHECK(vertical.scalar_type() != ScalarType::Bool, "bools cannot be added");
  const bool last = is_channels_last(vertical);
  const Tensor y = empty(vertical, sizes_of(vertical), last);
  if (y.numel() == 0 || sum_at_once(vertical, horizontal, y, reverse, last)) return y;
  pool(vertical, y, {true, reverse}, last, false);
  pool(horizontal, y, {false, reverse}, last, true);
  return y;
}

Tensor corner_pool_backward(const Tensor& dy, const Tensor& x, const Text& direction, const Text& tie) {
  const Direction d = parse_direction(direction);
  const bool first = takes_first(tie);
  check_image_batch(x);
  check_alike(x, dy);
  const bool last = is_channels_last(x);
  const Tensor dx = empty(x, sizes_of(x), last);
  if (dx.numel() == 0) return dx;
  const Strides dys = strides_along(dy, d), xs = strides_along(x, d), dxs = strides_along(dx, d);
  const bool rows = are_rows(dx, d);
  const Stream stream(x);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    with_pack<T>(last, last || d.vertical || rows, {dy, x, dx}, [&](auto pack) {
      constexpr int V = pack;
      const auto run = [&](const Grid& grid, auto kernel, const auto& g) {
        launch(stream, grid, kernel, data<T>(dy), data<T>(x), mutable_data<T>(dx), dys, xs, dxs, g, first);
      };
      if (rows) {
        const Rows g = rows_of(x, kChunk, V);
        run(grid_of(g), d.reverse ? collect_rows<T, V, (V > 1)> : collect_rows<T, V, false>, g);
      } else {
        const Lanes g = lanes_of(x, d, last);
        run(grid_of(g.count, kThreads * V), collect<T, V>, g);
      }
    });
  });
  return dx;
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("corner_pool", TORCH_BOX(&fastnets::corner_pool));
  m.impl("corner_pool_backward", TORCH_BOX(&fastnets::corner_pool_backward));
  m.impl("corner_pool_sum", TORCH_BOX(&fastnets::corner_pool_sum));
}
