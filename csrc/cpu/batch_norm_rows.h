// Rows of channels_last under batch normalisation, for its own kernels and those that it is joined with: lanes are
// channels, up to four vectors of them go down the rows at once. After activate.h and batch_moments_kernels.h. Included
// by isa.h: no guard.

namespace fastnets::FASTNETS_ISA::batch_norm {

template <typename T, int L>
FASTNETS_INLINE void put(T* p, Vec<Sum<T>, L> v, bool streams) {
  streams ? stream<T, L>(p, v) : store<T, L>(p, v);
}

// dz of values whose distance from the mean is d.
template <typename A, int L, typename V>
FASTNETS_INLINE Vec<A, L> dz_of(const ActivateBackward<A>& backward, Vec<A, L> dy, Vec<A, L> d, V scale, V bias) {
  return backward.kind == Activation::kNone ? dy : backward.template operator()<L>(dy, d * scale + bias);
}

// Rows of channels_last (see moments::for_channels), x_step and y_step apart.
template <typename T>
struct NormalizeRows {
  const T* x;
  T* y;
  int64_t rows, x_step, y_step;
  const Sum<T>*mean, *scale, *bias;
  Activate<Sum<T>> activate;
  bool streams;

  template <int L, int W>
  FASTNETS_INLINE void at(int64_t c, int64_t) const {
    using A = Sum<T>;
    Vec<A, L> m[W], s[W], b[W];
    for (int k = 0; k < W; ++k) {
      m[k] = load<A, L>(mean + c + k * L), s[k] = load<A, L>(scale + c + k * L), b[k] = load<A, L>(bias + c + k * L);
    }
    const T* from = x + c;
    T* to = y + c;
    const bool past = streams && can_stream<T, L, W>(to, y_step);
    const Activate<A> f = activate;
    for (int64_t r = rows, x_down = x_step, y_down = y_step; r > 0; --r, from += x_down, to += y_down) {
      Vec<A, L> z[W];
      for (int k = 0; k < W; ++k) z[k] = (load<T, L>(from + k * L) - m[k]) * s[k] + b[k];
      f.template operator()<L, W>(z);
      for (int k = 0; k < W; ++k) put<T, L>(to + k * L, z[k], past);
    }
  }
};

// Sums of a block of rows: of dz and dz * (x - mean), added to s and q. Copies: dy goes to another place on the way.
template <typename T, bool Copies>
struct BlockProducts {
  const T *dy, *x;
  T* copy;
  int64_t rows, dy_step, x_step;  // that of copy is x's
  const Sum<T>*mean, *scale, *bias;
  ActivateBackward<Sum<T>> backward;
  bool streams;
  Sum<T>*s, *q;

  template <int L, int W>
  FASTNETS_INLINE void at(int64_t c, int64_t slot) const {
    using A = Sum<T>;
    Vec<A, L> m[W], z1[W], z0[W], s0[W] = {}, q0[W] = {};
    for (int k = 0; k < W; ++k) {
      m[k] = load<A, L>(mean + c + k * L), z1[k] = load<A, L>(scale + c + k * L), z0[k] = load<A, L>(bias + c + k * L);
    }
    const ActivateBackward<A> f = backward;
    const T *gradient = dy + c, *from = x + c;
    T* to = Copies ? copy + c : nullptr;
    const bool past = Copies && streams && can_stream<T, L, W>(to, x_step);
    for (int64_t i = rows, dy_down = dy_step, down = x_step; i > 0; --i, gradient += dy_down, from += down) {
      for (int k = 0; k < W; ++k) {
        __builtin_prefetch(gradient + k * L + rows * dy_down, 0, 2);
        __builtin_prefetch(from + k * L + rows * down, 0, 2);
        const Vec<A, L> g_y = load<T, L>(gradient + k * L), d = load<T, L>(from + k * L) - m[k];
        if (Copies) put<T, L>(to + k * L, g_y, past);
        const Vec<A, L> g = dz_of<A, L>(f, g_y, d, z1[k], z0[k]);
        s0[k] += g, q0[k] += g * d;
      }
      if (Copies) to += down;
    }
    for (int k = 0; k < W; ++k) {
      store<A, L>(s + slot + k * L, load<A, L>(s + slot + k * L) + s0[k]);
      store<A, L>(q + slot + k * L, load<A, L>(q + slot + k * L) + q0[k]);
    }
  }
};

}  // namespace fastnets::FASTNETS_ISA::batch_norm
