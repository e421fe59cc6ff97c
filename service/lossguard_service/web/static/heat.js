// The heat map, layers by steps, as plotly.js and the sketch read it; and its order of layers, its key, its words.

import { LINEAR, css, finite, make, narrow, plain, say, whole } from "./look.js";
import { bandsOf, layoutOf, margins, stepAxis } from "./lines.js";

const MOST = 60; // rows that can be told apart; in the model's own order all are shown

// How many layers an order leaves out.
export const leftOut = (heat, how) => (how === "model" ? 0 : Math.max(0, heat.layers.length - MOST));

const orderOf = (heat, how) => {
  const places = heat.layers.map((_, at) => at);
  if (how === "model") return places;
  const top = (row) => Math.max(...row.map((value) => (typeof value === "number" ? value : value === "NaN" ? -Infinity : Infinity)));
  const middle = (row) => {
    const values = finite(row).filter((value) => value !== null && value > 0).sort((a, b) => a - b);
    return values.length ? values[Math.floor(values.length / 2)] : 1;
  };
  const bad = (at) => heat.nonfinite[at].reduce((a, b) => a + b, 0);
  const least = (row) => finite(row).reduce((a, b) => (b !== null && b < a ? b : a), Infinity);
  const score = (at) => (bad(at) ? Infinity : heat.smallest ? -least(heat.maximum[at]) : how === "largest" ? top(heat.maximum[at]) : top(heat.maximum[at]) / middle(heat.maximum[at]));
  const scores = places.map(score);
  return places.sort((a, b) => (scores[a] === scores[b] ? a - b : scores[b] > scores[a] ? 1 : -1)).slice(0, MOST);
};

const labelsOf = (heat) => {
  const ends = new Set(heat.layers.map((layer) => layer.slice(layer.lastIndexOf("/") + 1))), most = narrow.matches ? 13 : 34;
  return (full) => {
    // On a narrow screen the part that most layers share says least.
    const layer = narrow.matches && ends.size < heat.layers.length / 2 ? full.replace(/(.)\/[^/]*$/, "$1") : full;
    return layer.length > most ? `…${layer.slice(1 - most)}` : layer;
  };
};

const textsOf = (heat, order) => order.map((at) => heat.maximum[at].map((value, x) => {
  const steps = heat.first[x] === heat.last[x] ? `step ${whole(heat.first[x])}` : `steps ${whole(heat.first[x])} to ${whole(heat.last[x])}, ${heat.smallest ? "smallest" : "largest"}`;
  const lost = heat.nonfinite[at][x] ? `<br>${heat.nonfinite[at][x]} × NaN or Inf` : "";
  return `<b>${plain(heat.layers[at])}</b><br>${steps}: ${value === "NaN" && lost ? "nothing finite" : say(value)}${lost}`;
}));

const rangeOf = (heat) => {
  const all = heat.maximum.flat().filter((value) => typeof value === "number"), positive = all.filter((value) => value > 0);
  const low = positive.reduce((a, b) => Math.min(a, b), Infinity), high = all.reduce((a, b) => Math.max(a, b), -Infinity);
  const log = positive.length > 0 && !all.some((value) => value < 0) && high / low > LINEAR;
  return { some: all.length > 0, low: log ? low : all.reduce((a, b) => Math.min(a, b), Infinity), high, log, zeros: log && all.length > positive.length };
};

export const heatFigure = (heat, how, shown, width) => {
  const order = orderOf(heat, how), range = rangeOf(heat), label = labelsOf(heat);
  const place = (value) => (range.log ? Math.log10(Math.max(value, range.low)) : value);
  const edges = heat.first.length ? [...heat.first.map((step) => step - 0.5), heat.last[heat.last.length - 1] + 0.5] : [];
  const rows = order.length, height = Math.min(720, Math.max(90, rows * (rows > 40 ? 12 : 19)));
  const bad = order.map((at) => heat.nonfinite[at].map((count) => (count > 0 ? 1 : null)));
  const scale = [[0, css("--heat-0")], [0.3, css("--heat-1")], [0.55, css("--heat-2")], [0.78, css("--heat-3")], [1, css("--heat-4")]];
  // Of a clipping factor the small values are what to look at.
  if (heat.smallest) scale.splice(0, scale.length, ...scale.map(([at, colour]) => [1 - at, colour]).reverse());
  const common = { type: "heatmap", x: edges, y: order.map((_, at) => at), showscale: false, zsmooth: false, xgap: 0, ygap: rows > 40 ? 0 : 1, hoverinfo: "text", text: textsOf(heat, order), hoverongaps: false };
  const z = order.map((at) => heat.maximum[at].map((value) => (typeof value === "number" ? place(value) : null)));
  const bottom = range.some ? place(range.low) : 0, top = range.some ? place(range.high) : 1;
  const traces = [{ ...common, z, colorscale: scale, zmin: bottom, zmax: top > bottom ? top : bottom + 1 }];
  if (bad.some((row) => row.some(Boolean))) traces.push({ ...common, z: bad, colorscale: [[0, css("--nonfinite")], [1, css("--nonfinite")]], zmin: 0, zmax: 1 });
  const marks = bandsOf(shown, 0).shapes.filter((shape) => shape.type === "line").map((shape) => ({ ...shape, layer: "above" }));
  const every = Math.max(1, Math.ceil(rows / (height / 12)));
  return {
    traces,
    layout: layoutOf(height + 40, {
      margin: { l: narrow.matches ? 92 : 256, r: margins().r, t: 6, b: 34 },
      hovermode: "closest",
      xaxis: { ...stepAxis(shown, true, width), title: { text: "step", standoff: 4 } },
      yaxis: {
        autorange: false, range: [rows - 0.5, -0.5], fixedrange: true, showgrid: false, zeroline: false, ticks: "",
        tickvals: order.map((_, at) => at).filter((at) => at % every === 0),
        ticktext: order.filter((_, at) => at % every === 0).map((at) => plain(label(heat.layers[at]))),
        tickfont: { family: css("--code"), size: narrow.matches ? 10 : 11, color: css("--ink") },
      },
      shapes: marks,
    }),
  };
};

const badCells = (heat) => heat.nonfinite.flat().filter((count) => count > 0).length;

export const heatKey = (heat) => {
  const { some, low, high, log, zeros } = rangeOf(heat), parts = [];
  if (some) parts.push(`${zeros ? "0 or " : ""}${say(low)}`, make("span", heat.smallest ? "ramp is-reversed" : "ramp"), `${say(high)}${log ? " (logarithmic)" : ""}`);
  return badCells(heat) ? [...parts, make("span", "cell"), "NaN or Inf"] : parts;
};

export const describeHeat = (heat, shown) => {
  const { some, low, high } = rangeOf(heat), bad = badCells(heat);
  return `Heat map of ${heat.stat}, ${heat.layers.length} layers, steps ${whole(shown.from)} to ${whole(shown.to)}${some ? `, from ${say(low)} to ${say(high)}` : ""}${bad ? `, NaN or Inf in ${bad} cells` : ""}`;
};
