// Pointwise, depthwise, pointwise: the inverted residual of MobileNetV2. Included by isa.h: no guard.
//
// The hidden channels come in panels of 32. A panel of a strip of rows is expanded into scratch of 64 bytes a
// pixel in bfloat16, 128 in float32, which the depthwise convolution reads while it is in a cache; its results, of all
// panels, are scratch too, which the second product reads. A task is a strip with all three steps, where its scratch
// fits the second-level cache and there are strips enough; else a panel of a strip, and, when all of those are done, a
// panel of results: then no row is expanded twice and threads share the weights between them. Memory sees x read once,
// twice where it is the residual, and y written once; the weights come from the second or the third-level cache.
//
// With squeeze and excitation, the rows of hidden channels are summed as soon as they are written, into 4 bytes a row
// and channel, and scaled where they lie: a task is then all steps of an image, or each of them is its own.
//
// In bytes, x is made bytes strip by strip, or by a step before, hidden channels row by row as they are written; the
// depthwise convolution multiplies float32.
#include "levels_kernels.h"
#include "pointwise_conv2d_multiply.h"
// Above and below: what this is written with.
#include "depthwise_conv2d_columns.h"
#include "squeeze_excitation_scales.h"

namespace fastnets::FASTNETS_ISA::inverted {

using fastnets::inverted::Problem;
using fastnets::pointwise::kIsBytes;
using fastnets::pointwise::kPanel;
using fastnets::pointwise::Number;
using fastnets::pointwise::Pixels;

// The most pixels that the depthwise convolution reads of a strip, where they are written to scratch.
template <typename X, typename Y>
int64_t source_pixels(const Problem<X, Y>& p) {
  if (!p.is_made()) return 0;
  int64_t rows = 0;
  for (int64_t strip = 0; strip < p.strips; ++strip) {
    const Range source = p.source_rows(p.rows(strip));
    rows = std::max(rows, source.end - source.begin);
  }
  return rows * p.g.w;
}

// How many numbers of scratch a panel of a strip takes: these and, in int8, a row of results behind them.
template <typename X, typename Y>
int64_t panel_scratch(const Problem<X, Y>& p) {
  return (source_pixels(p) + (kIsBytes<X> ? p.g.ow : 0)) * kPanel;
}

// Of x, as it is multiplied, the pixels that a unit needs. Bytes are made in `scratch`, unless they are there.
template <typename X, typename Y>
const X* source_of(const Problem<X, Y>& p, int64_t unit, X* scratch) {
  const Range source = p.source_rows(p.rows(unit));
  const int64_t first = (unit / p.strips * p.g.h + source.begin) * p.g.w;
  if (p.expand.x.data) return p.expand.x.data + first * p.expand.x.pixel;
  if constexpr (kIsBytes<X>) {
    const int64_t pixels = (source.end - source.begin) * p.g.w;
    if (p.expand.w)
      quantize_pixels({p.x.data + first * p.x.pixel, p.x.pixel}, p.in, p.levels, scratch, p.expand.x.pixel, 0, pixels);
  }
  return scratch;
}

// The sums of at most kPanel channels, of which kLanes are whole, over the pixels of a row.
template <typename T>
void sum_row(const T* x, int64_t pixels, int64_t pixel, int64_t channels, float* sums) {
  constexpr int L = pointwise::L, kChains = 4;
  for (int64_t c = 0; c < channels; c += L) {
    Vec<float, L> sum[kChains] = {};
    int64_t i = 0;
    for (; i + kChains <= pixels; i += kChains)
      for (int chain = 0; chain < kChains; ++chain) sum[chain] += load<T, L>(x + (i + chain) * pixel + c);
    for (; i < pixels; ++i) sum[0] += load<T, L>(x + i * pixel + c);
    store<float, L>(sums + c, (sum[0] + sum[1]) + (sum[2] + sum[3]));
  }
}

// A panel of hidden channels of a unit, of which `x` is what source_of gives and `scratch` takes panel_scratch numbers,
// convolved into y from its first pixel; the sums of its rows go into those of the image, if there are any.
template <typename X, typename Y>
void hidden_panel(const Problem<X, Y>& p, int64_t unit, int64_t panel, const X* x, Number<X>* scratch, Pixels<X> y,
                  float* sums) {
  using T = Number<X>;
  const Convolution& g = p.g;
  const int64_t image = unit / p.strips, taps = g.kh * g.kw;
  const Range rows = p.rows(unit), source = p.source_rows(rows);
  channels_last::Row<T> row;
  row.source_pixel = p.x.pixel, row.out_pixel = kIsBytes<X> ? kPanel : y.pixel, row.width = g.w;
  row.channels = std::min(kPanel, g.c - panel * kPanel);
  row.activate = decltype(row.activate)(p.activation);
  const int64_t pixels = (source.end - source.begin) * g.w;
  const T* from = scratch;
  if (p.is_made())
    row.source_pixel = kPanel;
  else
    from = p.x.data + (image * g.h + source.begin) * g.w * p.x.pixel + panel * kPanel;
  if (p.expand.w) {
    fastnets::pointwise::ProblemOf<X> expand = p.expand;
    expand.x.data = x;
    expand.y = {scratch, kPanel, 0};
    pointwise::multiply(expand, {0, pixels}, panel);
  } else if constexpr (kIsBytes<X>) {
    if (p.is_made())
      number_pixels({x + panel * kPanel, p.expand.x.pixel}, row.channels, p.levels, scratch, kPanel, pixels);
  }
  const float* const weights = p.depthwise + panel * kPanel * (taps + 1);
  row.bias = weights + taps * row.channels;
  const channels_last::Columns set = channels_last::forward_columns(g);
  [[maybe_unused]] T* const results =
      scratch + (panel_scratch(p) - g.ow * kPanel);  // in int8: a row, behind the others
  for (int64_t r = rows.begin; r < rows.end; ++r) {
    row.source.clear(), row.weight.clear();
    for (int64_t i = 0; i < g.kh; ++i) {
      const int64_t h = r * g.sh - g.ph + i * g.dh;
      if (h < 0 || h >= g.h) continue;
      row.source.push_back(from + (h - source.begin) * g.w * row.source_pixel);
      row.weight.push_back(weights + i * g.kw * row.channels);
    }
    X* const out = y.data + panel * y.panel + (r - rows.begin) * g.ow * y.pixel;
    if constexpr (kIsBytes<X>) {
      row.out = results;
      channels_last::columns<T, pointwise::L>(row, set);
      quantize_pixels({row.out, kPanel}, row.channels, p.hidden_levels, out, y.pixel, 0, g.ow);
    } else {
      row.out = out;
      channels_last::columns<T, pointwise::L>(row, set);
      if (sums) sum_row(row.out, g.ow, y.pixel, row.channels, sums + r * g.c + panel * kPanel);
    }
  }
}

// The means of a panel's channels over an image.
template <typename T>
void mean_panel(const Problem<T>& p, int64_t panel, const float* sums, T* means) {
  constexpr int L = pointwise::L;
  const int64_t end = std::min(p.g.c, (panel + 1) * kPanel);
  for (int64_t c = panel * kPanel; c < end; c += L) {
    Vec<float, L> sum{};
    for (int64_t r = 0; r < p.g.oh; ++r) sum += load<float, L>(sums + r * p.g.c + c);
    store<T, L>(means + c, sum / static_cast<float>(p.g.oh * p.g.ow));
  }
}

// Scales a panel of an image's hidden channels, which begin at its first pixel.
template <typename T>
void excite_panel(const Problem<T>& p, int64_t panel, const T* squeezed, Pixels<T> hidden) {
  constexpr int L = pointwise::L;
  alignas(64) T scales[kPanel];
  fastnets::pointwise::ProblemOf<T> excite = p.gate.excite;
  excite.x.data = squeezed, excite.y = {scales, 0, 0};
  pointwise::multiply(excite, {0, 1}, panel);
  const int64_t channels = std::min(kPanel, excite.out - panel * kPanel);
  for (int64_t c = 0; c < channels; c += L) {
    const Vec<float, L> scale = squeeze::scales_of(scales + c, channels - c, p.gate.hard);
    T* x = hidden.data + panel * hidden.panel + c;
    for (int64_t i = 0; i < p.g.oh * p.g.ow; ++i, x += hidden.pixel)
      store_first<T, L>(x, load_first<T, L>(x, channels - c) * scale, channels - c);
  }
}

template <typename T>
Pixels<T> from_pixel(Pixels<T> all, int64_t pixel) {
  all.data += pixel * all.pixel;
  return all;
}

// Multiplies hidden channels into pixels of the result from `first` on.
template <typename X, typename Y>
void project(const Problem<X, Y>& p, const Pixels<X>& hidden, int64_t first, int64_t pixels) {
  fastnets::pointwise::ProblemOf<X, Y> project = p.project;
  project.x = {hidden.data, hidden.pixel, hidden.panel};
  project.y.data += first * project.y.pixel;
  if (project.residual.data) project.residual.data += first * project.residual.pixel;
  const auto tasks = tasks_of(project, pixels);
  pointwise::multiply_tasks(project, tasks, 0, tasks.count());
}

// Units with all their steps.
template <typename X, typename Y>
void units(const Problem<X, Y>& p, int64_t begin, int64_t end) {
  const Scratch<Number<X>> scratch(panel_scratch(p));
  const int64_t most = ceil_div(p.g.oh, p.strips) * p.g.ow;
  const Scratch<X> hidden(most * p.hidden_pixel()), bytes(kIsBytes<X> ? source_pixels(p) * p.expand.x.pixel : 0);
  for (int64_t unit = begin; unit < end; ++unit) {
    const Range rows = p.rows(unit);
    const int64_t pixels = (rows.end - rows.begin) * p.g.ow;
    const int64_t first = (unit / p.strips * p.g.oh + rows.begin) * p.g.ow;
    const Pixels<X> to = p.hidden(hidden.data, pixels);
    const X* const x = source_of(p, unit, bytes.data);
    for (int64_t panel = 0; panel < p.hidden_panels(); ++panel)
      hidden_panel(p, unit, panel, x, scratch.data, to, nullptr);
    project(p, to, first, pixels);
  }
}

// Images with all their steps, where hidden channels are scaled.
template <typename T>
void images(const Problem<T>& p, int64_t begin, int64_t end) {
  const int64_t pixels = p.g.oh * p.g.ow;
  const Scratch<T> scratch(panel_scratch(p)), hidden(pixels * p.hidden_pixel()), means(p.g.c),
      squeezed(p.gate.squeeze.out);
  const Scratch<float> sums(p.row_sums());
  const Pixels<T> to = p.hidden(hidden.data, pixels);
  fastnets::pointwise::ProblemOf<T> squeeze = p.gate.squeeze;
  squeeze.x.data = means.data, squeeze.y.data = squeezed.data;
  for (int64_t image = begin; image < end; ++image) {
    for (int64_t unit = image * p.strips; unit < (image + 1) * p.strips; ++unit)
      for (int64_t panel = 0; panel < p.hidden_panels(); ++panel)
        hidden_panel<T, T>(p, unit, panel, source_of<T, T>(p, unit, nullptr), scratch.data,
                           from_pixel(to, p.rows(unit).begin * p.g.ow), sums.data);
    for (int64_t panel = 0; panel < p.hidden_panels(); ++panel) mean_panel(p, panel, sums.data, means.data);
    for (int64_t panel = 0; panel < squeeze.panels(); ++panel) pointwise::multiply(squeeze, {0, 1}, panel);
    for (int64_t panel = 0; panel < p.gate.excite.panels(); ++panel) excite_panel(p, panel, squeezed.data, to);
    project(p, to, image * pixels, pixels);
  }
}

// Panels of hidden channels of units, unit by unit, into `hidden`, which project reads, and the sums of their rows.
template <typename X, typename Y>
void hidden_panels(const Problem<X, Y>& p, const Pixels<X>& hidden, float* sums, int64_t begin, int64_t end) {
  const Scratch<Number<X>> scratch(panel_scratch(p));
  for (int64_t task = begin; task < end; ++task) {
    const int64_t unit = task / p.hidden_panels(), image = unit / p.strips;
    hidden_panel<X, Y>(p, unit, task % p.hidden_panels(), source_of<X, Y>(p, unit, nullptr), scratch.data,
                       from_pixel(hidden, (image * p.g.oh + p.rows(unit).begin) * p.g.ow),
                       sums ? sums + image * p.row_sums() : nullptr);
  }
}

// Means of panels of channels, image by image.
template <typename T>
void means(const Problem<T>& p, const float* sums, T* to, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / p.hidden_panels();
    mean_panel(p, task % p.hidden_panels(), sums + image * p.row_sums(), to + image * p.g.c);
  }
}

// Scales panels of hidden channels, panel by panel, whose weights all images take.
template <typename T>
void excite_panels(const Problem<T>& p, const T* squeezed, const Pixels<T>& hidden, int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task % p.g.n;
    excite_panel(p, task / p.g.n, squeezed + image * p.gate.squeeze.out, from_pixel(hidden, image * p.g.oh * p.g.ow));
  }
}

}  // namespace fastnets::FASTNETS_ISA::inverted
