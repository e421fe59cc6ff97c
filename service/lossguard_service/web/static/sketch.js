// Draws a figure on a canvas: the picture that stands until plotly.js, which takes a second to start, has drawn the same.
// It knows as much of plotly.js's figures as ours use: lines, fills, marks, heat maps, shapes, texts, two axes.

const DASHES = { solid: [], dash: [7, 4], dot: [2, 3], dashdot: [7, 3, 2, 3], longdash: [10, 4], "5px,4px": [5, 4] };

const frameOf = (layout, width) => {
  const { l, r, t, b } = layout.margin, right = width - r, bottom = layout.height - b;
  const axis = ({ range: [low, high], type }, from, to) => (value) => from + (((type === "log" ? Math.log10(value) : value) - low) / (high - low || 1)) * (to - from);
  return { l, t, right, bottom, x: axis(layout.xaxis, l, right), y: axis(layout.yaxis, bottom, t), y2: axis({ range: [0, 1] }, bottom, t) };
};

const drawShape = (pen, shape, frame) => {
  const x = (value) => (shape.xref === "paper" ? frame.l + value * (frame.right - frame.l) : frame.x(value));
  const y = (value) => (shape.yref === "paper" ? frame.bottom - value * (frame.bottom - frame.t) : frame.y(value));
  const [x0, x1, y0, y1] = [x(shape.x0), x(shape.x1), y(shape.y0), y(shape.y1)];
  if (shape.type === "rect") {
    pen.fillStyle = shape.fillcolor;
    pen.fillRect(x0, y1, x1 - x0, y0 - y1);
    return;
  }
  pen.strokeStyle = shape.line.color;
  pen.lineWidth = shape.line.width;
  pen.setLineDash(DASHES[shape.line.dash] || []);
  pen.beginPath(); pen.moveTo(x0, y0); pen.lineTo(x1, y1); pen.stroke();
};

const path = (pen, trace, frame) => {
  let down = false;
  trace.y.forEach((value, at) => {
    if (value === null) { down = false; return; }
    const x = frame.x(trace.x[at]), y = frame.y(value);
    if (down) pen.lineTo(x, y); else pen.moveTo(x, y);
    down = true;
  });
};

const drawFill = (pen, low, high, frame) => {
  pen.fillStyle = high.fillcolor;
  let start = 0;
  for (let at = 0; at <= high.x.length; at += 1) {
    if (at < high.x.length && low.y[at] !== null && high.y[at] !== null) continue;
    if (at > start) {
      pen.beginPath();
      for (let one = start; one < at; one += 1) pen.lineTo(frame.x(high.x[one]), frame.y(high.y[one]));
      for (let one = at - 1; one >= start; one -= 1) pen.lineTo(frame.x(low.x[one]), frame.y(low.y[one]));
      pen.fill();
    }
    start = at + 1;
  }
};

const drawMarks = (pen, trace, frame) => {
  const { symbol, size, color, line } = trace.marker, half = size / 2;
  trace.x.forEach((at, place) => {
    const x = frame.x(at), y = frame.y2(trace.y[place]);
    pen.beginPath();
    if (symbol === "triangle-up") {
      pen.fillStyle = color;
      pen.moveTo(x, y - half); pen.lineTo(x + half, y + half * 0.7); pen.lineTo(x - half, y + half * 0.7); pen.fill();
    } else {
      pen.strokeStyle = line.color; pen.lineWidth = line.width;
      pen.moveTo(x - half, y - half); pen.lineTo(x + half, y + half); pen.moveTo(x + half, y - half); pen.lineTo(x - half, y + half); pen.stroke();
    }
  });
};

const drawLines = (pen, traces, frame) => {
  traces.forEach((trace, place) => {
    pen.setLineDash([]);
    if (trace.mode === "markers") { drawMarks(pen, trace, frame); return; }
    if (trace.fill) drawFill(pen, traces[place - 1], trace, frame);
    if (!trace.line.width) return;
    pen.strokeStyle = trace.line.color;
    pen.lineWidth = trace.line.width;
    pen.setLineDash(DASHES[trace.line.dash] || []);
    pen.beginPath(); path(pen, trace, frame); pen.stroke();
    if (trace.mode === "lines+markers") {
      pen.fillStyle = trace.line.color;
      trace.y.forEach((value, at) => { if (value !== null) { pen.beginPath(); pen.arc(frame.x(trace.x[at]), frame.y(value), 3, 0, 7); pen.fill(); } });
    }
  });
};

const rgb = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));

