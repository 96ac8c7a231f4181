// Strided copies on CUDA.
//
// Work. A thread writes V neighbours of the result at once, 16 bytes, gathered from where they lie in the source. It
// finds these V places once and keeps them for kSteps places of the longest axis. Neighbouring threads write a run of
// 128 bytes or more of the result; threads beyond go on along the axes that are closest in the source. So lines of both
// are used whole by one block, even where the result's neighbours are far apart in the source.
//
// Bytes. Each element is read once from memory, in up to 16 bytes where neighbours stay neighbours and otherwise alone,
// from lines that L1 keeps; and written once.
#pragma once

#include <bit>
#include <numeric>

#include "../strided_copy.h"
#include "divisor.cuh"
#include "launch.h"
#include "pack.cuh"

namespace fastnets {

constexpr int kCopyThreads = 256, kSteps = 16;
constexpr int kBlocks = 4;  // of a multiprocessor at least: the registers that lets a thread have hold V loads at once
constexpr int kRun = 128;   // bytes of the result that lie side by side, at least
constexpr int kColumns = 3, kOthers = 5;
constexpr int64_t kMost = int64_t{1} << 30;  // elements of a launch: the sum of two numbers is below 2^31

struct Digit {
  Divisor size;
  int64_t from, to;
};

// What the number of a thread says, its fastest digit first.
struct Numbering {
  Divisor packs;  // of V elements each, in the columns
  Digit columns[kColumns], others[kOthers], longest;
  Divisor apart;  // a thread's places on the longest axis
  int others_count;
  uint32_t threads;
};

struct alignas(16) Bytes16 {
  uint64_t low, high;
};

struct Same {
  template <typename E>
  __device__ E operator()(E x) const {
    return x;
  }
};

template <int V, typename E, typename R, typename F>
__global__ void __launch_bounds__(kCopyThreads, kBlocks)
    strided_copy(const char* __restrict__ from, char* __restrict__ to, Numbering numbering, F convert) {
  uint32_t number = blockIdx.x * kCopyThreads + threadIdx.x;
  if (number >= numbering.threads) return;
  const auto go = [&](const Digit& axis, uint32_t i) {
    from += i * axis.from;
    to += i * axis.to;
  };
  const Digit(&columns)[kColumns] = numbering.columns;
  uint32_t column = V * numbering.packs.take(number), in[kColumns];
  for (int axis = 0; axis < kColumns; ++axis) go(columns[axis], in[axis] = columns[axis].size.take(column));
#pragma unroll 1
  for (int axis = 0; axis < numbering.others_count; ++axis)
    go(numbering.others[axis], numbering.others[axis].size.take(number));
  go(numbering.longest, number);

  int64_t places[V], place = 0, carries[kColumns];
  for (int axis = 0; axis + 1 < kColumns; ++axis)
    carries[axis] = columns[axis + 1].from - columns[axis].size.size * columns[axis].from;
  for (int k = 0; k < V; ++k) {
    places[k] = place;
    place += columns[0].from;
    for (int axis = 0; axis + 1 < kColumns && ++in[axis] == columns[axis].size.size; ++axis) {
      in[axis] = 0;
      place += carries[axis];
    }
  }

  const Digit& longest = numbering.longest;
  const uint32_t apart = numbering.apart.size;
  const int64_t from_step = apart * longest.from, to_step = apart * longest.to;
  const uint32_t steps = numbering.apart.quotient(longest.size.size - number + apart - 1);
#pragma unroll(V > 1 ? 1 : 4)
  for (uint32_t step = 0; step < steps; ++step, from += from_step, to += to_step) {
    E x[V];
    Pack<R, V> y;
    for (int k = 0; k < V; ++k) x[k] = *reinterpret_cast<const E*>(from + places[k]);
    for (int k = 0; k < V; ++k) y.at[k] = convert(x[k]);
    store_pack(reinterpret_cast<R*>(to), y);
  }
}

// How much of an axis to put beside `count` columns: what makes at least so many, in packs of v; or all of it.
inline int64_t part_of(int64_t size, int64_t count, int64_t least, int64_t v) {
  const int64_t unit = v / std::gcd(v, count), first = ceil_div(least, count * unit) * unit;
  for (int64_t part = first; part < std::min(size, first + 64 * unit); part += unit)
    if (size % part == 0) return part;
  return size;
}

// Takes the columns off the axes, innermost first; none where packs of v elements of the result have gaps.
inline std::vector<Axis> take_columns(std::vector<Axis>& axes, const char* to, int64_t bytes, int64_t v) {
  std::vector<Axis> columns;
  int64_t count = 1;
  const int64_t least = kRun / bytes;
  while (!axes.empty() && columns.size() < kColumns && (count % v != 0 || count < least)) {
    Axis& axis = axes.back();
    if (v > 1 && axis.to != count * bytes) break;
    const int64_t part = part_of(axis.size, count, least, v);
    columns.push_back({part, axis.from, axis.to});
    count *= part;
    axis = {axis.size / part, part * axis.from, part * axis.to};
    if (axis.size == 1) axes.pop_back();
  }
  uintptr_t starts = reinterpret_cast<uintptr_t>(to);
  for (const Axis& axis : axes) starts |= axis.to;
  return count % v == 0 && (v == 1 || starts % (v * bytes) == 0) ? columns : std::vector<Axis>();
}

inline bool shorter(const Axis& a, const Axis& b) { return a.size < b.size; }

inline int64_t product(const std::vector<Axis>& axes) {
  int64_t n = 1;
  for (const Axis& axis : axes) n *= axis.size;
  return n;
}

inline Numbering numbering_of(const std::vector<Axis>& columns, std::vector<Axis> others, int64_t v) {
  const auto digit = [](const Axis& axis) { return Digit{Divisor(axis.size), axis.from, axis.to}; };
  const auto nearer = [](const Axis& a, const Axis& b) { return std::abs(a.from) < std::abs(b.from); };
  if (others.empty()) others.push_back({1, 0, 0});
  std::sort(others.begin(), others.end(), nearer);
  const int64_t packs = product(columns) / v, total = packs * product(others);
  const auto place = std::max_element(others.begin(), others.end(), shorter);
  const Axis longest = *place;
  others.erase(place);
  // Fewer steps where they would leave multiprocessors without work.
  const int64_t steps = std::clamp<int64_t>(total / (kCopyThreads * 1024), 1, kSteps);
  const int64_t apart = ceil_div(longest.size, steps);

  Numbering numbering{Divisor(packs), {}, {}, digit(longest), Divisor(apart)};
  std::transform(columns.begin(), columns.end(), numbering.columns, digit);
  std::transform(others.begin(), others.end(), numbering.others, digit);
  numbering.others_count = static_cast<int>(others.size());
  numbering.threads = static_cast<uint32_t>(packs * product(others) * apart);
  return numbering;
}

// The copy in two parts along its longest axis.
inline std::pair<StridedCopy, StridedCopy> cut(const StridedCopy& copy) {
  const auto longest = std::max_element(copy.axes.begin(), copy.axes.end(), shorter) - copy.axes.begin();
  StridedCopy first = copy, second = copy;
  Axis &a = first.axes[longest], &b = second.axes[longest];
  a.size = std::bit_floor(static_cast<uint64_t>(a.size - 1));
  b.size -= a.size;
  second.from += a.size * a.from;
  second.to += a.size * a.to;
  return {first, second};
}

// From elements of type E to R, by `convert`; the axes of `copy` are simplified.
template <typename E, typename R, typename F>
void launch_copy(const Stream& stream, const StridedCopy& copy, const F& convert) {
  if (copy.elements() > kMost) {
    const auto [first, second] = cut(copy);
    launch_copy<E, R>(stream, first, convert);
    return launch_copy<E, R>(stream, second, convert);
  }
  const auto launched = [&](auto elements) {
    constexpr int V = decltype(elements)::value;
    std::vector<Axis> axes = copy.axes;
    const std::vector<Axis> columns = take_columns(axes, copy.to, sizeof(R), V);
    if (V > 1 && columns.empty()) return false;
    const Numbering numbering = numbering_of(columns, axes, V);
    const unsigned blocks = static_cast<unsigned>(ceil_div(numbering.threads, kCopyThreads));
    launch(stream, {blocks, kCopyThreads}, strided_copy<V, E, R, F>, copy.from, copy.to, numbering, convert);
    return true;
  };
  if (!launched(std::integral_constant<int, 16 / sizeof(R)>())) launched(std::integral_constant<int, 1>());
}

inline void run(const Stream& stream, StridedCopy copy) {
  copy = simplified(copy);
  switch (copy.bytes) {
    case 1:
      return launch_copy<uint8_t, uint8_t>(stream, copy, Same());
    case 2:
      return launch_copy<uint16_t, uint16_t>(stream, copy, Same());
    case 4:
      return launch_copy<uint32_t, uint32_t>(stream, copy, Same());
    case 8:
      return launch_copy<uint64_t, uint64_t>(stream, copy, Same());
    default:
      return launch_copy<Bytes16, Bytes16>(stream, copy, Same());
  }
}

}  // namespace fastnets
