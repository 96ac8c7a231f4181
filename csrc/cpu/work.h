// How a kernel's work is dealt out, and what it is given.
#pragma once

#include <new>
#include <vector>

#include "../tensor.h"

namespace fastnets {

// Bytes that a third-level cache keeps for the next kernel; results that are larger are stored past the caches.
constexpr int64_t kThirdLevel = 16 << 20;

// The share of `count` things that falls to piece i of n.
struct Range {
  int64_t begin, end;
};
inline Range share(int64_t count, int64_t i, int64_t n) { return {count * i / n, count * (i + 1) / n}; }

// A vector that begins a cache line: elsewhere, each load and store of AVX-512 crosses two.
template <typename T>
struct LineAllocator {
  using value_type = T;
  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}
  T* allocate(size_t n) { return static_cast<T*>(operator new(n * sizeof(T), std::align_val_t(64))); }
  void deallocate(T* data, size_t) { operator delete(data, std::align_val_t(64)); }
  bool operator==(const LineAllocator&) const { return true; }
};
template <typename T>
using AlignedVector = std::vector<T, LineAllocator<T>>;

// Uninitialised numbers that begin a cache line.
template <typename T>
struct Scratch {
  explicit Scratch(int64_t count) : data(static_cast<T*>(operator new(count * sizeof(T), std::align_val_t(64)))) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() { operator delete(data, std::align_val_t(64)); }
  T* const data;
};

// A tensor of four dimensions: data and strides in elements.
struct Operand {
  void* data = nullptr;
  Four stride{};
};
inline Operand operand(const Tensor& t) { return {mutable_memory(t), strides_of(t)}; }

}  // namespace fastnets
