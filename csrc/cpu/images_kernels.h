// The sum of two images, each perhaps some channels of a larger one. Included by isa.h: no guard.
//
// Lanes are channels, a task is a pixel. Moves the bytes of both and of the result.
namespace fastnets::FASTNETS_ISA::images {

template <typename T>
void add(const fastnets::images::Sum<T>& p, int64_t begin, int64_t end) {
  constexpr int L = kLanes<float>;
  for (int64_t i = begin; i < end; ++i) {
    const T *const a = p.a.data + i * p.a.pixel, *const b = p.b.data + i * p.b.pixel;
    T* const y = p.y.data + i * p.y.pixel;
    int64_t c = 0;
    for (; c + L <= p.channels; c += L) store<T, L>(y + c, load<T, L>(a + c) + load<T, L>(b + c));
    const int64_t left = p.channels - c;
    if (left > 0) store_first<T, L>(y + c, load_first<T, L>(a + c, left) + load_first<T, L>(b + c, left), left);
  }
}

}  // namespace fastnets::FASTNETS_ISA::images
