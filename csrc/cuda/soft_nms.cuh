// Soft-NMS of one category in one block.
//
// Work. Threads share out the boxes. Taking a box is one pass over them: scores decay, and the best is found, in each
// thread, then by shuffles in each warp, then over the warps. A category of n boxes takes up to n passes, each one or
// two barriers long; many categories run side by side. Nothing waits for the host.
//
// Bytes. A pass reads 16 bytes of box (of float) and 4 of score where a score remains, from L1 or L2, and writes 4.
#pragma once

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

template <Rules R, typename A>
__device__ A iou(const Box<A>& a, const Box<A>& b) {
  if constexpr (R == Rules::kPaper) {
    const A w = paper_extent(a.x1, b.x1, a.x2, b.x2), h = paper_extent(a.y1, b.y1, a.y2, b.y2), both = mul_rn(w, h);
    return w > 0 && h > 0 ? div_rn(both, sub_rn(add_rn(area(a, A(1)), area(b, A(1))), both)) : A(0);
  } else {
    A both, either;
    overlap(a, b, both, either);
    return R == Rules::kMmcv || both > 0 ? div_rn(both, either) : A(0);
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

template <typename A>
struct Best {
  A score;
  int64_t at;

  // NaN is never seen. Of equal scores the first counts.
  __device__ void see(A other, int64_t position) {
    if (other > score || (other == score && position < at)) score = other, at = position;
  }
};

template <typename A>
__device__ Best<A> nothing() {
  return {-A(INFINITY), INT64_MAX};
}

// The best of what all threads saw. `room` holds a number for each warp; two calls must not use the same in a row.
template <typename A>
__device__ Best<A> best_of_block(Best<A> best, Best<A>* room) {
  const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int mask = 16; mask > 0; mask /= 2) {
    const A score = shuffle_xor(best.score, mask);
    best.see(score, shuffle_xor(best.at, mask));
  }
  if (lane == 0) room[threadIdx.x / 32] = best;
  barrier();
  best = lane < warps ? room[lane] : nothing<A>();
  for (int mask = 16; mask > 0; mask /= 2) {
    const A score = shuffle_xor(best.score, mask);
    best.see(score, shuffle_xor(best.at, mask));
  }
  return best;
}

// A score that is given up becomes NaN. Each thread alone touches the scores of its boxes.
template <typename A>
__global__ void __launch_bounds__(kMostThreads) soft_nms(Planes<A> boxes, A* scores, const int64_t* index,
                                                         const int64_t* ends, int64_t* keep, A* decayed, SoftNms<A> p) {
  FASTNETS_SHARED(Best<A>, room, 64);
  const int64_t begin = blockIdx.x, end = category_end(ends, begin, boxes.n);
  Best<A> best = nothing<A>();
  for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x)
    if (scores[i] >= p.prune) best.see(scores[i], i);
  for (int64_t taken = 0; taken < p.most; ++taken) {
    best = best_of_block(best, room + taken % 2 * 32);
    if (!(best.score >= p.min_score)) return;
    const int64_t at = best.at;
    if (threadIdx.x == 0) keep[begin + taken] = index[at], decayed[begin + taken] = best.score;
    const Box<A> box = boxes.at(at);
    best = nothing<A>();
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) {
      A score = scores[i];
      if (!(score >= p.prune)) continue;
      score = i == at ? A(NAN) : decay<Rules::kOurs>(score, iou<Rules::kOurs>(box, boxes.at(i)), p);
      scores[i] = score;
      if (score >= p.prune) best.see(score, i);
    }
  }
}

template <typename A>
struct Rows {
  Planes<A> boxes;
  A* scores;
  int64_t* index;

  __device__ void swap(int64_t i, int64_t j) const {
    const Box<A> box = boxes.at(i);
    const A score = scores[i];
    const int64_t original = index[i];
    move(j, i);
    boxes.put(j, box), scores[j] = score, index[j] = original;
  }

  __device__ void move(int64_t from, int64_t to) const {
    boxes.put(to, boxes.at(from)), scores[to] = scores[from], index[to] = index[from];
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
    soft_nms_by_swaps(Rows<A> rows, const int64_t* ends, int64_t* keep, A* decayed, SoftNms<A> p) {
  FASTNETS_SHARED(Best<A>, room, 32);
  FASTNETS_SHARED(int64_t, remains, 1);
  FASTNETS_SHARED(int, fallen, 1);
  const int64_t begin = blockIdx.x;
  int64_t end = category_end(ends, begin, rows.boxes.n);
  for (int64_t i = begin; i < end && i - begin < p.most; ++i) {
    Best<A> best = nothing<A>();
    for (int64_t j = i + threadIdx.x; j < end; j += blockDim.x) best.see(rows.scores[j], j);
    best = best_of_block(best, room);
    barrier();  // all have read what one changes now
    if (threadIdx.x == 0) {
      // A NaN in the first place is taken, because no score is higher.
      if (rows.scores[i] == rows.scores[i]) rows.swap(i, best.at);
      keep[i] = rows.index[i], decayed[i] = rows.scores[i];
      *fallen = 0, *remains = end;
    }
    barrier();
    const Box<A> box = rows.boxes.at(i);
    for (int64_t j = i + 1 + threadIdx.x; j < end; j += blockDim.x) {
      rows.scores[j] = decay<R>(rows.scores[j], iou<R>(box, rows.boxes.at(j)), p);
      if (rows.scores[j] < p.min_score) *fallen = 1;
    }
    barrier();
    if (*fallen && threadIdx.x == 0) *remains = rows.fill_from_behind(i + 1, end, p.min_score);
    barrier();
    end = *remains;
  }
}

}  // namespace fastnets
