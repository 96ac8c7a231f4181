// Compiles FASTNETS_KERNELS for AVX-512: by isa.h as it is, in the namespace avx512; after isa.h with what newer
// processors have beside it, which is FASTNETS_VNNI, sums of products of bytes and shuffles of them, in avx512vnni, or
// FASTNETS_BF16, sums of products of bfloat16, in avx512bf16. With the latter FASTNETS_FOR_THIS_CPU_AND(T, f) is f,
// which multiplies T, as this processor runs it best; so is FASTNETS_FOR_THIS_CPU_AND_BYTES with the former after it,
// where T may be uint8_t.
#if defined(__x86_64__)

#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own AVX-512 header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC push_options
#endif
#if defined(FASTNETS_VNNI)
#define FASTNETS_ISA avx512vnni
#if defined(__clang__)
#pragma clang attribute push(                                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi,avx2,fma,f16c")
#endif
#elif defined(FASTNETS_BF16)
#define FASTNETS_ISA avx512bf16
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")
#endif
#else
#define FASTNETS_ISA avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#endif
#endif
#define FASTNETS_VECTOR_BYTES 64
#include "vector.h"
#include FASTNETS_KERNELS
#undef FASTNETS_ISA
#undef FASTNETS_VECTOR_BYTES
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#pragma GCC diagnostic pop
#endif

#if defined(FASTNETS_BF16)
#define FASTNETS_FOR_THIS_CPU_AND(T, ...)                              \
  [] {                                                                 \
    if constexpr (std::is_same_v<T, ::fastnets::BFloat16>)             \
      if (::fastnets::has_bfloat16()) return &avx512bf16::__VA_ARGS__; \
    return FASTNETS_FOR_THIS_CPU(__VA_ARGS__);                         \
  }()
#elif defined(FASTNETS_VNNI)
#define FASTNETS_FOR_THIS_CPU_AND_BYTES(T, ...)                    \
  [] {                                                             \
    if constexpr (std::is_same_v<T, uint8_t>)                      \
      if (::fastnets::has_vnni()) return &avx512vnni::__VA_ARGS__; \
    return FASTNETS_FOR_THIS_CPU_AND(T, __VA_ARGS__);              \
  }()
#endif
#elif defined(FASTNETS_BF16)
#define FASTNETS_FOR_THIS_CPU_AND(T, ...) FASTNETS_FOR_THIS_CPU(__VA_ARGS__)
#elif defined(FASTNETS_VNNI)
#define FASTNETS_FOR_THIS_CPU_AND_BYTES(T, ...) FASTNETS_FOR_THIS_CPU(__VA_ARGS__)
#endif

#undef FASTNETS_VNNI
#undef FASTNETS_BF16
