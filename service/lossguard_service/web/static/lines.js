// A line chart as plotly.js and the sketch read it: traces and a layout, from a chart of the document and what is shown.
// `shown` holds: from, to, span (first and last step of the run), overlay (bands, attempts, tasks), hidden (legend keys).

import { LINEAR, coarse, css, fade, finite, logTicks, narrow, plain, say, ticks, whole } from "./look.js";

const SHAPES = ["solid", "dash", "dot", "dashdot", "longdash"];
const TONES = { critical: "--critical", warning: "--warning", info: "--info" };

export const margins = () => (narrow.matches ? { l: 46, r: 10 } : { l: 56, r: 16 });

export const stepAxis = (shown, labelled, width) => ({
  range: [shown.from - 0.5, shown.to + 0.5],
  ...ticks([shown.from, shown.to], width < 420 ? 3 : 6, (value) => (Number.isInteger(value) ? whole(value) : "")),
  tickmode: "array", showgrid: false, zeroline: false, showticklabels: labelled, ticks: labelled ? "outside" : "", ticklen: 4,
  tickcolor: css("--line"), linecolor: css("--line"), showline: true, showspikes: false, fixedrange: coarse.matches, tickangle: 0,
});

export const layoutOf = (height, extra) => ({
  height,
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  font: { family: css("--face"), size: 11, color: css("--muted") },
  showlegend: false,
  dragmode: coarse.matches ? false : "zoom",
  hoverlabel: {
    bgcolor: css("--surface"), bordercolor: css("--edge"), namelength: 40,
    font: { family: css("--face"), size: 12, color: css("--ink") },
  },
  ...extra,
});

// The overlay comes loudest first: that one is drawn on top, and is the first to get its name where names are tight.
export const bandsOf = (shown, width) => {
  const shapes = [], notes = [], taken = [];
  const pixel = width / Math.max(1, shown.to - shown.from);
  for (const band of shown.overlay.bands) {
    const last = band.last === null ? shown.span[1] : band.last, info = band.tone === "info";
    if (last < shown.from || band.first > shown.to) continue;
    const colour = css(TONES[band.tone]);
    const place = { xref: "x", yref: "paper", y0: 0, y1: 1, layer: "below", x0: band.first - 0.5 };
    shapes.push({ ...place, type: "line", x1: band.first - 0.5, line: { color: info ? fade(colour, 0.5) : colour, width: info ? 1 : 1.5 }, name: "onset" });
    shapes.push({ ...place, type: "rect", x1: Math.max(last, band.first) + 0.5, fillcolor: fade(colour, info ? 0.05 : 0.11), line: { width: 0 }, name: "incident" });
    const text = `${band.label}, step ${whole(band.first)}`, long = text.length * 6.4 + 12;
    const at = (Math.max(band.first, shown.from) - shown.from) * pixel, left = at + long > width ? at - long : at;
    if (width && !taken.some(([begin, end]) => left < end && left + long > begin)) {
      taken.push([left, left + long]);
      notes.push({
        text: plain(text), x: Math.max(band.first, shown.from), y: 1, xref: "x", yref: "paper", yanchor: "top", showarrow: false,
        xanchor: left < at ? "right" : "left", xshift: left < at ? -4 : 4, font: { size: 11, color: colour }, bgcolor: fade(css("--surface"), 0.85),
      });
    }
  }
  shapes.reverse();
  for (const attempt of shown.overlay.attempts) {
    if (attempt.step < shown.from || attempt.step > shown.to) continue;
    shapes.push({
      type: "line", xref: "x", yref: "paper", x0: attempt.step + 0.5, x1: attempt.step + 0.5, y0: 0, y1: 1,
      line: { color: css("--edge"), width: 1, dash: "dot" }, layer: "below", name: "attempt",
    });
    if (width) {
      notes.push({
        text: `attempt ${attempt.number}`, x: attempt.step, y: 0, xref: "x", yref: "paper", xanchor: "left", yanchor: "bottom",
        xshift: 3, showarrow: false, font: { size: 11, color: css("--muted") },
      });
    }
  }
  return { shapes, annotations: notes };
};

