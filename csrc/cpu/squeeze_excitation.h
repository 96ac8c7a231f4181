// What the kernels of squeeze and excitation are given, for all instruction sets.
#pragma once

#include "pointwise_conv2d.h"

namespace fastnets::squeeze {

// Means of channels to fewer numbers, and these to one for each channel. The weights are null where there is none.
template <typename T>
struct Gate {
  pointwise::ProblemOf<T> squeeze, excite;
  bool hard = false;  // whether a scale is hardsigmoid's of what `excite` gives, not sigmoid's

  bool is_there() const { return squeeze.w; }
};

// The tensors are weights and a bias to fewer numbers, and to as many as there are channels; in bfloat16 an odd channel
// may have another beside it that only fills a pair.
template <typename T>
Gate<T> check_gate(const std::vector<Tensor>& tensors, const std::optional<Text>& activation, bool hard,
                   int64_t channels) {
  using namespace pointwise;
  Gate<T> gate;
  if (tensors.empty()) return gate;
  STD_TORCH_CHECK(tensors.size() == 4, "expected two weights with a bias each for squeeze and excitation");
  gate.squeeze.in = gate.excite.out = tensors[3].numel();
  gate.squeeze.out = gate.excite.in = tensors[1].numel();
  STD_TORCH_CHECK(ceil_div(gate.excite.out, kTogether<T>) == ceil_div(channels, kTogether<T>),
                  "expected as many scales as channels, ", channels);
  gate.squeeze.w = check_panels<T>(tensors[0], gate.squeeze.in, gate.squeeze.out);
  gate.squeeze.bias = check_bias(tensors[1], gate.squeeze.out);
  gate.squeeze.activation = parse_activation(activation);
  gate.excite.w = check_panels<T>(tensors[2], gate.excite.in, gate.excite.out);
  gate.excite.bias = check_bias(tensors[3], gate.excite.out);
  gate.excite.activation = hard ? Activation::kNone : Activation::kSigmoid;
  gate.hard = hard;
  return gate;
}

// Images that are scaled, perhaps added to others.
template <typename T>
struct Scaling {
  pointwise::Pixels<const T> x, residual;
  pointwise::Pixels<T> y;
  const T* scales = nullptr;  // [image][channel], before hardsigmoid where `hard` is
  int64_t channels = 0, image_pixels = 0;
  Activation activation = Activation::kNone;
  bool hard = false;
};

}  // namespace fastnets::squeeze
