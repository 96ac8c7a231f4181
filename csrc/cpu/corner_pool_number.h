// Running maxima of vectors of any type. Included by isa.h: no guard.

namespace fastnets::FASTNETS_ISA::corner_pool {

// The type of the lanes: 16-bit floats as float, small integers as int32.
template <typename T>
using Number = std::conditional_t<std::is_integral_v<T>, std::conditional_t<sizeof(T) == 8, int64_t, int32_t>, Sum<T>>;

template <typename T, int L>
FASTNETS_INLINE Vec<Number<T>, L> load_numbers(const T* p) {
  if constexpr (std::is_integral_v<T>) {
    Vec<T, L> v;
    std::memcpy(&v, p, sizeof v);
    return __builtin_convertvector(v, Vec<Number<T>, L>);
  } else {
    return load<T, L>(p);
  }
}

template <typename T, int L>
FASTNETS_INLINE void store_numbers(T* p, Vec<Number<T>, L> v, [[maybe_unused]] bool streams = false) {
  if constexpr (std::is_integral_v<T>) {
    const auto narrow = __builtin_convertvector(v, Vec<T, L>);
    std::memcpy(p, &narrow, sizeof narrow);
  } else {
    streams ? stream<T, L>(p, v) : store<T, L>(p, v);
  }
}

template <typename A>
constexpr A lowest() {
  return std::numeric_limits<A>::has_infinity ? -std::numeric_limits<A>::infinity() : std::numeric_limits<A>::lowest();
}

// The running maximum m after x, as torch.cummax has it: once NaN, always NaN.
template <typename A, int L>
FASTNETS_INLINE Vec<A, L> later(Vec<A, L> m, Vec<A, L> x) {
  if constexpr (std::is_integral_v<A>)
    return x > m ? x : m;
  else
    return ((x >= m) | (x != x)) ? x : m;
}

// Lanes whose gradient goes to x from here on, and no more to the place of m. NaN equals NaN and exceeds all else.
template <typename A, int L, bool kFirst>
FASTNETS_INLINE auto takes(Vec<A, L> m, Vec<A, L> x) {
  if constexpr (kFirst)
    return ~(x <= m) & (m == m);
  else
    return (x >= m) | (x != x);
}

}  // namespace fastnets::FASTNETS_ISA::corner_pool
