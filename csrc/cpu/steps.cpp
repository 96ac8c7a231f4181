// Steps that run one after the other, and the operators with which Python writes them down.
#include "steps.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastnets {
namespace {

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// One pass over the steps. Each thread does its share of a step, and goes on when all shares are done. What another
// does not come to, because it never joins or the system has taken its core away, is done by who waits.
class Pass {
 public:
  Pass(const std::vector<Step>& steps, int64_t threads)
      : steps_(steps),
        threads_(threads),
        taken_(new std::atomic<bool>[steps.size() * threads] {}),
        done_(new std::atomic<int64_t>[steps.size()] {}) {}

  // What a kernel throws ends the pass when all steps are done, as nobody may be left waiting for a share.
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

  void run(int64_t first_thread, int64_t last_thread) {
    constexpr int kPatience = 30, kLong = 4000;  // pauses, 23 ns each on a Zen 5
    for (size_t step = 0; step < steps_.size(); ++step) {
      for (int64_t t = first_thread; t < last_thread; ++t) take(step, t);
      for (int64_t pauses = 0; done_[step].load(std::memory_order_acquire) < threads_; ++pauses) {
        pause();
        if (pauses == kPatience)
          for (int64_t t = 0; t < threads_; ++t) take(step, t);
        if (pauses > kLong) std::this_thread::yield();
      }
    }
  }

 private:
  void take(size_t step, int64_t thread) {
    if (taken_[step * threads_ + thread].exchange(true, std::memory_order_relaxed)) return;
    const Range range = steps_[step].share(thread, threads_);
    try {
      if (range.begin < range.end) steps_[step].kernel(range.begin, range.end);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      error_ = std::current_exception();
    }
    done_[step].fetch_add(1, std::memory_order_release);
  }

  const std::vector<Step>& steps_;
  const int64_t threads_;
  const std::unique_ptr<std::atomic<bool>[]> taken_;
  const std::unique_ptr<std::atomic<int64_t>[]> done_;
  std::mutex mutex_;
  std::exception_ptr error_;
};

std::mutex mutex;
std::unordered_map<int64_t, std::shared_ptr<const Steps>> known;

// From now on this thread's ops write down their steps; those without an argument for it give their results these
// places, one after the other.
void begin_steps(const std::vector<Tensor>& results) {
  STD_TORCH_CHECK(!written_down(), "this thread writes down its steps already");
  written_down() = new Steps{{}, {results.rbegin(), results.rend()}, {}, {}};
}

int64_t end_steps() {
  STD_TORCH_CHECK(written_down(), "this thread does not write down its steps");
  static int64_t last = 0;
  const std::lock_guard lock(mutex);
  known[++last].reset(std::exchange(written_down(), nullptr));
  return last;
}

void run_steps(int64_t id) {
  std::shared_ptr<const Steps> steps;
  {
    const std::lock_guard lock(mutex);
    const auto found = known.find(id);
    STD_TORCH_CHECK(found != known.end(), "there are no steps ", id);
    steps = found->second;
  }
  steps->run();
}

void forget_steps(int64_t id) {
  const std::lock_guard lock(mutex);
  known.erase(id);
}

}  // namespace

void Steps::run() const {
  const int64_t threads = torch::stable::get_num_threads();
  if (threads == 1) {
    for (const Step& step : steps) step.kernel(0, step.tasks);
    return;
  }
  Pass pass(steps, threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) { pass.run(begin, end); });
  pass.rethrow();
}

Steps*& written_down() {
  thread_local Steps* steps = nullptr;
  return steps;
}

Tensor result(const Tensor& like, const Four& size, bool channels_last) {
  Steps* const steps = written_down();
  if (!steps) return empty(like, size, channels_last);
  STD_TORCH_CHECK(!steps->results.empty(), "expected a place for each result of the steps");
  const Tensor place = steps->results.back();
  steps->results.pop_back();
  STD_TORCH_CHECK(place.dim() == 4 && sizes_of(place) == size && is_dense(place, channels_last) &&
                      place.scalar_type() == like.scalar_type(),
                  "expected a place of the result's shape, layout and type");
  return place;
}

StepScratch::StepScratch(const Tensor& like, int64_t count, int32_t dtype) {
  Steps* const steps = written_down();
  if (steps) {
    const auto fits = [&](const Tensor& t) { return t.numel() >= count && dtype_of(t) == dtype; };
    const auto found = std::find_if(steps->free.begin(), steps->free.end(), fits);
    if (found != steps->free.end()) {
      numbers_ = *found;
      steps->free.erase(found);
      return;
    }
  }
  numbers_ = empty_strided(like, {count}, {1}, dtype);
  if (steps) steps->held.push_back(*numbers_);
}

StepScratch::~StepScratch() {
  if (Steps* const steps = written_down()) steps->free.push_back(*numbers_);
}

}  // namespace fastnets

STABLE_TORCH_LIBRARY_FRAGMENT(fastnets_cpu, m) {
  m.def("begin_steps(Tensor[] results) -> ()");
  m.def("end_steps() -> int");
  m.def("run_steps(int id) -> ()");
  m.def("forget_steps(int id) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CompositeExplicitAutograd, m) {
  m.impl("begin_steps", TORCH_BOX(&fastnets::begin_steps));
  m.impl("end_steps", TORCH_BOX(&fastnets::end_steps));
  m.impl("run_steps", TORCH_BOX(&fastnets::run_steps));
  m.impl("forget_steps", TORCH_BOX(&fastnets::forget_steps));
}
