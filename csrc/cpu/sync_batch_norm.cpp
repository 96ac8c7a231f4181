// Batch normalisation on a CPU: arguments, passes, registration. The kernels are in the headers.
#include "sync_batch_norm.h"

#include <cmath>
#include <string>
#include <tuple>

#define FASTNETS_KERNELS "sync_batch_norm_kernels.h"
#include "isa.h"

namespace fastnets {
namespace {

using batch_norm::Kernels;
using batch_norm::Problem;
using moments::Cut;
using moments::run;
using moments::values_of;
using Optional = std::optional<Tensor>;
using Name = std::optional<Text>;

// A call: its problem, and the memory of the vectors that it names.
template <typename T>
struct Call {
  using A = Sum<T>;

  Call(const Tensor& x, const Tensor& out, const Optional& weight, const Optional& bias, double eps,
       const Name& activation)
      : map(map_of(x)),
        weights(values_of<T>(x, weight, 1)),
        biases(values_of<T>(x, bias, 0)),
        work(4 * map.c),
        p{Cut(map, sizeof(T))},
        kernels(FASTNETS_FOR_THIS_CPU(batch_norm::kernels<T>)(p.cut)) {
    p.x = memory(x), p.out = mutable_memory(out), p.eps = eps;
    p.weight = weights.data(), p.bias = biases.data();
    p.scale = work.data(), p.shift = work.data() + map.c, p.slope = work.data() + 2 * map.c;
    r = work.data() + 3 * map.c;
    // What is read stays in a third-level cache for the next pass, unless the result drives it from there.
    p.streams = 2 * static_cast<int64_t>(sizeof(T)) * out.numel() > kThirdLevel;
    p.activation = parse_activation(activation);
  }

  void statistics(const Tensor& x, const Tensor& mean, const Tensor& var) {
    means = values_of<T>(x, mean, 0), vars = values_of<T>(x, var, 1);
    p.mean = means.data(), p.var = vars.data();
    set_scale();
  }

  void set_scale() {
    const A *const var = static_cast<const A*>(p.var), eps = static_cast<A>(p.eps);
    for (int64_t c = 0; c < map.c; ++c) r[c] = A(1) / std::sqrt(var[c] + eps);
    for (int64_t c = 0; c < map.c; ++c) work[c] = r[c] * weights[c];
  }

  int64_t tasks(bool by_plane) const {
    if (map.last) return p.cut.parts;
    return by_plane ? map.n * map.c : map.c * p.cut.parts;
  }

  void reduce(A* sums) {
    const int64_t parts = p.cut.parts, size = 2 * map.c;
    const std::unique_ptr<A[]> partial(parts > 1 ? new A[parts * size] : nullptr);
    p.sums = parts > 1 ? partial.get() : sums;
    run(kernels.reduce, p, tasks(false));
    if (parts > 1)
      torch::stable::parallel_for(0, size, (1 << 15) / parts + 1, [&](int64_t begin, int64_t end) {
        std::copy(partial.get() + begin, partial.get() + end, sums + begin);
        for (int64_t part = 1; part < parts; ++part)
          for (int64_t i = begin; i < end; ++i) sums[i] += partial[part * size + i];
      });
    for (int64_t c = 0; c < map.c; ++c) sums[map.c + c] *= r[c];
  }

  void dx(const A* sums, double count) {
    const A n = static_cast<A>(count);
    for (int64_t c = 0; c < map.c; ++c)
      work[map.c + c] = sums[c] / n, work[2 * map.c + c] = r[c] * (sums[map.c + c] / n);
    run(kernels.dx, p, tasks(true));
  }

