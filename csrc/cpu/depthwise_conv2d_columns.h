// A row of depthwise convolution in channels_last as other kernels call it: depthwise_conv2d.cpp alone compiles
// `columns`, which is in depthwise_conv2d_channels_last.h. Included by isa.h: no guard.
#if defined(FASTNETS_VNNI)

namespace fastnets::FASTNETS_ISA {
namespace channels_last = avx512::channels_last;  // it multiplies no bytes
}
#else

namespace fastnets::FASTNETS_ISA::channels_last {

// The columns that share a set of taps: output column first + step * t, t < count, is the sum over k < taps of source
// column source_step * t + offset + offset_step * k times kernel column weight + weight_step * k. A forward pass has
// one such set; the gradient of x has one for each residue of the column modulo the stride.
struct Columns {
  int64_t first, step, count;
  int64_t source_step, offset, offset_step;
  int64_t weight, weight_step, taps;

  // How many of the taps meet columns before `end`, where the first meets `column`.
  int64_t taps_before(int64_t column, int64_t end) const {
    return column < end ? std::min(taps, (end - column - 1) / offset_step + 1) : 0;
  }

  // Columns t whose tap j meets the source.
  Range columns_of(int64_t j, int64_t width) const {
    const int64_t shift = offset + offset_step * j;
    const int64_t begin = shift < 0 ? (-shift + source_step - 1) / source_step : 0;
    const int64_t end = width > shift ? (width - 1 - shift) / source_step + 1 : 0;
    return {std::min(count, begin), std::min(count, end)};
  }
};

inline Columns forward_columns(const Convolution& g) { return {0, 1, g.ow, g.sw, -g.pw, g.dw, 0, 1, g.kw}; }

// One output row. `source` lists the source rows that meet it, and `weight` the packed kernel row of each.
template <typename T>
struct Row {
  std::vector<const T*> source;
  std::vector<const Sum<T>*> weight;
  const Sum<T>* bias = nullptr;
  T* out = nullptr;
  int64_t source_pixel = 0, source_channel = 1, out_pixel = 0, out_channel = 1;  // strides
  int64_t width = 0, channels = 0;                                               // of the source
  // Source rows that the next output row is the first to need, fetched while this one is computed; none where x is
  // cached.
  const T* next = nullptr;
  int64_t next_rows = 0, row_stride = 0;
  bool streams = false;  // whether stores go past the caches
  bool claims = false;   // whether the lines to be written are asked for before they are computed
  alignas(64) T zeros[kLanes<Sum<T>>] = {};
  alignas(64) mutable T spare[kLanes<Sum<T>>];
  Activate<Sum<T>> activate{Activation::kNone};
};

template <typename T, int L>
void columns(const Row<T>& row, const Columns& set);

}  // namespace fastnets::FASTNETS_ISA::channels_last
#endif
