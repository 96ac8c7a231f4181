// Compiles FASTNETS_KERNELS, a header, three times: for any x86-64 or other processor, for AVX2 and, by isa_avx512.h,
// for AVX-512, each in a namespace of that name. FASTNETS_FOR_THIS_CPU(f) is f of the namespace that this processor
// runs.
//
// The header is written with vectors of FASTNETS_VECTOR_BYTES: vector.h comes before it. It must not define lambdas:
// GCC and Clang compile those for the command line's target, not for the pragma's.
#include "capability.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define FASTNETS_ISA portable
#define FASTNETS_VECTOR_BYTES 16
#include "vector.h"
#include FASTNETS_KERNELS
#undef FASTNETS_ISA
#undef FASTNETS_VECTOR_BYTES

#if defined(__x86_64__)

#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own AVX-512 header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define FASTNETS_ISA avx2
#define FASTNETS_VECTOR_BYTES 32
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
#include "isa_avx512.h"

#define FASTNETS_FOR_THIS_CPU(...)                                                    \
  (::fastnets::capability() == ::fastnets::Capability::kAvx512 ? &avx512::__VA_ARGS__ \
   : ::fastnets::capability() == ::fastnets::Capability::kAvx2 ? &avx2::__VA_ARGS__   \
                                                               : &portable::__VA_ARGS__)
#else
#define FASTNETS_FOR_THIS_CPU(...) (&portable::__VA_ARGS__)
#endif
