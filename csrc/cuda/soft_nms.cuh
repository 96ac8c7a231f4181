// Soft-NMS of one category in one block.
//
// Work. Threads share out the boxes. Taking a box is one pass over them: scores decay, and the best is found, in each
// thread, then in each warp, then over the warps. A category of n boxes takes up to n passes, each one barrier long;
// many categories run side by side, each up to 512 boxes (2048, if there is one category) in the registers of its
// block. Nothing waits for the host.
//
// Bytes. 20 (of float) are read for each box, and 16 for each one taken. Of a larger category, each pass reads 20 bytes
// a box from L1 or L2, and writes 4.
#pragma once

#include <type_traits>

#include "../soft_nms.h"
#include "boxes.cuh"

namespace fastnets {

// exp(x) for x <= 0: see csrc/soft_nms.h.
template <int kTerms>
__device__ double decaying_exponential(double x) {
  using namespace exponential_constants;
  constexpr Coefficients c = kInverseFactorials;  // a copy that device code may read
  if (x < kLowest) return 0;
  const double shifted = add_rn(mul_rn(x, kLog2E), kRound), k = sub_rn(shifted, kRound);
  const double r = sub_rn(sub_rn(x, mul_rn(k, kLn2High)), mul_rn(k, kLn2Low));
  double p = c.of[kTerms];
#pragma unroll
  for (int j = kTerms - 1; j >= 0; --j) p = add_rn(mul_rn(p, r), c.of[j]);
  uint64_t power;
  memcpy(&power, &shifted, sizeof power);
  power = (power << 52) + (uint64_t{1023} << 52);
  double scale;
  memcpy(&scale, &power, sizeof scale);
  return mul_rn(p, scale);
}

// The released code's own max and min: b, if either is NaN.
template <typename A>
__device__ A paper_extent(A low, A lower, A high, A higher) {
  return add_rn(sub_rn(high <= higher ? high : higher, low >= lower ? low : lower), A(1));
}

template <typename A>
__device__ A paper_area(const Box<A>& b) {
  return mul_rn(paper_extent(b.x1, b.x1, b.x2, b.x2), paper_extent(b.y1, b.y1, b.y2, b.y2));
}

template <Rules R, typename A>
__device__ A iou(const Box<A>& a, const Box<A>& b) {
  if constexpr (R == Rules::kPaper) {
    const A w = paper_extent(a.x1, b.x1, a.x2, b.x2), h = paper_extent(a.y1, b.y1, a.y2, b.y2), both = mul_rn(w, h);
    return w > 0 && h > 0 ? div_rn(both, sub_rn(add_rn(paper_area(a), paper_area(b)), both)) : A(0);
  } else {
    A both, either;
    overlap(a, b, both, either);
    return div_rn(both, either);
  }
}

template <Rules R, typename A>
__device__ A decay(A score, A iou, const SoftNms<A>& p) {
  if (p.method == Method::kGaussian) {
    if (iou == 0) return score;
    const double x = -static_cast<double>(div_rn(mul_rn(iou, iou), p.sigma));
    return mul_rn(score, static_cast<A>(decaying_exponential<exponential_constants::kTerms<A>>(x)));
  }
  if (!(R == Rules::kMmcv ? iou >= p.threshold : iou > p.threshold)) return score;
  return mul_rn(score, p.method == Method::kLinear ? sub_rn(A(1), iou) : A(0));
}

// The highest score that was seen, and its place in the category. Places are seen in their order: of equal scores the
// first counts. NaN is never seen.
template <typename A>
struct Best {
  A score = -A(INFINITY);
  unsigned at = ~0u;

