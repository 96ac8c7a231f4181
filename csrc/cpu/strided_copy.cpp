// Strided copies on a CPU: the choice of a block and of its kernel. The kernels are in the headers.
#include "strided_copy.h"

#include <numeric>
#include <utility>

#include "steps.h"

#define FASTNETS_KERNELS "strided_copy_kernels.h"
#include "isa.h"

namespace fastnets {
namespace {

BlockKernel kernel_for(Block& block) { return FASTNETS_FOR_THIS_CPU(block_kernel)(block); }

constexpr int64_t kLine = 64;

// Whether all vectors of the result are whole cache lines, and there are more than a third-level cache keeps.
bool should_stream(const StridedCopy& copy) {
  if (copy.elements() * copy.bytes <= kThirdLevel) return false;
  uintptr_t places = reinterpret_cast<uintptr_t>(copy.to);
  for (const Axis& axis : copy.axes)
    if (axis.to >= kLine) places |= axis.to;
  return places % kLine == 0;
}

// The largest divisor of `size` that is at most `most` and a multiple of `unit`; or 0.
int64_t largest_part(int64_t size, int64_t most, int64_t unit) {
  int64_t part = std::min(size, most) / unit * unit;
  while (part > 0 && size % part != 0) part -= unit;
  return part;
}

// Takes out the axes that enumerate, with the given strides, 0 to g elements; their offsets in the other array.
std::vector<int64_t> take_group(StridedCopy& copy, int64_t Axis::* dense, int64_t Axis::* other, int64_t g) {
  std::vector<int64_t> offsets{0};
  for (;;) {
    const int64_t have = offsets.size();
    if (have == g) return offsets;
    const auto next = std::find_if(copy.axes.begin(), copy.axes.end(), [&](const Axis& axis) {
      return axis.*dense == have * copy.bytes && have * axis.size <= g;
    });
    if (next == copy.axes.end()) return {};
    for (int64_t i = 1; i < next->size; ++i)
      for (int64_t k = 0; k < have; ++k) offsets.push_back(offsets[k] + i * (*next.*other));
    copy.axes.erase(next);
  }
}

}  // namespace

bool CopyPlan::plan_run(StridedCopy& copy) {
  constexpr int64_t kShort = 64;  // bytes, for which a call of memcpy does not pay
  if (copy.axes.empty()) return false;
  const Axis run = copy.axes.back();
  if (run.from != copy.bytes || run.to != copy.bytes || run.size * copy.bytes < kShort) return false;
  block_ = {Move::kRun, copy.bytes, run.size * copy.bytes, {0}, false};
  copy.axes.pop_back();
  constexpr int64_t kRuns = 16, kBlock = 4096;  // in a block, and bytes of them: there must be blocks for all threads
  if (copy.axes.size() < 2) return true;
  const Axis next = copy.axes.back();
  if (next.to != block_.count || next.size > kRuns || next.size * block_.count > kBlock) return true;
  for (int64_t i = 1; i < next.size; ++i) block_.offsets.push_back(i * next.from);
  copy.axes.pop_back();
  return true;
}

// An axis that is contiguous in one array and of step g in the other, between whose elements g - 1 others lie.
bool CopyPlan::plan_interleave(StridedCopy& copy, Move move) {
  constexpr int64_t kNarrowest = 16;  // bytes of a vector
  const bool inverse = move == Move::kDeinterleave;
  const auto run = inverse ? &Axis::to : &Axis::from, dense = inverse ? &Axis::from : &Axis::to;
  const auto axis = std::find_if(copy.axes.begin(), copy.axes.end(), [&](const Axis& a) {
    return a.*run == copy.bytes && a.*dense > copy.bytes && a.size * copy.bytes >= kNarrowest;
  });
  if (axis == copy.axes.end()) return false;
  StridedCopy rest = copy;
  rest.axes.erase(rest.axes.begin() + (axis - copy.axes.begin()));
  const int64_t g = *axis.*dense / copy.bytes;
  block_ = {move, copy.bytes, axis->size, take_group(rest, dense, run, g), should_stream(copy)};
  if (block_.offsets.empty() || !kernel_for(block_)) return false;
  copy = rest;
  return true;
}

// As many of the innermost axes as a table of offsets has room for; of the last of them a part that divides it, if
// there is one of whole cache lines, so that it can be streamed.
void CopyPlan::plan_gather(StridedCopy& copy) {
  constexpr int64_t kTable = 256;
  const bool streams = should_stream(copy);
  block_ = {Move::kGather, copy.bytes, 0, {0}, false};
  std::vector<int64_t>& offsets = block_.offsets;
  while (!copy.axes.empty()) {
    Axis& axis = copy.axes.back();
    const int64_t have = offsets.size();
    if (axis.to != have * copy.bytes) return;
    const int64_t lines = kLine / std::gcd(kLine, have * copy.bytes);  // so many of what there is are whole lines
    int64_t part = streams ? largest_part(axis.size, kTable / have, lines) : 0;
    if (part == 0) part = largest_part(axis.size, kTable / have, 1);
    block_.streams = streams && have * part * copy.bytes % kLine == 0;
    for (int64_t i = 1; i < part; ++i)
      for (int64_t k = 0; k < have; ++k) offsets.push_back(offsets[k] + i * axis.from);
    if (part < axis.size) {
      axis = {axis.size / part, axis.from * part, axis.to * part};
      return;
    }
    copy.axes.pop_back();
  }
}

CopyPlan::CopyPlan(StridedCopy copy) {
  copy = simplified(copy);
  from_ = copy.from, to_ = copy.to;
  if (!plan_run(copy) && !plan_interleave(copy, Move::kInterleave) && !plan_interleave(copy, Move::kDeinterleave))
    plan_gather(copy);
  kernel_ = kernel_for(block_);
  loops_ = copy.axes;
  // Innermost is where blocks that are gathered read the same cache lines; and where short runs are moved, the longest
  // loop, where another is left to cut between threads: a call of the kernel takes as long as some of them.
  constexpr int64_t kShort = 512;
  const bool runs = block_.move == Move::kRun && block_.count <= kShort && loops_.size() > 2;
  const auto near = [](const Axis& a, const Axis& b) { return std::abs(a.from) < std::abs(b.from); };
  const auto longer = [](const Axis& a, const Axis& b) { return a.size > b.size; };
  const auto inner = block_.move == Move::kGather ? std::min_element(loops_.begin(), loops_.end(), near)
                     : runs                       ? std::min_element(loops_.begin(), loops_.end(), longer)
                                                  : loops_.end();
  if (inner != loops_.end()) std::rotate(inner, inner + 1, loops_.end());
  if (loops_.empty()) loops_.push_back({1, 0, 0});
}

int64_t CopyPlan::blocks() const {
  int64_t n = 1;
  for (const Axis& axis : loops_) n *= axis.size;
  return n;
}

void CopyPlan::run(int64_t begin, int64_t end) const {
  const Axis& inner = loops_.back();
  const int64_t outer = static_cast<int64_t>(loops_.size()) - 1;
  std::vector<int64_t> at(outer);
  const char* from = from_;
  char* to = to_;
  int64_t first = begin % inner.size;
  for (int64_t i = outer - 1, index = begin / inner.size; i >= 0; index /= loops_[i--].size) {
    at[i] = index % loops_[i].size;
    from += at[i] * loops_[i].from, to += at[i] * loops_[i].to;
  }
  while (begin < end) {
    const int64_t rows = std::min(inner.size - first, end - begin);
    kernel_(block_, {from + first * inner.from, to + first * inner.to, rows, inner.from, inner.to});
    begin += rows, first = 0;
    for (int64_t i = outer - 1; i >= 0; --i) {
      from += loops_[i].from, to += loops_[i].to;
      if (++at[i] < loops_[i].size) break;
      from -= at[i] * loops_[i].from, to -= at[i] * loops_[i].to, at[i] = 0;
    }
  }
  if (block_.streams) FASTNETS_FOR_THIS_CPU(finish_streams)();
}

void run(const StridedCopy& copy) {
  constexpr int64_t kGrain = 32 << 10;  // bytes that are worth a thread
  CopyPlan plan(copy);
  const int64_t blocks = plan.blocks(), bytes = std::max<int64_t>(1, copy.elements() * copy.bytes / blocks);
  run_step(blocks, std::max<int64_t>(1, kGrain / bytes),
           [plan = std::move(plan)](int64_t begin, int64_t end) { plan.run(begin, end); });
}

}  // namespace fastnets
