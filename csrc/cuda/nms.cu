// NMS of one category, sorted best first, in one block; launch and registration.
//
// Work. 32 boxes at a time: one warp finds which of them stay, each lane testing its box against those before it; then
// all threads test the boxes behind against those that stay. Memory is a byte a box, never n^2 bits, and nothing waits
// for the host. Categories run side by side.
//
// Bytes. Every group of 32 reads 16 bytes of box (of float) and a byte for each box behind it, from L1 or L2.
#include "boxes.cuh"

namespace fastnets {
namespace {

template <typename A>
__device__ bool suppresses(const Box<A>& kept, const Box<A>& other, A threshold) {
  A both, either;
  overlap(kept, other, both, either);
  return div_rn(both, either) > threshold;
}

template <typename A>
__global__ void __launch_bounds__(kMostThreads) nms(Planes<A> boxes, const int64_t* ends, bool* alive, A threshold) {
  FASTNETS_SHARED(unsigned, staying, 1);
  const int64_t begin = blockIdx.x, end = category_end(ends, begin, boxes.n);
  for (int64_t group = begin; group < end; group += 32) {
    if (threadIdx.x < 32) {
      const int64_t i = group + threadIdx.x;
      const bool inside = i < end;
      const Box<A> box = boxes.at(inside ? i : group);
      unsigned stay = ballot(inside && alive[i]);
      for (unsigned j = 0; j < 31; ++j) {
        if (!(stay >> j & 1)) continue;
        const bool drop = inside && threadIdx.x > j && suppresses(boxes.at(group + j), box, threshold);
        stay &= ~ballot(drop);
      }
      if (inside) alive[i] = stay >> threadIdx.x & 1;
      if (threadIdx.x == 0) *staying = stay;
    }
    barrier();
    for (int64_t i = group + 32 + threadIdx.x; i < end; i += blockDim.x) {
      if (!alive[i]) continue;
      const Box<A> box = boxes.at(i);
      bool stays = true;
      for (unsigned j = 0; j < 32 && stays; ++j)
        stays = !(*staying >> j & 1) || !suppresses(boxes.at(group + j), box, threshold);
      alive[i] = stays;
    }
    barrier();
  }
}

// Boxes (4, n) of float or double, best first in each category, which ends as in soft_nms.cu; `alive` (n) is true and
// becomes false where a box is suppressed.
void nms_categories(const Tensor& boxes, const std::optional<Tensor>& ends, const Tensor& alive, double iou_threshold) {
  const int64_t n = alive.size(0);
  if (n == 0) return;
  const Stream stream(boxes);
  const auto run = [&](auto zero) {
    using A = decltype(zero);
    const int64_t* end = ends ? data<int64_t>(*ends) : nullptr;
    launch(stream, grid_of(n, ends.has_value()), nms<A>, Planes<A>{mutable_data<A>(boxes), n}, end,
           mutable_data<bool>(alive), round_down<A>(iou_threshold));
  };
  boxes.scalar_type() == ScalarType::Double ? run(double()) : run(float());
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cuda, FASTNETS_CUDA_KEY, m) {
  m.impl("nms_categories", TORCH_BOX(&fastnets::nms_categories));
}
