// NMS of boxes that are sorted best first: launch and registration.
//
// Work. A category is gone through in panels of 256 boxes. For each box of a panel its suppressors in the panel are
// found, a bit each. One warp resolves these 8 kB: 32 boxes at a time, those stay that no box suppresses which stays.
// Then the boxes behind the panel are tested against those that stay. Of several categories, a block does all this for
// one; of a single one, a launch of all multiprocessors does it for a panel and finds the suppressors of the next, and
// each block resolves the panel for itself. All tests are of 32 boxes, a lane each, against up to 32 before them, a
// warp's task. Nothing waits for the host.
//
// Bytes. A test reads 16 bytes of box (of float), the same in all lanes, from L1. Beside a byte a box there are the
// bits of two panels, 16 kB, never n^2.
#include <algorithm>

#include "boxes.cuh"

namespace fastnets {
namespace {

constexpr unsigned kGroups = 8, kPanel = 32 * kGroups, kWords = kGroups * kPanel;

// The warps that share out tasks, and which of them this one is.
struct Warps {
  unsigned index, count;
};

template <typename A>
__device__ bool suppresses(const Box<A>& kept, const Box<A>& other, A threshold) {
  A both, either;
  overlap(kept, other, both, either);
  // Rounding keeps order, so this decides most pairs as the division would.
  if (either > 0 && both < mul_rn(threshold, either)) return false;
  return div_rn(both, either) > threshold;
}

// A bit for each of 32 boxes, of those in `some`, that suppresses another one.
template <typename A>
__device__ unsigned suppressors(const Box<A>* boxes, unsigned some, const Box<A>& other, A threshold) {
  unsigned found = 0;
  while (some) {
    const int i = highest_bit(some);
    some ^= 1u << i;
    if (suppresses(boxes[i], other, threshold)) found |= 1u << i;
  }
  return found;
}

template <typename A>
struct Category {
  const Box<A>* boxes;
  bool* alive;
  int64_t end;
  A threshold;

  __device__ bool lives(int64_t i) const { return i < end && alive[i]; }

  // For box i of a panel, words[g * kPanel + i] has a bit for each of the panel's boxes 32 g to 32 g + 31 that comes
  // before it, is alive and suppresses it. Who is dead by now stays so and needs no test.
  __device__ void find_suppressors(int64_t panel, unsigned* words, Warps warps) const {
    const unsigned lane = threadIdx.x % 32;
    for (unsigned task = warps.index; task < kGroups * (kGroups + 1) / 2; task += warps.count) {
      // Group i has i + 1 tasks: together with group kGroups - 1 - i, one more than there are groups.
      const unsigned fold = task / (kGroups + 1), rest = task % (kGroups + 1);
      const unsigned group = rest <= fold ? fold : kGroups - 1 - fold, before = rest <= fold ? rest : rest - fold - 1;
      const int64_t i = panel + 32 * group + lane, first = panel + 32 * before;
      unsigned some = ballot(lives(first + lane));
      if (before == group) some &= (1u << lane) - 1;
      if (i < end)
        words[before * kPanel + 32 * group + lane] =
            alive[i] ? suppressors(boxes + first, some, boxes[i], threshold) : 0;
    }
  }

  // Decides, in one warp, which boxes of a panel stay; also a bit for each in staying[kGroups].
  __device__ void resolve(int64_t panel, const unsigned* words, unsigned* staying) const {
    const unsigned lane = threadIdx.x;
    unsigned word[kGroups][kGroups], stay[kGroups];
    bool open[kGroups];
#pragma unroll
    for (unsigned g = 0; g < kGroups; ++g) {
      const int64_t i = panel + 32 * g + lane;
      open[g] = lives(i);
#pragma unroll
      for (unsigned b = 0; b <= g; ++b) word[g][b] = i < end ? words[b * kPanel + 32 * g + lane] : 0;
    }
#pragma unroll
    for (unsigned g = 0; g < kGroups; ++g) {
      unsigned gone = 0;
#pragma unroll
      for (unsigned b = 0; b < g; ++b) gone |= word[g][b] & stay[b];
      // Whom none suppresses that is undecided, stays; whom those suppress, goes. Chains of these steps are short.
      stay[g] = 0;
      for (unsigned undecided = ballot(open[g] && !gone); undecided;) {
        const unsigned sure = ballot(!(word[g][g] & undecided)) & undecided;
        stay[g] |= sure;
        undecided &= ~(sure | ballot(word[g][g] & sure));
      }
      if (open[g]) alive[panel + 32 * g + lane] = stay[g] >> lane & 1;
      if (lane == 0) staying[g] = stay[g];
    }
  }

