// The scales of squeeze and excitation, as kernels load them. Included by isa.h, after pointwise_conv2d_multiply.h: no
// guard.

namespace fastnets::FASTNETS_ISA::squeeze {

constexpr int L = pointwise::L;

// At most L scales.
template <typename T>
FASTNETS_INLINE Vec<float, L> scales_of(const T* numbers, int64_t count, bool hard) {
  const Vec<float, L> z = load_first<T, L>(numbers, count);
  return hard ? clamp<float, L>(z + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f) : z;
}

}  // namespace fastnets::FASTNETS_ISA::squeeze
