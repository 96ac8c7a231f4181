// 1x1 kernels on pixels that lie side by side: for each group a product of matrices. Included by isa.h: no guard.
//
// The tile is that of pointwise_conv2d_tile.h, on a group's channels of each pixel. A thread packs each panel of
// weights when it first meets it. Of a large result a tile fetches the lines that the next one writes over: they are in
// no near cache, and places in which each pixel gets a few lines are not foreseen. Moves 4 bytes * (pixels * groups *
// (in + out) + groups * in * out).

namespace fastnets::FASTNETS_ISA::grouped {

using fastnets::pointwise::kPanel;

// A panel of one group's weights as [in][kPanel]; after the last of `out` only that vector is filled, with zeros.
inline void pack_panel(const Problem& p, int64_t out, int64_t group, int64_t panel, float* to) {
  constexpr int64_t L = kLanes<float>;
  const Four& s = p.w_stride;
  const float* const w = static_cast<const float*>(p.w) + group * p.w_group;
  const int64_t run = s.c == 1 ? p.in : 1;  // source channels that are neighbours
  const int64_t first = panel * kPanel, end = std::min(first + kPanel, out);
  for (int64_t o = first; o < end; o += L)
    for (int64_t k = 0; k < p.in; k += run) {
      float* const lanes = to + k * kPanel + o - first;
      if (s.n == 1 && run == 1) {  // as in the gradient of the input
        store<float, L>(lanes, load_first<float, L>(w + o + k * s.c, end - o));
        continue;
      }
      const float* rows[L] = {};
      for (int64_t r = 0; r < std::min(L, end - o); ++r) rows[r] = w + (o + r) * s.n + k * s.c;
      rows_to_lanes<float>(rows, std::min(L, end - o), run, lanes, kPanel);
    }
}

inline void multiply(const Problem& p, const fastnets::pointwise::Problem& first,
                     const fastnets::pointwise::Tasks& tasks, int64_t begin, int64_t end) {
  const int64_t panels = first.panels(), parts = tasks.panels / p.groups, size = p.in * kPanel;
  const Scratch<float> weights(p.groups * panels * size);
  std::vector<bool> packed(p.groups * panels);
  for (int64_t task = begin; task < end;) {
    const int64_t group = tasks.panel(task) / parts, panel = tasks.panel(task) % parts, i = group * panels + panel;
    const Range pixels = tasks.merged(task, end);
    fastnets::pointwise::Problem product = first;
    product.x.data += group * p.in, product.y.data += group * p.out, product.w = weights.data + group * panels * size;
    if (first.bias) product.bias += group * p.out;
    if (panel < panels) {
      if (!packed[i]) pack_panel(p, first.out, group, panel, weights.data + i * size), packed[i] = true;
      pointwise::multiply(product, pixels, panel);
    } else {
      dots(p, product, group, pixels);
    }
  }
}

}  // namespace fastnets::FASTNETS_ISA::grouped
