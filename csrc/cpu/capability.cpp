// The choice of an instruction set, and what this library says of itself in `fastnets info`.
#include "capability.h"

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/version.h>

#include <cstdlib>
#include <string>

namespace fastnets {
namespace {

constexpr const char* kNames[] = {"default", "avx2", "avx512"};

Capability best() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Capability::kAvx512 : avx2 ? Capability::kAvx2 : Capability::kDefault;
#else
  return Capability::kDefault;
#endif
}

Capability choose() {
  const Capability most = best();
  const char* name = std::getenv("FASTNETS_CPU_CAPABILITY");
  if (name == nullptr || *name == '\0') return most;
  for (int i = 0; i < 3; ++i) {
    if (std::string(name) != kNames[i]) continue;
    STD_TORCH_CHECK(i <= static_cast<int>(most), "FASTNETS_CPU_CAPABILITY=", name, ", but this processor has only ",
                    kNames[static_cast<int>(most)]);
    return static_cast<Capability>(i);
  }
  STD_TORCH_CHECK(false, "FASTNETS_CPU_CAPABILITY must be default, avx2 or avx512, but is '", name, "'");
}

std::string capability_name() { return kNames[static_cast<int>(capability())]; }

std::string build_info() { return std::string("compiler ") + __VERSION__ + ", torch headers " + TORCH_VERSION; }

}  // namespace

Capability capability() {
  static const Capability chosen = choose();
  return chosen;
}

#if defined(__x86_64__)
bool has_bfloat16() {
  return capability() == Capability::kAvx512 && __builtin_cpu_supports("avx512bf16") && !__builtin_cpu_is("intel");
}
bool has_vnni() {
  return capability() == Capability::kAvx512 && __builtin_cpu_supports("avx512vnni") &&
         __builtin_cpu_supports("avx512vbmi");
}
#else
bool has_bfloat16() { return false; }
bool has_vnni() { return false; }
#endif

}  // namespace fastnets

STABLE_TORCH_LIBRARY_FRAGMENT(fastnets_cpu, m) {
  m.def("capability() -> str");
  m.def("build_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CompositeExplicitAutograd, m) {
  m.impl("capability", TORCH_BOX(&fastnets::capability_name));
  m.impl("build_info", TORCH_BOX(&fastnets::build_info));
}
