// One kind of chart: lines, steps and bands over a common x, with ticks, a crosshair and its values.

const HEIGHT = 196;
const PAD = { left: 58, right: 12, top: 10, bottom: 38 };

/** Charts over the training step move their crosshairs together, */
const synced = [];

/** and have one x axis: the first and last step of any of them. */
const stepRange = [...(data.curves?.groups || []).flatMap((group) => group.charts), ...(data.figures?.charts || [])]
  .filter((spec) => spec.sync).flatMap((spec) => spec.series).flatMap((series) => series.x)
  .reduce(([low, high], x) => [Math.min(low, x), Math.max(high, x)], [Infinity, -Infinity]);

function chart(spec) {
  const plot = el("div", { class: "plot" });
  const value = el("span", { class: "now" });
  const figure = el("figure", { class: "chart" },
    el("figcaption", {},
      el("span", { class: "chart-title", text: spec.title }), value,
      el("span", { class: "chart-about", text: spec.about })),
    keyOf(spec), plot);
  const state = { spec, plot, value, figure, width: 0 };
  new ResizeObserver(() => {
    const width = Math.round(plot.clientWidth);
    if (width && width !== state.width) {
      state.width = width;
      draw(state);
    }
  }).observe(plot);
  if (spec.sync) synced.push(state);
  settle(state);
  return figure;
}

function draw(state) {
  const { spec, width } = state;
  const scale = scales(spec, width);
  const svg = el("svg", {
    viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img", tabindex: 0,
    "aria-label": inWords(spec),
  });
  for (const tick of scale.yTicks) {
    const y = scale.y(tick);
    svg.append(
      el("line", { class: "grid", x1: PAD.left, x2: width - PAD.right, y1: y, y2: y }),
      el("text", { class: "tick", x: PAD.left - 8, y: y + 4, "text-anchor": "end",
        text: scale.tickText(tick) }));
  }
  for (const tick of scale.xTicks) {
    const x = scale.x(tick);
    svg.append(
      el("line", { class: "axis", x1: x, x2: x, y1: HEIGHT - PAD.bottom, y2: HEIGHT - PAD.bottom + 4 }),
      el("text", { class: "tick", x, y: HEIGHT - PAD.bottom + 17, "text-anchor": "middle",
        text: number(tick) }));
  }
  svg.append(
    el("line", { class: "axis", x1: PAD.left, x2: width - PAD.right,
      y1: HEIGHT - PAD.bottom, y2: HEIGHT - PAD.bottom }),
    el("text", { class: "tick unit", x: width - PAD.right, y: HEIGHT - 5, "text-anchor": "end",
      text: spec.x }));
  for (const mark of spec.marks || []) {
    const x = scale.x(mark.x);
    svg.append(
      el("line", { class: "mark", x1: x, x2: x, y1: PAD.top, y2: HEIGHT - PAD.bottom }),
      el("text", { class: "tick", x: x + 6, y: HEIGHT - PAD.bottom - 8, text: mark.label }));
  }
  for (const series of spec.series) svg.append(...shapes(series, scale));
  state.cross = el("g", { class: "cross", visibility: "hidden" });
  svg.append(state.cross);
  state.scale = scale;
  state.places = [...new Set(spec.series.flatMap((s) =>
    s.kind === "steps" ? s.x.slice(0, -1).map((x, i) => (x + s.x[i + 1]) / 2) : s.x))]
    .sort((a, b) => a - b);
  listen(state, svg);
  state.plot.replaceChildren(svg);
}

function scales(spec, width) {
  const xs = spec.sync ? stepRange : spec.series.flatMap((s) => s.x);
  let ys = spec.series.flatMap((s) => [...s.y, ...(s.low || []), ...(s.high || [])]);
  if (spec.log) ys = ys.filter((y) => y > 0);
  let [left, right] = [Math.min(...xs), Math.max(...xs)];
  if (left === right) [left, right] = [left - 1, right + 1];
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  const x = (v) => PAD.left + ((v - left) / (right - left)) * (width - PAD.left - PAD.right);
  const form = FORMATS[spec.format];
  const single = new Set(xs).size === 1;
  const xTicks = single ? [xs[0]]
    : ticks(left, right, Math.max(2, Math.floor(width / 80)), spec.whole).filter((t) => !spec.whole || t >= 1);
  if (spec.whole && !single && !xTicks.includes(left) && x(xTicks[0]) - x(left) > 24) xTicks.unshift(left);
  if (spec.log) {
    const [bottom, top] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
    const every = Math.max(1, Math.ceil((top - bottom) / 5));
    const yTicks = [];
    for (let p = top; p >= bottom; p -= every) yTicks.push(10 ** p);
    const y = (v) => {
      const share = v > 0 ? (Math.log10(v) - bottom) / (top - bottom || 1) : 0;
      return HEIGHT - PAD.bottom - Math.max(0, share) * (HEIGHT - PAD.top - PAD.bottom);
    };
    return { x, y, xTicks, yTicks, tickText: form, left, right };
  }
  // Zero belongs to the picture unless the values are far from it, compared with how they vary.
  if (low > 0 && low < 2.5 * (high - low)) low = 0;
  // Differences of less than a hundredth of a percent are no picture of a share.
  if (spec.format === "percent" && low > 0.5 && high - low < 0.002) [low, high] = [Math.min(low, 0.99), Math.max(high, 1)];
  if (high === low) [low, high] = low === 0 ? [0, 1] : [Math.min(0, 1.2 * low), Math.max(0, 1.2 * high)];
  const step = tickStep(high - low, 4);
  [low, high] = [Math.floor(low / step + 1e-6) * step, Math.ceil(high / step - 1e-6) * step];
  const yTicks = ticks(low, high, 4);
  const y = (v) => HEIGHT - PAD.bottom - ((v - low) / (high - low)) * (HEIGHT - PAD.top - PAD.bottom);
  return { x, y, xTicks, yTicks, tickText: tickFormat(spec.format, step), left, right };
}