  __device__ void see(A other, unsigned place) {
    if (other > score) score = other, at = place;
  }
};

template <typename A>
using Rank = std::conditional_t<std::is_same_v<A, double>, uint64_t, unsigned>;

// A score that is not NaN as a whole number of the same order; -0 and 0 have one rank.
template <typename A>
__device__ Rank<A> rank_of(A score) {
  constexpr Rank<A> sign = Rank<A>(1) << (8 * sizeof(A) - 1);
  score = add_rn(score, A(0));
  Rank<A> bits;
  memcpy(&bits, &score, sizeof bits);
  return bits & sign ? ~bits : bits | sign;
}

__device__ inline uint64_t warp_max(uint64_t value) {
  const unsigned high = warp_max(static_cast<unsigned>(value >> 32));
  const unsigned low = warp_max(value >> 32 == high ? static_cast<unsigned>(value) : 0);
  return uint64_t{high} << 32 | low;
}

template <typename A>
struct Ranked {
  Rank<A> rank;
  unsigned at;
};

template <typename A>
__device__ Ranked<A> best_of_warp(const Ranked<A>& best) {
  const Rank<A> rank = warp_max(best.rank);
  return {rank, ~warp_max(best.rank == rank ? ~best.at : 0u)};
}

// The best of what all threads saw. `room` holds one for each warp; two calls must not use the same in a row.
template <typename A>
__device__ Ranked<A> best_of_block(const Best<A>& seen, Ranked<A>* room) {
  const Ranked<A> best = best_of_warp<A>({~seen.at ? rank_of(seen.score) : 0, seen.at});
  const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
  if (lane == 0) room[threadIdx.x / 32] = best;
  barrier();
  return best_of_warp(lane < warps ? room[lane] : Ranked<A>{0, ~0u});
}

// Whether a score may change by `decay`, whose division few boxes need. Rounding keeps order: an IoU over the threshold
// has both >= threshold * either. No branches.
template <typename A>
__device__ bool touches(A both, A either, A score, const SoftNms<A>& p) {
  const bool over = (p.method == Method::kGaussian) | (both >= mul_rn(p.threshold, either));
  return (score >= p.prune) & (both > 0) & over;
}

constexpr int kEach = 4;

// Boxes of a thread, in its registers. A score that is taken becomes NaN.
template <typename A>
struct Held {
  Box<A> box[kEach];
  A score[kEach];

  __device__ static unsigned place(unsigned first, int j) { return first + j * blockDim.x + threadIdx.x; }

  __device__ void load(const Box<A>* boxes, const A* scores, unsigned first, unsigned count) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      const bool inside = place(first, j) < count;
      box[j] = inside ? boxes[place(first, j)] : Box<A>{};
      score[j] = inside ? scores[place(first, j)] : A(NAN);
    }
  }

  __device__ void store(A* scores, unsigned first, unsigned count) const {
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      if (place(first, j) < count) scores[place(first, j)] = score[j];
  }

  __device__ void take(unsigned at) {
#pragma unroll
    for (int j = 0; j < kEach; ++j)
      if (place(0, j) == at) score[j] = A(NAN);
  }

  // Lanes go to their next box that `taken` touches together: the warp takes as many steps as the most of a lane.
  __device__ void lower(const Box<A>& taken, const SoftNms<A>& p) {
    A both[kEach], either[kEach];
    unsigned touched = 0;
#pragma unroll
    for (int j = 0; j < kEach; ++j) {
      overlap(taken, box[j], both[j], either[j]);
      touched |= unsigned{touches(both[j], either[j], score[j], p)} << j;
    }
    for (; touched; touched &= touched - 1) {
      const unsigned next = touched & -touched;  // a bit: registers have no index
      A b = both[0], e = either[0], s = score[0];
#pragma unroll
      for (int j = 1; j < kEach; ++j)
        if (next == 1u << j) b = both[j], e = either[j], s = score[j];
      s = decay<Rules::kOurs>(s, div_rn(b, e), p);
#pragma unroll
      for (int j = 0; j < kEach; ++j)
        if (next == 1u << j) score[j] = s;
    }
  }

  __device__ void show(Best<A>& best, unsigned first) const {
#pragma unroll
    for (int j = 0; j < kEach; ++j) best.see(score[j], place(first, j));
  }
};

// A category, whose boxes begin at `boxes` and the rest likewise. kHeld: all of it is in registers.
template <typename A, bool kHeld>
__device__ void soft_nms_of_category(const Box<A>* boxes, A* scores, unsigned count, int64_t begin, int64_t* keep,
                                     A* decayed, const SoftNms<A>& p, Ranked<A>* room, unsigned& turn) {
  const Rank<A> least = rank_of(p.min_score);
  Held<A> held;
  if (kHeld) held.load(boxes, scores, 0, count);
  Box<A> taken{};  // touches none
  for (int64_t step = 0; step < p.most; ++step) {
    Best<A> seen;
    for (unsigned first = 0; first < count; first += kEach * blockDim.x) {
      if (!kHeld) held.load(boxes, scores, first, count);
      held.lower(taken, p);
      held.show(seen, first);
      if (!kHeld) held.store(scores, first, count);
      if (kHeld) break;  // that was all
    }
    const Ranked<A> best = best_of_block(seen, room + turn++ % 2 * (kMostThreads / 32));
    if (best.rank < least) return;  // all under min_score
    if (seen.at == best.at) {
      keep[step] = begin + best.at, decayed[step] = seen.score;
      if (kHeld)
        held.take(best.at);
      else
        scores[best.at] = A(NAN);
    }
    taken = boxes[best.at];
    if (!(area(taken) > 0)) taken = {};  // a NaN is no area either
  }
}

