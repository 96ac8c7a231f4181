// The correlation of a strip with packed weights: y from x, or dx from dy. Included by isa.h: no guard.
//
// Lanes are result channels. A tile is W pixels of one row times V vectors of channels; for each tap and source channel
// of a group its weights are loaded once and meet the W pixels. A group of at least a vector's channels broadcasts its
// source channel to all lanes. Narrower groups share a vector: the source channels under it are one vector too, and a
// permutation gives every lane the k-th channel of its own group, so that no lane computes zeros. Three or two adjacent
// taps of a kernel row meet the same source columns: one broadcast or permutation then serves them all.
//
// With sums of products of bfloat16 (FASTNETS_BF16) a source channel is a pair of them: half as many steps.
//
// Operations: 2 * taps * in for each result, all of them useful where a vector is full. Memory sees the source read
// once (and the rows that two strips share twice) and the result written once.

namespace fastnets::FASTNETS_ISA::grouped {

// Lane l of the result is lane index[l] of v.
template <typename A, int L>
FASTNETS_INLINE Vec<A, L> permute(Vec<A, L> v, Vec<int32_t, L> index) {
#if FASTNETS_VECTOR_BYTES == 64
  if constexpr (L == 16) return bits<Vec<A, L>>(_mm512_permutexvar_ps(bits<__m512i>(index), bits<__m512>(v)));
#elif FASTNETS_VECTOR_BYTES == 32
  if constexpr (L == 8) return bits<Vec<A, L>>(_mm256_permutevar8x32_ps(bits<__m256>(v), bits<__m256i>(index)));
#endif
  Vec<A, L> r;
  for (int i = 0; i < L; ++i) r[i] = v[index[i]];
  return r;
}

// Vector k: for each lane, the place of the k-th source channel of its group; any, where a lane is left over.
template <int L>
std::vector<int32_t> lane_sources(const Problem& p) {
  std::vector<int32_t> index(p.in * L);
  for (int64_t k = 0; k < p.in; ++k)
    for (int64_t l = 0; l < L; ++l) index[k * L + l] = (l / p.out * p.in + k) % L;
  return index;
}

// sum + x * w
template <typename V>
FASTNETS_INLINE V multiply_add(V sum, V x, V w) {
#if defined(FASTNETS_BF16)
  return multiply_pairs(sum, x, w);
#else
  return sum + x * w;
#endif
}

// Where a run of adjacent taps stands in the source and in the weights, from those of the tile on.
struct Place {
  int64_t source, weight;
};

// The taps of one residue of row and column: for each row of the kernel, runs of `length` taps, their weights
// weight_step apart.
struct Taps {
  int64_t length = 1, weight_step = 0, runs_in_row = 0;
  std::vector<Place> runs;
};

// What the tiles of one block of channels share.
template <typename A>
struct Block {
  const A *weights, *bias;
  const int32_t* lane_sources;  // null: the source channel is broadcast
  int64_t depth, weight_channel, weight_vector;
  int64_t pixel, out_pixel, lanes;  // lanes: how many are stored
  const Place *runs, *runs_end;     // of the row at hand
  int64_t weight_tap;
  Activate<A> activate{Activation::kNone};
};

// Source column I of a tile, and of the taps j < K and pixels those that meet there: I = pixel * S + j.
template <typename A, int W, int V, int K, int S, int I>
FASTNETS_INLINE void meet(Vec<A, kLanes<A>> in, const Vec<A, kLanes<A>> (&w)[V][K], Vec<A, kLanes<A>> (&sums)[V][W]) {
  if constexpr (V * K > 1) hold(in);
#pragma GCC unroll 3
  for (int j = 0; j < K; ++j)
    if (I >= j && (I - j) % S == 0 && (I - j) / S < W)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[v][(I - j) / S] = multiply_add(sums[v][(I - j) / S], in, w[v][j]);
}

// All source columns of a tile. Unrolled by hand: sums in an array that a loop indexes would stay in memory.
template <typename A, int W, int V, int K, int S, int... I>
FASTNETS_INLINE void meet_all(const A* x, int64_t pixel, const Vec<A, kLanes<A>> (&w)[V][K],
                              Vec<A, kLanes<A>> (&sums)[V][W], std::integer_sequence<int, I...>) {
  (meet<A, W, V, K, S, I>(splat<A, kLanes<A>>(*walk(x, I, pixel)), w, sums), ...);
}

template <typename A, int W, int V, int K, int S, int... I>
FASTNETS_INLINE void meet_all(const A* x, int64_t pixel, Vec<int32_t, kLanes<A>> lanes,
                              const Vec<A, kLanes<A>> (&w)[V][K], Vec<A, kLanes<A>> (&sums)[V][W],
                              std::integer_sequence<int, I...>) {
  (meet<A, W, V, K, S, I>(permute<A, kLanes<A>>(load<A, kLanes<A>>(walk(x, I, pixel)), lanes), w, sums), ...);
}

// Stores W pixels of one vector, or of its first lanes.
template <typename A, int W>
FASTNETS_INLINE void write(const Activate<A>& activate, Vec<A, kLanes<A>> (&sums)[W], A* out, int64_t pixel,
                           int64_t lanes) {
  constexpr int L = kLanes<A>;
  activate.template operator()<L, W>(sums);
  if (lanes >= L)
    for (int i = 0; i < W; ++i) store<A, L>(out + i * pixel, sums[i]);
  else
    for (int i = 0; i < W; ++i) store_first<A, L>(out + i * pixel, sums[i], lanes);
}

// W pixels, V vectors; runs of K taps, source columns of neighbouring pixels S apart.
template <typename A, int W, int V, int K, int S, bool Permute>
void tile(const Block<A>& b, const A* source, A* out) {
  constexpr int L = kLanes<A>;
  using Columns = std::make_integer_sequence<int, (W - 1) * S + K>;
  // Copies in registers: the compiler must assume that the stores below change what `b` refers to.
  const int64_t depth = b.depth, channel = b.weight_channel, vector = b.weight_vector, tap = b.weight_tap;
  const int64_t pixel = b.pixel, out_pixel = b.out_pixel, lanes = b.lanes;
  const Activate<A> activate = b.activate;
  const int32_t* const index = b.lane_sources;
  for (int i = 0; i < W; ++i)  // the lines to write arrive while their values are computed
    for (int v = 0; v < V; ++v) __builtin_prefetch(out + i * out_pixel + v * L, 1);
  Vec<A, L> sums[V][W];
  for (int v = 0; v < V; ++v)
    for (int i = 0; i < W; ++i) sums[v][i] = load<A, L>(b.bias + v * L);
  for (const Place* run = b.runs; run != b.runs_end; ++run) {
    const A* x = source + run->source;
    const A* weight = b.weights + run->weight;
    for (int64_t k = 0; k < depth; ++k, weight += channel) {
      Vec<A, L> w[V][K];
      for (int v = 0; v < V; ++v)
        for (int j = 0; j < K; ++j) w[v][j] = load<A, L>(weight + v * vector + j * tap);
      if constexpr (Permute) {
        Vec<int32_t, L> order;
        std::memcpy(&order, index + k * L, sizeof order);
        meet_all<A, W, V, K, S>(x, pixel, order, w, sums, Columns());
      } else {
        meet_all<A, W, V, K, S>(x + k, pixel, w, sums, Columns());
      }
    }
  }
  write<A, W>(activate, sums[0], out, out_pixel, lanes);
  if constexpr (V > 1) write<A, W>(activate, sums[1], out + L, out_pixel, lanes - L);
}

// `count` pixels; the last tile overlaps the one before rather than be narrower. Three taps one after the other add to
// the same sum: seven sums would wait for each other, and fourteen fit the registers of AVX-512.
template <typename A, int V, int K, int S, bool Permute>
void tiles(const Block<A>& b, const A* source, int64_t count, A* out) {
  if constexpr (FASTNETS_VECTOR_BYTES == 64 && V == 1 && K == 3)
    if (count % 14 == 0) {
      for (int64_t t = 0; t < count; t += 14)
        tile<A, 14, V, K, S, Permute>(b, source + t * S * b.pixel, out + t * b.out_pixel);
      return;
    }
  const bool seven = count >= 7 && (count + 6) / 7 * 7 <= (count + 3) / 4 * 4;
  const int64_t width = seven ? 7 : count >= 4 ? 4 : 1;
  for (int64_t t = 0; t < count; t += width) {
    const int64_t at = std::min(t, count - width);
    const A* from = source + at * S * b.pixel;
    A* to = out + at * b.out_pixel;
    if (seven)
      tile<A, 7, V, K, S, Permute>(b, from, to);
    else if (width == 4)
      tile<A, 4, V, K, S, Permute>(b, from, to);
    else
      tile<A, 1, V, K, S, Permute>(b, from, to);
  }
}

template <typename A, int V, bool Permute>
void tiles(const Block<A>& b, int64_t run_length, int64_t source_step, const A* source, int64_t count, A* out) {
  if constexpr (std::is_same_v<A, float>) {
    if (run_length == 3 && source_step == 1) return tiles<A, V, 3, 1, Permute>(b, source, count, out);
    if (run_length == 3) return tiles<A, V, 3, 2, Permute>(b, source, count, out);
    if (run_length == 2) return tiles<A, V, 2, 1, Permute>(b, source, count, out);
  }
  tiles<A, V, 1, 1, Permute>(b, source, count, out);
}

template <typename A>
void tiles(const Block<A>& b, int64_t run_length, int64_t source_step, const A* source, int64_t count, A* out) {
  if (b.lane_sources) return tiles<A, 1, true>(b, run_length, source_step, source, count, out);
  if (b.lanes > kLanes<A>) return tiles<A, 2, false>(b, run_length, source_step, source, count, out);
  tiles<A, 1, false>(b, run_length, source_step, source, count, out);
}

// Weights of one unit, [vector][in][tap][lane], or [vector][tap][in][lane] where source channels are neighbours in w.
template <typename T>
class Weights {
 public:
  using A = Sum<T>;
  using Number = typename Strip<T>::Number;
  static constexpr int L = kLanes<A>;

