// Soft-NMS of one category, with the instructions of one processor. Included three times by isa.h.
//
// A vector holds L boxes, an array for each of their properties. Taking a box is three steps. The places of those boxes
// that it can cost score are written down, without a branch: 20 bytes a box (of float) are read, some 35 instructions
// for L. Their scores decay, gathered L at a time, with a division and, for gaussian, an exponential of 75
// instructions. The best of all scores is found: 4 bytes and some 11 instructions. A score that is given up becomes
// NaN, which no comparison finds; when half of them are, the rest move together. All of it is bound by instructions.
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

// What the box that is taken shares with others. Lanes that do not `count` have an IoU of 0.
template <typename A, int L>
struct Shared {
  Vec<A, L> both, either;
  Vec<IntOf<A>, L> count;
};

template <typename A, int L, Rules R>
FASTNETS_INLINE Shared<A, L> shared(const Box<A, L>& a, const Box<A, L>& b) {
  const Vec<A, L> zero{};
  Shared<A, L> s;
  if constexpr (R == Rules::kPaper) {
    const Vec<A, L> w = paper_extent<A, L>(a.x1, b.x1, a.x2, b.x2), h = paper_extent<A, L>(a.y1, b.y1, a.y2, b.y2);
    s.both = w * h;
    s.either = (a.area + b.area) - s.both;
    s.count = (w > zero) & (h > zero);
  } else {
    overlap<A, L>(a, b, s.both, s.either);
    s.count = R == Rules::kMmcv ? ~((s.both == zero) & (s.either > zero)) : s.both > zero;  // mmcv: 0 / 0 is NaN
  }
  return s;
}

// Lanes that can lose score. By a threshold t they are few, and found without a division: if the rounded quotient a / b
// is above t, the exact one is, so a > t * b, and rounding keeps a >= round(t * b). mmcv's IoU may equal its threshold,
// and its union be negative: `low` is then the number below t.
template <typename A, int L, Rules R, Method M>
FASTNETS_INLINE Vec<IntOf<A>, L> can_decay(const Shared<A, L>& s, Vec<A, L> low) {
  if constexpr (M == Method::kGaussian) {
    return s.count;
  } else if constexpr (R == Rules::kMmcv) {
    return ~(s.both < low * larger<A, L>(Vec<A, L>{}, s.either));
  } else {
    return s.count & ~(s.both < low * s.either);
  }
}

// Writes the places of the boxes in [begin, end) that can lose score to boxes.places; returns how many. Behind them it
// repeats one, for a whole vector.
template <typename A, Rules R, Method M>
int64_t find_places(const BoxArrays<A>& boxes, int64_t from, int64_t begin, int64_t end, A threshold) {
  constexpr int L = kLanes<A>;
  const BoxArrays<A> here = boxes;  // not to be read anew after each store
  const Box<A, L> taken = splat_box<A, L>(here, from);
  const A lowest = -std::numeric_limits<A>::infinity();
  const Vec<A, L> low = splat<A, L>(R == Rules::kMmcv ? std::nextafter(threshold, lowest) : threshold);
  int32_t* next = here.places;
  for (int64_t i = begin; i < end; i += L) {
    const Box<A, L> box = load_box<A, L>(here, i);
    const unsigned lanes = lane_bits(can_decay<A, L, R, M>(shared<A, L, R>(taken, box), low));
    for (int eight = 0; eight < L; eight += 8) {
      const unsigned byte = lanes >> eight & 0xff;
      Vec<int32_t, 8> places;
      std::memcpy(&places, &kSetBits[byte], sizeof places);
      places += static_cast<int32_t>(i + eight);
      std::memcpy(next, &places, sizeof places);
      next += __builtin_popcount(byte);
    }
  }
  for (int j = 0; j < L; ++j) next[j] = static_cast<int32_t>(begin);
  return next - here.places;
}

template <typename A, int L, Rules R>
FASTNETS_INLINE Vec<A, L> decay(Vec<A, L> score, const Shared<A, L>& s, const SoftNms<A>& p) {
  const Vec<A, L> one = splat<A, L>(A(1)), iou = s.count ? s.both / s.either : Vec<A, L>{};
  if (p.method == Method::kGaussian) return score * gaussian_weight<A, L>((iou * iou) / p.sigma);
  const auto over = R == Rules::kMmcv ? iou >= p.threshold : iou > p.threshold;
  const Vec<A, L> weight = p.method == Method::kLinear ? one - iou : Vec<A, L>{};
  return score * (over ? weight : one);
}