// Writes the places of what is taken of a category to keep, its scores to decayed.
template <typename A>
__global__ void __launch_bounds__(kMostThreads)
    soft_nms(const Box<A>* boxes, A* scores, Categories categories, int64_t* keep, A* decayed, SoftNms<A> p) {
  FASTNETS_SHARED(Ranked<A>, room, 2 * kMostThreads / 32);
  unsigned turn = 0;
  for (int64_t k = blockIdx.x, begin; (begin = categories[k]) < categories.n; k += gridDim.x) {
    const unsigned count = static_cast<unsigned>(categories[k + 1] - begin);  // 2^32 boxes would take years
    const auto run = [&](auto held) {
      soft_nms_of_category<A, held>(boxes + begin, scores + begin, count, begin, keep + begin, decayed + begin, p, room,
                                    turn);
    };
    count <= kEach* blockDim.x ? run(std::true_type()) : run(std::false_type());
  }
}

template <typename A>
struct Rows {
  Box<A>* boxes;
  A* scores;
  int64_t* index;

  __device__ void swap(int64_t i, int64_t j) const {
    const Box<A> box = boxes[i];
    const A score = scores[i];
    const int64_t original = index[i];
    move(j, i);
    boxes[j] = box, scores[j] = score, index[j] = original;
  }

  __device__ void move(int64_t from, int64_t to) const {
    boxes[to] = boxes[from], scores[to] = scores[from], index[to] = index[from];
  }

  // Fills each place whose score is under `least` with the last box that is not; returns the end of those that remain.
  __device__ int64_t fill_from_behind(int64_t begin, int64_t end, A least) const {
    for (int64_t i = begin; i < end; ++i) {
      if (!(scores[i] < least)) continue;
      do --end;
      while (end > i && scores[end] < least);
      move(end, i);
    }
    return end;
  }
};

// The loop of mmcv and the paper (see csrc/cpu/soft_nms_kernels.h); one thread changes places.
template <typename A, Rules R>
__global__ void __launch_bounds__(kMostThreads)
    soft_nms_by_swaps(Rows<A> rows, Categories categories, int64_t* keep, A* decayed, SoftNms<A> p) {
  FASTNETS_SHARED(Ranked<A>, room, kMostThreads / 32);
  FASTNETS_SHARED(int64_t, remains, 1);
  FASTNETS_SHARED(int, fallen, 1);
  for (int64_t k = blockIdx.x, begin; (begin = categories[k]) < categories.n; k += gridDim.x) {
    int64_t end = categories[k + 1];
    for (int64_t i = begin; i < end && i - begin < p.most; ++i) {
      Best<A> seen;
      for (int64_t j = i + threadIdx.x; j < end; j += blockDim.x) seen.see(rows.scores[j], j - i);
      const unsigned best = best_of_block(seen, room).at;
      barrier();  // all have read what one changes now
      if (threadIdx.x == 0) {
        // A NaN in the first place is taken, because no score is higher.
        if (rows.scores[i] == rows.scores[i] && best != ~0u) rows.swap(i, i + best);
        keep[i] = rows.index[i], decayed[i] = rows.scores[i];
        *fallen = 0, *remains = end;
      }
      barrier();
      const Box<A> box = rows.boxes[i];
      for (int64_t j = i + 1 + threadIdx.x; j < end; j += blockDim.x) {
        rows.scores[j] = decay<R>(rows.scores[j], iou<R>(box, rows.boxes[j]), p);
        if (rows.scores[j] < p.min_score) *fallen = 1;
      }
      barrier();
      if (*fallen && threadIdx.x == 0) *remains = rows.fill_from_behind(i + 1, end, p.min_score);
      barrier();
      end = *remains;
    }
  }
}

}  // namespace fastnets