/** Ticks of one axis in equally many decimals. */
function tickFormat(format, step) {
  const scaled = format === "percent" ? 100 * step : step;
  const places = Math.max(0, Math.min(6, -Math.floor(Math.log10(scaled) + 1e-9)));
  return (value) => {
    const shown = format === "percent" ? 100 * value : value;
    if (Math.abs(shown) >= 1e4 || places > 3) return FORMATS[format](value);
    const text = shown.toFixed(places).replace("-", MINUS);
    return { percent: `${text} %`, seconds: `${text} s` }[format] || text;
  };
}

function shapes(series, scale) {
  const run = `run-${series.run % 6}`;
  const at = (x, y) => `${scale.x(x).toFixed(1)},${scale.y(y).toFixed(1)}`;
  const made = [];
  if (series.kind === "steps") {
    const points = series.y.flatMap((y, i) => [at(series.x[i], y), at(series.x[i + 1], y)]);
    const floor = HEIGHT - PAD.bottom;
    const outline = `M${scale.x(series.x[0])},${floor}L${points.join("L")}L${scale.x(series.x.at(-1))},${floor}`;
    if (runs.length === 1) made.push(el("path", { class: `area ${run}`, d: `${outline}Z` }));
    made.push(el("path", { class: `curve ${run}`, d: outline }));
    return made;
  }
  if (series.low && !series.dots && series.x.length === 1) {
    const x = scale.x(series.x[0]);
    made.push(el("line", { class: `whisker ${run}`, x1: x, x2: x, y1: scale.y(series.low[0]), y2: scale.y(series.high[0]) }));
  } else if (series.low && !series.dots) {
    const there = series.x.map((x, i) => at(x, series.high[i]));
    const back = series.x.map((x, i) => at(x, series.low[i])).reverse();
    made.push(el("path", { class: `band ${run}`, d: `M${there.join("L")}L${back.join("L")}Z` }));
  }
  if (series.kind === "band") return made;
  const points = series.x.map((x, i) => at(x, series.y[i]));
  if (points.length > 1) made.push(el("path", { class: `curve ${run}`, d: `M${points.join("L")}` }));
  if (series.dots || points.length === 1) {
    series.x.forEach((x, i) => {
      if (series.low && series.dots) {
        made.push(el("line", { class: `whisker ${run}`, x1: scale.x(x), x2: scale.x(x),
          y1: scale.y(series.low[i]), y2: scale.y(series.high[i]) }));
      }
      made.push(el("circle", { class: `dot ${run}`, cx: scale.x(x), cy: scale.y(series.y[i]), r: 3.5 }));
    });
  }
  return made;
}

// -- the crosshair ----------------------------------------------------------------------------------

function listen(state, svg) {
  const show = (x, event) => {
    for (const one of state.spec.sync ? synced : [state]) point(one, x);
    tooltip(state, x, event);
  };
  const leave = () => {
    for (const one of state.spec.sync ? synced : [state]) settle(one);
    hideTip();
  };
  svg.addEventListener("pointermove", (event) => {
    const at = event.clientX - svg.getBoundingClientRect().left;
    const { left, right } = state.scale;
    show(left + ((at - PAD.left) / (state.width - PAD.left - PAD.right)) * (right - left), event);
  });
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const last = state.places.length - 1;
    const from = state.index === undefined ? (move > 0 ? -1 : last + 1) : state.index;
    show(state.places[Math.min(Math.max(from + move, 0), last)], null);
  });
}

function nearest(values, x) {
  let best = 0;
  values.forEach((value, i) => {
    if (Math.abs(value - x) < Math.abs(values[best] - x)) best = i;
  });
  return best;
}

/** What each series says at the place nearest to x: [{series, x, y, text}]. */
function readings(spec, x) {
  const form = FORMATS[spec.format];
  return spec.series.map((series) => {
    if (series.kind === "steps") {
      const i = Math.max(0, series.x.findLastIndex((edge, k) => edge <= x && k < series.y.length));
      return { series, x: (series.x[i] + series.x[i + 1]) / 2, y: series.y[i],
        text: form(series.y[i]), where: `${number(series.x[i])} to ${number(series.x[i + 1])} ${spec.x}` };
    }
    const i = nearest(series.x, x);
    const band = (series.dots || series.seeds) && series.low
      ? ` [${form(series.low[i])}, ${form(series.high[i])}]` : "";
    return { series, x: series.x[i], y: series.y[i], text: form(series.y[i]) + band,
      where: spec.x === "step" ? `step ${series.x[i]}` : `${number(series.x[i])} ${spec.x}` };
  });
}