  // Tests the boxes behind a panel against those of it that stay.
  __device__ void suppress_behind(int64_t panel, const unsigned* staying, Warps warps) const {
    const int64_t first = panel + kPanel, tasks = (end - first + 31) / 32 * kGroups;
    for (int64_t task = warps.index; task < tasks; task += warps.count) {
      const int64_t g = task % kGroups, i = first + task / kGroups * 32 + threadIdx.x % 32;
      if (lives(i) && suppressors(boxes + panel + 32 * g, staying[g], boxes[i], threshold)) alive[i] = false;
    }
  }
};

// Each category in one block.
template <typename A>
__global__ void __launch_bounds__(kMostThreads)
    nms(const Box<A>* boxes, Categories categories, bool* alive, A threshold) {
  FASTNETS_SHARED(unsigned, words, kWords);
  FASTNETS_SHARED(unsigned, staying, kGroups);
  const Warps warps{threadIdx.x / 32, blockDim.x / 32};
  for (int64_t k = blockIdx.x, begin; (begin = categories[k]) < categories.n; k += gridDim.x) {
    const Category<A> category{boxes, alive, categories[k + 1], threshold};
    for (int64_t panel = begin; panel < category.end; panel += kPanel) {
      category.find_suppressors(panel, words, warps);
      barrier();
      if (threadIdx.x < 32) category.resolve(panel, words, staying);
      barrier();
      category.suppress_behind(panel, staying, warps);
      barrier();
    }
  }
}

// One panel of a single category; before the first panel, only what it needs. Blocks resolve a panel while others may
// have written who stays: the outcome is the same, as it is of those who stay alone.
template <typename A>
__global__ void __launch_bounds__(kMostThreads) nms_panel(Category<A> category, int64_t panel, unsigned* words) {
  FASTNETS_SHARED(unsigned, staying, kGroups);
  const unsigned warps = blockDim.x / 32;
  const Warps all{blockIdx.x * warps + threadIdx.x / 32, gridDim.x * warps};
  unsigned* const here = words + (panel / kPanel & 1) * kWords;
  unsigned* const next = words + (panel / kPanel + 1 & 1) * kWords;
  if (panel >= 0 && threadIdx.x < 32) category.resolve(panel, here, staying);
  category.find_suppressors(panel + kPanel, next, all);
  barrier();
  if (panel >= 0) category.suppress_behind(panel, staying, all);
}

// Boxes (n, 4) of float or double, best first in each category, which begin as in boxes.cuh; `alive` (n) is true and
// becomes false where a box is suppressed.
void nms_categories(const Tensor& boxes, const std::optional<Tensor>& begins, const Tensor& alive,
                    double iou_threshold) {
  const int64_t n = alive.size(0);
  if (n == 0) return;
  const Stream stream(boxes);
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const auto* b = data<Box<A>>(boxes);
    auto* a = mutable_data<bool>(alive);
    const auto threshold = round_down<A>(iou_threshold);
    if (begins) {
      const Categories categories{data<int64_t>(*begins), n};
      return launch(stream, grid_of(n, true), nms<A>, b, categories, a, threshold);
    }
    const Tensor words = empty_int64(alive, {kWords});  // 32 bits each, of two panels
    for (int64_t panel = -int64_t{kPanel}; panel < n; panel += kPanel) {
      const int64_t groups = ceil_div(n - panel - kPanel, 32);  // a block's warps share the tasks of one
      const Grid grid{static_cast<unsigned>(std::clamp<int64_t>(groups, 1, 528)), 32 * kGroups};
      launch(stream, grid, nms_panel<A>, Category<A>{b, a, n, threshold}, panel, mutable_data<unsigned>(words));
    }
  };
  boxes.scalar_type() == ScalarType::Double ? run(double()) : run(float());
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("nms_categories", TORCH_BOX(&fastnets::nms_categories));
}
