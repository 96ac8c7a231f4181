// Corner pooling along the rows of contiguous images. Included by isa.h: no guard.
//
// Neighbours in memory follow each other in the scan, so blocks of L rows and L columns are turned in registers (L log
// L shuffles): then lanes are rows, and a block is scanned in L steps. A task is some rows, or one image for a sum,
// whose other input is scanned along the height while the block is in registers. x is read once and y written once. A
// block that the image fills in part is copied, its last row and column repeated, which changes no maximum.
namespace fastnets::FASTNETS_ISA::corner_pool {

template <typename T, int L>
FASTNETS_INLINE void load_turned(const T* x, int64_t pitch, int64_t ahead, Vec<Number<T>, L> (&v)[L]) {
  for (int i = 0; i < L; ++i) {
    __builtin_prefetch(x + ahead + i * pitch);
    v[i] = load_numbers<T, L>(x + i * pitch);
  }
  transpose<Number<T>, L>(v);
}

template <typename T>
struct Rows {
  T* data;
  int64_t pitch;
};

// A block of L rows and columns: of the tensor itself, or, at its edges, of a copy.
template <typename T, int L>
struct Block {
  alignas(64) T copy[L * L];

  Rows<const T> read(const T* from, int64_t pitch, int64_t rows, int64_t columns) {
    if (rows >= L && columns >= L) return {from, pitch};
    for (int64_t i = 0; i < L; ++i)
      for (int64_t j = 0; j < L; ++j) copy[i * L + j] = from[std::min(i, rows - 1) * pitch + std::min(j, columns - 1)];
    return {copy, L};
  }

  // Where to write the block; to be followed by `written`.
  Rows<T> target(T* to, int64_t pitch, int64_t rows, int64_t columns) {
    if (rows >= L && columns >= L) return {to, pitch};
    return {copy, L};
  }

  void written(T* to, int64_t pitch, int64_t rows, int64_t columns) const {
    if (rows >= L && columns >= L) return;
    for (int64_t i = 0; i < std::min<int64_t>(L, rows); ++i)
      std::copy_n(copy + i * L, std::min<int64_t>(L, columns), to + i * pitch);
  }
};

template <typename T, int L, bool kReverse, bool kSum>
FASTNETS_INLINE void scan_block(Rows<const T> h, Rows<const T> x, Rows<T> y, Vec<Number<T>, L>& across, Number<T>* down,
                                bool streams) {
  using A = Number<T>;
  Vec<A, L> v[L];
  load_turned<T, L>(h.data, h.pitch, kReverse ? -L * h.pitch : L * h.pitch, v);
  for (int i = 0; i < L; ++i) {
    Vec<A, L>& at = v[kReverse ? L - 1 - i : i];
    at = across = later<A, L>(across, at);
  }
  transpose<A, L>(v);
  if constexpr (kSum) {
    Vec<A, L> m = load_numbers<A, L>(down);
    for (int i = 0; i < L; ++i) {
      const int row = kReverse ? L - 1 - i : i;
      m = later<A, L>(m, load_numbers<T, L>(x.data + row * x.pitch));
      v[row] += m;
    }
    store_numbers<A, L>(down, m);
  }
  for (int i = 0; i < L; ++i) store_numbers<T, L>(y.data + i * y.pitch, v[i], streams);
}

template <typename T, bool kReverse, bool kSum>
void forward_rows(const Problem& p, int64_t begin, int64_t end) {
  using A = Number<T>;
  constexpr int L = kLanes<A>;
  const int64_t across_blocks = (p.columns + L - 1) / L;
  std::vector<A> down;
  Block<T, L> x_block, h_block, y_block;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task * p.chunk, rows = std::min(p.chunk, p.rows - first), tiles = (rows + L - 1) / L;
    if constexpr (kSum) down.assign(across_blocks * L, lowest<A>());
    for (int64_t i = 0; i < tiles; ++i) {
      const int64_t row = p.place(i, tiles) * L, left_rows = rows - row;
      Vec<A, L> across = splat<A, L>(lowest<A>());
      for (int64_t j = 0; j < across_blocks; ++j) {
        const int64_t column = p.place(j, across_blocks) * L, left = p.columns - column;
        const int64_t at = (first + row) * p.columns + column;
        const Rows<const T> h = h_block.read(static_cast<const T*>(p.horizontal) + at, p.columns, left_rows, left);
        Rows<const T> x = h;
        if constexpr (kSum) x = x_block.read(static_cast<const T*>(p.vertical) + at, p.columns, left_rows, left);
        T* const out = static_cast<T*>(p.out) + at;
        const Rows<T> y = y_block.target(out, p.columns, left_rows, left);
        const bool streams = p.streams && y.data == out && can_stream<T, L>(out, p.columns);
        scan_block<T, L, kReverse, kSum>(h, x, y, across, down.data() + column, streams);
        y_block.written(out, p.columns, left_rows, left);
      }
    }
  }
  if (p.streams) finish_streams();
}

