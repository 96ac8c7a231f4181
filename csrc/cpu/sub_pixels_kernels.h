// Stores of results that are pixels of a finer image (sub_pixels.h). Included by isa.h: no guard.
//
// The lanes of a vector of results fall into pieces that lie together: the pixels of one row where they are without
// gaps, or else each pixel. A piece is a masked store, so that nothing is read back and shuffled.
#include "sub_pixels.h"

namespace fastnets::FASTNETS_ISA {

template <typename T, int L>
class Pieces {
 public:
  // Of the results from o on, as many as a vector has or as are left.
  Pieces(const SubPixels& fine, int64_t o) {
    const int64_t row = fine.r * fine.c, length = fine.pixel == fine.c ? row : fine.c;
    const int64_t end = std::min(o + L, fine.r * row);
    whole_ = o + L <= end && o / length == (end - 1) / length;
    for (int64_t next; o < end; o = next, ++count_) {
      next = std::min(end, (o / length + 1) * length);
      const int64_t i = o / row, j = o % row / fine.c, k = o % fine.c;
      offset_[count_] = i * fine.row + j * fine.pixel + k - lane_;
      lanes_[count_] = first_lanes(next - o) << lane_;
      lane_ += static_cast<int>(next - o);
    }
  }

  FASTNETS_INLINE void store(T* y, const Vec<Sum<T>, L>& v) const {
    if (whole_) return FASTNETS_ISA::store<T, L>(y + offset_[0], v);
    for (int i = 0; i < count_; ++i) store_lanes<T, L>(y + offset_[i], v, lanes_[i]);
  }

 private:
  int64_t offset_[L];  // from the first fine pixel to where lane 0 would go
  uint32_t lanes_[L];
  int count_ = 0, lane_ = 0;
  bool whole_;  // all lanes are one piece
};

}  // namespace fastnets::FASTNETS_ISA
