// How the charts say numbers and which colours they use; knows nothing of runs or of plotly.js.

export const narrow = window.matchMedia("(max-width: 48rem)");
export const coarse = window.matchMedia("(pointer: coarse)");
export const LINEAR = 30; // a spread beyond this factor is shown on a logarithmic scale

const style = getComputedStyle(document.documentElement);
export const css = (name) => style.getPropertyValue(name).trim();

export const fade = (colour, share) => {
  const number = parseInt(colour.slice(1), 16);
  return `rgba(${number >> 16},${(number >> 8) & 255},${number & 255},${share})`;
};

// plotly.js reads a little HTML in texts; names from outside must not be read so.
export const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const group = new Intl.NumberFormat("en-US");
export const whole = (value) => group.format(value);

export const say = (value) => {
  if (typeof value === "string") return { NaN: "NaN", Infinity: "∞", "-Infinity": "-∞" }[value];
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size >= 1e6 || size < 1e-4 ? value.toExponential(2).replace("e+", "e") : String(Number(value.toPrecision(4)));
};

export const finite = (values) => values.map((value) => (typeof value === "number" ? value : null));

export const make = (tag, name, text) => {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text) element.textContent = text;
  return element;
};

const step = (span, most) => {
  const raw = span / most, size = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].map((one) => one * size).find((one) => one >= raw * 0.999);
};

// Round values within a range, at most so many, with their texts.
export const ticks = ([low, high], most, text = null) => {
  const by = step(high - low, most), found = [], digits = Math.min(20, Math.max(0, -Math.floor(Math.log10(by) + 1e-9)));
  for (let at = Math.ceil(low / by - 1e-9); at * by <= high + by * 1e-9; at += 1) found.push(Number((at * by).toFixed(digits)));
  return { tickvals: found, ticktext: found.map((value) => (text ? text(value) : Math.abs(value) >= 1e6 ? say(value) : group.format(Number(value.toFixed(digits))) === "0" && value !== 0 ? say(value) : value.toLocaleString("en-US", { maximumFractionDigits: digits }))) };
};

const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const power = (value) => (value === 0 ? "1" : value === 1 ? "10" : `10${[...String(value)].map((one) => RAISED[one]).join("")}`);

// Powers of ten within a range of exponents; where there are none, a few values between.
export const logTicks = ([low, high], most) => {
  const by = Math.max(1, Math.ceil((high - low) / most)), exponents = [];
  for (let at = Math.ceil(low / by) * by; at <= high; at += by) exponents.push(at);
  if (exponents.length > 1) return { tickvals: exponents.map((one) => 10 ** one), ticktext: exponents.map(power) };
  const values = [1, 2, 5, 10, 20, 50].map((one) => one * 10 ** Math.floor(low)).filter((one) => one >= 10 ** low && one <= 10 ** high);
  return { tickvals: values, ticktext: values.map(say) };
};