  Map map;
  std::vector<A> weights, biases, means, vars, work;
  A* r;
  Problem p;
  Kernels kernels;
};

// Count, group and layer are for the gradient.
Tensor sync_batch_norm(const Tensor& x, const Tensor& mean, const Tensor& var, const Optional& weight,
                       const Optional& bias, const Optional&, double eps, const Text&, const Text&,
                       const Name& activation) {
  const Tensor y = empty_dense(x);
  with_float(x.scalar_type(), [&](auto zero) {
    Call<decltype(zero)> call(x, y, weight, bias, eps, activation);
    call.statistics(x, mean, var);
    if (y.numel() == 0) return;
    run(call.kernels.forward, call.p, call.tasks(true));
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> sync_batch_norm_local(const Tensor& x, const Optional& weight, const Optional& bias,
                                                         double eps, const Name& activation) {
  const Tensor y = empty_dense(x), mean = empty_sums(x), var = empty_sums(x);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    using A = Sum<T>;
    Call<T> call(x, y, weight, bias, eps, activation);
    A *const means = mutable_data<A>(mean), *const vars = mutable_data<A>(var);
    STD_TORCH_CHECK(eps > 0 && call.map.count() != 1, "expected more than 1 value per channel and a positive eps");
    if (call.map.count() == 0) return std::fill_n(means, call.map.c, A(0)), std::fill_n(vars, call.map.c, A(0)), void();
    call.p.mean = means, call.p.var = vars;
    if (call.kernels.local) return run(call.kernels.local, call.p, call.map.c);
    moments::moments_of<T>(call.kernels.moments, call.p.cut, call.p.x, means, vars);
    for (int64_t c = 0; c < call.map.c; ++c) vars[c] /= call.map.count();
    call.set_scale();
    run(call.kernels.forward, call.p, call.tasks(true));
  });
  return {y, mean, var};
}

Tensor sync_batch_norm_reduce(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                              const Optional& weight, const Optional& bias, double eps, const Name& activation) {
  check_gradient(x, dy);
  const Tensor sums = empty_sums(x, 2);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(x, x, weight, bias, eps, activation);
    call.statistics(x, mean, var);
    call.p.dy = memory(dy);
    call.reduce(mutable_data<Sum<T>>(sums));
  });
  return sums;
}

Tensor sync_batch_norm_dx(const Tensor& dy, const Tensor& x, const Tensor& mean, const Tensor& var,
                          const Optional& weight, const Optional& bias, const Tensor& sums, const Tensor& count,
                          double eps, const Name& activation) {
  check_gradient(x, dy);
  const Tensor dx = empty_dense(x);
  STD_TORCH_CHECK(sums.numel() == 2 * x.size(1) && sums.is_contiguous() && count.numel() == 1 &&
                      dtype_of(sums) == sum_dtype(x) && dtype_of(count) == sum_dtype(x),
                  "expected sums (2, c) and a count, in the type of sums");
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(x, dx, weight, bias, eps, activation);
    call.statistics(x, mean, var);
    call.p.dy = memory(dy);
    if (dx.numel() > 0) call.dx(data<Sum<T>>(sums), *data<Sum<T>>(count));
  });
  return dx;
}

std::tuple<Tensor, Tensor> sync_batch_norm_local_backward(const Tensor& dy, const Tensor& x, const Tensor& mean,
                                                          const Tensor& var, const Optional& weight,
                                                          const Optional& bias, double eps, const Name& activation) {
  check_gradient(x, dy);
  const Tensor dx = empty_dense(x), sums = empty_sums(x, 2);
  with_float(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Call<T> call(x, dx, weight, bias, eps, activation);
    call.statistics(x, mean, var);
    call.p.dy = memory(dy), call.p.count = static_cast<double>(call.map.count());
    Sum<T>* const totals = mutable_data<Sum<T>>(sums);
    if (dx.numel() > 0 && call.kernels.local_backward) {
      call.p.sums = totals;
      return run(call.kernels.local_backward, call.p, call.map.c);
    }
    call.reduce(totals);
    if (dx.numel() > 0) call.dx(totals, call.p.count);
  });
  return {dx, sums};
}

}  // namespace
}  // namespace fastnets

STABLE_TORCH_LIBRARY_IMPL(fastnets_cpu, CPU, m) {
  m.impl("sync_batch_norm", TORCH_BOX(&fastnets::sync_batch_norm));
  m.impl("sync_batch_norm_local", TORCH_BOX(&fastnets::sync_batch_norm_local));
  m.impl("sync_batch_norm_reduce", TORCH_BOX(&fastnets::sync_batch_norm_reduce));
  m.impl("sync_batch_norm_dx", TORCH_BOX(&fastnets::sync_batch_norm_dx));
  m.impl("sync_batch_norm_local_backward", TORCH_BOX(&fastnets::sync_batch_norm_local_backward));
}