function point(state, x) {
  if (!state.scale) return;
  state.index = nearest(state.places, x);
  const found = readings(state.spec, state.places[state.index]);
  const at = state.scale.x(state.places[state.index]);
  state.cross.replaceChildren(
    el("line", { class: "hair", x1: at, x2: at, y1: PAD.top, y2: HEIGHT - PAD.bottom }),
    ...found.filter(({ series, y }) => series.kind !== "band" && (y > 0 || !state.spec.log))
      .map(({ series, x: px, y }) => el("circle", {
        class: `dot run-${series.run % 6}`, cx: state.scale.x(px), cy: state.scale.y(y), r: 4 })));
  state.cross.setAttribute("visibility", "visible");
  if (runs.length === 1) state.value.textContent = told(main(found));
}

const told = ({ series, text }) => (series.name ? `${series.name} ${text}` : text);

function main(found) {
  return found.find(({ series }) => series.kind !== "band" && series.kind !== "steps") || found[0];
}

/** Without a crosshair: the last value, where there is one line. */
function settle(state) {
  state.index = undefined;
  if (state.cross) state.cross.setAttribute("visibility", "hidden");
  const { spec } = state;
  const plain = runs.length === 1 && spec.x === "step" && spec.series.length;
  state.value.textContent = plain ? told(main(readings(spec, Math.max(...spec.series.flatMap((s) => s.x))))) : "";
}

const tip = document.getElementById("tip");

function tooltip(state, x, event) {
  const place = state.places[nearest(state.places, x)];
  const found = readings(state.spec, place);
  const rows = found.map(({ series, text }) => el("div", { class: "tip-row" },
    el("span", { class: `key run-${series.run % 6}` }),
    el("span", { class: "tip-name",
      text: [runs.length > 1 ? runs[series.run] : "", series.name || ""].filter(Boolean).join(", ")
        || state.spec.title }),
    el("span", { class: "tip-value", text })));
  tip.replaceChildren(el("div", { class: "tip-head", text: main(found).where }), ...rows);
  tip.hidden = false;
  const box = state.plot.getBoundingClientRect();
  const at = event ? event.clientX : box.left + state.scale.x(place);
  const height = event ? event.clientY : box.top + 20;
  const { offsetWidth, offsetHeight } = tip;
  const fits = at + 16 + offsetWidth < window.innerWidth;
  tip.style.left = `${Math.max(8, fits ? at + 16 : at - 16 - offsetWidth)}px`;
  tip.style.top = `${Math.max(8, Math.min(height - offsetHeight / 2, window.innerHeight - offsetHeight - 8))}px`;
}

function hideTip() {
  tip.hidden = true;
}

/** The chart for those who do not see it. */
function inWords(spec) {
  const form = FORMATS[spec.format];
  const parts = spec.series.filter((s) => s.kind !== "band").map((s) => {
    const name = [runs.length > 1 ? runs[s.run] : "", s.name || ""].filter(Boolean).join(", ");
    const said = s.kind === "steps"
      ? `a distribution from ${number(s.x[0])} to ${`${number(s.x.at(-1))} ${spec.x}`.trim()}, ${peak(s, form)}`
      : `from ${form(s.y[0])} at ${number(s.x[0])} to ${form(s.y.at(-1))} at ${number(s.x.at(-1))}`;
    return name ? `${name}: ${said}` : said;
  });
  return `${spec.title}, ${spec.about}. ${parts.join("; ")}. Arrow keys read the values.`;
}

/** Where most of a distribution is. */
function peak(series, form) {
  const highest = series.y.indexOf(Math.max(...series.y));
  return `most, ${form(series.y[highest])}, from ${number(series.x[highest])} to ${number(series.x[highest + 1])}`;
}

/** Whose line is whose; `said` tells what a line is of several runs, `bands` whether they have one. */
function legend(said = runs, bands = false) {
  if (runs.length < 2 && said[0] === runs[0]) return null;
  return keys("Runs", said.map((text, i) => [text, i, bands && text !== runs[i]]));
}

/** Which of a chart's own lines is which, where they are not those of runs. */
function keyOf(spec) {
  const named = runs.length < 2 && new Set(spec.series.map((s) => s.run)).size > 1;
  return named ? keys("Lines", spec.series.map((s) => [s.name, s.run])) : null;
}

function keys(about, named) {
  return el("ul", { class: "legend", "aria-label": about }, ...named.map(([name, i, band]) =>
    el("li", {}, el("svg", { width: 28, height: 12, "aria-hidden": "true" },
      band ? el("rect", { class: `band run-${i % 6}`, width: 28, height: 12 }) : null,
      el("line", { class: `curve run-${i % 6}`, x1: 1, x2: 27, y1: 6, y2: 6 })),
    el("span", { text: name }))));
}
