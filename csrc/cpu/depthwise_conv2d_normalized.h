// Batch normalisation and its activation in front of a depthwise convolution in channels_last: what the convolution
// reads is computed a strip at a time, in memory that stays in the second-level cache, and never written. Included by
// isa.h: no guard.
//
// Forward, after the moments, memory sees x read and y written; backward, before dx, x and dy read and the gradient of
// what the convolution took written, of which the sums that batch normalisation needs are taken while a strip is
// cached. Apart, the first reads and writes a tensor of x's size once more each, the second reads two more.

namespace fastnets::FASTNETS_ISA::channels_last {

using depthwise::Problem;

// The source of a convolution: as it is given, or rows of f((x - mean) * scale + bias).
template <typename T>
class Source {
 public:
  explicit Source(const Problem& p) : given_(p), problem_(p), memory_(p.norm.mean ? most_rows() * p.g.w * p.g.c : 0) {}

  // The problem whose x has the given rows of image n, channels c.
  const Problem& rows(Range c, int64_t n, Range rows) {
    if constexpr (std::is_same_v<T, float>)
      if (given_.norm.mean) normalize(c, n, rows);
    return problem_;
  }

 private:
  // In a strip.
  int64_t most_rows() const {
    const Convolution& g = given_.g;
    return std::min(g.h, (ceil_div(g.oh, given_.strips) - 1) * g.sh + (g.kh - 1) * g.dh + 1);
  }

  // Rows that are there already, of the strip before, are not computed again.
  void normalize(Range c, int64_t n, Range rows) {
    const int64_t channels = c.end - c.begin, row = given_.g.w * channels;
    const bool goes_on = n == n_ && c.begin == c_.begin && rows.begin >= rows_.begin && rows.begin < rows_.end;
    const int64_t kept = goes_on ? std::min(rows_.end, rows.end) - rows.begin : 0;
    if (kept > 0) std::copy_n(memory_.data + (rows.begin - rows_.begin) * row, kept * row, memory_.data);
    const auto& norm = given_.norm;
    const Operand& x = given_.x;
    for (int64_t r = rows.begin + kept; r < rows.end; ++r) {
      const batch_norm::NormalizeRows<float> pixels{
          static_cast<const float*>(x.data) + n * x.stride.n + r * x.stride.h + c.begin,
          memory_.data + (r - rows.begin) * row,
          given_.g.w,
          x.stride.w,
          channels,
          norm.mean + c.begin,
          norm.scale + c.begin,
          norm.bias + c.begin,
          Activate<float>(norm.activation),
          false};
      moments::for_channels<float>(channels, pixels);
    }
    n_ = n, c_ = c, rows_ = rows;
    problem_.x = {memory_.data - rows.begin * row - c.begin, {0, 1, row, channels}};
    problem_.prefetches = false;
  }

  const Problem& given_;
  Problem problem_;
  Scratch<float> memory_;
  int64_t n_ = -1;
  Range c_{}, rows_{};
};

// What becomes of dx, the gradient of what was normalised: its sums with x, of dz and of dz * (x - mean), are taken of
// rows that are still in the second-level cache, before they go on to memory.
template <typename T>
class Products {
 public:
  explicit Products(const Problem& p)
      : given_(p), problem_(p), memory_(p.norm.sums ? ceil_div(p.g.h, p.strips) * p.g.w * p.g.c : 0) {}

  void start(Range c) {
    c_ = c, slots_ = c.end - c.begin + kLanes<float>;
    if (given_.norm.sums) sums_.assign(2 * slots_, 0);
  }

  // The problem whose dx has memory for those rows.
  const Problem& rows(Range rows) {
    const int64_t channels = c_.end - c_.begin, row = given_.g.w * channels;
    if (given_.norm.sums) {
      problem_.dx = {memory_.data - rows.begin * row - c_.begin, {0, 1, row, channels}};
      problem_.streams = false;
    }
    return problem_;
  }

  // Takes rows of image n as computed.
  void add(int64_t n, Range rows) {
    if constexpr (std::is_same_v<T, float>)
      for (int64_t r = rows.begin; given_.norm.sums && r < rows.end; ++r) {
        const Operand &x = given_.x, &dx = given_.dx;
        const int64_t channels = c_.end - c_.begin;
        const batch_norm::BlockProducts<float, true> products{
            memory_.data + (r - rows.begin) * given_.g.w * channels,
            static_cast<const float*>(x.data) + n * x.stride.n + r * x.stride.h + c_.begin,
            static_cast<float*>(dx.data) + n * dx.stride.n + r * dx.stride.h + c_.begin,
            given_.g.w,
            channels,
            x.stride.w,
            given_.norm.mean + c_.begin,
            given_.norm.scale + c_.begin,
            given_.norm.bias + c_.begin,
            ActivateBackward<float>(given_.norm.activation),
            given_.streams,
            sums_.data(),
            sums_.data() + slots_};
        moments::for_channels<float>(channels, products);
      }
  }

  void write(int64_t part) const {
    if (!given_.norm.sums) return;
    float* const to = given_.norm.sums + 2 * part * given_.g.c + c_.begin;
    moments::for_channels<float>(c_.end - c_.begin, Place{*this, to, to + given_.g.c});
  }

 private:
  struct Place {
    const Products& from;
    float *s, *q;

    template <int L, int W>
    void at(int64_t c, int64_t slot) const {
      std::copy_n(from.sums_.data() + slot, W * L, s + c);
      std::copy_n(from.sums_.data() + from.slots_ + slot, W * L, q + c);
    }
  };

  const Problem& given_;
  Problem problem_;
  Scratch<float> memory_;
  std::vector<float> sums_;
  Range c_{};
  int64_t slots_ = 0;
};

}  // namespace fastnets::FASTNETS_ISA::channels_last
