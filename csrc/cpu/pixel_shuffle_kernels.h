// From numbers in [0, 1] to bytes. Included once for each instruction set (isa.h): no guard.

namespace fastnets::FASTNETS_ISA {

// Of a product, so that GCC does not contract it with the sum that follows and round once.
template <typename V>
FASTNETS_INLINE void keep_apart(V& x) {
#if defined(__x86_64__)
  if constexpr (sizeof x == FASTNETS_VECTOR_BYTES) {
    asm("" : "+x"(x));
    return;
  }
#endif
  asm("" : "+m"(x));
}

// As x.clamp(0, 1).mul(255).round() in T: the product is rounded to T. NaN becomes 0: it fails the first comparison.
template <typename T, int L>
FASTNETS_INLINE Vec<uint8_t, L> quantise(Vec<Sum<T>, L> x) {
  using A = Sum<T>;
  const Vec<A, L> zero{}, one = splat<A, L>(A(1));
  x = x > zero ? x : zero;
  x = (x < one ? x : one) * A(255);
  if constexpr (!std::is_same_v<T, A>) {
    T rounded[L];
    store<T, L>(rounded, x);
    x = load<T, L>(rounded);
  }
  constexpr A kMagic = std::is_same_v<A, double> ? A(6755399441055744.0) : A(12582912.0);  // 1.5 * 2^52 or 2^23
  keep_apart(x);
  x = (x + kMagic) - kMagic;  // rounds half to even
  return __builtin_convertvector(__builtin_convertvector(x, Vec<int32_t, L>), Vec<uint8_t, L>);
}

// `count` numbers, `step` bytes apart.
template <typename T>
void quantise_line(const char* from, int64_t step, char* to, int64_t count) {
  constexpr int L = kLanes<Sum<T>>, kAhead = 512;  // bytes
  int64_t i = 0;
  if (step == sizeof(T)) {
    for (; i + L <= count; i += L) {
      __builtin_prefetch(from + i * sizeof(T) + kAhead);
      const auto bytes = quantise<T, L>(load<T, L>(reinterpret_cast<const T*>(from) + i));
      std::memcpy(to + i, &bytes, L);
    }
  }
  for (; i < count; ++i) {
    const auto byte = quantise<T, 1>(load<T, 1>(reinterpret_cast<const T*>(from + i * step)));
    to[i] = static_cast<char>(byte[0]);
  }
}

using QuantiseLine = void (*)(const char* from, int64_t step, char* to, int64_t count);

inline QuantiseLine quantise_kernel(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return &quantise_line<float>;
    case ScalarType::Double:
      return &quantise_line<double>;
    case ScalarType::BFloat16:
      return &quantise_line<BFloat16>;
    case ScalarType::Half:
      return &quantise_line<Half>;
    default:
      STD_TORCH_CHECK(false, "pixel_shuffle_to_uint8 takes float32, float64, bfloat16 and float16");
  }
}

}  // namespace fastnets::FASTNETS_ISA
