// Which instruction set the kernels use: the best that processor and operating system have, or the one that
// FASTNETS_CPU_CAPABILITY=default|avx2|avx512 names.
#pragma once

namespace fastnets {

enum class Capability { kDefault, kAvx2, kAvx512 };

// Decided at the first call. Throws if the variable names an instruction set that is unknown or not there.
Capability capability();

// Whether that is AVX-512 and the processor also has quick sums of products of bfloat16. Intel's (measured on an
// Emerald Rapids) take four times as long as multiply-adds, of which two do the same.
bool has_bfloat16();

// Whether that is AVX-512 and the processor also has sums of products of bytes, and shuffles of them.
bool has_vnni();

}  // namespace fastnets
