// What the C++ of all ops shares: a tensor's layout and type, allocation.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace fastnets {

// A string argument of an op. As a std::string it would leak: up to 2.13, PyTorch's conversion makes one on the heap,
// returns a copy and never frees it (pytorch/pytorch#191340).
struct Text : std::string {
  using std::string::string;
};

}  // namespace fastnets

template <>
struct torch::stable::detail::ToImpl<fastnets::Text> {
  // The text of the handle, which it frees.
  static fastnets::Text call(StableIValue value, uint64_t, bool) {
    const auto handle = to<StringHandle>(value);
    const char* data;
    size_t length;
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    const fastnets::Text text(data, length);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};

namespace fastnets {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Sums of 16-bit types are taken in float.
template <typename T>
using Sum = std::conditional_t<std::is_same_v<T, double>, double, float>;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Sizes or strides of a tensor of four dimensions.
struct Four {
  int64_t n, c, h, w;
  bool operator==(const Four& other) const { return n == other.n && c == other.c && h == other.h && w == other.w; }
};

inline Four sizes_of(const Tensor& t) {
  const auto s = t.sizes();
  return {s[0], s[1], s[2], s[3]};
}

inline Four strides_of(const Tensor& t) {
  const auto s = t.strides();
  return {s[0], s[1], s[2], s[3]};
}

// Whoever shards or offloads a model releases its tensors' memory (untyped_storage().resize_(0)).
inline void check_memory(const Tensor& t) {
  int64_t bytes;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
  STD_TORCH_CHECK(bytes > 0 || t.numel() == 0,
                  "The tensor has a non-zero number of elements, but its data is not allocated yet");
}

inline const void* memory(const Tensor& t) { return check_memory(t), t.const_data_ptr(); }
inline void* mutable_memory(const Tensor& t) { return check_memory(t), t.mutable_data_ptr(); }

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(memory(t));
}

template <typename T>
T* mutable_data(const Tensor& t) {
  return static_cast<T*>(mutable_memory(t));
}

// Calls f with a value of the C++ type that belongs to a floating type.
template <typename F>
auto with_float(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Float:
      return f(float());
    case ScalarType::Double:
      return f(double());
    case ScalarType::Half:
      return f(Half());
    case ScalarType::BFloat16:
      return f(BFloat16());
    default:
      STD_TORCH_CHECK(false, "expected float32, float64, bfloat16 or float16");
  }
}

// PyTorch's rule (as in fastnets/ops/_convolution.py): channels_last where the strides grow in the order c, w, h, n.
inline bool is_channels_last(const Tensor& x) {
  const Four n = sizes_of(x), s = strides_of(x);
  const bool nested = 0 < s.c && s.c * n.c <= s.w && s.w * n.w <= s.h && s.h * n.h <= s.n && n.n * n.c * n.h * n.w > 0;
  return nested && s.h * n.h != s.c;
}

// Whether x has no gaps: in the order of its dimensions, or with the channels moved to the end.
inline bool is_dense(const Tensor& x, bool channels_last) {
  int64_t expected = 1;
  const auto fits = [&](int64_t i) {
    const bool fit = x.size(i) == 1 || x.stride(i) == expected;
    expected *= x.size(i);
    return fit;
  };
  bool dense = x.numel() == 0 || !channels_last || fits(1);
  for (int64_t i = x.dim() - 1; dense && x.numel() > 0 && i >= 0; --i)
    if (i != 1 || !channels_last) dense = fits(i);
  return dense;
}

// An uninitialised tensor of these sizes and strides on the device of `like`.
inline Tensor empty_strided(const Tensor& like, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
                            int32_t dtype) {
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), dtype, device_type,
                                                  like.get_device_index(), &handle));
  return Tensor(handle);
}

inline int32_t dtype_of(const Tensor& t) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t.get(), &dtype));
  return dtype;
}

// The type that sums over x are taken in.
inline int32_t sum_dtype(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
}

// Four dimensions in one of the two layouts.
inline Tensor empty(const Tensor& like, const Four& size, bool channels_last, int32_t dtype) {
  const auto at_least_1 = [](int64_t v) { return v > 1 ? v : 1; };
  const int64_t c = at_least_1(size.c), h = at_least_1(size.h), w = at_least_1(size.w);
  const std::vector<int64_t> sizes{size.n, size.c, size.h, size.w};
  if (channels_last) return empty_strided(like, sizes, {c * h * w, 1, w * c, c}, dtype);
  return empty_strided(like, sizes, {c * h * w, h * w, w, 1}, dtype);
}

// Of the type of `like`.
inline Tensor empty(const Tensor& like, const Four& size, bool channels_last) {
  return empty(like, size, channels_last, dtype_of(like));
}

// Of one dimension.
inline Tensor empty(const Tensor& like, int64_t length) { return empty_strided(like, {length}, {1}, dtype_of(like)); }

}  // namespace fastnets
