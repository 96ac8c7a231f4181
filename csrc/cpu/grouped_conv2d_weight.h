// Gradients of weight and bias. Included by isa.h: no guard.
//
// Lanes are result channels. Strips of x and dy are brought into the first caches once; there, for up to 12 pairs of a
// source channel and a tap, sums of dy * x run over all pixels in registers. Memory sees x and dy read once.

namespace fastnets::FASTNETS_ISA::grouped {

// A vector of dy's channels and the source channels under it.
template <typename A>
struct Gradient {
  const A *x, *dy;
  int64_t x_row, x_pixel, dy_row, dy_pixel;  // steps from one result to the next
  int64_t rows, columns;
};

// sums[m] += over the pixels of dy * x[places[m]], for M pairs. lane_sources: as in a tile, of one source channel.
template <typename A, int M, bool Permute>
void weight_tile(const Gradient<A>& g, const int64_t* places, const int32_t* lane_sources, A* sums) {
  constexpr int L = kLanes<A>;
  Vec<int32_t, L> lanes{};
  if constexpr (Permute) std::memcpy(&lanes, lane_sources, sizeof lanes);
  int64_t place[M];
  Vec<A, L> total[M];
  for (int m = 0; m < M; ++m) place[m] = places[m], total[m] = load<A, L>(sums + m * L);
  const int64_t columns = g.columns, x_pixel = g.x_pixel, dy_pixel = g.dy_pixel;
  for (int64_t i = 0; i < g.rows; ++i) {
    const A *x = g.x + i * g.x_row, *dy = g.dy + i * g.dy_row;
    for (int64_t j = 0; j < columns; ++j, x += x_pixel, dy += dy_pixel) {
      const Vec<A, L> d = load<A, L>(dy);
      for (int m = 0; m < M; ++m) {
        if constexpr (Permute)
          total[m] += permute<A, L>(load<A, L>(x + place[m]), lanes) * d;
        else
          total[m] += splat<A, L>(x[place[m]]) * d;
      }
    }
  }
  for (int m = 0; m < M; ++m) store<A, L>(sums + m * L, total[m]);
}

// Any number of pairs.
template <typename A, bool Permute>
void weight_tiles(const Gradient<A>& g, const int64_t* places, int64_t count, const int32_t* lane_sources, A* sums) {
  constexpr int L = kLanes<A>;
  int64_t m = 0;
  for (; m + 12 <= count; m += 12) weight_tile<A, 12, Permute>(g, places + m, lane_sources, sums + m * L);
  for (; m + 9 <= count; m += 9) weight_tile<A, 9, Permute>(g, places + m, lane_sources, sums + m * L);
  for (; m + 4 <= count; m += 4) weight_tile<A, 4, Permute>(g, places + m, lane_sources, sums + m * L);
  for (; m < count; ++m) weight_tile<A, 1, Permute>(g, places + m, lane_sources, sums + m * L);
}

// sums += dy over the pixels.
template <typename A>
void bias_tile(const Gradient<A>& g, A* sums) {
  constexpr int L = kLanes<A>;
  Vec<A, L> total = load<A, L>(sums);
  for (int64_t i = 0; i < g.rows; ++i)
    for (int64_t j = 0; j < g.columns; ++j) total += load<A, L>(g.dy + i * g.dy_row + j * g.dy_pixel);
  store<A, L>(sums, total);
}

// Where the pairs stand in a strip of x: [in][tap].
template <typename T>
std::vector<int64_t> pairs_of(const Problem& p, const Strip<T>& x) {
  std::vector<int64_t> places;
  for (int64_t k = 0; k < p.in; ++k)
    for (const auto& i : p.rows.taps[0])
      for (const auto& j : p.columns.taps[0])
        places.push_back((i.offset - p.rows.first) * x.row + (j.offset - p.columns.first) * x.pixel +
                         (p.together > 1 ? 0 : k));
  return places;
}

// The problem is that of the forward pass, its result dy.
template <typename T>
void weight_gradient(const Problem& p, void* partial, int64_t begin, int64_t end) {
  using A = Sum<T>;
  constexpr int64_t L = kLanes<A>;
  const Axis dy_rows{p.rows.size, p.rows.size}, dy_columns{p.columns.size, p.columns.size};
  Strip<T> x(p.source, p.unit_in(), p.groups * p.in, p.rows, p.columns, p.most_rows(), p.chunk);
  Strip<T> dy(p.result, p.unit_out(), p.groups * p.out, dy_rows, dy_columns, p.most_rows(), p.chunk);
  const std::vector<int64_t> places = pairs_of(p, x);
  const std::vector<int32_t> index = p.together > 1 ? lane_sources<L>(p) : std::vector<int32_t>();
  const int64_t pairs = p.pairs(), vectors = round_up(p.unit_out(), L) / L, slot = vectors * (pairs + 1) * L;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t part = task % p.parts;
    const Range units = p.units_of(task / p.parts), strips = share(p.n * p.strips, part, p.parts);
    A* const sums = static_cast<A*>(partial) + (part * p.units() + units.begin) * slot;
    std::fill(sums, sums + (units.end - units.begin) * slot, A(0));
    for (int64_t strip = strips.begin; strip < strips.end; ++strip) {
      const Range rows = p.rows_of(strip % p.strips);
      if (p.weighs)
        x.fill(strip / p.strips, units, rows.begin * p.rows.source_step + p.rows.first,
               p.rows.span(rows.end - rows.begin));
      dy.fill(strip / p.strips, units, rows.begin, rows.end - rows.begin);
      for (int64_t i = 0; i < (units.end - units.begin) * vectors; ++i) {
        const Gradient<A> g{x.at(i / vectors),
                            dy.at(i / vectors) + i % vectors * L,
                            p.rows.source_step * x.row,
                            p.columns.source_step * x.pixel,
                            dy.row,
                            dy.pixel,
                            rows.end - rows.begin,
                            p.columns.size};
        A* const to = sums + i * (pairs + 1) * L;
        if (p.together > 1)
          for (int64_t k = 0; p.weighs && k < p.in; ++k)
            weight_tiles<A, true>(g, places.data() + k * p.taps(), p.taps(), index.data() + k * L,
                                  to + k * p.taps() * L);
        else
          weight_tiles<A, false>(g, places.data(), pairs, nullptr, to);
        bias_tile<A>(g, to + pairs * L);
      }
    }
  }
}

}  // namespace fastnets::FASTNETS_ISA::grouped
