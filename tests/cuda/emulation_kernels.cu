// Small kernels that test the emulation itself: run(name, x) launches one of them over the rows of x (n, 64).
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <map>
#include <string>

#include "launch.h"

namespace fastnets {
namespace {

constexpr int kThreads = 64;

__global__ void row_sum(const float* x, float* y) {
  FASTNETS_SHARED(float, warps, 2);
  float sum = x[blockIdx.x * kThreads + threadIdx.x];
  for (int distance = 16; distance >= 1; distance /= 2) sum += shuffle_xor(sum, distance);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  barrier();
  y[blockIdx.x * kThreads + threadIdx.x] = warps[0] + warps[1];
}

__global__ void count_positive(const float* x, float* y) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  int count = 0;
  for (unsigned votes = ballot(x[i] > 0); votes != 0; votes &= votes - 1) ++count;
  y[i] = count;
}

__global__ void largest(const float* x, float* y) {
  const int i = blockIdx.x * kThreads + threadIdx.x;
  y[i] = warp_max(static_cast<unsigned>(x[i]));
}

__global__ void reverse(const float* x, float* y) {
  FASTNETS_DYNAMIC_SHARED(float, row);
  row[threadIdx.x] = x[blockIdx.x * kThreads + threadIdx.x];
  barrier();
  y[blockIdx.x * kThreads + threadIdx.x] = row[kThreads - 1 - threadIdx.x];
}

__global__ void reverse_without_barrier(const float* x, float* y) {
  FASTNETS_DYNAMIC_SHARED(float, row);
  row[threadIdx.x] = x[blockIdx.x * kThreads + threadIdx.x];
  y[blockIdx.x * kThreads + threadIdx.x] = row[kThreads - 1 - threadIdx.x];
}

__global__ void read_unwritten(const float*, float* y) {
  FASTNETS_SHARED(float, row, kThreads);
  y[blockIdx.x * kThreads + threadIdx.x] = row[threadIdx.x];
  row[threadIdx.x] = 1;
}

__global__ void missed_barrier(const float*, float*) {
  if (threadIdx.x != 5) barrier();
}

__global__ void missing_lane(const float* x, float* y) {
  if (threadIdx.x != 40) y[threadIdx.x] = shuffle_xor(x[threadIdx.x], 1);
}

__global__ void shuffle_meets_vote(const float* x, float* y) {
  if (threadIdx.x % 2)
    y[threadIdx.x] = shuffle_xor(x[threadIdx.x], 1);
  else
    y[threadIdx.x] = ballot(true);
}

__global__ void too_much_shared(const float*, float* y) {
  FASTNETS_SHARED(float, all, 12 * 1024 + 1);
  y[threadIdx.x] = all[0];
}

__global__ void nothing(const float*, float*) {}

void run(const std::string& name, const torch::stable::Tensor& x, const torch::stable::Tensor& y, int64_t threads) {
  static const std::map<std::string, void (*)(const float*, float*)> kernels{
      {"row_sum", row_sum},
      {"count_positive", count_positive},
      {"largest", largest},
      {"reverse", reverse},
      {"reverse_without_barrier", reverse_without_barrier},
      {"read_unwritten", read_unwritten},
      {"missed_barrier", missed_barrier},
      {"missing_lane", missing_lane},
      {"shuffle_meets_vote", shuffle_meets_vote},
      {"too_much_shared", too_much_shared},
      {"nothing", nothing}};
  launch(Stream(x), {static_cast<unsigned>(x.size(0)), static_cast<unsigned>(threads), kThreads * sizeof(float)},
         kernels.at(name), static_cast<const float*>(x.const_data_ptr()), static_cast<float*>(y.mutable_data_ptr()));
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_FRAGMENT(fastnets_emulation, m) {
  m.def("run(str name, Tensor x, Tensor(a!) y, int threads) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastnets_emulation, FASTNETS_CUDA_KEY, m) { m.impl("run", TORCH_BOX(&fastnets::run)); }