export const lookOf = (line, tasks) => {
  if (line.task === null) return { colour: css("--run-line"), dash: "solid" };
  const place = Math.max(0, tasks.indexOf(line.task));
  return { colour: css(`--task-${place % 8}`), dash: SHAPES[Math.floor(place / 8) % SHAPES.length] };
};

const numbers = (chart, pick) => chart.lines.flatMap(pick).filter((one) => typeof one === "number");

// Around a reference what matters is which side of it a line is on, so a spike may leave the chart: it becomes marks.
export const capOf = (chart) => {
  if (chart.scale !== "auto" || !chart.reference) return null;
  const values = numbers(chart, (line) => line.mean).sort((a, b) => a - b);
  if (!values.length) return null;
  const at = (share) => values[Math.min(values.length - 1, Math.floor(values.length * share))];
  const [reference] = chart.reference;
  const top = Math.max(reference * 1.08, Math.min(at(0.97), reference * 1.6)), bottom = Math.min(at(0.02), reference * 0.95);
  return values[values.length - 1] > top * 2 ? [Math.max(0, bottom - (top - bottom) * 0.08), top] : null;
};

const isLog = (chart) => {
  if (chart.scale !== "auto" || chart.reference) return false;
  const values = numbers(chart, (line) => line.maximum || line.mean).filter((one) => one > 0).sort((a, b) => a - b);
  if (values.length < 2 || numbers(chart, (line) => line.minimum || line.mean).some((one) => one < 0)) return false;
  return values[values.length - 1] / values[Math.floor(values.length / 2)] > LINEAR;
};

// Fixed here and not left to plotly.js, so that the sketch and the chart that takes its place are one picture.
const valueAxis = (traces, chart, log, cap) => {
  const common = { fixedrange: true, gridcolor: css("--grid"), zeroline: false, tickmode: "array", automargin: false };
  let low = Infinity, high = -Infinity;
  const reach = (value) => { if (value !== null && value < low) low = value; if (value !== null && value > high) high = value; };
  for (const trace of traces) if (!trace.yaxis) trace.y.forEach(reach);
  if (chart.reference) reach(chart.reference[0]);
  if (!(low <= high)) [low, high] = log ? [1, 10] : [0, 1];
  if (cap) [low, high] = cap;
  if (log) [low, high] = [Math.log10(low), Math.log10(high)];
  const pad = cap ? 0 : high > low ? (high - low) * 0.06 : Math.abs(high) * 0.1 || 1;
  const range = [low - pad, high + pad];
  return { ...common, type: log ? "log" : "linear", range, ...(log ? logTicks(range, 4) : ticks(range, 5)) };
};

// Where steps are missing the line breaks: an absent frame must not look like a measured one.
const broken = (line) => {
  const xs = [], take = [], last = line.last || line.first;
  const widths = line.first.slice(1).map((step, at) => step - line.first[at]).sort((a, b) => a - b);
  const usual = widths.length ? widths[Math.floor(widths.length / 2)] : 1;
  line.first.forEach((step, at) => {
    if (at && step - last[at - 1] > Math.max(1, usual) * 2) { xs.push((step + last[at - 1]) / 2); take.push(-1); }
    xs.push((step + last[at]) / 2);
    take.push(at);
  });
  const pick = (values) => { const clean = finite(values); return take.map((at) => (at < 0 ? null : clean[at])); };
  return { xs, pick, take };
};

// Batches are noisy, and of a rare task most of all: where the question is on which side of a reference a line is, a
// running median answers it, drawn over the values as they are.
const median = (values) => {
  const half = Math.floor(Math.min(25, Math.max(5, values.length / 40)) / 2);
  return values.map((value, at) => {
    if (value === null) return null;
    const near = values.slice(Math.max(0, at - half), at + half + 1).filter((one) => one !== null).sort((a, b) => a - b);
    return near[Math.floor(near.length / 2)];
  });
};

