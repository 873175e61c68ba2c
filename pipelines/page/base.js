// What every part uses: the data, making elements (text only ever as text), numbers as people read them.

const data = JSON.parse(document.getElementById("data").textContent);
for (const name of ["viewer", "credit"]) if (data[name]) data[name] = await unpack(data[name]);

/** JSON that was compressed (zlib) and written as base64. */
async function unpack(text) {
  const packed = atob(text);
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < packed.length; i++) bytes[i] = packed.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

/** An element; `text` becomes a text node, `on` an object of listeners, null attributes are left out. */
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "circle", "text", "rect"].includes(tag);
  const made = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", tag)
    : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (name === "on") for (const [event, f] of Object.entries(value)) made.addEventListener(event, f);
    else if (value === null || value === undefined) continue;
    else if (typeof value === "boolean" && !name.startsWith("aria-")) made.toggleAttribute(name, value);
    else made.setAttribute(name, value);
  }
  made.append(...there(children));
  return made;
}

/** Without what was left out. */
const there = (items) => items.filter((item) => item !== null && item !== undefined);

const MINUS = "\u2212";

/** A number with about `digits` significant digits, never in more places than it needs. */
function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  const size = Math.abs(value);
  if (size === 0) return "0";
  let text;
  if (size < 1e-4) text = value.toExponential(1).replace("e-", "e\u2212");
  else if (size >= 1e6) text = `${number(value / 1e6, digits)} M`;
  else if (size >= 1e4) text = `${number(value / 1e3, digits)} k`;
  else text = String(Number(value.toPrecision(Math.max(digits, size >= 100 ? 4 : digits))));
  return text.replace(/^-/, MINUS);
}

function percent(value) {
  return `${number(100 * value)} %`;
}

/** A count in full, in groups of three digits. */
function count(value) {
  return String(value).replace(/\B(?=(\d{3})+$)/g, "\u202f");
}

/** `1 step`, `3 steps`. */
function counted(value, one) {
  return `${count(value)} ${one}${value === 1 ? "" : "s"}`;
}

/** In so many decimals, as the terminal and the tables round: what lies in the middle goes to the even digit. */
function rounded(value, places) {
  const away = value.toFixed(places); // of two that are as near, the larger in size
  const middle = new RegExp(`\\.\\d{${places}}50*$`).test(value.toFixed(places + 16));
  return middle && Number(away.slice(-1)) % 2 ? (value - Math.sign(value) * 0.5 * 10 ** -places).toFixed(places) : away;
}

/** The same as a person reads it. */
function fixed(value, places) {
  return value === null || value === undefined ? "\u2013" : rounded(value, places).replace("-", MINUS);
}

/** With its sign, also where it is positive. */
function signed(value, places = 2) {
  if (value === null || value === undefined) return "\u2013";
  const shown = rounded(value, places);
  return Number(shown) < 0 ? MINUS + shown.slice(1) : `+${shown.replace("-", "")}`;
}

/** A perception with what it is measured in; shares and ranks have no unit. */
const UNIT = data.unit ?? "nats";
const measured = (text) => (UNIT ? `${text} ${UNIT}` : text);

const FORMATS = {
  percent,
  number: (value) => number(value),
  seconds: (value) => `${number(value)} s`,
};

/** A round distance between about `count` ticks. */
function tickStep(span, count) {
  const raw = (span || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  return [1, 2, 5, 10].find((m) => m * power >= raw * 0.75) * power;
}

/** Round places for ticks: about `count` between low and high. */
function ticks(low, high, count, whole = false) {
  const step = whole ? Math.max(1, Math.round(tickStep(high - low, count))) : tickStep(high - low, count);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    found.push(Number((i * step).toPrecision(12)));
  }
  return found;
}

/** The runs' names; the first is the page's own. */
const runs = data.runs || [data.title];

/** A named part of the page, with its heading and a place in the navigation. */
function section(id, title, ...children) {
  return el("section", { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title`, text: title }), ...children);
}

function about(text, kind = "about") {
  return text ? el("p", { class: kind, text }) : null;
}
