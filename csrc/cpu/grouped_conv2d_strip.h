// A strip of rows of some units' channels, as the kernels read it: channels neighbours in memory, in the type of the
// sums, zeros around. Included by isa.h: no guard.

namespace fastnets::FASTNETS_ISA::grouped {

using fastnets::grouped::Axis;
using fastnets::grouped::by_offset;
using fastnets::grouped::Operand;
using fastnets::grouped::Problem;
using fastnets::grouped::Range;
using fastnets::grouped::share;
using fastnets::grouped::Tap;

inline int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// Row r, column c of the strip hold the tensor's row `first_row` + r and column columns.first + c. Where the tensor
// itself is of that form and no result reaches over its edge, the strip is the tensor; otherwise a copy of it,
// [unit][row][column][pitch], that costs a load and a store for each vector of source channels.
template <typename T>
class Strip {
 public:
  using A = Sum<T>;
  static constexpr int L = kLanes<A>;

  // `channels` in a unit, `total` in the tensor; `vectors`: whether the kernel reads whole vectors of channels.
  Strip(const Operand& from, int64_t channels, int64_t total, const Axis& rows, const Axis& columns, int64_t most_rows,
        int64_t most_units, bool vectors)
      : from_(from),
        channels_(channels),
        total_(total),
        height_(rows.source),
        width_(columns.source),
        left_(columns.first),
        rows_(rows.span(most_rows)),
        columns_(columns.span(columns.count())) {
    const bool whole = !vectors || (channels % L == 0 && total % channels == 0);
    direct_ = std::is_same_v<T, A> && from.stride.c == 1 && rows.inside() && columns.inside() && whole;
    pixel = direct_ ? from.stride.w : round_up(channels, L);
    row = direct_ ? from.stride.h : columns_ * pixel;
    unit = direct_ ? channels : rows_ * row;
    if (!direct_) copy_.resize(most_units * unit);
  }

  // The strip from row first_row on, of the image n and the units [units.begin, units.end).
  void fill(int64_t n, Range units, int64_t first_row, int64_t rows) {
    const T* image = static_cast<const T*>(from_.data) + n * from_.stride.n;
    if constexpr (std::is_same_v<T, A>)
      if (direct_) {
        start_ = image + first_row * row + left_ * pixel + units.begin * channels_;
        return;
      }
    start_ = copy_.data();
    for (int64_t r = 0; r < rows; ++r) {
      A* const to = copy_.data() + r * row;
      const T* const from = image + (first_row + r) * from_.stride.h;
      if (first_row + r < 0 || first_row + r >= height_)
        for (int64_t u = 0; u < units.end - units.begin; ++u) std::fill_n(to + u * unit, row, A(0));
      else if (from_.stride.c == 1)
        copy_pixels(from, units, first_row + r + 1 < height_ ? from_.stride.h : 0, to);
      else
        copy_planes(from, units, to);
    }
  }

  const A* at(int64_t u) const { return start_ + u * unit; }  // of the u-th unit filled

  int64_t unit, row, pixel;  // strides

 private:
  // Channels from c on of unit u, up to a vector.
  int64_t lanes_at(int64_t u, int64_t c) const {
    return std::min({int64_t{L}, channels_ - c, total_ - u * channels_ - c});
  }

  // The columns beside the source are never written and stay zero.
  int64_t first_column() const { return std::max<int64_t>(0, left_); }
  int64_t column_count() const { return std::min(width_, left_ + columns_) - first_column(); }

  // A row of pixels; the next one, `next` further on, is fetched meanwhile: units are shorter than the hardware's
  // prefetchers follow.
  void copy_pixels(const T* from, Range units, int64_t next, A* to) const {
    from += first_column() * from_.stride.w, to += (first_column() - left_) * pixel;
    for (int64_t i = 0; i < column_count(); ++i, from += from_.stride.w, to += pixel)
      for (int64_t u = units.begin; u < units.end; ++u)
        for (int64_t c = 0; c < channels_; c += L) {
          const T* const lanes = from + u * channels_ + c;
          __builtin_prefetch(lanes + next);
          store<A, L>(to + (u - units.begin) * unit + c, load_first<T, L>(lanes, lanes_at(u, c)));
        }
  }

  // A row of every channel.
  void copy_planes(const T* from, Range units, A* to) const {
    const int64_t count = column_count();
    from += first_column() * from_.stride.w, to += (first_column() - left_) * pixel;
    for (int64_t u = units.begin; u < units.end; ++u, to += unit)
      for (int64_t c = 0; c < channels_; c += L) {
        const int64_t there = lanes_at(u, c);
        const T* rows[L] = {};
        for (int64_t r = 0; r < there; ++r) rows[r] = from + (u * channels_ + c + r) * from_.stride.c;
        if (from_.stride.w == 1)
          rows_to_lanes<T>(rows, there, count, to + c, pixel);
        else
          for (int64_t i = 0; i < count; ++i)
            for (int64_t r = 0; r < there; ++r) to[i * pixel + c + r] = static_cast<A>(rows[r][i * from_.stride.w]);
      }
  }

  Operand from_;
  int64_t channels_, total_, height_, width_, left_, rows_, columns_;
  bool direct_;
  const A* start_ = nullptr;
  std::vector<A> copy_;
};

}  // namespace fastnets::FASTNETS_ISA::grouped
