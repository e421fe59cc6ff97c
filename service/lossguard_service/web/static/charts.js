// Draws a run's charts and its heat map with plotly.js, all over one range of steps.
// Data come as JSON from the addresses on #tracks; NaN and the infinities come as names and are drawn as marks.
(() => {
  "use strict";
  const root = document.getElementById("tracks");
  if (!root || !window.Plotly) return;
  const byId = (id) => document.getElementById(id);
  const read = (page) => JSON.parse(page.getElementById("tracks-data").textContent);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const narrow = window.matchMedia("(max-width: 48rem)");
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const coarse = window.matchMedia("(pointer: coarse)");
  const SHAPES = ["solid", "dash", "dot", "dashdot", "longdash"];
  const TONES = { critical: "--critical", warning: "--warning", info: "--info" };
  const LINEAR = 30; // a spread beyond this factor is shown on a logarithmic scale

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

  // plotly.js reads a little HTML in texts; names from outside must not be read so.
  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const group = new Intl.NumberFormat("en-US");
  const whole = (value) => group.format(value);
  const say = (value) => {
    if (typeof value === "string") return { NaN: "NaN", Infinity: "∞", "-Infinity": "-∞" }[value];
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e6 || size < 1e-4 ? value.toExponential(2).replace("e+", "e") : String(Number(value.toPrecision(4)));
  };
  const finite = (values) => values.map((value) => (typeof value === "number" ? value : null));
  const fade = (colour, share) => {
    const number = parseInt(colour.slice(1), 16);
    return `rgba(${number >> 16},${(number >> 8) & 255},${number & 255},${share})`;
  };
  const shown = () => state.range || state.span;

  const margins = () => (narrow.matches ? { l: 46, r: 10 } : { l: 56, r: 16 });

  const axis = (ticks) => {
    const [from, to] = shown();
    return {
      range: [from - 0.5, to + 0.5],
      showgrid: false,
      zeroline: false,
      showticklabels: ticks,
      tickformat: ",d",
      ticks: ticks ? "outside" : "",
      ticklen: 4,
      tickcolor: css("--line"),
      linecolor: css("--line"),
      showline: true,
      showspikes: false,
      fixedrange: coarse.matches,
    };
  };

  const layout = (height, extra) => ({
    height,
    margin: { ...margins(), t: 10, b: 10 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: css("--face"), size: 11, color: css("--muted") },
    showlegend: false,
    dragmode: coarse.matches ? false : "zoom",
    hoverlabel: {
      bgcolor: css("--surface"),
      bordercolor: css("--edge"),
      font: { family: css("--face"), size: 12, color: css("--ink") },
      namelength: 40,
    },
    ...extra,
  });
  const config = { displayModeBar: false, displaylogo: false, responsive: false, doubleClick: false, showTips: false };

  // The overlay comes loudest first: that one is drawn on top, and is the first to get its name where names are tight.
  const bands = (width) => {
    const shapes = [], notes = [], taken = [];
    const [from, to] = shown();
    const pixel = width / Math.max(1, to - from);
    for (const band of state.overlay.bands) {
      const last = band.last === null ? state.span[1] : band.last;
      if (last < from || band.first > to) continue;
      const colour = css(TONES[band.tone]);
      const place = { xref: "x", yref: "paper", y0: 0, y1: 1, layer: "below", x0: band.first - 0.5 };
      shapes.push({ ...place, type: "line", x1: band.first - 0.5, line: { color: band.tone === "info" ? fade(colour, 0.5) : colour, width: band.tone === "info" ? 1 : 1.5 }, name: "onset" });
      shapes.push({ ...place, type: "rect", x1: Math.max(last, band.first) + 0.5, fillcolor: fade(colour, band.tone === "info" ? 0.05 : 0.11), line: { width: 0 }, name: "incident" });
      const text = `${band.label}, step ${whole(band.first)}`, long = text.length * 6.4 + 12;
      const at = (Math.max(band.first, from) - from) * pixel, left = at + long > width ? at - long : at;
      if (width && !taken.some(([begin, end]) => left < end && left + long > begin)) {
        taken.push([left, left + long]);
        notes.push({
          text: plain(text), x: Math.max(band.first, from), y: 1, xref: "x", yref: "paper", yanchor: "top", showarrow: false,
          xanchor: left < at ? "right" : "left", xshift: left < at ? -4 : 4,
          font: { size: 11, color: colour }, bgcolor: fade(css("--surface"), 0.85),
        });
      }
    }
    shapes.reverse();
    for (const attempt of state.overlay.attempts) {
      if (attempt.step < from || attempt.step > to) continue;
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

  const lookOf = (line) => {
    if (line.task === null) return { colour: css("--run-line"), dash: "solid", width: 1.6 };
    const place = Math.max(0, state.overlay.tasks.indexOf(line.task));
    return { colour: css(`--task-${place % 8}`), dash: SHAPES[Math.floor(place / 8) % SHAPES.length], width: 1.6 };
  };

  // Around a reference what matters is which side of it a line is on, so a spike may leave the chart: it becomes marks.
  const capOf = (chart) => {
    if (chart.scale !== "auto" || !chart.reference) return null;
    const values = chart.lines.flatMap((line) => line.mean).filter((one) => typeof one === "number").sort((a, b) => a - b);
    if (!values.length) return null;
    const at = (share) => values[Math.min(values.length - 1, Math.floor(values.length * share))];
    const [reference] = chart.reference;
    const top = Math.max(reference * 1.08, Math.min(at(0.97), reference * 1.6)), bottom = Math.min(at(0.02), reference * 0.95);
    return values[values.length - 1] > top * 2 ? [Math.max(0, bottom - (top - bottom) * 0.08), top] : null;
  };

  const isLog = (chart) => {
    if (chart.scale !== "auto" || chart.reference) return false;
    const values = chart.lines.flatMap((line) => (line.maximum || line.mean)).filter((one) => typeof one === "number" && one > 0);
    if (values.length < 2 || chart.lines.some((line) => (line.minimum || line.mean).some((one) => typeof one === "number" && one < 0))) return false;
    values.sort((a, b) => a - b);
    return values[values.length - 1] / values[Math.floor(values.length / 2)] > LINEAR;
  };

  // Where steps are missing the line breaks: an absent frame must not look like a measured one.
  const broken = (line) => {
    const xs = [], take = [];
    const last = line.last || line.first;
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

  const tracesOf = (chart, log, cap) => {
    const traces = [];
    for (const line of chart.lines) {
      if (state.hidden.has(`${chart.id}/${line.label}`)) continue;
      const { colour, dash, width } = lookOf(line);
      const { xs, pick, take } = broken(line);
      const fits = (values) => (log ? values.map((value) => (value !== null && value > 0 ? value : null)) : values);
      if (line.minimum) {
        const quiet = { x: xs, type: "scatter", mode: "lines", hoverinfo: "skip", line: { width: 0, color: colour } };
        traces.push({ ...quiet, y: fits(pick(line.minimum)) });
        traces.push({ ...quiet, y: fits(pick(line.maximum)), fill: "tonexty", fillcolor: fade(colour, 0.18) });
      }
      const values = line.mean;
      const smooth = chart.reference && xs.length > 40;
      if (smooth) {
        traces.push({
          x: xs, y: median(pick(values)), type: "scatter", mode: "lines", name: plain(line.label), meta: "median", hoverinfo: "skip",
          line: { color: colour, dash, width: 2.2 }, connectgaps: false,
        });
      }
      traces.push({
        x: xs, y: fits(pick(values)), type: "scatter", mode: xs.length < 3 ? "lines+markers" : "lines", name: plain(line.label),
        line: { color: smooth ? fade(colour, 0.3) : colour, dash, width: smooth ? 1 : width }, connectgaps: false, text: take.map((at) => (at < 0 ? "" : say(values[at]))),
        hovertemplate: "%{text}", meta: "line",
      });
      const over = cap ? (line.maximum || line.mean).map((value, at) => [value, at]).filter(([value]) => typeof value === "number" && value > cap[1]) : [];
      if (over.length) {
        traces.push({
          x: over.map(([, at]) => (line.first[at] + (line.last || line.first)[at]) / 2), y: over.map(() => 0.97), yaxis: "y2",
          type: "scatter", mode: "markers", name: plain(line.label), meta: "over", hoverinfo: "skip",
          marker: { symbol: "triangle-up", size: 6, color: colour },
        });
      }
      const marks = line.nonfinite.map((count, at) => [count, at]).filter(([count]) => count > 0);
      if (marks.length) {
        traces.push({
          x: marks.map(([, at]) => (line.first[at] + (line.last || line.first)[at]) / 2), y: marks.map(() => 0.94), yaxis: "y2",
          type: "scatter", mode: "markers", name: plain(line.label), meta: "nonfinite",
          marker: { symbol: "x-thin", size: 8, line: { width: 2, color: css("--nonfinite") } },
          text: marks.map(([count, at]) => `${count} × NaN or Inf${typeof line.mean[at] === "string" ? ` (${say(line.mean[at])})` : ""}`),
          hovertemplate: "%{text}",
        });
      }
    }
    return traces;
  };

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

  const make = (tag, name, text) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text) element.textContent = text;
    return element;
  };

  const frameOf = (chart, clipped) => {
    let track = byId(`track-${chart.id}`);
    if (!track) {
      track = make("div", "track");
      track.id = `track-${chart.id}`;
      const gutter = make("div", "gutter");
      gutter.append(make("h3", "", chart.title), make("p", "note", chart.note), make("ul", "legend"));
      const plot = make("div", "plot");
      plot.setAttribute("role", "img");
      track.append(gutter, plot);
      byId("charts").append(track);
      wire(plot);
    }
    track.querySelector(".note").textContent = [chart.note, chart.reference ? "thick: running median" : "", clipped ? "▲ beyond the top" : ""].filter(Boolean).join("; ");
    const legend = track.querySelector(".legend");
    const had = document.activeElement && legend.contains(document.activeElement) ? document.activeElement.textContent : null;
    legend.replaceChildren(...(chart.lines.length < 2 ? [] : chart.lines.map((line) => {
      const item = make("li"), button = make("button", "", "");
      const key = `${chart.id}/${line.label}`;
      button.type = "button";
      button.setAttribute("aria-pressed", String(!state.hidden.has(key)));
      button.append(swatch(lookOf(line)), line.label);
      button.addEventListener("click", () => {
        if (state.hidden.has(key)) state.hidden.delete(key); else state.hidden.add(key);
        drawCharts();
      });
      item.append(button);
      return item;
    })));
    if (had) [...legend.querySelectorAll("button")].find((one) => one.textContent === had)?.focus();
    return track.querySelector(".plot");
  };

  const describe = (chart) => {
    const parts = chart.lines.map((line) => {
      const values = line.mean, bad = line.nonfinite.reduce((a, b) => a + b, 0);
      return `${line.label} from ${say(values[0])} to ${say(values[values.length - 1])}${bad ? `, ${bad} values NaN or Inf` : ""}`;
    });
    const [from, to] = shown();
    return `${chart.title}, steps ${whole(from)} to ${whole(to)}: ${parts.join("; ")}`;
  };

  const drawCharts = () => {
    if (!state.charts) return;
    const note = byId("charts-note");
    if (state.charts.length && note) note.remove();
    else if (note) note.textContent = "No scalars in these steps.";
    state.charts.forEach((chart, place) => {
      const plot = frameOf(chart, Boolean(capOf(chart)));
      const log = isLog(chart), cap = capOf(chart);
      const { shapes, annotations } = bands(place === 0 ? plot.clientWidth - margins().l - margins().r : 0);
      const lastOne = place === state.charts.length - 1;
      if (chart.reference) {
        const [value, name] = chart.reference;
        shapes.push({ type: "line", xref: "paper", x0: 0, x1: 1, yref: "y", y0: value, y1: value, line: { color: css("--edge"), width: 1.25, dash: "5px,4px" }, layer: "below", name: "reference" });
        annotations.push({ text: name, xref: "paper", x: 1, xanchor: "right", yref: "y", y: log ? Math.log10(value) : value, yanchor: "bottom", showarrow: false, font: { size: 11, color: css("--muted") }, bgcolor: fade(css("--surface"), 0.75) });
      }
      plot.setAttribute("aria-label", describe(chart));
      window.Plotly.react(plot, tracesOf(chart, log, cap), layout(lastOne ? 182 : 160, {
        margin: { ...margins(), t: 10, b: lastOne ? 32 : 10 },
        hovermode: "x unified",
        xaxis: { ...axis(lastOne), hoverformat: ",d", unifiedhovertitle: { text: "step %{x:,d}" } },
        yaxis: {
          type: log ? "log" : "linear", fixedrange: true, gridcolor: css("--grid"), zeroline: false, nticks: 5,
          exponentformat: "power", automargin: false, tickfont: { size: log ? 10 : 11 }, ...(log ? { dtick: logTicks(chart) } : cap ? { range: cap } : {}),
        },
        yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
        shapes, annotations,
      }), config);
    });
    const keep = new Set(state.charts.map((chart) => `track-${chart.id}`));
    for (const track of [...byId("charts").querySelectorAll(".track")]) if (!keep.has(track.id)) track.remove();
  };

  const logTicks = (chart) => {
    const values = chart.lines.flatMap((line) => [...(line.maximum || line.mean), ...(line.minimum || line.mean)]).filter((one) => typeof one === "number" && one > 0);
    const decades = Math.log10(Math.max(...values) / Math.min(...values));
    return Math.max(1, Math.ceil(decades / 4));
  };

  const orderOf = (heat) => {
    const places = heat.layers.map((_, at) => at);
    const how = byId("heat-order").value;
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
    return places.sort((a, b) => (scores[a] === scores[b] ? a - b : scores[b] > scores[a] ? 1 : -1));
  };

  const drawHeat = () => {
    const heat = state.heat, plot = byId("heat-plot");
    if (!heat || !plot) return;
    const order = orderOf(heat);
    const all = heat.maximum.flat().filter((value) => typeof value === "number");
    const positive = all.filter((value) => value > 0);
    const low = positive.reduce((a, b) => Math.min(a, b), Infinity), high = all.reduce((a, b) => Math.max(a, b), -Infinity);
    const log = positive.length > 0 && !all.some((value) => value < 0) && high / low > LINEAR;
    const place = (value) => (log ? Math.log10(Math.max(value, low)) : value);
    const edges = heat.first.length ? [...heat.first.map((step) => step - 0.5), heat.last[heat.last.length - 1] + 0.5] : [];
    const rows = order.length, height = Math.min(720, Math.max(90, rows * (rows > 40 ? 12 : 19)));
    const ends = new Set(heat.layers.map((layer) => layer.slice(layer.lastIndexOf("/") + 1)));
    const label = (full) => {
      const most = narrow.matches ? 13 : 34;
      // On a narrow screen the part that most layers share says least.
      const layer = narrow.matches && ends.size < heat.layers.length / 2 ? full.replace(/(.)\/[^/]*$/, "$1") : full;
      return layer.length > most ? `…${layer.slice(1 - most)}` : layer;
    };
    const z = order.map((at) => heat.maximum[at].map((value) => (typeof value === "number" ? place(value) : null)));
    const bad = order.map((at) => heat.nonfinite[at].map((count) => (count > 0 ? 1 : null)));
    const badCount = bad.flat().filter(Boolean).length;
    const text = order.map((at) => heat.maximum[at].map((value, x) => {
      const steps = heat.first[x] === heat.last[x] ? `step ${whole(heat.first[x])}` : `steps ${whole(heat.first[x])} to ${whole(heat.last[x])}, ${heat.smallest ? "smallest" : "largest"}`;
      const lost = heat.nonfinite[at][x] ? `<br>${heat.nonfinite[at][x]} × NaN or Inf` : "";
      return `<b>${plain(heat.layers[at])}</b><br>${steps}: ${value === "NaN" && lost ? "nothing finite" : say(value)}${lost}`;
    }));
    const scale = [[0, css("--heat-0")], [0.3, css("--heat-1")], [0.55, css("--heat-2")], [0.78, css("--heat-3")], [1, css("--heat-4")]];
    // Of a clipping factor the small values are what to look at.
    if (heat.smallest) scale.splice(0, scale.length, ...scale.map(([at, colour]) => [1 - at, colour]).reverse());
    const common = { type: "heatmap", x: edges, y: order.map((_, at) => at), showscale: false, zsmooth: false, xgap: 0, ygap: rows > 40 ? 0 : 1 };
    const data = [{ ...common, z, colorscale: scale, zmin: place(Math.max(low, -Infinity)), zmax: place(high), hoverinfo: "text", text, hoverongaps: false }];
    if (!log) { data[0].zmin = Math.min(...all); data[0].zmax = high > Math.min(...all) ? high : Math.min(...all) + 1; }
    if (badCount) data.push({ ...common, z: bad, colorscale: [[0, css("--nonfinite")], [1, css("--nonfinite")]], zmin: 0, zmax: 1, hoverinfo: "text", text, hoverongaps: false });
    const { shapes } = bands(0);
    const marks = shapes.filter((shape) => shape.type === "line").map((shape) => ({ ...shape, layer: "above" }));
    const every = Math.max(1, Math.ceil(rows / (height / 12)));
    const left = narrow.matches ? 92 : 256;
    window.Plotly.react(plot, data, layout(height + 40, {
      margin: { l: left, r: margins().r, t: 6, b: 34 },
      hovermode: "closest",
      xaxis: { ...axis(true), title: { text: "step", standoff: 4 } },
      yaxis: {
        autorange: false, range: [rows - 0.5, -0.5], fixedrange: true, showgrid: false, zeroline: false, ticks: "",
        tickvals: order.map((_, at) => at).filter((at) => at % every === 0),
        ticktext: order.filter((_, at) => at % every === 0).map((at) => plain(label(heat.layers[at]))),
        tickfont: { family: css("--code"), size: narrow.matches ? 10 : 11, color: css("--ink") },
      },
      shapes: marks,
    }), config);
    const option = byId("heat-stat").selectedOptions[0];
    byId("heat-note").textContent = option ? option.dataset.meaning : "";
    const key = byId("heat-key");
    key.replaceChildren();
    if (all.length) {
      const bottom = log ? low : Math.min(...all);
      key.append(`${log && all.length > positive.length ? "0 or " : ""}${say(bottom)}`, make("span", heat.smallest ? "ramp is-reversed" : "ramp"), `${say(high)}${log ? " (logarithmic)" : ""}`);
    }
    if (badCount) key.append(make("span", "cell"), "NaN or Inf");
    plot.setAttribute("aria-label", `Heat map of ${heat.stat}, ${rows} layers, steps ${whole(shown()[0])} to ${whole(shown()[1])}${all.length ? `, from ${say(low)} to ${say(high)}` : ""}${badCount ? `, NaN or Inf in ${badCount} cells` : ""}`);
    if (!plot.dataset.wired) { plot.dataset.wired = "yes"; wire(plot); }
  };

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
  const query = (extra) => {
    const values = new URLSearchParams(extra);
    if (state.range) { values.set("from", state.range[0]); values.set("to", state.range[1]); }
    return values.toString();
  };
  const address = (base, extra) => {
    const text = query(extra);
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
  const loadAll = () => Promise.all([loadCharts(), loadHeat()]).then(() => root.setAttribute("data-drawn", "yes"));

  const show = (from, to) => {
    const [first, last] = state.span;
    from = Math.max(first, Math.round(from)); to = Math.min(last, Math.round(to));
    if (to - from < 4) { const middle = (from + to) / 2; from = Math.max(first, Math.floor(middle - 2)); to = Math.min(last, from + 4); }
    state.range = from <= first && to >= last ? null : [from, to];
    const place = state.range ? `#steps=${from}-${to}` : location.pathname + location.search;
    history.replaceState(null, "", place);
    inputs();
    drawCharts(); drawHeat();
    loadAll();
  };
  const inputs = () => { const [from, to] = shown(); byId("range-from").value = from; byId("range-to").value = to; };

  const wire = (plot) => {
    const cursor = make("div", "cursor");
    plot.append(cursor);
    const hook = () => {
      if (!plot.on) return requestAnimationFrame(hook);
      plot.on("plotly_relayout", (event) => {
        if ("xaxis.range[0]" in event) show(event["xaxis.range[0]"] + 0.5, event["xaxis.range[1]"] - 0.5);
      });
      plot.on("plotly_doubleclick", () => show(...state.span));
      plot.on("plotly_hover", (event) => point(event.xvals ? event.xvals[0] : event.points[0].x));
      plot.on("plotly_unhover", () => point(null));
    };
    hook();
  };
  const point = (x) => {
    for (const cursor of root.querySelectorAll(".cursor")) {
      const full = cursor.parentElement._fullLayout;
      cursor.classList.toggle("is-on", x !== null && Boolean(full));
      if (x !== null && full) cursor.style.left = `${full.xaxis._offset + full.xaxis.l2p(x)}px`;
    }
  };

  byId("range").addEventListener("submit", (event) => {
    event.preventDefault();
    const clean = (id) => Number(byId(id).value.replace(/[^0-9]/g, ""));
    const from = clean("range-from"), to = clean("range-to");
    if (to > from) show(from, to); else inputs();
  });
  byId("range").addEventListener("click", (event) => {
    const how = event.target.dataset.range;
    if (!how) return;
    const [from, to] = shown(), width = to - from;
    if (how === "all") show(...state.span);
    if (how === "in") show(from + width / 4, to - width / 4);
    if (how === "out") show(from - width / 2, to + width / 2);
    if (how === "left" || how === "right") {
      const by = Math.min(width / 2, how === "left" ? from - state.span[0] : state.span[1] - to) * (how === "left" ? -1 : 1);
      show(from + by, to + by);
    }
    if (how === "incident") {
      const band = state.overlay.bands[0];
      show(band.first - 40, Math.min(band.last === null ? state.span[1] : band.last, band.first + 120) + 40);
    }
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-zoom]");
    if (!button) return;
    const from = Number(button.dataset.zoom), to = Number(button.dataset.zoomEnd);
    show(from - 40, to + 40);
    root.scrollIntoView({ block: "start" });
  });
  if (byId("heat-stat")) {
    byId("heat-stat").addEventListener("change", loadHeat);
    byId("heat-order").addEventListener("change", drawHeat);
  }
  document.addEventListener("lossguard:fresh", (event) => {
    const fresh = event.detail.getElementById("tracks");
    if (!fresh) return;
    const span = [Number(fresh.dataset.first), Number(fresh.dataset.last)];
    const overlay = read(event.detail);
    const same = span[1] === state.span[1] && JSON.stringify(overlay) === JSON.stringify(state.overlay);
    if (same) return;
    state.span = span;
    state.overlay = overlay;
    if (state.range) { drawCharts(); drawHeat(); return; }
    inputs();
    loadAll();
  });
  let resizing = 0;
  window.addEventListener("resize", () => { cancelAnimationFrame(resizing); resizing = requestAnimationFrame(() => { drawCharts(); drawHeat(); }); });
  dark.addEventListener("change", () => { drawCharts(); drawHeat(); });
  inputs();
  loadAll();
})();
