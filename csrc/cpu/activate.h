// Activations in an op's store and their gradients, on the vectors of vector.h. Included once for each instruction set
// (isa.h): no guard.
#include "../convolution.h"

namespace fastnets::FASTNETS_ISA {

// An activation in the store: nothing, a clamp of two instructions, or a call for those that are more than that.
template <typename A>
struct Activate {
  explicit Activate(Activation name)
      : low(name == Activation::kRelu || name == Activation::kRelu6 ? A(0) : -std::numeric_limits<A>::infinity()),
        high(name == Activation::kRelu6 ? A(6) : std::numeric_limits<A>::infinity()),
        kind(name) {}

  // Unrolled by pragma: what GCC indexes in a loop, it keeps in memory.
  template <int L, int W>
  FASTNETS_INLINE void operator()(Vec<A, L> (&z)[W]) const {
    if (kind == Activation::kNone) return;
    if (kind <= Activation::kRelu6) {
#pragma GCC unroll 16
      for (int i = 0; i < W; ++i) z[i] = clamp<A, L>(z[i], low, high);
      return;
    }
    Vec<A, L> y[W];  // a copy, so that z itself can stay in registers
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) y[i] = z[i];
    finish<L>(y, W);
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) z[i] = y[i];
  }

  // Of `count` vectors: one after the other they share constants, and overlap.
  template <int L>
  __attribute__((noinline)) void finish(Vec<A, L>* z, int64_t count) const {
    const Vec<A, L>* const end = z + count;
    switch (kind) {
      case Activation::kLeakyRelu:
        for (; z != end; ++z) *z = *z < A(0) ? *z * A(0.1) : *z;
        break;
      case Activation::kSilu:
        for (; z != end; ++z) *z = *z / (A(1) + exponential<A, L>(-*z));
        break;
      case Activation::kHardswish:
        for (; z != end; ++z) *z = *z * clamp<A, L>(*z + A(3), A(0), A(6)) * (A(1) / A(6));
        break;
      case Activation::kSigmoid:
        for (; z != end; ++z) *z = A(1) / (A(1) + exponential<A, L>(-*z));
        break;
      default:
        break;
    }
  }

  A low, high;
  Activation kind;
};

// The gradient of z, out of that of y = f(z). At the ends of a clamp it is PyTorch's: nothing.
template <typename A>
struct ActivateBackward {
  explicit ActivateBackward(Activation name)
      : kind(name), high(name == Activation::kRelu6 ? A(6) : std::numeric_limits<A>::quiet_NaN()) {}

  template <int L>
  FASTNETS_INLINE Vec<A, L> operator()(Vec<A, L> dy, Vec<A, L> z) const {
    if (kind > Activation::kRelu6) return finish<L>(dy, z);
    return (z <= A(0)) | (z >= high) ? Vec<A, L>{} : dy;
  }

  template <int L>
  __attribute__((noinline)) Vec<A, L> finish(Vec<A, L> dy, Vec<A, L> z) const {
    const Vec<A, L> zero{};
    if (kind == Activation::kLeakyRelu) return z > A(0) ? dy : dy * A(0.1);
    if (kind == Activation::kHardswish) return dy * (z < A(-3) ? zero : z > A(3) ? zero + A(1) : z / A(3) + A(0.5));
    const Vec<A, L> s = A(1) / (A(1) + exponential<A, L>(-z));
    // d(z s)/dz = s + z s (1 - s)
    return dy * s * (kind == Activation::kSilu ? A(1) + z * (A(1) - s) : A(1) - s);
  }

  Activation kind;
  A high;  // no z is above NaN
};

}  // namespace fastnets::FASTNETS_ISA
