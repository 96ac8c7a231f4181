// The kernels of strided copies. Lanes are neighbours of the result or, where it is cut apart, of the source; both are
// read and written once. Included by isa.h: no guard.
#include "strided_copy.h"
// Above: what the two below are written with.
#include "interleave.h"
#include "permute.h"

namespace fastnets::FASTNETS_ISA {

struct Bytes16 {
  uint64_t low, high;
};

template <typename V>
FASTNETS_INLINE V load_from(const char* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <bool STREAM, typename V>
FASTNETS_INLINE void store_to(char* p, const V& v) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (STREAM && sizeof v == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bits<__m512i>(v));
#endif
  std::memcpy(p, &v, sizeof v);
}

// Asks for a line to be written soon: stores across two that are in no near cache take long.
FASTNETS_INLINE void fetch_ahead(char* to) { __builtin_prefetch(to + 512, 1); }

// Elements i to i + L of G runs at once.
template <typename E, int G, int L, bool STREAM>
FASTNETS_INLINE void interleave_vectors(const char* from, const int64_t* offsets, char* to, int64_t i) {
  to += i * G * sizeof(E);
  for (int j = 0; j < G && !STREAM; ++j) fetch_ahead(to + j * L * sizeof(E));
  Vec<E, L> v[G];
  for (int j = 0; j < G; ++j) v[j] = load_from<Vec<E, L>>(from + offsets[j] + i * sizeof(E));
  interleave<G, L>(v);
  for (int j = 0; j < G; ++j) store_to<STREAM>(to + j * L * sizeof(E), v[j]);
}

template <typename E, int G, int L, bool STREAM>
FASTNETS_INLINE void deinterleave_vectors(const char* from, const int64_t* offsets, char* to, int64_t i) {
  to += i * sizeof(E);
  for (int j = 0; j < G && !STREAM; ++j) fetch_ahead(to + offsets[j]);
  Vec<E, L> v[G];
  for (int j = 0; j < G; ++j) v[j] = load_from<Vec<E, L>>(from + (i * G + j * L) * sizeof(E));
  deinterleave<G, L>(v);
  for (int j = 0; j < G; ++j) store_to<STREAM>(to + offsets[j], v[j]);
}

template <bool INVERSE, typename E, int G, int L, bool STREAM>
FASTNETS_INLINE void shuffle_vectors(const char* from, const int64_t* offsets, char* to, int64_t i) {
  if constexpr (INVERSE)
    deinterleave_vectors<E, G, L, STREAM>(from, offsets, to, i);
  else
    interleave_vectors<E, G, L, STREAM>(from, offsets, to, i);
}

// Vectors are halved until one fits; the last one overlaps the one before.
template <bool INVERSE, typename E, int G, int L, bool STREAM>
FASTNETS_INLINE void shuffle_block(const char* from, const int64_t* offsets, char* to, int64_t count) {
  if (count >= L) {
    int64_t i = 0;
    for (; i + L <= count; i += L) shuffle_vectors<INVERSE, E, G, L, STREAM>(from, offsets, to, i);
    if (i < count) shuffle_vectors<INVERSE, E, G, L, false>(from, offsets, to, count - L);
  } else if constexpr (L * sizeof(E) > 16) {
    shuffle_block<INVERSE, E, G, L / 2, false>(from, offsets, to, count);
  }
}

template <bool INVERSE, typename E, int G, bool STREAM>
void shuffle_blocks(const Block& block, const Rows& rows) {
  constexpr int L = FASTNETS_VECTOR_BYTES / sizeof(E);
  int64_t offsets[G];
  std::copy_n(block.offsets.data(), G, offsets);
  const char* from = rows.from;
  char* to = rows.to;
  for (int64_t row = 0; row < rows.count; ++row, from += rows.from_step, to += rows.to_step)
    shuffle_block<INVERSE, E, G, L, STREAM>(from, offsets, to, block.count);
}

template <typename E>
void gather_blocks(const Block& block, const Rows& rows) {
  const char* from = rows.from;
  char* to = rows.to;
  const int64_t *offsets = block.offsets.data(), count = block.offsets.size();
  for (int64_t row = 0; row < rows.count; ++row, from += rows.from_step, to += rows.to_step)
    for (int64_t k = 0; k < count; ++k) store_to<false>(to + k * sizeof(E), load_from<E>(from + offsets[k]));
}

// Stores are aligned but for the first and the last one, which overlap those beside them: across cache lines they cost
// more than loads. A call of memcpy for a short run would take longer.
FASTNETS_INLINE void copy_run(const char* from, char* to, int64_t count) {
  typedef unsigned char V __attribute__((vector_size(FASTNETS_VECTOR_BYTES)));
  constexpr int64_t kVector = sizeof(V), kLong = 4096;
  if (count < kVector || count > kLong) {
    std::memcpy(to, from, count);
    return;
  }
  const int64_t last = count - kVector;
  store_to<false>(to, load_from<V>(from));
  for (int64_t i = kVector - reinterpret_cast<uintptr_t>(to) % kVector; i < last; i += kVector)
    store_to<false>(to + i, load_from<V>(from + i));
  store_to<false>(to + last, load_from<V>(from + last));
}

// Runs that are neighbours in the result, which so is written in order.
inline void run_blocks(const Block& block, const Rows& rows) {
  const int64_t *offsets = block.offsets.data(), runs = block.offsets.size(), count = block.count;
  for (int64_t row = 0; row < rows.count; ++row)
    for (int64_t k = 0; k < runs; ++k)
      copy_run(rows.from + row * rows.from_step + offsets[k], rows.to + row * rows.to_step + k * count, count);
}

template <bool INVERSE, typename E, int G>
BlockKernel shuffle_kernel_of(bool streams) {
  return streams ? &shuffle_blocks<INVERSE, E, G, true> : &shuffle_blocks<INVERSE, E, G, false>;
}

template <bool INVERSE, typename E>
BlockKernel shuffle_kernel(int64_t g, bool streams) {
  switch (g) {
    case 2:
      return shuffle_kernel_of<INVERSE, E, 2>(streams);
    case 3:
      return shuffle_kernel_of<INVERSE, E, 3>(streams);
    case 4:
      return shuffle_kernel_of<INVERSE, E, 4>(streams);
    case 8:
      return shuffle_kernel_of<INVERSE, E, 8>(streams);
    case 9:
      return shuffle_kernel_of<INVERSE, E, 9>(streams);
    case 16:
      return shuffle_kernel_of<INVERSE, E, 16>(streams);
    default:
      return nullptr;
  }
}

template <typename E>
BlockKernel gather_kernel(Block& block) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (sizeof(E) < 16)
    if (find_windows<E>(block)) return block.streams ? &permute_blocks<E, true> : &permute_blocks<E, false>;
#endif
  block.windows.clear();
  return &gather_blocks<E>;
}

template <typename E>
BlockKernel kernel_of_type(Block& block) {
  if (block.move == Move::kGather) return gather_kernel<E>(block);
  if constexpr (sizeof(E) < 16) {
    const int64_t g = block.offsets.size();
    return block.move == Move::kInterleave ? shuffle_kernel<false, E>(g, block.streams)
                                           : shuffle_kernel<true, E>(g, block.streams);
  }
  return nullptr;
}

// Null where there is none for that many sources or results.
inline BlockKernel block_kernel(Block& block) {
  if (block.move == Move::kRun) return &run_blocks;
  switch (block.bytes) {
    case 1:
      return kernel_of_type<uint8_t>(block);
    case 2:
      return kernel_of_type<uint16_t>(block);
    case 4:
      return kernel_of_type<uint32_t>(block);
    case 8:
      return kernel_of_type<uint64_t>(block);
    default:
      return kernel_of_type<Bytes16>(block);
  }
}

}  // namespace fastnets::FASTNETS_ISA