const drawHeat = (pen, trace, frame) => {
  const stops = trace.colorscale.map(([at, colour]) => [at, rgb(colour)]), reach = trace.zmax - trace.zmin || 1;
  const colourOf = (value) => {
    const share = Math.min(1, Math.max(0, (value - trace.zmin) / reach));
    const next = Math.max(1, stops.findIndex(([at]) => at >= share)), [from, low] = stops[next - 1], [to, high] = stops[next];
    const part = (share - from) / (to - from || 1);
    return `rgb(${low.map((one, at) => Math.round(one + (high[at] - one) * part)).join(",")})`;
  };
  const xs = trace.x.map(frame.x), half = trace.ygap / 2;
  trace.z.forEach((row, at) => {
    const top = frame.y(at - 0.5) + half, tall = frame.y(at + 0.5) - half - top;
    row.forEach((value, place) => {
      if (value === null) return;
      pen.fillStyle = colourOf(value);
      pen.fillRect(xs[place], top, Math.max(0.5, xs[place + 1] - xs[place]) + 0.3, tall);
    });
  });
};

const drawTexts = (pen, layout, frame) => {
  const face = (font) => `${font?.size || layout.font.size}px ${font?.family || layout.font.family}`;
  for (const note of layout.annotations || []) {
    const text = note.text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
    pen.font = face(note.font);
    const wide = pen.measureText(text).width, tall = 15;
    const at = note.xref === "paper" ? frame.l + note.x * (frame.right - frame.l) : frame.x(note.x);
    const left = at + (note.xshift || 0) - (note.xanchor === "right" ? wide + 1 : -1);
    const edge = note.yref === "paper" ? frame.bottom - note.y * (frame.bottom - frame.t) : frame.y(note.y);
    const top = note.yanchor === "top" ? edge + 1 : edge - tall - 1;
    if (note.bgcolor) { pen.fillStyle = note.bgcolor; pen.fillRect(left - 1, top, wide + 2, tall); }
    pen.fillStyle = note.font.color;
    pen.textAlign = "left"; pen.textBaseline = "middle";
    pen.fillText(text, left, top + tall / 2 + 0.5);
  }
};

const drawAxes = (pen, { xaxis, yaxis, font }, frame) => {
  pen.setLineDash([]);
  pen.lineWidth = 1;
  pen.textBaseline = "middle";
  yaxis.tickvals.forEach((value, at) => {
    const y = frame.y(value);
    pen.font = `${yaxis.tickfont?.size || font.size}px ${yaxis.tickfont?.family || font.family}`;
    pen.fillStyle = yaxis.tickfont?.color || font.color;
    pen.textAlign = "right";
    pen.fillText(yaxis.ticktext[at].replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&"), frame.l - 2, y + 0.5);
    if (yaxis.gridcolor) { pen.strokeStyle = yaxis.gridcolor; pen.beginPath(); pen.moveTo(frame.l, y); pen.lineTo(frame.right, y); pen.stroke(); }
  });
  pen.strokeStyle = xaxis.linecolor;
  pen.beginPath(); pen.moveTo(frame.l, frame.bottom + 0.5); pen.lineTo(frame.right, frame.bottom + 0.5); pen.stroke();
  if (!xaxis.showticklabels) return;
  pen.font = `${font.size}px ${font.family}`;
  pen.textAlign = "center";
  xaxis.tickvals.forEach((value, at) => {
    const x = frame.x(value);
    pen.beginPath(); pen.moveTo(x, frame.bottom); pen.lineTo(x, frame.bottom + 4); pen.stroke();
    pen.fillStyle = font.color;
    pen.fillText(xaxis.ticktext[at], x, frame.bottom + 13);
  });
  if (xaxis.title) pen.fillText(xaxis.title.text, (frame.l + frame.right) / 2, frame.bottom + 27);
};

export const sketch = (plot, { traces, layout }) => {
  let canvas = plot.querySelector("canvas.sketch");
  if (!canvas) {
    canvas = document.createElement("canvas");
    canvas.className = "sketch";
    plot.prepend(canvas);
  }
  const width = plot.clientWidth, scale = window.devicePixelRatio || 1;
  plot.style.height = `${layout.height}px`;
  canvas.style.width = `${width}px`;
  canvas.style.height = `${layout.height}px`;
  canvas.width = width * scale;
  canvas.height = layout.height * scale;
  const pen = canvas.getContext("2d"), frame = frameOf(layout, width);
  pen.scale(scale, scale);
  const inside = (draw) => {
    pen.save();
    pen.beginPath(); pen.rect(frame.l, frame.t, frame.right - frame.l, frame.bottom - frame.t); pen.clip();
    draw();
    pen.restore();
  };
  const below = layout.shapes.filter((shape) => shape.layer === "below"), above = layout.shapes.filter((shape) => shape.layer !== "below");
  inside(() => below.forEach((shape) => drawShape(pen, shape, frame)));
  drawAxes(pen, layout, frame);
  inside(() => {
    if (traces[0]?.type === "heatmap") traces.forEach((trace) => drawHeat(pen, trace, frame)); else drawLines(pen, traces, frame);
    above.forEach((shape) => drawShape(pen, shape, frame));
  });
  drawTexts(pen, layout, frame);
};