template <typename A, int L>
FASTNETS_INLINE Vec<A, L> gathered(const A* from, const int32_t* places) {
  Vec<A, L> v;
  for (int j = 0; j < L; ++j) v[j] = from[places[j]];
  return v;
}

// Takes the box at `from`: the scores in [begin, end) decay.
template <typename A, Rules R>
void take(const BoxArrays<A>& boxes, int64_t from, int64_t begin, int64_t end, const SoftNms<A>& p) {
  constexpr int L = kLanes<A>;
  const int64_t count = p.method == Method::kGaussian
                            ? find_places<A, R, Method::kGaussian>(boxes, from, begin, end, p.threshold)
                            : find_places<A, R, Method::kLinear>(boxes, from, begin, end, p.threshold);
  const Box<A, L> taken = splat_box<A, L>(boxes, from);
  for (int64_t i = 0; i < count; i += L) {
    const int32_t* const at = boxes.places + i;
    const Box<A, L> box{gathered<A, L>(boxes.x1, at), gathered<A, L>(boxes.y1, at), gathered<A, L>(boxes.x2, at),
                        gathered<A, L>(boxes.y2, at), gathered<A, L>(boxes.area, at)};
    Vec<A, L> score = decay<A, L, R>(gathered<A, L>(boxes.score, at), shared<A, L, R>(taken, box), p);
    if constexpr (R == Rules::kOurs)
      score = score >= p.prune ? score : splat<A, L>(std::numeric_limits<A>::quiet_NaN());
    for (int j = 0; j < std::min<int64_t>(L, count - i); ++j) boxes.score[at[j]] = score[j];
  }
}

template <typename A>
struct Best {
  A score;
  int64_t at;
  int64_t count;  // by our rules of scores worth keeping, else of those under min_score
};

// The highest score and its first position, `begin` if there is none; NaN is none.
template <typename A, Rules R>
Best<A> find_best(const BoxArrays<A>& boxes, int64_t begin, int64_t end, const SoftNms<A>& p) {
  constexpr int L = kLanes<A>;
  using I = IntOf<A>;
  constexpr I kNowhere = std::numeric_limits<I>::max();
  Vec<A, L> highest = splat<A, L>(-std::numeric_limits<A>::infinity());
  Vec<I, L> at = splat<I, L>(kNowhere), position, count{};
  for (int i = 0; i < L; ++i) position[i] = static_cast<I>(begin + i);
  for (int64_t i = begin; i < end; i += L) {
    const Vec<A, L> score = load<A, L>(boxes.score + i);
    const auto higher = score > highest;
    highest = higher ? score : highest;
    at = higher ? position : at;
    position += L;
    count -= R == Rules::kOurs ? score >= p.prune : score < p.min_score;
  }
  Best<A> b{highest[0], at[0], sum<I, L>(count)};
  for (int i = 1; i < L; ++i)
    if (highest[i] > b.score || (highest[i] == b.score && at[i] < b.at)) b.score = highest[i], b.at = at[i];
  if (b.at == kNowhere) b.at = begin;
  return b;
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
  Best<A> best = find_best<A, Rules::kOurs>(boxes, 0, n, p);
  int64_t taken = 0;
  while (taken < p.most && best.score >= p.min_score) {
    keep[taken] = boxes.index[best.at];
    decayed[taken++] = best.score;
    boxes.score[best.at] = std::numeric_limits<A>::quiet_NaN();
    take<A, Rules::kOurs>(boxes, best.at, 0, n, p);
    best = find_best<A, Rules::kOurs>(boxes, 0, n, p);
    if (2 * best.count < n) n = compact(boxes, n, p.prune), best = find_best<A, Rules::kOurs>(boxes, 0, n, p);
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
  Best<A> best = find_best<A, R>(boxes, 0, n, p);
  int64_t i = 0;
  for (; i < n && i < p.most; ++i) {
    if (boxes.score[i] == boxes.score[i]) boxes.swap(i, best.at);
    keep[i] = boxes.index[i];
    decayed[i] = boxes.score[i];
    take<A, R>(boxes, i, i + 1, n, p);
    best = find_best<A, R>(boxes, i + 1, n, p);
    if (best.count > 0) {
      n = fill_from_behind(boxes, i + 1, n, p.min_score);
      best = find_best<A, R>(boxes, i + 1, n, p);
    }
  }
  return i;
}

template <typename A>
inline SoftNmsKernels<A> soft_nms_kernels() {
  return {soft_nms<A>, soft_nms_by_swaps<A, Rules::kMmcv>, soft_nms_by_swaps<A, Rules::kPaper>};
}

}  // namespace fastnets::FASTNETS_ISA
