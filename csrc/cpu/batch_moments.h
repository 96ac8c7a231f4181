// What the kernels of batch_moments are given, for both layouts and all instruction sets.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "../batch_moments.h"
#include "work.h"

namespace fastnets::moments {

// How the values of a channel are cut. Depends on shapes only, and so does every bit of a result.
//
// Blocks: what is summed up at once, in the type of sums. Of planes: a piece of one, or several that together are
// small. Of channels_last: a row, the channels of one pixel.
// Parts: consecutive blocks that have partial results of their own. Of planes there is one part, unless channels are
// few; of channels_last a part is as many rows as a second-level cache holds with room to spare.
struct Cut {
  explicit Cut(const Map& m, int64_t bytes) : map(m) {
    constexpr int64_t kBlock = 4096, kPart = 128 << 10, kLeast = 64, kTasks = 32;
    if (m.last) {
      blocks = m.count();
      parts = std::max<int64_t>(1, std::min(blocks / kLeast, ceil_div(blocks * m.c * bytes, kPart)));
      return;
    }
    const int64_t l = std::max<int64_t>(1, m.l);
    pieces = ceil_div(l, kBlock);
    planes = std::max<int64_t>(1, kBlock / l);
    blocks = m.l == 0 ? 0 : ceil_div(m.n, planes) * pieces;
    parts = std::clamp<int64_t>(kTasks / std::max<int64_t>(1, m.c), 1, std::max<int64_t>(1, blocks));
  }

  // How many values of a channel a part has.
  int64_t count(int64_t part) const {
    const Range b = share(blocks, part, parts);
    if (map.last) return b.end - b.begin;
    int64_t values = 0;
    for (int64_t i = b.begin; i < b.end; ++i) values += size(i);
    return values;
  }
  int64_t size(int64_t block) const {
    const Range p = planes_of(block), w = piece_of(block);
    return (p.end - p.begin) * (w.end - w.begin);
  }
  Range planes_of(int64_t block) const {
    return {block / pieces * planes, std::min(map.n, (block / pieces + 1) * planes)};
  }
  Range piece_of(int64_t block) const { return share(map.l, block % pieces, pieces); }

  Map map;
  int64_t pieces = 1, planes = 1;  // of planes: blocks in a plane, planes in a block
  int64_t blocks = 0, parts = 1;
};

struct Problem {
  Cut cut;
  const void* x;
  void* moments;  // [part][2][c] in float or double: mean of each part, less the channel's first value, and m2
};

// Tasks: of planes, c * parts, channel by channel; of channels_last, parts.
using Kernel = void (*)(const Problem&, int64_t begin, int64_t end);

// Runs a kernel's tasks, so many to a thread that it has 2^15 values at least.
template <typename P>
void run(void (*kernel)(const P&, int64_t, int64_t), const P& p, int64_t tasks) {
  const Map& m = p.cut.map;
  const int64_t values = std::max<int64_t>(1, m.c * m.count() / std::max<int64_t>(1, tasks));
  torch::stable::parallel_for(0, tasks, std::max<int64_t>(1, (1 << 15) / values),
                              [&](int64_t begin, int64_t end) { kernel(p, begin, end); });
}

// A channel's first value. What parts tell each other of their means is how far they are from it: where a mean is
// large, it is rounded to more than parts differ by.
template <typename T>
Sum<T> origin(const Map& m, const void* x, int64_t c) {
  return static_cast<Sum<T>>(static_cast<const T*>(x)[m.last ? c : c * m.l]);
}

// Merges the parts' moments, in their order and in double, into mean and m2 of channels [begin, end): each merge
// rounds, and there may be thousands.
template <typename T>
void merge(const Cut& cut, const void* x, const Sum<T>* parts, Range channels, Sum<T>* mean, Sum<T>* m2) {
  const int64_t c = cut.map.c, size = channels.end - channels.begin;
  std::vector<double> means(size), squares(size);
  int64_t count = 0;
  for (int64_t part = 0; part < cut.parts; ++part) {
    const int64_t more = cut.count(part);
    if (more == 0) continue;
    const Sum<T>*part_mean = parts + 2 * part * c + channels.begin, *part_m2 = part_mean + c;
    const double weight = double(more) / double(count + more), square = double(count) * weight;
    for (int64_t i = 0; i < size; ++i) {
      const double delta = part_mean[i] - means[i];
      means[i] += delta * weight;
      squares[i] += part_m2[i] + delta * delta * square;
    }
    count += more;
  }
  for (int64_t i = 0; i < size; ++i) {
    mean[channels.begin + i] = static_cast<Sum<T>>(means[i] + double(origin<T>(cut.map, x, channels.begin + i)));
    m2[channels.begin + i] = static_cast<Sum<T>>(squares[i]);
  }
}

// Mean and m2 of all channels, of an x that is not empty.
template <typename T>
void moments_of(Kernel kernel, const Cut& cut, const void* x, Sum<T>* mean, Sum<T>* m2) {
  using A = Sum<T>;
  const int64_t c = cut.map.c;
  const std::unique_ptr<A[]> parts(new A[2 * cut.parts * c]);
  run(kernel, Problem{cut, x, parts.get()}, cut.map.last ? cut.parts : c * cut.parts);
  torch::stable::parallel_for(0, c, (1 << 13) / cut.parts + 1, [&](int64_t begin, int64_t end) {
    merge<T>(cut, x, parts.get(), {begin, end}, mean, m2);
  });
}

// A vector per channel, in the type of sums; `otherwise` in each place where there is none.
template <typename T>
std::vector<Sum<T>> values_of(const Tensor& x, const std::optional<Tensor>& t, Sum<T> otherwise) {
  std::vector<Sum<T>> values(x.size(1), otherwise);
  if (!t) return values;
  check_vector(x, *t);
  const int64_t step = t->stride(0), size = values.size();
  if (t->scalar_type() == x.scalar_type())
    for (int64_t i = 0; i < size; ++i) values[i] = static_cast<Sum<T>>(data<T>(*t)[i * step]);
  else
    for (int64_t i = 0; i < size; ++i) values[i] = data<Sum<T>>(*t)[i * step];
  return values;
}

}  // namespace fastnets::moments
