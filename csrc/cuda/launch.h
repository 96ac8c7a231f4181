// All that kernels use of CUDA beyond plain C++: launch, barriers, warp shuffle, vote, shared memory and copies to it,
// maxima of numbers and of a warp, dot product of bytes, atomic sum of integers, and arithmetic that is rounded after
// each operation (the compiler would make a * b + c one). Products on tensor cores are in mma.cuh.
//
// With FASTNETS_EMULATE_CUDA the same names come from tests/cuda/emulation.h, and a C++ compiler builds the .cu files
// for a machine without a GPU. Blocks are whole warps, and every thread reaches every barrier, shuffle and vote.
#pragma once

#ifdef FASTNETS_EMULATE_CUDA

#include "emulation.h"
#define FASTNETS_CUDA_KEY CPU

#else

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#define FASTNETS_CUDA_KEY CUDA
#define FASTNETS_SHARED(type, name, count) __shared__ type name[count]
#define FASTNETS_DYNAMIC_SHARED(type, name)                       \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(dynamic_shared)

namespace fastnets {

// Makes a tensor's device the current one while it lives; holds the stream that PyTorch uses there.
class Stream {
 public:
  explicit Stream(const torch::stable::Tensor& t) : guard_(t.get_device_index()) {
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &handle_));
  }
  cudaStream_t handle() const { return static_cast<cudaStream_t>(handle_); }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* handle_ = nullptr;
};

struct Grid {
  dim3 blocks, threads;
  size_t dynamic_shared_bytes = 0;
};

// Bytes of dynamic shared memory that a kernel may ask for: every GPU of compute capability 8.0 and above gives them.
constexpr int kMostShared = 99 << 10;

template <typename... Parameters, typename... Arguments>
void launch(const Stream& stream, const Grid& grid, void (*kernel)(Parameters...), const Arguments&... arguments) {
  const cudaLaunchConfig_t config{grid.blocks, grid.threads, grid.dynamic_shared_bytes, stream.handle(), nullptr, 0};
  if (grid.dynamic_shared_bytes > 48 << 10)  // more has to be asked for: the kernel's, not this launch's
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMostShared);
  cudaLaunchKernelEx(&config, kernel, arguments...);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA kernel launch failed: ", cudaGetErrorString(error));
}

constexpr unsigned kFullWarp = 0xffffffff;

__device__ inline void barrier() { __syncthreads(); }

// Among the lanes of a warp.
__device__ inline void warp_barrier() { __syncwarp(); }

// 16 bytes from global to shared memory, or zeros where not `live`; there once this thread has waited for its copies.
__device__ inline void copy_async(void* to, const void* from, bool live) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(to))),
      "l"(__cvta_generic_to_global(from)), "r"(live ? 16 : 0)
      : "memory");
#else
  *static_cast<int4*>(to) = live ? *static_cast<const int4*>(from) : int4{};
#endif
}

__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

template <typename T>
__device__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(kFullWarp, value, mask);
}

// The value of another lane.
template <typename T>
__device__ T shuffle(T value, int lane) {
  return __shfl_sync(kFullWarp, value, lane);
}

// The value of the lane that is `distance` before this one among `width` neighbours, a power of two, or this one's own.
template <typename T>
__device__ T shuffle_up(T value, int distance, int width) {
  return __shfl_up_sync(kFullWarp, value, distance, width);
}

// Of bits that are not all 0, such as a ballot.
__device__ inline int highest_bit(unsigned bits) { return 31 - __clz(static_cast<int>(bits)); }

__device__ inline unsigned ballot(bool vote) { return __ballot_sync(kFullWarp, vote); }

// The largest value of a lane.
__device__ inline unsigned warp_max(unsigned value) {
#if __CUDA_ARCH__ >= 800
  return __reduce_max_sync(kFullWarp, value);
#else
  for (int mask = 16; mask > 0; mask /= 2) value = max(value, shuffle_xor(value, mask));
  return value;
#endif
}

__device__ inline float add_rn(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float sub_rn(float a, float b) { return __fsub_rn(a, b); }
__device__ inline float mul_rn(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float div_rn(float a, float b) { return __fdiv_rn(a, b); }
__device__ inline double add_rn(double a, double b) { return __dadd_rn(a, b); }
__device__ inline double sub_rn(double a, double b) { return __dsub_rn(a, b); }
__device__ inline double mul_rn(double a, double b) { return __dmul_rn(a, b); }
__device__ inline double div_rn(double a, double b) { return __ddiv_rn(a, b); }

// a / b within two units in the last place, in three instructions; 0 where b passes 2^126.
__device__ inline float quotient(float a, float b) { return __fdividef(a, b); }

// The larger, or NaN if one is; of two zeros any.
__device__ inline float maximum(float a, float b) {
#if __CUDA_ARCH__ >= 800
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(a) : "f"(a), "f"(b));
  return a;
#else
  return a >= b || a != a ? a : b;
#endif
}

// The smaller, likewise.
__device__ inline float minimum(float a, float b) {
#if __CUDA_ARCH__ >= 800
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(a) : "f"(a), "f"(b));
  return a;
#else
  return a <= b || a != a ? a : b;
#endif
}

// sum + the products of four signed bytes with four others.
__device__ inline int dot4(int a, int b, int sum) { return __dp4a(a, b, sum); }

// Of integers only: a sum's bits do not depend on its order.
__device__ inline void atomic_add(int64_t* total, int64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(total), static_cast<unsigned long long>(value));
}

}  // namespace fastnets

#endif
