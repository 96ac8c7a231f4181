// Interleaving of G vectors in registers, and its inverse. Included once for each instruction set (isa.h): no guard.
#include <utility>

namespace fastnets::FASTNETS_ISA {

// Where the vectors v[0..G), taken as runs, go: position p of the result is element p / G of run p % G.
//
// One shuffle of two vectors takes in one more run. G - 1 shuffles give a vector; a G that is P * Q is done as Q, then
// P: runs {q P + p} become P runs, and those one.
template <int G>
inline constexpr int kFactor = G % 2 == 0   ? 2
                               : G % 3 == 0 ? 3
                                            : G;

// Lane `lane` of vector `out`, after run `step` was taken in: from the second operand where the number is L or more.
template <int G, int L>
constexpr int interleave_lane(int out, int step, int lane) {
  const int position = out * L + lane, run = position % G, element = position / G;
  return run == step ? L + element : step == 1 && run == 0 ? element : lane;
}

template <int G, int L>
constexpr int deinterleave_lane(int out, int step, int lane) {
  const int position = lane * G + out, vector = position / L, element = position % L;
  return vector == step ? L + element : step == 1 && vector == 0 ? element : lane;
}

template <bool INVERSE, int G, int OUT, int STEP, typename V, int... LANE>
FASTNETS_INLINE V take_in(V a, V b, std::integer_sequence<int, LANE...>) {
  constexpr int L = sizeof...(LANE);
  if constexpr (INVERSE)
    return __builtin_shufflevector(a, b, deinterleave_lane<G, L>(OUT, STEP, LANE)...);
  else
    return __builtin_shufflevector(a, b, interleave_lane<G, L>(OUT, STEP, LANE)...);
}

template <bool INVERSE, int G, int L, int OUT, typename V, int... STEP>
FASTNETS_INLINE V shuffled(const V* v, std::integer_sequence<int, STEP...>) {
  V result = v[0];
  ((result = take_in<INVERSE, G, OUT, STEP + 1>(result, v[STEP + 1], std::make_integer_sequence<int, L>())), ...);
  return result;
}

template <bool INVERSE, int L, typename V, int... OUT>
FASTNETS_INLINE void shuffle_directly(V* v, std::integer_sequence<int, OUT...>) {
  constexpr int G = sizeof...(OUT);
  const V results[G] = {shuffled<INVERSE, G, L, OUT>(v, std::make_integer_sequence<int, G - 1>())...};
  ((v[OUT] = results[OUT]), ...);
}

template <int G, int L, typename V>
FASTNETS_INLINE void interleave(V* v) {
  constexpr int P = kFactor<G>, Q = G / P;
  if constexpr (Q == 1) {
    shuffle_directly<false, L>(v, std::make_integer_sequence<int, G>());
  } else {
    V runs[P][Q], some[P];
    for (int p = 0; p < P; ++p) {
      for (int q = 0; q < Q; ++q) runs[p][q] = v[q * P + p];
      interleave<Q, L>(runs[p]);
    }
    for (int q = 0; q < Q; ++q) {
      for (int p = 0; p < P; ++p) some[p] = runs[p][q];
      interleave<P, L>(some);
      for (int p = 0; p < P; ++p) v[q * P + p] = some[p];
    }
  }
}

template <int G, int L, typename V>
FASTNETS_INLINE void deinterleave(V* v) {
  constexpr int P = kFactor<G>, Q = G / P;
  if constexpr (Q == 1) {
    shuffle_directly<true, L>(v, std::make_integer_sequence<int, G>());
  } else {
    V runs[P][Q], some[P];
    for (int q = 0; q < Q; ++q) {
      for (int p = 0; p < P; ++p) some[p] = v[q * P + p];
      deinterleave<P, L>(some);
      for (int p = 0; p < P; ++p) runs[p][q] = some[p];
    }
    for (int p = 0; p < P; ++p) {
      deinterleave<Q, L>(runs[p]);
      for (int q = 0; q < Q; ++q) v[q * P + p] = runs[p][q];
    }
  }
}

}  // namespace fastnets::FASTNETS_ISA
