// Fresh memory: what the operating system does when a large result is written for the first time.
#pragma once

#include "../convolution.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace fastnets {

// Asks for pages of 2 MiB under a large new tensor. The C library maps such a tensor anew at every call, and a fault for
// each 4 KiB of it costs more than the kernel that writes it. A hint: where it is not granted nothing changes.
inline void use_huge_pages(const Tensor& t) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = 2 << 20;
  const uintptr_t data = reinterpret_cast<uintptr_t>(t.data_ptr());
  const uintptr_t begin = (data + kHuge - 1) & ~(kHuge - 1), end = (data + t.numel() * t.element_size()) & ~(kHuge - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace fastnets
