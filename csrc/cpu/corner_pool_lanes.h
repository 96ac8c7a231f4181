// Corner pooling where neighbours in memory are scanned side by side. Included by isa.h: no guard.
//
// Lanes are neighbours: columns of a contiguous image scanned along its height, or channels of channels_last. A task
// goes down (or up) the rows of one image for a chunk of lanes, with the running maxima in the first-level cache, or,
// for a sum, in the second: x is read once and y written once, 2 * bytes a number (3 for a sum). A scan that begins
// at the last row also goes through each row from its end: only then is it one stream to the processor. The backward
// pass goes twice over a chunk. First over x: a byte for each number says whether a maximum begins there, 64 KiB for
// 128 rows. Then backwards over dy, adding it up until such a beginning, which receives the sum; all else receives 0.

namespace fastnets::FASTNETS_ISA::corner_pool {

using corner::Problem;

// First lane of a task, and how many.
struct Chunk {
  int64_t image, first, count;
};
inline Chunk chunk_of(const Problem& p, int64_t task) {
  const int64_t first = task % p.chunks() * p.chunk;
  return {task / p.chunks(), first, std::min(p.chunk, p.lanes - first)};
}

// y = the running maxima after x, plus, for a sum, those after h.
template <typename T, int L, bool kSum>
FASTNETS_INLINE void advance(const T* x, const T* h, T* y, Number<T>* down, Number<T>* across, bool streams) {
  using A = Number<T>;
  Vec<A, L> m = later<A, L>(load_numbers<A, L>(down), load_numbers<T, L>(x));
  store_numbers<A, L>(down, m);
  if constexpr (kSum) {
    const Vec<A, L> a = later<A, L>(load_numbers<A, L>(across), load_numbers<T, L>(h));
    store_numbers<A, L>(across, a);
    m += a;
  }
  store_numbers<T, L>(y, m, streams);
}

template <typename T, bool kSum>
void forward_lanes(const Problem& p, int64_t begin, int64_t end) {
  using A = Number<T>;
  constexpr int L = kLanes<A>;
  const int64_t ahead = p.reverse ? -p.lanes : p.lanes;  // to the next row
  AlignedVector<A> down, across;
  for (int64_t task = begin; task < end; ++task) {
    const Chunk c = chunk_of(p, task);
    const bool streams = p.streams && can_stream<T, L>(static_cast<T*>(p.out) + c.first, p.lanes);
    down.assign(p.columns * c.count, lowest<A>());
    const int64_t whole = c.count / L;
    for (int64_t i = 0; i < p.rows; ++i) {
      if constexpr (kSum) across.assign(c.count, lowest<A>());
      for (int64_t j = 0; j < p.columns; ++j) {
        const int64_t row = c.image * p.rows + p.place(i, p.rows), column = p.place(j, p.columns);
        const int64_t at = (row * p.columns + column) * p.lanes + c.first;
        const T* const x = static_cast<const T*>(p.vertical) + at;
        const T* const h = kSum ? static_cast<const T*>(p.horizontal) + at : nullptr;
        T* const y = static_cast<T*>(p.out) + at;
        A* const m = down.data() + j * c.count;
        for (int64_t v = 0; v < whole; ++v) {
          const int64_t k = p.place(v, whole) * L;
          __builtin_prefetch(x + k + ahead);
          if constexpr (kSum) __builtin_prefetch(h + k + ahead);
          if (!streams) __builtin_prefetch(y + k + ahead, 1);
          advance<T, L, kSum>(x + k, kSum ? h + k : h, y + k, m + k, across.data() + k, streams);
        }
        for (int64_t k = whole * L; k < c.count; ++k)
          advance<T, 1, kSum>(x + k, kSum ? h + k : h, y + k, m + k, across.data() + k, false);
      }
    }
  }
  if (p.streams) finish_streams();
}

// begins = where x becomes the maximum of what follows, a byte for each lane.
template <typename T, int L, bool kFirst>
FASTNETS_INLINE void mark(const T* x, Number<T>* m, int8_t* begins) {
  using A = Number<T>;
  const Vec<A, L> before = load_numbers<A, L>(m), v = load_numbers<T, L>(x);
  store_numbers<A, L>(m, later<A, L>(before, v));
  const auto narrow = __builtin_convertvector(takes<A, L, kFirst>(before, v), Vec<int8_t, L>);
  std::memcpy(begins, &narrow, sizeof narrow);
}

// Lanes of a, or zero.
template <typename A, int L>
FASTNETS_INLINE Vec<A, L> where(Vec<int8_t, L> mask, Vec<A, L> a) {
  using Mask = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;
  return bits<Vec<A, L>>(__builtin_convertvector(mask, Vec<Mask, L>) & bits<Vec<Mask, L>>(a));
}

// Adds dy to the sums; those that reach the beginning of their maximum go to dx and start anew.
template <typename T, int L>
FASTNETS_INLINE void collect(const T* dy, const int8_t* begins, Number<T>* sums, T* dx, bool streams) {
  using A = Number<T>;
  Vec<int8_t, L> mask;
  std::memcpy(&mask, begins, sizeof mask);
  const Vec<A, L> sum = load_numbers<A, L>(sums) + load<T, L>(dy);
  store_numbers<T, L>(dx, where<A, L>(mask, sum), streams);
  store_numbers<A, L>(sums, where<A, L>(~mask, sum));
}

template <typename T, bool kFirst>
void backward_lanes(const Problem& p, int64_t begin, int64_t end) {
  using A = Number<T>;
  constexpr int L = kLanes<A>;
  const int64_t ahead = p.reverse ? -p.lanes : p.lanes;  // to the next row over x, from it over dy
  AlignedVector<A> m, sums;
  std::vector<int8_t> begins(p.rows * p.chunk);
  for (int64_t task = begin; task < end; ++task) {
    const Chunk c = chunk_of(p, task);
    const int64_t base = c.image * p.rows * p.lanes + c.first, whole = c.count / L;
    const bool streams = p.streams && can_stream<T, L>(static_cast<T*>(p.out) + base, p.lanes);
    m.assign(c.count, lowest<A>());
    sums.assign(c.count, A(0));
    for (int64_t i = 0; i < p.rows; ++i) {
      const T* const x = static_cast<const T*>(p.vertical) + base + p.place(i, p.rows) * p.lanes;
      int8_t* const to = begins.data() + i * c.count;
      for (int64_t v = 0; v < whole; ++v) {
        const int64_t k = p.place(v, whole) * L;
        __builtin_prefetch(x + k + ahead);
        mark<T, L, kFirst>(x + k, m.data() + k, to + k);
      }
      for (int64_t k = whole * L; k < c.count; ++k) mark<T, 1, kFirst>(x + k, m.data() + k, to + k);
    }
    std::fill_n(begins.data(), p.rows > 0 ? c.count : 0, int8_t(-1));
    for (int64_t i = p.rows - 1; i >= 0; --i) {
      const int64_t at = base + p.place(i, p.rows) * p.lanes;
      const T* const dy = static_cast<const T*>(p.dy) + at;
      T* const dx = static_cast<T*>(p.out) + at;
      const int8_t* const from = begins.data() + i * c.count;
      for (int64_t v = whole - 1; v >= 0; --v) {
        const int64_t k = p.place(v, whole) * L;
        __builtin_prefetch(dy + k - ahead);
        if (!streams) __builtin_prefetch(dx + k - ahead, 1);
        collect<T, L>(dy + k, from + k, sums.data() + k, dx + k, streams);
      }
      for (int64_t k = whole * L; k < c.count; ++k) collect<T, 1>(dy + k, from + k, sums.data() + k, dx + k, false);
    }
  }
  if (p.streams) finish_streams();
}

}  // namespace fastnets::FASTNETS_ISA::corner_pool
