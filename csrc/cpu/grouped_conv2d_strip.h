// A strip of rows of some units' channels, as the kernels read it: channels neighbours in memory, in the type of the
// sums, zeros around. With sums of products of bfloat16 a number there is a pair of them, of two neighbouring channels,
// as the bits of a float, and the channels of a Problem's source are pairs. Included by isa.h: no guard.

namespace fastnets::FASTNETS_ISA::grouped {

using fastnets::Operand;
using fastnets::Range;
using fastnets::share;
using fastnets::grouped::Axis;
using fastnets::grouped::by_offset;
using fastnets::grouped::Problem;
using fastnets::grouped::Tap;

#if defined(FASTNETS_BF16)
constexpr int64_t kTogether = 2;  // channels in a lane
#else
constexpr int64_t kTogether = 1;
#endif

inline int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

// rows_to_lanes, of pairs: the numbers of a row and those of the one `next` further on.
inline void pairs_to_lanes(const BFloat16* const* rows, int64_t next, int64_t height, int64_t count, float* to,
                           int64_t pitch) {
  constexpr int L = kLanes<float>;
  using Bits = Vec<uint32_t, L>;
  for (int64_t j = 0; j < count; j += L) {
    Vec<float, L> v[L] = {};
    for (int r = 0; r < L && r < height; ++r) {
      const auto low = bits<Bits>(load_first<BFloat16, L>(rows[r] + j, count - j));
      const auto high = bits<Bits>(load_first<BFloat16, L>(rows[r] + next + j, count - j));
      v[r] = bits<Vec<float, L>>(low >> 16 | high);
    }
    transpose<float, L>(v);
    for (int i = 0; i < L && j + i < count; ++i) store<float, L>(to + (j + i) * pitch, v[i]);
  }
}

// A copy [unit][row][column][pitch], at a load and a store for each vector of source channels. Row r, column c hold the
// tensor's row `first_row` + r and column columns.first + c. Also where the tensor itself could be read, the copy pays:
// it reads memory in order, and a unit's channels then lie in a few pages.
template <typename T>
class Strip {
 public:
  using A = Sum<T>;
  using Number = std::conditional_t<kTogether == 1, T, A>;
  static constexpr int L = kLanes<A>;

  // `channels` in a unit, `total` in the tensor.
  Strip(const Operand& from, int64_t channels, int64_t total, const Axis& rows, const Axis& columns, int64_t most_rows,
        int64_t most_units)
      : pixel(round_up(channels, L)),
        row(columns.span(columns.count()) * pixel),
        unit(rows.span(most_rows) * row),
        from_(from),
        channels_(channels),
        total_(total),
        height_(rows.source),
        width_(columns.source),
        left_(columns.first),
        columns_(columns.span(columns.count())),
        copy_(most_units * unit) {}

  // The strip from row first_row on, of the image n and the units [units.begin, units.end).
  void fill(int64_t n, Range units, int64_t first_row, int64_t rows) {
    const T* image = static_cast<const T*>(from_.data) + n * from_.stride.n;
    for (int64_t r = 0; r < rows; ++r) {
      A* const to = copy_.data() + r * row;
      const T* const from = image + (first_row + r) * from_.stride.h;
      if (first_row + r < 0 || first_row + r >= height_)
        for (int64_t u = 0; u < units.end - units.begin; ++u) std::fill_n(to + u * unit, row, A(0));
      else if (from_.stride.c == 1)
        fills_vectors(units) ? copy_pixels<true>(from, units, 0, to)
                             : copy_pixels<false>(from, units, first_row + r + 1 < height_ ? from_.stride.h : 0, to);
      else
        copy_planes(from, units, to);
    }
  }

  const A* at(int64_t u) const { return copy_.data() + u * unit; }  // of the u-th unit filled

  const int64_t pixel, row, unit;  // strides

 private:
  // Channels from c on of unit u, up to a vector.
  int64_t lanes_at(int64_t u, int64_t c) const {
    return std::min({int64_t{L}, channels_ - c, total_ - u * channels_ - c});
  }

  // The columns beside the source are never written and stay zero.
  int64_t first_column() const { return std::max<int64_t>(0, left_); }
  int64_t column_count() const { return std::min(width_, left_ + columns_) - first_column(); }

  // Whether these are all units, without a vector that is not full.
  bool fills_vectors(Range units) const {
    return channels_ % L == 0 && (units.end - units.begin) * channels_ == total_;
  }

  // A row of pixels. Of some units, the next row, `next` further on, is fetched meanwhile: they are shorter than the
  // hardware's prefetchers follow.
  template <bool kAll>
  void copy_pixels(const T* from, Range units, int64_t next, A* to) const {
    // Copies in registers: the compiler must assume that the stores below change what `this` refers to.
    const int64_t count = column_count(), step = from_.stride.w, to_pixel = pixel, to_unit = unit;
    const int64_t many = units.end - units.begin, channels = channels_;
    from += first_column() * step + units.begin * channels * kTogether, to += (first_column() - left_) * to_pixel;
    for (int64_t i = 0; i < count; ++i, from += step, to += to_pixel)
      for (int64_t u = 0; u < many; ++u)
        for (int64_t c = 0; c < channels; c += L) {
          const T* const lanes = from + (u * channels + c) * kTogether;
          if constexpr (!kAll) __builtin_prefetch(lanes + next);
          const Number* const numbers = reinterpret_cast<const Number*>(lanes);
          const int64_t there = kAll ? L : lanes_at(units.begin + u, c);
          store<A, L>(to + u * to_unit + c, kAll ? load<Number, L>(numbers) : load_first<Number, L>(numbers, there));
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
        for (int64_t r = 0; r < there; ++r) rows[r] = from + (u * channels_ + c + r) * kTogether * from_.stride.c;
        if constexpr (kTogether > 1)
          pairs_to_lanes(rows, from_.stride.c, there, count, to + c, pixel);
        else if (from_.stride.w == 1)
          rows_to_lanes<T>(rows, there, count, to + c, pixel);
        else
          for (int64_t i = 0; i < count; ++i)
            for (int64_t r = 0; r < there; ++r) to[i * pixel + c + r] = static_cast<A>(rows[r][i * from_.stride.w]);
      }
  }

  Operand from_;
  const int64_t channels_, total_, height_, width_, left_, columns_;
  AlignedVector<A> copy_;
};

}  // namespace fastnets::FASTNETS_ISA::grouped
