// Puts figures on the page. A sketch comes at once; plotly.js, which needs a second to start, is fetched when every
// sketch stands, and takes over what is in sight, for hovering and zooming. What is out of sight waits until it is not.

import { sketch } from "./sketch.js";

const CONFIG = { displayModeBar: false, displaylogo: false, responsive: false, doubleClick: false, showTips: false };
const wanted = new Map(); // plots to the figures that they show, or will show when they come into sight
const seen = new Set();
let plotly = null, loading = null, whenWired = () => {};

const pause = () => new Promise((go) => { setTimeout(go, 0); });

const load = (source) => new Promise((done) => {
  const script = document.createElement("script");
  script.src = source;
  script.addEventListener("load", () => { plotly = window.Plotly || null; done(); });
  script.addEventListener("error", () => done()); // the sketches stay
  document.head.append(script);
});

const complete = (plot) => {
  const figure = wanted.get(plot);
  if (!figure || figure.isDrawn) return;
  figure.isDrawn = true;
  plotly.react(plot, figure.traces, figure.layout, CONFIG);
  const canvas = plot.querySelector("canvas.sketch");
  if (canvas) { canvas.remove(); plot.style.height = ""; whenWired(plot); }
};

const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) seen.add(entry.target); else seen.delete(entry.target);
    if (entry.isIntersecting && plotly) complete(entry.target);
  }
}, { rootMargin: "200px" });

// What a plot shows from now on.
export const draw = (plot, figure) => {
  if (!wanted.has(plot)) watch.observe(plot);
  wanted.set(plot, figure);
  if (!plot.classList.contains("js-plotly-plot")) sketch(plot, figure);
  if (plotly && seen.has(plot)) complete(plot);
};

export const forget = (plot) => { wanted.delete(plot); seen.delete(plot); watch.unobserve(plot); };

// Let plotly.js take over; `wire` is called for every plot that it has taken over.
export const takeOver = async (source, wire) => {
  whenWired = wire;
  loading = loading || load(source);
  await loading;
  for (const plot of [...seen]) { if (plotly) complete(plot); await pause(); }
};

window.addEventListener("beforeprint", () => { if (plotly) for (const plot of wanted.keys()) complete(plot); });