  explicit Weights(const Problem& p)
      : vector(p.in * p.taps() * L),
        bias(round_up(p.unit_out(), 2 * L)),
        tap_major_(p.w_stride.c == 1),
        data_(round_up(p.unit_out(), L) / L * vector) {
    tap = (tap_major_ ? p.in : 1) * L;
    in = (tap_major_ ? 1 : p.taps()) * L;
  }

  void pack(const Problem& p, int64_t unit) {
    const Four& s = p.w_stride;
    const bool taps_adjacent = s.w == 1 && (p.kh == 1 || s.h == p.kw);
    for (int64_t c = 0; c < p.unit_out(); c += L) {
      const T* rows[L] = {};
      int64_t height = 0;
      for (; height < L && c + height < p.unit_out(); ++height) {
        const int64_t group = unit * p.together + (c + height) / p.out, o = group * p.out + (c + height) % p.out;
        if (group >= p.groups) break;
        rows[height] = static_cast<const T*>(p.w) + group * p.w_group + (c + height) % p.out * s.n;
        bias[c + height] = p.bias ? static_cast<A>(static_cast<const T*>(p.bias)[o * p.bias_step]) : A(0);
      }
      A* to = data_.data() + c / L * vector;
      if (tap_major_)
        for (int64_t t = 0; t < p.taps(); ++t)
          pack_run<Number>(rows, height, t / p.kw * s.h + t % p.kw * s.w, 0, p.in, to + t * tap);
      else if (taps_adjacent && s.c == p.taps() && kTogether == 1)
        pack_run<T>(rows, height, 0, 0, p.in * p.taps(), to);
      else
        for (int64_t k = 0; k < p.in; ++k)
          if (taps_adjacent)
            pack_run<T>(rows, height, k * kTogether * s.c, s.c, p.taps(), to + k * in);
          else
            for (int64_t t = 0; t < p.taps(); ++t)
              pack_run<T>(rows, height, k * kTogether * s.c + t / p.kw * s.h + t % p.kw * s.w, s.c, 1,
                          to + k * in + t * tap);
    }
  }