const marksOf = (line, colour, cap) => {
  const middle = (at) => (line.first[at] + (line.last || line.first)[at]) / 2, marks = [];
  const common = { yaxis: "y2", type: "scatter", mode: "markers", name: plain(line.label) };
  const over = cap ? [...(line.maximum || line.mean).entries()].filter(([, value]) => typeof value === "number" && value > cap[1]).map(([at]) => at) : [];
  if (over.length) marks.push({ ...common, x: over.map(middle), y: over.map(() => 0.97), meta: "over", hoverinfo: "skip", marker: { symbol: "triangle-up", size: 6, color: colour } });
  const bad = [...line.nonfinite.entries()].filter(([, count]) => count > 0);
  if (bad.length) {
    marks.push({
      ...common, x: bad.map(([at]) => middle(at)), y: bad.map(() => 0.94), meta: "nonfinite",
      marker: { symbol: "x-thin", size: 8, line: { width: 2, color: css("--nonfinite") } },
      text: bad.map(([at, count]) => `${count} × NaN or Inf${typeof line.mean[at] === "string" ? ` (${say(line.mean[at])})` : ""}`), hovertemplate: "%{text}",
    });
  }
  return marks;
};

const tracesOf = (chart, log, cap, shown) => chart.lines.flatMap((line) => {
  if (shown.hidden.has(`${chart.id}/${line.label}`)) return [];
  const { colour, dash } = lookOf(line, shown.overlay.tasks), traces = [];
  const { xs, pick, take } = broken(line);
  const fits = (values) => (log ? values.map((value) => (value !== null && value > 0 ? value : null)) : values);
  if (line.minimum) {
    const quiet = { x: xs, type: "scatter", mode: "lines", hoverinfo: "skip", line: { width: 0, color: colour } };
    traces.push({ ...quiet, y: fits(pick(line.minimum)) });
    traces.push({ ...quiet, y: fits(pick(line.maximum)), fill: "tonexty", fillcolor: fade(colour, 0.18) });
  }
  const smooth = chart.reference && xs.length > 40;
  const common = { x: xs, type: "scatter", name: plain(line.label), connectgaps: false };
  if (smooth) traces.push({ ...common, y: median(pick(line.mean)), mode: "lines", meta: "median", hoverinfo: "skip", line: { color: colour, dash, width: 2.2 } });
  traces.push({
    ...common, y: fits(pick(line.mean)), mode: xs.length < 3 ? "lines+markers" : "lines", meta: "line", hovertemplate: "%{text}",
    line: { color: smooth ? fade(colour, 0.3) : colour, dash, width: smooth ? 1 : 1.6 }, text: take.map((at) => (at < 0 ? "" : say(line.mean[at]))),
  });
  return [...traces, ...marksOf(line, colour, cap)];
});

// The figure of one chart: `first` gets the names of the incidents, `last` the steps' numbers.
export const figureOf = (chart, shown, width, first, last) => {
  const log = isLog(chart), cap = capOf(chart);
  const traces = tracesOf(chart, log, cap, shown), inner = width - margins().l - margins().r;
  const { shapes, annotations } = bandsOf(shown, first ? inner : 0);
  if (chart.reference) {
    const [value, name] = chart.reference;
    shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: value, y1: value, line: { color: css("--edge"), width: 1.25, dash: "5px,4px" }, layer: "below", name: "reference" });
    annotations.push({ text: name, xref: "paper", x: 1, xanchor: "right", yref: "y", y: value, yanchor: "bottom", showarrow: false, font: { size: 11, color: css("--muted") }, bgcolor: fade(css("--surface"), 0.75) });
  }
  return {
    traces,
    layout: layoutOf(last ? 182 : 160, {
      margin: { ...margins(), t: 10, b: last ? 32 : 10 },
      hovermode: "x unified",
      xaxis: { ...stepAxis(shown, last, width), hoverformat: ",d", unifiedhovertitle: { text: "step %{x:,d}" } },
      yaxis: valueAxis(traces, chart, log, cap),
      yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
      shapes, annotations,
    }),
  };
};

export const describe = (chart, shown) => {
  const parts = chart.lines.map((line) => {
    const values = line.mean, bad = line.nonfinite.reduce((a, b) => a + b, 0);
    return `${line.label} from ${say(values[0])} to ${say(values[values.length - 1])}${bad ? `, ${bad} values NaN or Inf` : ""}`;
  });
  return `${chart.title}, steps ${whole(shown.from)} to ${whole(shown.to)}: ${parts.join("; ")}`;
};
