// A page's charts and its heat map, all over one range of steps.
// Data come as JSON from the addresses on #tracks; NaN and the infinities come as names and are drawn as marks.

import { draw, forget, takeOver } from "./draw.js";
import { describeHeat, heatFigure, heatKey, leftOut } from "./heat.js";
import { capOf, describe, figureOf, lookOf } from "./lines.js";
import { make, narrow } from "./look.js";

const root = document.getElementById("tracks");
const byId = (id) => document.getElementById(id);
const read = (page) => JSON.parse(page.getElementById("tracks-data").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");

const state = {
  overlay: read(document),
  span: [Number(root.dataset.first), Number(root.dataset.last)],
  range: root.dataset.from ? [Number(root.dataset.from), Number(root.dataset.to)] : null,
  hidden: new Set(),
  charts: null,
  heat: null,
};
const hash = /^#steps=(\d+)-(\d+)$/.exec(location.hash);
if (hash) state.range = [Number(hash[1]), Number(hash[2])];

const range = () => state.range || state.span;
const shown = () => ({ from: range()[0], to: range()[1], span: state.span, overlay: state.overlay, hidden: state.hidden });

const swatch = ({ colour, dash }) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("width", "18"); svg.setAttribute("height", "8"); svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "M0 4h18"); path.setAttribute("stroke", colour); path.setAttribute("stroke-width", "2.5");
  const dashes = { dash: "5 3", dot: "2 2", dashdot: "5 2 2 2", longdash: "8 3" }[dash];
  if (dashes) path.setAttribute("stroke-dasharray", dashes);
  svg.append(path);
  return svg;
};

const legendOf = (chart) => (chart.lines.length < 2 ? [] : chart.lines.map((line) => {
  const item = make("li"), button = make("button"), key = `${chart.id}/${line.label}`;
  button.type = "button";
  button.setAttribute("aria-pressed", String(!state.hidden.has(key)));
  button.append(swatch(lookOf(line, state.overlay.tasks)), line.label);
  button.addEventListener("click", () => {
    if (state.hidden.has(key)) state.hidden.delete(key); else state.hidden.add(key);
    drawCharts();
  });
  item.append(button);
  return item;
}));

const frameOf = (chart) => {
  let track = byId(`track-${chart.id}`);
  if (!track) {
    track = make("div", "track");
    track.id = `track-${chart.id}`;
    const gutter = make("div", "gutter"), plot = make("div", "plot");
    gutter.append(make("h3", "", chart.title), make("p", "note", chart.note), make("ul", "legend"));
    plot.setAttribute("role", "img");
    track.append(gutter, plot);
    byId("charts").append(track);
  }
  const notes = [chart.note, chart.reference ? "thick: running median" : "", capOf(chart) ? "▲ beyond the top" : ""];
  track.querySelector(".note").textContent = notes.filter(Boolean).join("; ");
  const legend = track.querySelector(".legend");
  const had = document.activeElement && legend.contains(document.activeElement) ? document.activeElement.textContent : null;
  legend.replaceChildren(...legendOf(chart));
  if (had) [...legend.querySelectorAll("button")].find((one) => one.textContent === had)?.focus();
  return track.querySelector(".plot");
};

const drawCharts = () => {
  if (!state.charts) return;
  const note = byId("charts-note");
  if (state.charts.length && note) note.remove();
  else if (note) note.textContent = "No scalars in these steps.";
  const keep = new Set(state.charts.map((chart) => `track-${chart.id}`));
  for (const track of [...byId("charts").querySelectorAll(".track")]) if (!keep.has(track.id)) { forget(track.querySelector(".plot")); track.remove(); }
  const plots = state.charts.map(frameOf), now = shown();
  state.charts.forEach((chart, place) => {
    plots[place].setAttribute("aria-label", describe(chart, now));
    draw(plots[place], figureOf(chart, now, plots[place].clientWidth, place === 0, place === state.charts.length - 1));
  });
};

const drawHeat = () => {
  const { heat } = state, plot = byId("heat-plot");
  if (!heat || !plot) return;
  const option = byId("heat-stat").selectedOptions[0];
  const out = leftOut(heat, byId("heat-order").value);
  byId("heat-note").textContent = [option?.dataset.meaning, out ? `the first ${heat.layers.length - out} of ${heat.layers.length} layers in this order` : ""].filter(Boolean).join("; ");
  byId("heat-key").replaceChildren(...heatKey(heat));
  plot.setAttribute("aria-label", describeHeat(heat, shown()));
  draw(plot, heatFigure(heat, byId("heat-order").value, shown(), plot.clientWidth));
};

const drawAll = () => { drawCharts(); drawHeat(); };

