// Pointwise, depthwise, pointwise: the inverted residual of MobileNetV2. Included by isa.h: no guard.
//
// The hidden channels come in panels of 32. A panel of a strip of rows is expanded into scratch of 64 bytes a
// pixel in bfloat16, 128 in float32, which the depthwise convolution reads while it is in a cache; its results, of all
// panels, are scratch too, which the second product reads. A task is a strip with all three steps, where its scratch
// fits the second-level cache and there are strips enough; else a panel of a strip, and, when all of those are done, a
// panel of results: then no row is expanded twice and threads share the weights between them. Memory sees x read once,
// twice where it is the residual, and y written once; the weights come from the second or the third-level cache.
#include "pointwise_conv2d_multiply.h"
// Above and below: what this is written with.
#include "depthwise_conv2d_columns.h"

namespace fastnets::FASTNETS_ISA::inverted {

using fastnets::inverted::Problem;
using fastnets::pointwise::kPanel;
using fastnets::pointwise::Pixels;

// How many numbers one panel of the strips' source rows has, which are expanded into scratch.
template <typename T>
int64_t expanded(const Problem<T>& p) {
  if (!p.expand.w) return 0;
  int64_t rows = 0;
  for (int64_t strip = 0; strip < p.strips; ++strip) {
    const Range source = p.source_rows(p.rows(strip));
    rows = std::max(rows, source.end - source.begin);
  }
  return rows * p.g.w * kPanel;
}

// A panel of hidden channels of a unit, in `scratch` if they have to be expanded, convolved into y from its first
// pixel.
template <typename T>
void hidden_panel(const Problem<T>& p, int64_t unit, int64_t panel, T* scratch, Pixels<T> y) {
  const Convolution& g = p.g;
  const int64_t image = unit / p.strips, taps = g.kh * g.kw;
  const Range rows = p.rows(unit), source = p.source_rows(rows);
  channels_last::Row<T> row;
  row.source_pixel = p.expand.x.pixel, row.out_pixel = y.pixel, row.width = g.w;
  row.channels = std::min(kPanel, g.c - panel * kPanel);
  row.activate = Activate<float>(p.activation);
  const int64_t first = (image * g.h + source.begin) * g.w;
  const T* from = p.expand.x.data + first * p.expand.x.pixel + panel * kPanel;
  if (p.expand.w) {
    fastnets::pointwise::ProblemOf<T> expand = p.expand;
    expand.x.data += first * expand.x.pixel;
    expand.y = {scratch, kPanel, 0};
    pointwise::multiply(expand, {0, (source.end - source.begin) * g.w}, panel);
    from = scratch, row.source_pixel = kPanel;
  }
  const float* const weights = p.depthwise + panel * kPanel * (taps + 1);
  row.bias = weights + taps * row.channels;
  const channels_last::Columns set = channels_last::forward_columns(g);
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    row.source.clear(), row.weight.clear();
    for (int64_t i = 0; i < g.kh; ++i) {
      const int64_t h = r * g.sh - g.ph + i * g.dh;
      if (h < 0 || h >= g.h) continue;
      row.source.push_back(from + (h - source.begin) * g.w * row.source_pixel);
      row.weight.push_back(weights + i * g.kw * row.channels);
    }
    row.out = y.data + panel * y.panel + (r - rows.begin) * g.ow * y.pixel;
    channels_last::columns<T, pointwise::L>(row, set);
  }
}

// Units with all their steps.
template <typename T>
void units(const Problem<T>& p, int64_t begin, int64_t end) {
  const Scratch<T> scratch(expanded(p));
  const int64_t most = ceil_div(p.g.oh, p.strips) * p.g.ow;
  const Scratch<T> hidden(most * p.hidden_pixel());
  for (int64_t unit = begin; unit < end; ++unit) {
    const Range rows = p.rows(unit);
    const int64_t pixels = (rows.end - rows.begin) * p.g.ow;
    const int64_t first = (unit / p.strips * p.g.oh + rows.begin) * p.g.ow;
    const Pixels<T> to = p.hidden(hidden.data, pixels);
    for (int64_t panel = 0; panel < p.hidden_panels(); ++panel) hidden_panel(p, unit, panel, scratch.data, to);
    fastnets::pointwise::ProblemOf<T> project = p.project;
    project.x = {to.data, to.pixel, to.panel};
    project.y.data += first * project.y.pixel;
    if (project.residual.data) project.residual.data += first * project.residual.pixel;
    const auto tasks = tasks_of(project, pixels);
    pointwise::multiply_tasks(project, tasks, 0, tasks.count());
  }
}

// Panels of hidden channels of units, unit by unit, into `hidden`, which project reads.
template <typename T>
void hidden_panels(const Problem<T>& p, const Pixels<T>& hidden, int64_t begin, int64_t end) {
  const Scratch<T> scratch(expanded(p));
  for (int64_t task = begin; task < end; ++task) {
    const int64_t unit = task / p.hidden_panels();
    const int64_t first = (unit / p.strips * p.g.oh + p.rows(unit).begin) * p.g.ow;
    hidden_panel(p, unit, task % p.hidden_panels(), scratch.data,
                 {hidden.data + first * hidden.pixel, hidden.pixel, hidden.panel});
  }
}

}  // namespace fastnets::FASTNETS_ISA::inverted