template <typename T, int L, bool kReverse, bool kFirst>
FASTNETS_INLINE void mark_block(Rows<const T> x, Vec<Number<T>, L>& m, int8_t* begins) {
  using A = Number<T>;
  Vec<A, L> v[L];
  load_turned<T, L>(x.data, x.pitch, L * x.pitch, v);
  for (int i = 0; i < L; ++i) {
    const int at = kReverse ? L - 1 - i : i;
    const auto narrow = __builtin_convertvector(takes<A, L, kFirst>(m, v[at]), Vec<int8_t, L>);
    std::memcpy(begins + at * L, &narrow, sizeof narrow);
    m = later<A, L>(m, v[at]);
  }
}

template <typename T, int L, bool kReverse>
FASTNETS_INLINE void collect_block(Rows<const T> dy, const int8_t* begins, Vec<Number<T>, L>& sum, Rows<T> dx,
                                   bool streams) {
  using A = Number<T>;
  Vec<A, L> v[L];
  load_turned<T, L>(dy.data, dy.pitch, L * dy.pitch, v);
  for (int i = 0; i < L; ++i) {
    const int at = kReverse ? i : L - 1 - i;
    Vec<int8_t, L> mask;
    std::memcpy(&mask, begins + at * L, sizeof mask);
    sum += v[at];
    v[at] = where<A, L>(mask, sum);
    sum = where<A, L>(~mask, sum);
  }
  transpose<A, L>(v);
  for (int i = 0; i < L; ++i) store_numbers<T, L>(dx.data + i * dx.pitch, v[i], streams);
}

template <typename T, bool kReverse, bool kFirst>
void backward_rows(const Problem& p, int64_t begin, int64_t end) {
  using A = Number<T>;
  constexpr int L = kLanes<A>;
  const int64_t blocks = (p.columns + L - 1) / L;
  std::vector<int8_t> begins(blocks * L * L);
  Block<T, L> in_block, out_block;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t stop = std::min((task + 1) * p.chunk, p.rows);
    for (int64_t row = task * p.chunk; row < stop; row += L) {
      const int64_t base = row * p.columns, rows = stop - row;
      Vec<A, L> m = splat<A, L>(lowest<A>()), sum{};
      for (int64_t j = 0; j < blocks; ++j) {
        const int64_t column = p.place(j, blocks) * L;
        const T* const x = static_cast<const T*>(p.horizontal) + base + column;
        mark_block<T, L, kReverse, kFirst>(in_block.read(x, p.columns, rows, p.columns - column), m,
                                           begins.data() + column * L);
      }
      std::fill_n(begins.data() + p.place(0, p.columns) * L, L, int8_t(-1));
      // The repeated columns past the last one, where they come first in the sums, are to stay out of them.
      if constexpr (!kReverse) std::fill(begins.begin() + p.columns * L, begins.end(), int8_t(-1));
      for (int64_t j = blocks - 1; j >= 0; --j) {
        const int64_t column = p.place(j, blocks) * L, left = p.columns - column, at = base + column;
        const Rows<const T> dy = in_block.read(static_cast<const T*>(p.dy) + at, p.columns, rows, left);
        T* const out = static_cast<T*>(p.out) + at;
        const Rows<T> dx = out_block.target(out, p.columns, rows, left);
        collect_block<T, L, kReverse>(dy, begins.data() + column * L, sum, dx,
                                      p.streams && dx.data == out && can_stream<T, L>(out, p.columns));
        out_block.written(out, p.columns, rows, left);
      }
    }
  }
  if (p.streams) finish_streams();
}

}  // namespace fastnets::FASTNETS_ISA::corner_pool
