// Soft-NMS of one category, with the instructions of one processor. Included three times by isa.h.
//
// A vector holds L boxes, an array for each of their properties. Taking a box is one pass over those that remain: their
// scores decay, and the best of them is found, the next to be taken. A score that is given up becomes NaN, which no
// comparison finds; when half of them are, the rest move together. A pass reads 24 bytes a box (of float) and writes 4.
// Passes are bound by arithmetic: about 20 instructions for L boxes, 50 with exp, and a division.
#include "box_overlap.h"
#include "soft_nms.h"

namespace fastnets::FASTNETS_ISA {

template <typename A>
using IntOf = std::conditional_t<std::is_same_v<A, double>, int64_t, int32_t>;

// exp(x) for x <= 0: see csrc/soft_nms.h.
template <int kTerms, int L>
FASTNETS_INLINE Vec<double, L> decaying_exponential(Vec<double, L> x) {
  using namespace exponential_constants;
  const Vec<double, L> shifted = x * kLog2E + kRound, k = shifted - kRound;
  const Vec<double, L> r = (x - k * kLn2High) - k * kLn2Low;
  Vec<double, L> p = splat<double, L>(kInverseFactorials.of[kTerms]);
  for (int j = kTerms - 1; j >= 0; --j) p = p * r + kInverseFactorials.of[j];
  const auto power = bits<Vec<double, L>>((bits<Vec<int64_t, L>>(shifted) << 52) + (int64_t{1023} << 52));
  return x < kLowest ? Vec<double, L>{} : p * power;
}

// exp(-q), computed in double and rounded once.
template <typename A, int L>
FASTNETS_INLINE Vec<A, L> gaussian_weight(Vec<A, L> q) {
  if constexpr (std::is_same_v<A, double>) {
    return decaying_exponential<exponential_constants::kTerms<double>, L>(-q);
  } else {
    Vec<float, L / 2> halves[2];
    std::memcpy(halves, &q, sizeof q);
    for (int i = 0; i < 2; ++i) {
      const Vec<double, L / 2> x = -__builtin_convertvector(halves[i], Vec<double, L / 2>);
      halves[i] = __builtin_convertvector((decaying_exponential<exponential_constants::kTerms<float>, L / 2>(x)),
                                          Vec<float, L / 2>);
    }
    std::memcpy(&q, halves, sizeof q);
    return q;
  }
}

// The released code's own max and min: b, if either is NaN.
template <typename A, int L>
FASTNETS_INLINE Vec<A, L> paper_extent(Vec<A, L> low, Vec<A, L> lower, Vec<A, L> high, Vec<A, L> higher) {
  return ((high <= higher ? high : higher) - (low >= lower ? low : lower)) + A(1);
}

// Intersection over union of the box that is taken with others; `touching` lanes can lose score.
template <typename A, int L, Rules R>
FASTNETS_INLINE Vec<A, L> iou(const Box<A, L>& a, const Box<A, L>& b) {
  const Vec<A, L> zero{};
  if constexpr (R == Rules::kPaper) {
    const Vec<A, L> w = paper_extent<A, L>(a.x1, b.x1, a.x2, b.x2), h = paper_extent<A, L>(a.y1, b.y1, a.y2, b.y2);
    const Vec<A, L> both = w * h;
    return ((w > zero) & (h > zero)) ? both / ((a.area + b.area) - both) : zero;
  } else {
    Vec<A, L> both, either;
    overlap<A, L>(a, b, both, either);
    if constexpr (R == Rules::kMmcv) return both / either;
    const auto touching = both > zero;
    return any(touching) ? (touching ? both / either : zero) : zero;
  }
}

template <typename A, int L, Rules R>
FASTNETS_INLINE Vec<A, L> decay(Vec<A, L> score, Vec<A, L> iou, const SoftNms<A>& p) {
  const Vec<A, L> one = splat<A, L>(A(1));
  if (p.method == Method::kGaussian) {
    if constexpr (R == Rules::kOurs)
      if (!any(iou != A(0))) return score;
    return score * gaussian_weight<A, L>((iou * iou) / p.sigma);
  }
  const auto over = R == Rules::kMmcv ? iou >= p.threshold : iou > p.threshold;
  const Vec<A, L> weight = p.method == Method::kLinear ? one - iou : Vec<A, L>{};
  return score * (over ? weight : one);
}

template <typename A>
struct Best {
  A score;
  int64_t at;
};

// The highest score and its first position, `begin` if there is none; NaN is none.
template <typename A, int L>
struct Highest {
  using I = IntOf<A>;
  Vec<A, L> score = splat<A, L>(-std::numeric_limits<A>::infinity());
  Vec<I, L> at = splat<I, L>(std::numeric_limits<I>::max());
  Vec<I, L> position;

  FASTNETS_INLINE explicit Highest(int64_t begin) {
    for (int i = 0; i < L; ++i) position[i] = static_cast<I>(begin + i);
  }

  FASTNETS_INLINE void see(Vec<A, L> s) {
    const auto higher = s > score;
    score = higher ? s : score;
    at = higher ? position : at;
    position += L;
  }

