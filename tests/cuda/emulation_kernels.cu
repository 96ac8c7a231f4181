// Small kernels that test the emulation itself: run(name, x) launches one of them over the rows of x (n, 64).
#include <torch/csrc/stable/library.h>

#include <cstdint>
#include <map>
#include <string>

#include "mma.cuh"

namespace fastnets {
namespace {

constexpr int kThreads = 64;

template <bool kWaits>
__global__ void row_sum(const float* x, float* y) {
  FASTNETS_SHARED(float, warps, 2);
  float sum = x[blockIdx.x * kThreads + threadIdx.x];
  for (int distance = 16; distance >= 1; distance /= 2) sum += shuffle_xor(sum, distance);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sum;
  if (kWaits) barrier();
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

// Rows of 16 bytes come asynchronously, zeros in place of the last.
template <bool kWaits>
__global__ void copied(const float* x, float* y) {
  FASTNETS_DYNAMIC_SHARED(float, row);
  if (threadIdx.x < kThreads / 4)
    copy_async(row + 4 * threadIdx.x, x + blockIdx.x * kThreads + 4 * threadIdx.x, threadIdx.x < kThreads / 4 - 1);
  if (kWaits) wait_for_copies();
  barrier();
  y[blockIdx.x * kThreads + threadIdx.x] = row[threadIdx.x];
}

__global__ void neighbour_of_warp(const float* x, float* y) {
  FASTNETS_DYNAMIC_SHARED(float, row);
  row[threadIdx.x] = x[blockIdx.x * kThreads + threadIdx.x];
  warp_barrier();
  y[blockIdx.x * kThreads + threadIdx.x] = row[threadIdx.x ^ 31];
}

// The words that the first warp's lanes get of the first four rows of x, four matrices of 8 x 8: eight numbers of each.
template <bool kTransposed>
__global__ void fragments(const float* x, float* y) {
  FASTNETS_DYNAMIC_SHARED(Half, numbers);
  for (int i = threadIdx.x; i < 256; i += kThreads) numbers[i] = static_cast<Half>(x[i]);
  barrier();
  unsigned words[4];
  load_fragments<kTransposed>(words, numbers + threadIdx.x % 32 * 8);
  if (blockIdx.x > 0 || threadIdx.x >= 32) return;
  for (int i = 0; i < 4; ++i) {
    float two[2];
    widen_pair<Half>(two, words[i]);
    y[8 * threadIdx.x + 2 * i] = two[0], y[8 * threadIdx.x + 2 * i + 1] = two[1];
  }
}

// x: eight numbers of the first factor for each lane, then four of the second, then four sums; y: four sums.
template <typename T>
__global__ void product(const float* x, float* y) {
  const int lane = threadIdx.x % 32;
  const auto word = [&](int i) { return round_pair<T>(x[i], x[i + 1]); };
  const unsigned a[] = {word(8 * lane), word(8 * lane + 2), word(8 * lane + 4), word(8 * lane + 6)};
  float sum[4];
  for (int i = 0; i < 4; ++i) sum[i] = x[32 * 12 + 4 * lane + i];
  multiply_fragments<T>(sum, a, word(32 * 8 + 4 * lane), word(32 * 8 + 4 * lane + 2));
  for (int i = 0; i < 4 && blockIdx.x == 0 && threadIdx.x < 32; ++i) y[4 * lane + i] = sum[i];
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
      {"row_sum", row_sum<true>},
      {"row_sum_without_barrier", row_sum<false>},
      {"count_positive", count_positive},
      {"largest", largest},
      {"reverse", reverse},
      {"reverse_without_barrier", reverse_without_barrier},
      {"read_unwritten", read_unwritten},
      {"copied", copied<true>},
      {"copied_without_wait", copied<false>},
      {"neighbour_of_warp", neighbour_of_warp},
      {"fragments", fragments<false>},
      {"transposed_fragments", fragments<true>},
      {"product_float16", product<Half>},
      {"product_bfloat16", product<BFloat16>},
      {"missed_barrier", missed_barrier},
      {"missing_lane", missing_lane},
      {"shuffle_meets_vote", shuffle_meets_vote},
      {"too_much_shared", too_much_shared},
      {"nothing", nothing}};
  launch(Stream(x), {static_cast<unsigned>(x.size(0)), static_cast<unsigned>(threads), 2 * kThreads * sizeof(float)},
         kernels.at(name), static_cast<const float*>(x.const_data_ptr()), static_cast<float*>(y.mutable_data_ptr()));
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_FRAGMENT(fastnets_emulation, m) {
  m.def("run(str name, Tensor x, Tensor(a!) y, int threads) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fastnets_emulation, FASTNETS_CUDA_KEY, m) { m.impl("run", TORCH_BOX(&fastnets::run)); }
