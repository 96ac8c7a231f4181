// Products of matrices on tensor cores, in float16 and bfloat16 with sums in float32: a warp adds the product of a, 16
// x 16, and b, 16 x 8, to 16 x 8 sums. The emulation has twins of these functions in plain C++.
//
// A lane holds, with r = lane / 4 and c = 2 (lane % 4), in words of two neighbours: of a, row by row, (r, c), (r + 8,
// c), (r, c + 8), (r + 8, c + 8) and the number to the right of each; of b, column by column, (c, r), (c + 8, r) and
// the number below each; of the sums (r, c), (r, c + 1), (r + 8, c), (r + 8, c + 1).
#pragma once

#include "../tensor.h"
#include "launch.h"

#ifndef FASTNETS_EMULATE_CUDA

namespace fastnets {

// Two numbers as one word, the first in its lower half.
template <typename T>
__device__ unsigned round_pair(float low, float high) {
  unsigned pair = 0;
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, Half>)
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
#else
  __trap();
#endif
  return pair;
}

// The two numbers of a word.
template <typename T>
__device__ void widen_pair(float (&to)[2], unsigned pair) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    to[0] = __uint_as_float(pair << 16), to[1] = __uint_as_float(pair & 0xffff0000);
  } else {
    const float2 two = __half22float2(*reinterpret_cast<const __half2*>(&pair));
    to[0] = two.x, to[1] = two.y;
  }
}

// Four matrices of 8 x 8 numbers, or their transposes, from shared memory: lane i gives where row i % 8 of matrix i / 8
// begins, at a multiple of 16 bytes. Word m is (r, c) and (r, c + 1) of matrix m, as a fragment's.
template <bool kTransposed>
__device__ void load_fragments(unsigned (&to)[4], const void* row) {
#if __CUDA_ARCH__ >= 800
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(from)
                 : "memory");
#else
  __trap();
#endif
}

#define FASTNETS_MMA(type)                               \
  "mma.sync.aligned.m16n8k16.row.col.f32." type "." type \
  ".f32 "                                                \
  "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"

// sum += a b. Volatile, so that it stays where all lanes are.
template <typename T>
__device__ void multiply_fragments(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
  if constexpr (std::is_same_v<T, Half>)
    asm volatile(FASTNETS_MMA("f16")
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(FASTNETS_MMA("bf16")
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
  __trap();
#endif
}

#undef FASTNETS_MMA

}  // namespace fastnets

#endif