  FASTNETS_INLINE Best<A> best(int64_t begin) const {
    Best<A> b{score[0], at[0]};
    for (int i = 1; i < L; ++i)
      if (score[i] > b.score || (score[i] == b.score && at[i] < b.at)) b = {score[i], at[i]};
    if (b.at == std::numeric_limits<I>::max()) b.at = begin;
    return b;
  }
};

template <typename A>
Best<A> find_best(const BoxArrays<A>& boxes, int64_t begin, int64_t end) {
  constexpr int L = kLanes<A>;
  Highest<A, L> highest(begin);
  for (int64_t i = begin; i < end; i += L) highest.see(load<A, L>(boxes.score + i));
  return highest.best(begin);
}

// Takes the box at `from`: the scores in [begin, end) decay. Returns the best of them; counts those still worth
// keeping.
template <typename A, Rules R>
Best<A> take(const BoxArrays<A>& boxes, int64_t from, int64_t begin, int64_t end, const SoftNms<A>& p, int64_t* alive) {
  constexpr int L = kLanes<A>;
  const Box<A, L> taken{splat<A, L>(boxes.x1[from]), splat<A, L>(boxes.y1[from]), splat<A, L>(boxes.x2[from]),
                        splat<A, L>(boxes.y2[from]), splat<A, L>(boxes.area[from])};
  const Vec<A, L> nan = splat<A, L>(std::numeric_limits<A>::quiet_NaN());
  Highest<A, L> highest(begin);
  Vec<IntOf<A>, L> count{};
  for (int64_t i = begin; i < end; i += L) {
    const Box<A, L> box{load<A, L>(boxes.x1 + i), load<A, L>(boxes.y1 + i), load<A, L>(boxes.x2 + i),
                        load<A, L>(boxes.y2 + i), load<A, L>(boxes.area + i)};
    Vec<A, L> score = decay<A, L, R>(load<A, L>(boxes.score + i), iou<A, L, R>(taken, box), p);
    if constexpr (R == Rules::kOurs) {
      const auto keeps = score >= p.prune;
      score = keeps ? score : nan;
      count -= keeps;
    } else {
      count -= score < p.min_score;
    }
    store<A, L>(boxes.score + i, score);
    highest.see(score);
  }
  *alive = sum<IntOf<A>, L>(count);
  return highest.best(begin);
}

template <typename A>
void put_nan_behind(const BoxArrays<A>& boxes, int64_t n) {
  for (int64_t i = n; i < n + boxes.kRoom; ++i) boxes.score[i] = std::numeric_limits<A>::quiet_NaN();
}

template <typename A, Rules R>
void set_areas(const BoxArrays<A>& boxes, int64_t n) {
  const A one = R == Rules::kPaper ? 1 : 0;  // its widths count the last pixel
  for (int64_t i = 0; i < n; ++i)
    boxes.area[i] = ((boxes.x2[i] - boxes.x1[i]) + one) * ((boxes.y2[i] - boxes.y1[i]) + one);
}

// Moves the boxes whose score is not given up together, in their order.
template <typename A>
int64_t compact(const BoxArrays<A>& boxes, int64_t n, A prune) {
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i)
    if (boxes.score[i] >= prune) boxes.move(i, kept++);
  put_nan_behind(boxes, kept);
  return kept;
}

template <typename A>
int64_t soft_nms(const BoxArrays<A>& boxes, int64_t n, const SoftNms<A>& p, int64_t* keep, A* decayed) {
  n = compact(boxes, n, p.prune);
  set_areas<A, Rules::kOurs>(boxes, n);
  Best<A> best = find_best(boxes, 0, n);
  int64_t taken = 0;
  while (taken < p.most && best.score >= p.min_score) {
    keep[taken] = boxes.index[best.at];
    decayed[taken++] = best.score;
    boxes.score[best.at] = std::numeric_limits<A>::quiet_NaN();
    int64_t alive;
    best = take<A, Rules::kOurs>(boxes, best.at, 0, n, p, &alive);
    if (2 * alive < n) n = compact(boxes, n, p.prune), best = find_best(boxes, 0, n);
  }
  return taken;
}

// Fills each place whose score is under min_score with the last box that is not, as the loop of mmcv and the paper
// does.
template <typename A>
int64_t fill_from_behind(const BoxArrays<A>& boxes, int64_t begin, int64_t end, A min_score) {
  for (int64_t i = begin; i < end; ++i) {
    if (!(boxes.score[i] < min_score)) continue;
    do --end;
    while (end > i && boxes.score[end] < min_score);
    boxes.move(end, i);
  }
  put_nan_behind(boxes, end);
  return end;
}

// The loop of mmcv and the paper: the best box changes places with the first that remains, which decides ties after it;
// and a NaN in that place is taken, because no score is higher.
template <typename A, Rules R>
int64_t soft_nms_by_swaps(const BoxArrays<A>& boxes, int64_t n, const SoftNms<A>& p, int64_t* keep, A* decayed) {
  put_nan_behind(boxes, n);
  set_areas<A, R>(boxes, n);
  Best<A> best = find_best(boxes, 0, n);
  int64_t i = 0;
  for (; i < n && i < p.most; ++i) {
    if (boxes.score[i] == boxes.score[i]) boxes.swap(i, best.at);
    keep[i] = boxes.index[i];
    decayed[i] = boxes.score[i];
    int64_t fallen;
    best = take<A, R>(boxes, i, i + 1, n, p, &fallen);
    if (fallen > 0) n = fill_from_behind(boxes, i + 1, n, p.min_score), best = find_best(boxes, i + 1, n);
  }
  return i;
}

template <typename A>
inline SoftNmsKernels<A> soft_nms_kernels() {
  return {soft_nms<A>, soft_nms_by_swaps<A, Rules::kMmcv>, soft_nms_by_swaps<A, Rules::kPaper>};
}

}  // namespace fastnets::FASTNETS_ISA
