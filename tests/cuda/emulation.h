// Runs CUDA kernels on a CPU, for tests: what csrc/cuda/launch.h offers, without a GPU.
//
// Blocks run one after another. A block's threads are fibers of one OS thread: each runs until it waits at a barrier,
// shuffle or vote, and goes on when all threads of its block (or lanes of its warp) wait at the same one. A warp runs
// to the next barrier before another does. If no fiber can go on, the launch fails and says who waits where. Every
// second block runs its threads from last to first, shared memory starts as NaN, and what is copied to it
// asynchronously comes when its thread waits for that: a missing barrier or wait shows as a wrong result.
#pragma once

#include <setjmp.h>
#include <torch/csrc/stable/tensor.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
// Each declaration is told apart by the address of a static of its own.
#define FASTNETS_SHARED(type, name, count) \
  static const char name##_site = 0;       \
  type* const name = static_cast<type*>(fastnets::emulation::machine().shared(&name##_site, sizeof(type) * (count)))
#define FASTNETS_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(fastnets::emulation::machine().dynamic_shared())

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

using std::fmax;
using std::fmin;
using std::max;
using std::min;

namespace fastnets {

struct Grid {
  dim3 blocks, threads;
  size_t dynamic_shared_bytes = 0;
};

namespace emulation {

enum Wait { kNothing, kBarrier, kShuffle, kVote, kEnd, kWaits };
constexpr const char* kWaitNames[kWaits] = {"nothing", "a barrier", "a shuffle", "a vote", "the end of the kernel"};
constexpr unsigned kWarp = 32;
// Shared memory that a block has, and what it gets where a launch asks for more, with compute capability 8.6.
constexpr size_t kStackBytes = 64 << 10, kUnaskedBytes = 48 << 10, kSharedBytes = 99 << 10;

struct Copy {
  void* to;
  const void* from;  // null: zeros
};

struct Fiber {
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  ucontext_t start;
  jmp_buf context;
  bool started = false;
  Wait wait = kNothing;
  uint64_t given = 0;  // what this lane gives to the shuffle or vote that it waits at
  std::vector<Copy> copies;
};

class Machine {
 public:
  void run(const Grid& grid, std::function<void()> kernel) {
    const std::lock_guard<std::mutex> lock(mutex_);
    check(grid);
    kernel_ = std::move(kernel);
    gridDim = grid.blocks;
    blockDim = grid.threads;
    threads_ = blockDim.x * blockDim.y * blockDim.z;
    while (fibers_.size() < threads_) fibers_.push_back(std::make_unique<Fiber>());
    taken_.resize(threads_);
    try {
      for (uint64_t block = 0; block < uint64_t{gridDim.x} * gridDim.y * gridDim.z; ++block) {
        blockIdx = at(block, gridDim);
        std::memset(memory_, 0xff, kSharedBytes);  // all ones is a NaN in every floating type
        used_ = round_up(grid.dynamic_shared_bytes);
        limit_ = grid.dynamic_shared_bytes > kUnaskedBytes ? kSharedBytes : kUnaskedBytes;
        sites_.clear();
        run_block(block % 2 == 1);
      }
    } catch (...) {
      fibers_.clear();  // they are suspended inside the kernel: not to be used again
      throw;
    }
  }

  void wait(Wait what) {
    fibers_[current_]->wait = what;
    suspend(fibers_[current_]->context);
  }

  // Gives a value to the lanes of this warp and returns theirs, in the order of lanes.
  const uint64_t* exchange(Wait what, uint64_t value) {
    fibers_[current_]->given = value;
    wait(what);
    return &taken_[current_ / kWarp * kWarp];
  }

  unsigned lane() const { return current_ % kWarp; }

  std::vector<Copy>& copies() { return fibers_[current_]->copies; }

  void* dynamic_shared() { return memory_; }

  void* shared(const void* site, size_t bytes) {
    for (const auto& [known, offset] : sites_)
      if (known == site) return memory_ + offset;
    if (used_ + bytes > limit_) throw std::runtime_error("more than 48 KiB of shared memory in a block");
    sites_.emplace_back(site, used_);
    used_ += round_up(bytes);
    return memory_ + sites_.back().second;
  }

 private:
  static size_t round_up(size_t bytes) { return (bytes + 15) / 16 * 16; }

  static dim3 at(uint64_t index, const dim3& size) {
    return {unsigned(index % size.x), unsigned(index / size.x % size.y), unsigned(index / size.x / size.y)};
  }

  static void check(const Grid& grid) {
    const dim3 &b = grid.blocks, &t = grid.threads;
    const auto volume = [](const dim3& d) { return uint64_t{d.x} * d.y * d.z; };
    if (volume(b) == 0 || b.x >> 31 || b.y > 65535 || b.z > 65535) throw std::runtime_error("invalid number of blocks");
    if (volume(t) == 0 || volume(t) > 1024 || volume(t) % kWarp) throw std::runtime_error("invalid number of threads");
    if (grid.dynamic_shared_bytes > kSharedBytes) throw std::runtime_error("more than 99 KiB of shared memory");
  }

  void run_block(bool backwards) {
    for (unsigned i = 0; i < threads_; ++i) fibers_[i]->wait = kNothing, fibers_[i]->copies.clear();
    const unsigned warps = threads_ / kWarp;
    do {
      for (unsigned i = 0; i < warps; ++i) run_warp(kWarp * (backwards ? warps - 1 - i : i), backwards);
    } while (release());
  }

  // As far as it comes alone.
  void run_warp(unsigned first, bool backwards) {
    do {
      for (unsigned i = 0; i < kWarp; ++i) {
        current_ = first + (backwards ? kWarp - 1 - i : i);
        if (fibers_[current_]->wait != kNothing) continue;
        threadIdx = at(current_, blockDim);
        resume(*fibers_[current_]);
        if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
      }
    } while (release_warp(first));
  }

  bool release_warp(unsigned first) {
    if (!all(first, kWarp, kShuffle) && !all(first, kWarp, kVote)) return false;
    for (unsigned i = first; i < first + kWarp; ++i) taken_[i] = fibers_[i]->given;
    set_free(first, kWarp);
    return true;
  }

  // Lets all go on that wait at a barrier; false when all have reached the end.
  bool release() {
    if (all(0, threads_, kEnd)) return false;
    if (!all(0, threads_, kBarrier)) throw std::runtime_error(stuck());
    set_free(0, threads_);
    return true;
  }

  bool all(unsigned first, unsigned count, Wait what) const {
    return std::all_of(&fibers_[first], &fibers_[first] + count, [=](const auto& f) { return f->wait == what; });
  }

  void set_free(unsigned first, unsigned count) {
    for (unsigned i = first; i < first + count; ++i) fibers_[i]->wait = kNothing;
  }

  std::string stuck() const {
    std::ostringstream text;
    text << "CUDA emulation: threads wait for each other in block (" << blockIdx.x << ", " << blockIdx.y << ", "
         << blockIdx.z << ")";
    for (int what = kBarrier; what < kWaits; ++what) {
      const auto is = [=](const auto& f) { return f->wait == what; };
      const auto end = fibers_.begin() + threads_, first = std::find_if(fibers_.begin(), end, is);
      if (first == end) continue;
      text << "; " << std::count_if(first, end, is) << " at " << kWaitNames[what] << " (first: thread "
           << first - fibers_.begin() << ")";
    }
    return text.str();
  }

  // setjmp and longjmp between stacks that makecontext made: swapcontext alone costs two system calls a switch.
  __attribute__((noinline)) void resume(Fiber& fiber) {
    if (_setjmp(scheduler_)) return;
    if (fiber.started) _longjmp(fiber.context, 1);
    fiber.started = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStackBytes;
    makecontext(&fiber.start, fiber_main, 0);
    setcontext(&fiber.start);
  }

  __attribute__((noinline)) void suspend(jmp_buf& context) {
    if (!_setjmp(context)) _longjmp(scheduler_, 1);
  }

  static void fiber_main();

  std::mutex mutex_;
  std::function<void()> kernel_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<uint64_t> taken_;
  unsigned threads_ = 0, current_ = 0;
  jmp_buf scheduler_;
  std::exception_ptr failure_;
  alignas(16) unsigned char memory_[kSharedBytes];
  size_t used_ = 0, limit_ = 0;
  std::vector<std::pair<const void*, size_t>> sites_;
};

inline Machine& machine() {
  static Machine machine;
  return machine;
}

// A fiber never returns: it runs one thread after another.
inline void Machine::fiber_main() {
  for (Machine& m = machine();;) {
    try {
      m.kernel_();
    } catch (...) {
      m.failure_ = std::current_exception();
    }
    m.wait(kEnd);
  }
}

}  // namespace emulation

struct Stream {
  explicit Stream(const torch::stable::Tensor&) {}
};

template <typename... Parameters, typename... Arguments>
void launch(const Stream&, const Grid& grid, void (*kernel)(Parameters...), const Arguments&... arguments) {
  emulation::machine().run(grid, [&] { kernel(arguments...); });
}

inline void barrier() { emulation::machine().wait(emulation::kBarrier); }

inline void warp_barrier() { emulation::machine().exchange(emulation::kShuffle, 0); }

inline void copy_async(void* to, const void* from, bool live) {
  emulation::machine().copies().push_back({to, live ? from : nullptr});
}

inline void wait_for_copies() {
  for (const emulation::Copy& copy : emulation::machine().copies())
    copy.from ? std::memcpy(copy.to, copy.from, 16) : std::memset(copy.to, 0, 16);
  emulation::machine().copies().clear();
}

template <typename T>
T shuffle(T value, int lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = emulation::machine().exchange(emulation::kShuffle, bits)[lane];
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
T shuffle_xor(T value, int mask) {
  return shuffle(value, static_cast<int>(emulation::machine().lane()) ^ mask);
}

template <typename T>
T shuffle_up(T value, int distance, int width) {
  const int lane = static_cast<int>(emulation::machine().lane());
  return shuffle(value, lane % width >= distance ? lane - distance : lane);
}

inline int highest_bit(unsigned bits) { return 31 - __builtin_clz(bits); }

inline unsigned ballot(bool vote) {
  const uint64_t* votes = emulation::machine().exchange(emulation::kVote, vote);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < emulation::kWarp; ++lane) bits |= unsigned(votes[lane]) << lane;
  return bits;
}

inline unsigned warp_max(unsigned value) {
  const uint64_t* given = emulation::machine().exchange(emulation::kShuffle, value);
  return unsigned(*std::max_element(given, given + emulation::kWarp));
}

// A function call apart: the compiler cannot contract two of them.
#define FASTNETS_ROUNDED(name, op)             \
  template <typename A>                        \
  __attribute__((noinline)) A name(A a, A b) { \
    return a op b;                             \
  }
FASTNETS_ROUNDED(add_rn, +)
FASTNETS_ROUNDED(sub_rn, -)
FASTNETS_ROUNDED(mul_rn, *)
FASTNETS_ROUNDED(div_rn, /)
#undef FASTNETS_ROUNDED

inline float quotient(float a, float b) { return a / b; }

inline float maximum(float a, float b) { return a >= b || a != a ? a : b; }
inline float minimum(float a, float b) { return a <= b || a != a ? a : b; }

inline int dot4(int a, int b, int sum) {
  int8_t u[4], v[4];
  std::memcpy(u, &a, 4), std::memcpy(v, &b, 4);
  return sum + u[0] * v[0] + u[1] * v[1] + u[2] * v[2] + u[3] * v[3];
}

inline void atomic_add(int64_t* total, int64_t value) { *total += value; }

template <typename T>
unsigned round_pair(float low, float high) {
  const T pair[] = {static_cast<T>(low), static_cast<T>(high)};
  unsigned bits;
  std::memcpy(&bits, pair, 4);
  return bits;
}

template <typename T>
void widen_pair(float (&to)[2], unsigned pair) {
  T two[2];
  std::memcpy(two, &pair, 4);
  to[0] = static_cast<float>(two[0]), to[1] = static_cast<float>(two[1]);
}

// Every lane gives the address of a row of 16 bytes; it gets two numbers of four rows, or of columns if transposed.
template <bool kTransposed>
void load_fragments(unsigned (&to)[4], const void* row) {
  emulation::Machine& m = emulation::machine();
  const uint64_t* rows = m.exchange(emulation::kShuffle, reinterpret_cast<uint64_t>(row));
  const unsigned lane = m.lane();
  for (unsigned i = 0; i < 8; ++i) {
    const unsigned of = kTransposed ? lane % 4 * 2 + i % 2 : lane / 4,
                   at = kTransposed ? lane / 4 : lane % 4 * 2 + i % 2;
    std::memcpy(reinterpret_cast<char*>(&to[i / 2]) + i % 2 * 2,
                reinterpret_cast<const char*>(rows[i / 2 * 8 + of]) + 2 * at, 2);
  }
  warp_barrier();  // no lane goes on, and writes, before all have read
}

// sum += a b, each lane with its share of the three matrices; see mma.cuh for who has what.
template <typename T>
void multiply_fragments(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  emulation::Machine& m = emulation::machine();
  const unsigned given[] = {a[0], a[1], a[2], a[3], b0, b1}, lane = m.lane();
  const uint64_t* all = m.exchange(emulation::kShuffle, reinterpret_cast<uint64_t>(given));
  const auto number = [&](unsigned of, unsigned word, unsigned half) {
    T value;
    std::memcpy(&value, reinterpret_cast<const char*>(all[of]) + 4 * word + 2 * half, 2);
    return static_cast<float>(value);
  };
  for (unsigned i = 0; i < 4; ++i)
    for (unsigned k = 0; k < 16; ++k)
      sum[i] += number(lane / 4 * 4 + k % 8 / 2, i / 2 + k / 8 * 2, k % 2) *
                number((lane % 4 * 2 + i % 2) * 4 + k % 8 / 2, 4 + k / 8, k % 2);
  warp_barrier();
}

}  // namespace fastnets
