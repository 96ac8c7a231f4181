// The work of kernels as steps: written down while ops run, run again without what led to them.
//
// An op looks at its arguments, cuts its work into tasks and hands a kernel with all that it needs to `run_step`. While
// this thread writes down its steps they are kept: for as long as the memory of arguments and results stays in place,
// running them again does what calling the ops again would. Where a network is nothing else, this spares what a call of
// an op costs, whose code and data its kernels have driven from the caches: 10 to 30 µs each.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "work.h"

namespace fastnets {

// Tasks that threads share, each at least `grain` of them; `kernel` keeps its own copy of what it needs.
struct Step {
  int64_t tasks, grain;
  std::function<void(int64_t begin, int64_t end)> kernel;

  // Of one of so many threads, as PyTorch's parallel_for deals them out.
  Range share(int64_t thread, int64_t threads) const {
    const int64_t each = ceil_div(tasks, std::min(threads, ceil_div(tasks, grain)));
    return {std::min(thread * each, tasks), std::min((thread + 1) * each, tasks)};
  }
};

struct Steps {
  std::vector<Step> steps;
  std::vector<Tensor> results;     // places of results that are given none by an argument, the next one last
  std::vector<Tensor> held, free;  // scratch, and what of it no op is using

  // All threads go through all steps in one parallel region.
  void run() const;
};

// Where this thread writes down its steps, or null.
Steps*& written_down();

template <typename F>
void run_step(int64_t tasks, int64_t grain, const F& kernel) {
  if (Steps* const steps = written_down(); steps && tasks > 0) steps->steps.push_back({tasks, grain, kernel});
  torch::stable::parallel_for(0, tasks, grain, kernel);
}

// Of an op: the place that was given for it to the steps, or new memory.
Tensor result(const Tensor& like, const Four& size, bool channels_last);

// Uninitialised numbers for an op, which later steps may use as well, on the device of `like`, of its type or another.
class StepScratch {
 public:
  StepScratch(const Tensor& like, int64_t count) : StepScratch(like, count, dtype_of(like)) {}
  StepScratch(const Tensor& like, int64_t count, int32_t dtype);
  StepScratch(const StepScratch&) = delete;
  ~StepScratch();
  template <typename T>
  T* data() const {
    return mutable_data<T>(*numbers_);
  }

 private:
  std::optional<Tensor> numbers_;
};

}  // namespace fastnets