// One request at a time per kind; an answer that was overtaken is dropped.
const latest = {};
const load = async (kind, place) => {
  latest[kind]?.abort();
  const control = (latest[kind] = new AbortController());
  try {
    const answer = await fetch(place, { signal: control.signal });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
};
const address = (base, extra) => {
  const values = new URLSearchParams(extra);
  if (state.range) { values.set("from", state.range[0]); values.set("to", state.range[1]); }
  const text = values.toString();
  return text ? `${base}${base.includes("?") ? "&" : "?"}${text}` : base;
};
const loadCharts = async () => {
  const answer = await load("charts", address(root.dataset.source));
  if (!answer) {
    if (!state.charts && byId("charts-note")) byId("charts-note").textContent = "The charts' data did not come; reload the page.";
    return;
  }
  state.charts = answer.charts;
  drawCharts();
};
const loadHeat = async () => {
  const select = byId("heat-stat");
  if (!select) return;
  const answer = await load("heat", address(root.dataset.heat, { stat: select.value }));
  if (!answer) return;
  state.heat = answer;
  drawHeat();
};
const loadAll = async () => {
  await Promise.all([loadCharts(), loadHeat()]);
  if (!root.dataset.drawn) {
    root.dataset.drawn = "sketch";
    performance.mark("lossguard:drawn");
    await new Promise((go) => { requestAnimationFrame(() => setTimeout(go, 0)); }); // the sketches are seen first
  }
  await takeOver(root.dataset.plotly, wire);
  root.dataset.drawn = "full";
};

const inputs = () => { [byId("range-from").value, byId("range-to").value] = range(); };
const show = (from, to) => {
  const [first, last] = state.span;
  from = Math.max(first, Math.round(from)); to = Math.min(last, Math.round(to));
  if (to - from < 4) { const middle = (from + to) / 2; from = Math.max(first, Math.floor(middle - 2)); to = Math.min(last, from + 4); }
  state.range = from <= first && to >= last ? null : [from, to];
  history.replaceState(null, "", state.range ? `#steps=${from}-${to}` : location.pathname + location.search);
  inputs();
  drawAll();
  loadAll();
};

const point = (x) => {
  for (const cursor of root.querySelectorAll(".cursor")) {
    const full = cursor.parentElement._fullLayout;
    cursor.classList.toggle("is-on", x !== null && Boolean(full));
    if (x !== null && full) cursor.style.left = `${full.xaxis._offset + full.xaxis.l2p(x)}px`;
  }
};
// What happened, in order, of the loudest incident at a step: the overlay has that one first.
const tell = (x) => {
  const band = state.overlay.bands.find(({ first, last }) => x >= first - 0.5 && x <= Math.max(first, last === null ? state.span[1] : last) + 0.5);
  const details = band && byId(`incident-${band.number}`);
  if (!details) return;
  details.open = true;
  details.scrollIntoView({ block: "start" });
  details.querySelector("summary").focus({ preventScroll: true });
};
const wire = (plot) => {
  plot.append(make("div", "cursor"));
  plot.on("plotly_relayout", (event) => {
    if ("xaxis.range[0]" in event) show(event["xaxis.range[0]"] + 0.5, event["xaxis.range[1]"] - 0.5);
  });
  plot.on("plotly_doubleclick", () => show(...state.span));
  plot.on("plotly_hover", (event) => point(event.xvals ? event.xvals[0] : event.points[0].x));
  plot.on("plotly_click", (event) => tell(event.points[0].x));
  plot.on("plotly_unhover", () => point(null));
};

const move = {
  all: () => show(...state.span),
  in: (from, to) => show(from + (to - from) / 4, to - (to - from) / 4),
  out: (from, to) => show(from - (to - from) / 2, to + (to - from) / 2),
  left: (from, to) => { const by = Math.min((to - from) / 2, from - state.span[0]); show(from - by, to - by); },
  right: (from, to) => { const by = Math.min((to - from) / 2, state.span[1] - to); show(from + by, to + by); },
  incident: () => {
    const band = state.overlay.bands[0];
    show(band.first - 40, Math.min(band.last === null ? state.span[1] : band.last, band.first + 120) + 40);
  },
};

byId("range").addEventListener("submit", (event) => {
  event.preventDefault();
  const clean = (id) => Number(byId(id).value.replace(/[^0-9]/g, ""));
  const from = clean("range-from"), to = clean("range-to");
  if (to > from) show(from, to); else inputs();
});
byId("range").addEventListener("click", (event) => move[event.target.dataset.range]?.(...range()));
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-zoom]");
  if (!button) return;
  show(Number(button.dataset.zoom) - 40, Number(button.dataset.zoomEnd) + 40);
  root.scrollIntoView({ block: "start" });
});
byId("heat-stat")?.addEventListener("change", loadHeat);
byId("heat-order")?.addEventListener("change", drawHeat);
document.addEventListener("lossguard:fresh", (event) => {
  const fresh = event.detail.getElementById("tracks");
  if (!fresh) return;
  const span = [Number(fresh.dataset.first), Number(fresh.dataset.last)], overlay = read(event.detail);
  if (span[1] === state.span[1] && JSON.stringify(overlay) === JSON.stringify(state.overlay)) return;
  state.span = span;
  state.overlay = overlay;
  if (state.range) { drawAll(); return; }
  inputs();
  loadAll();
});
let resizing = 0;
window.addEventListener("resize", () => { cancelAnimationFrame(resizing); resizing = requestAnimationFrame(drawAll); });
for (const one of [dark, narrow]) one.addEventListener("change", drawAll);
inputs();
loadAll();
