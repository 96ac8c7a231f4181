// Activations in an op's store, and their gradients.
#pragma once

#include <cmath>

#include "../convolution.h"
#include "launch.h"

namespace fastnets {

// PyTorch's functions, NaN and infinity included.
template <typename A>
__device__ A activate(A z, Activation f) {
  const A clamped = z < A(-3) ? A(0) : z > A(3) ? A(6) : z + A(3);
  switch (f) {
    case Activation::kRelu:
      return z < A(0) ? A(0) : z;
    case Activation::kRelu6:
      return z < A(0) ? A(0) : z > A(6) ? A(6) : z;
    case Activation::kLeakyRelu:
      return z > A(0) ? z : z * A(0.1);
    case Activation::kSilu:
      return z / (A(1) + std::exp(-z));
    case Activation::kHardswish:
      return z * clamped / A(6);
    case Activation::kSigmoid:
      return A(1) / (A(1) + std::exp(-z));
    default:
      return z;
  }
}

// The gradient of z, out of that of y = f(z). At the ends of a clamp it is PyTorch's: nothing.
template <typename A>
__device__ A activate_backward(A dy, A z, Activation f) {
  const A s = f >= Activation::kSilu && f != Activation::kHardswish ? A(1) / (A(1) + std::exp(-z)) : A(0);
  switch (f) {
    case Activation::kRelu:
      return z <= A(0) ? A(0) : dy;
    case Activation::kRelu6:
      return z <= A(0) || z >= A(6) ? A(0) : dy;
    case Activation::kLeakyRelu:
      return z > A(0) ? dy : dy * A(0.1);
    case Activation::kSilu:
      return dy * s * (A(1) + z * (A(1) - s));  // d(z s)/dz = s + z s (1 - s)
    case Activation::kHardswish:
      return dy * (z < A(-3) ? A(0) : z > A(3) ? A(1) : z / A(3) + A(0.5));
    case Activation::kSigmoid:
      return dy * s * (A(1) - s);
    default:
      return dy;
  }
}

// Calls f with the activation as a constant, so that its loops do not ask for it at every value.
template <typename F>
__device__ void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::kRelu:
      return f(std::integral_constant<Activation, Activation::kRelu>());
    case Activation::kRelu6:
      return f(std::integral_constant<Activation, Activation::kRelu6>());
    case Activation::kLeakyRelu:
      return f(std::integral_constant<Activation, Activation::kLeakyRelu>());
    case Activation::kSilu:
      return f(std::integral_constant<Activation, Activation::kSilu>());
    case Activation::kHardswish:
      return f(std::integral_constant<Activation, Activation::kHardswish>());
    case Activation::kSigmoid:
      return f(std::integral_constant<Activation, Activation::kSigmoid>());
    default:
      return f(std::integral_constant<Activation, Activation::kNone>());
  }
}

}  // namespace fastnets