  const A* data() const { return data_.data(); }

  int64_t vector, tap, in;  // strides
  AlignedVector<A> bias;

 private:
  // A run from `offset` on of numbers of type N; of single ones that go by pairs, the others lie `next` further on.
  template <typename N>
  static void pack_run(const T* const* rows, int64_t height, int64_t offset, int64_t next, int64_t count, A* to) {
    const N* from[L] = {};
    for (int64_t r = 0; r < height; ++r) from[r] = reinterpret_cast<const N*>(rows[r] + offset);
    if constexpr (kTogether > 1 && std::is_same_v<N, T>)
      pairs_to_lanes(from, next, height, count, to, L);
    else
      rows_to_lanes<N>(from, height, count, to, L);
  }

  bool tap_major_;
  AlignedVector<A> data_;
};

// How many taps of a kernel row a tile takes at once: those at adjacent source columns, for the shapes that networks
// have.
template <typename A>
int64_t run_length(const std::vector<Tap>& columns, int64_t source_step) {
  if (!std::is_same_v<A, float> || columns.size() < 2) return 1;
  const int64_t count = columns.size(), step = columns[1].offset - columns[0].offset;
  if (step != 1 && step != -1) return 1;
  return (count == 3 && source_step <= 2) || (count == 2 && source_step == 1) ? count : 1;
}

// Where the taps stand, for each residue of row and column.
template <typename T>
std::vector<Taps> taps_of(const Problem& p, const Strip<T>& strip, const Weights<T>& weights) {
  std::vector<Taps> all;
  for (const auto& rows : p.rows.taps)
    for (std::vector<Tap> columns : p.columns.taps) {
      std::sort(columns.begin(), columns.end(), by_offset);
      Taps taps;
      taps.length = run_length<Sum<T>>(columns, p.columns.source_step);
      if (taps.length > 1) taps.weight_step = (columns[1].index - columns[0].index) * weights.tap;
      taps.runs_in_row = columns.size() / taps.length;
      for (const Tap& i : rows)
        for (size_t j = 0; j < columns.size(); j += taps.length)
          taps.runs.push_back(
              {(i.offset - p.rows.first) * strip.row + (columns[j].offset - p.columns.first) * strip.pixel,
               (i.index * p.kw + columns[j].index) * weights.tap});
      all.push_back(taps);
    }
  return all;
}

// A result row of a block of channels: pixels `pitch` apart in `from`.
template <typename T>
void write_row(const Sum<T>* from, int64_t pitch, const Problem& p, T* to, int64_t lanes) {
  constexpr int L = kLanes<Sum<T>>;
  const Four& s = p.result.stride;
  for (int64_t l = 0; l < lanes; l += L) {
    if (s.c == 1)
      for (int64_t j = 0; j < p.columns.size; ++j)
        store_first<T, L>(to + j * s.w + l, load<Sum<T>, L>(from + j * pitch + l), lanes - l);
    else if (s.w == 1)
      lanes_to_rows<T>(from + l, pitch, p.columns.size, to + l * s.c, s.c, lanes - l);
    else
      for (int64_t j = 0; j < p.columns.size; ++j)
        for (int64_t r = l; r < std::min(l + L, lanes); ++r)
          to[j * s.w + r * s.c] = static_cast<T>(from[j * pitch + r]);
  }
}

// Taps of a kernel column whose source row lies inside the source, for results at place q: their offsets ascend or
// descend.
inline Range taps_inside(const std::vector<Tap>& taps, const Axis& axis, int64_t q) {
  Range range{0, static_cast<int64_t>(taps.size())};
  const int64_t at = q * axis.source_step;
  while (range.begin < range.end && !axis.holds(at + taps[range.begin].offset)) ++range.begin;
  while (range.begin < range.end && !axis.holds(at + taps[range.end - 1].offset)) --range.end;
  return range;
}

// Rows [q.begin, q.end) of one unit, `source` its strip.
template <typename T>
void correlate_unit(const Problem& p, const Strip<T>& strip, const Sum<T>* source, const Weights<T>& weights,
                    const std::vector<Taps>& taps, const std::vector<int32_t>& lane_sources, int64_t n, int64_t unit,
                    Range q, AlignedVector<Sum<T>>& row) {
  using A = Sum<T>;
  constexpr int64_t L = kLanes<A>, kVectors = FASTNETS_VECTOR_BYTES == 64 ? 2 : 1;  // as registers allow
  const Four& s = p.result.stride;
  const bool direct = std::is_same_v<T, A> && s.c == 1;
  const int64_t first = unit * p.unit_out(), channels = std::min(p.unit_out(), p.groups * p.out - first);
  const int64_t out_pixel = direct ? s.w : kVectors * L;
  Block<A> block{};
  block.lane_sources = p.together > 1 ? lane_sources.data() : nullptr;
  block.depth = p.in, block.weight_channel = weights.in, block.weight_vector = weights.vector;
  block.out_pixel = p.columns.step * out_pixel, block.activate = Activate<A>(p.activation);
  for (int64_t c = 0; c < channels; c += kVectors * L) {
    block.weights = weights.data() + c / L * weights.vector, block.bias = weights.bias.data() + c;
    block.lanes = std::min(kVectors * L, channels - c);
    for (int64_t r = q.begin * p.rows.step; r < std::min(q.end * p.rows.step, p.rows.size); ++r) {
      T* to = static_cast<T*>(p.result.data) + n * s.n + (first + c) * s.c + r * s.h;
      A* out = row.data();
      if constexpr (std::is_same_v<T, A>)
        if (direct) out = to;
      const A* from = source + (r / p.rows.step - q.begin) * p.rows.source_step * strip.row;
      const Range inside = taps_inside(p.rows.taps[r % p.rows.step], p.rows, r / p.rows.step);
      for (int64_t b = 0, residues = p.columns.taps.size(); b < residues; ++b) {
        const Taps& some = taps[r % p.rows.step * residues + b];
        block.pixel = strip.pixel * (some.length > 1 ? 1 : p.columns.source_step), block.weight_tap = some.weight_step;
        block.runs = some.runs.data() + inside.begin * some.runs_in_row;
        block.runs_end = some.runs.data() + inside.end * some.runs_in_row;
        tiles<A>(block, some.length, p.columns.source_step, from, p.columns.count(b), out + b * out_pixel);
      }
      if (!direct) write_row<T>(row.data(), out_pixel, p, to, block.lanes);
    }
  }
}

template <typename T>
void correlate(const Problem& p, int64_t begin, int64_t end) {
  constexpr int64_t L = kLanes<Sum<T>>;
  Strip<T> strip(p.source, p.unit_in(), p.groups * p.in, p.rows, p.columns, p.most_rows(), p.chunk);
  std::vector<Weights<T>> weights(p.chunk, Weights<T>(p));
  const std::vector<Taps> taps = taps_of(p, strip, weights[0]);
  const std::vector<int32_t> index = p.together > 1 ? lane_sources<L>(p) : std::vector<int32_t>();
  AlignedVector<Sum<T>> row(p.columns.size * 2 * L);
  int64_t packed = -1;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task / (p.n * p.strips), n = task / p.strips % p.n;
    const Range units = p.units_of(chunk), q = p.rows_of(task % p.strips);
    for (int64_t u = units.begin; chunk != packed && u < units.end; ++u) weights[u - units.begin].pack(p, u);
    packed = chunk;
    strip.fill(n, units, q.begin * p.rows.source_step + p.rows.first, p.rows.span(q.end - q.begin));
    for (int64_t u = units.begin; u < units.end; ++u)
      correlate_unit<T>(p, strip, strip.at(u - units.begin), weights[u - units.begin], taps, index, n, u, q, row);
  }
}

}  // namespace fastnets::FASTNETS_ISA::grouped
