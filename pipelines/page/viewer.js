// The token viewer: choose step, prompt and response; see the image, its perturbed twin and every token.

const CHIPS = 48;

const right = (response) => (response.outcome === null || response.outcome === undefined
  ? response.reward > 0 : response.outcome === "correct");
const shaped = (response) => (response.advantage === null || response.advantage === undefined
  || response.shaped_advantage === null || response.shaped_advantage === undefined
  ? 0 : Math.abs(response.shaped_advantage - response.advantage));

const FILTERS = { all: () => true, correct: right, wrong: (response) => !right(response) };
const ORDERS = {
  sampled: ["as sampled", null],
  dependency: ["highest dependency", (response) => response.dependency],
  shaping: ["largest shaping", shaped],
};
const AMONG = { prompt: "this prompt", step: "this step", run: "all prompts here" };

function viewerSection(entries, notes, alone) {
  if (!entries.length) {
    return section("viewer", "Token viewer", ...(notes || []).map((note) => about(note, "note")),
      about("No scored response is on disk to look at. vppo train makes them.", "empty"));
  }
  const steps = [...new Set(entries.map((entry) => entry.step))];
  const graded = entries.some((entry) => entry.responses.some((r) =>
    (r.outcome ?? r.reward ?? null) !== null));
  const state = { entry: entries.findIndex((entry) => entry.step === steps.at(-1)), response: 0, mask: 0,
    filter: "all", order: "sampled", among: "prompt" };

  const view = tokenView((index) => details.show(entries[state.entry].responses[state.response], index));
  const details = inspector();
  const scaleLegend = shadeLegend();
  const pick = {
    step: select("Step", (value) => go(first(value), 0)),
    prompt: select("Prompt", (value) => go(Number(value), 0)),
    among: select("Responses of", (value) => change({ among: value })),
    order: select("Order", (value) => change({ order: value })),
    scale: select("Shades", (value) => { shading.kind = value; scaleLegend.refresh(); draw(); }),
  };
  fillSelect(pick.step, steps.map((step) => [String(step), step === null ? "example" : String(step)]));
  fillSelect(pick.among, Object.entries(AMONG));
  fillSelect(pick.order, Object.entries(ORDERS).map(([name, [text]]) => [name, text]));
  fillSelect(pick.scale, Object.entries(shading.names));
  const filters = el("div", { class: "segments", role: "group", "aria-label": "Show responses" },
    ...Object.keys(FILTERS).map((name) => el("button", { type: "button", "data-filter": name, text: name,
      on: { click: () => change({ filter: name }) } })));
  const chips = el("div", { class: "chips", role: "group", "aria-label": "Responses" });
  const problem = el("p", { class: "problem" });
  const images = el("div", { class: "images" });
  const facts = el("dl", { class: "pairs facts-of" });
  const heading = el("h3", { class: "response-title" });
  const none = el("p", { class: "empty" });

  /** An entry's place among those of its step, from 1. */
  const nth = (e) => e - first(String(entries[e].step)) + 1;
  const first = (step) => entries.findIndex((entry) => String(entry.step) === step);

  /** The responses one can move through: [[entry, response]], filtered and ordered. */
  function list() {
    const here = entries[state.entry];
    const pairs = entries.flatMap((entry, e) => {
      if (state.among === "prompt" && e !== state.entry) return [];
      if (state.among === "step" && entry.step !== here.step) return [];
      return entry.responses.map((response, r) => [e, r, response]);
    }).filter(([, , response]) => FILTERS[state.filter](response));
    const key = ORDERS[state.order][1];
    return key ? pairs.sort((a, b) => key(b[2]) - key(a[2])) : pairs;
  }

  const placeIn = (pairs) => pairs.findIndex(([e, r]) => e === state.entry && r === state.response);

  /** To another prompt: its first response in the order chosen. */
  function go(entry, response) {
    [state.entry, state.response] = [entry, response];
    const pairs = list();
    if (state.among === "prompt" && pairs.length) [state.entry, state.response] = pairs[0];
    draw();
  }

  function change(values) {
    Object.assign(state, values);
    const pairs = list();
    if (pairs.length && (placeIn(pairs) < 0 || values.order)) [state.entry, state.response] = pairs[0];
    draw();
  }

  const moves = {
    response(by) {
      const pairs = list();
      const next = pairs[placeIn(pairs) + by];
      if (next) [state.entry, state.response] = next;
      draw();
    },
    prompt(by) {
      if (entries[state.entry + by]) go(state.entry + by, 0);
    },
    mask(by) {
      const masks = entries[state.entry].responses[state.response].masks;
      if (masks) byMask((state.mask + by + masks.length) % masks.length);
    },
    step(by) {
      const next = steps[steps.indexOf(entries[state.entry].step) + by];
      if (next !== undefined) go(first(String(next)), 0);
    },
  };

  function draw() {
    const entry = entries[state.entry];
    const pairs = list();
    pick.step.input.value = String(entry.step);
    fillSelect(pick.prompt, entries.map((one, i) => [i, one]).filter(([, one]) => one.step === entry.step)
      .map(([i, one], n) => [String(i), `${n + 1}: ${shorten(asked(one.problem), 48)}`]));
    pick.prompt.input.value = String(state.entry);
    for (const name of ["among", "order"]) pick[name].input.value = state[name];
    for (const button of filters.children) {
      button.setAttribute("aria-pressed", button.dataset.filter === state.filter);
    }
    drawChips(pairs);
    problem.textContent = asked(entry.problem);
    const response = entry.responses[state.response];
    const any = pairs.length > 0;
    none.hidden = any;
    none.textContent = any ? "" : `No response is ${state.filter} among ${AMONG[state.among]}.`;
    view.box.hidden = heading.hidden = facts.hidden = !any;
    drawImages(entry, state.response);
    details.show(response, -1);
    if (!any) return;
    const where = state.among === "prompt" ? "Response"
      : `Step ${entry.step}, prompt ${nth(state.entry)}, response`;
    heading.textContent = single ? where : `${where} ${state.response + 1}`;
    drawFacts(entry, response);
    view.show(response);
  }

  function drawChips(pairs) {
    const at = Math.max(0, placeIn(pairs));
    const start = Math.max(0, Math.min(at - CHIPS / 2, pairs.length - CHIPS));
    const highest = Math.max(...pairs.map((pair) => pair[2].dependency), 1e-12);
    const shown = pairs.slice(start, start + CHIPS).map(([e, r, response]) => {
      const sign = graded ? (right(response) ? "\u2713" : "\u2717") : "";
      const said = graded ? (right(response) ? ", correct" : ", wrong") : "";
      const name = [...{ prompt: [], step: [nth(e)], run: [entries[e].step, nth(e)] }[state.among], r + 1].join(".");
      const height = el("span", { class: "chip-bar", "aria-hidden": "true" }, el("span"));
      height.firstChild.style.width = `${100 * Math.max(0, response.dependency) / highest}%`;
      return el("button", { type: "button", class: "chip",
        "aria-pressed": e === state.entry && r === state.response,
        "aria-label": `Response ${name}${said}, dependency ${number(response.dependency)}`,
        title: `dependency ${measured(number(response.dependency))}`,
        on: { click: () => { [state.entry, state.response] = [e, r]; draw(); } } },
      el("span", { class: "chip-name" }, name, sign ? el("span", { class: right(response) ? "yes" : "no", text: sign }) : null),
      height);
    });
    const hidden = pairs.length - shown.length;
    chips.replaceChildren(...shown,
      hidden > 0 ? el("span", { class: "muted", text: `and ${hidden} more: \u2190 \u2192` }) : "");
  }

  function drawImages(entry, index) {
    const views = entry.perturbed || [];
    const masks = entry.responses[index].masks;
    const view = masks ? state.mask : index;
    const perturbed = views.length > 1 ? views[view] || views[0] : views[0] || [];
    const name = masks ? maskName(view, masks) : "Perturbed";
    if (!entry.images.length) {
      images.replaceChildren(about("This prompt has no image.", "empty"));
      return;
    }
    images.replaceChildren(...entry.images.map((url, i) => el("div", { class: "pair" },
      picture(url, "Image"),
      perturbed[i] ? picture(perturbed[i], name)
        : el("figure", {}, el("div", { class: "no-image", text: "not recorded" }),
          el("figcaption", { text: name })))), ...(masks ? [maskPicker(views, masks)] : []));
  }

  /** Every mask's pictures; the one chosen is what probabilities of one view are of. */
  function maskPicker(views, masks) {
    return el("div", { class: "masks", role: "group", "aria-label": "Perturbed pictures, a button each" },
      ...views.map((urls, m) => el("button", { type: "button", "aria-pressed": m === state.mask,
        on: { click: () => byMask(m) } },
      ...urls.map((url) => el("img", { src: url || null, alt: "" })), el("span", { text: maskName(m, masks) }))));
  }

  function byMask(mask) {
    const inside = images.contains(document.activeElement);
    const { scrollTop } = images.querySelector(".masks");
    state.mask = mask;
    drawImages(entries[state.entry], state.response);
    details.by(mask);
    const picker = images.querySelector(".masks");
    picker.scrollTop = scrollTop;
    if (inside) picker.querySelector('[aria-pressed="true"]').focus();
  }

  function drawFacts(entry, response) {
    const rows = [
      ["Gold", entry.gold], ["Answer", response.answer === "" ? "none" : response.answer],
      ["Outcome", response.outcome ? response.outcome.replace("_", " ") : null],
      ["Reward", response.reward === null || response.reward === undefined ? null : number(response.reward)],
      ...Object.entries(response.named || {}).map(([name, value]) => [`Reward, ${name}`, number(value)]),
      ["Dependency", measured(number(response.dependency))],
      ["Length", `${counted(response.tokens.length, "token")}${response.truncated ? ", cut off" : ""}`],
      ["Advantage", advantage(response)],
    ];
    facts.replaceChildren(...rows.filter(([, value]) => value !== null && value !== undefined)
      .map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: String(value).slice(0, 300) }))));
  }

  const single = entries.length === 1 && entries[0].responses.length === 1;
  const controls = el("div", { class: "tools" },
    steps.length > 1 ? pick.step : null, entries.length > 1 ? pick.prompt : null,
    entries.length > 1 ? pick.among : null, single ? null : pick.order, graded && !single ? filters : null);
  const root = el("div", { class: "viewer", tabindex: 0, role: "group", id: "token-viewer",
    "aria-label": "Token viewer; press question mark for its keys" },
  single ? null : controls, single ? null : chips,
  el("div", { class: "viewer-grid" },
    el("div", { class: "viewer-main" }, problem, none, heading, facts, view.box,
      el("div", { class: "shade" }, scaleLegend, el("span", { class: "kept-key" },
        el("span", { class: "token kept", text: "kept" }), " depends on the image most: what VPPO trains"), pick.scale)),
    el("aside", { class: "viewer-side", "aria-label": "Image and token" }, images, details)));

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    if (event.key === "v" && !typing(event.target)) {
      root.scrollIntoView({ block: "start" });
      root.focus({ preventScroll: true });
      return;
    }
    if (typing(event.target) || !(alone || root.contains(document.activeElement))) return;
    const action = {
      ArrowLeft: () => moves.response(-1), ArrowRight: () => moves.response(1),
      ArrowUp: () => moves.prompt(-1), ArrowDown: () => moves.prompt(1),
      "[": () => moves.step(-1), "]": () => moves.step(1),
      m: () => moves.mask(1), M: () => moves.mask(-1),
      j: () => view.move(1, false), k: () => view.move(-1, false),
      J: () => view.move(1, true), K: () => view.move(-1, true),
      f: () => change({ filter: after(Object.keys(FILTERS), state.filter) }),
      o: () => change({ order: after(Object.keys(ORDERS), state.order) }),
      Escape: () => view.mark(-1),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    const inside = root.contains(document.activeElement);
    action();
    if (inside && !root.contains(document.activeElement)) root.focus({ preventScroll: true });
  });

  draw();
  const several = entries[0].responses[0].masks?.length;
  return section("viewer", "Token viewer",
    about(`Every token is shaded by how much it depends on the image${several ? `, the mean over ${several} masks; `
      + "press m, or a picture, for what one of them alone gives" : ""}. `
      + "Click into the viewer, or press v, and move with the arrow keys; ? lists all keys."),
    root, ...(notes || []).map((note) => about(note, "note")));
}

const after = (names, name) => names[(names.indexOf(name) + 1) % names.length];

const typing = (target) => /^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName);

/** The problem as it is read: images stand beside it. */
const asked = (problem) => problem.replace(/<image>/g, " ").replace(/ +/g, " ").trim();

function shorten(text, most) {
  const line = text.replace(/\s+/g, " ");
  return line.length > most ? `${line.slice(0, most - 1)}\u2026` : line;
}

function advantage(response) {
  const { advantage: before, shaped_advantage: then } = response;
  if (before === null || before === undefined) return null;
  if (then === null || then === undefined) return signed(before);
  const factor = Math.abs(before) > 1e-9 ? ` (\u00d7 ${(then / before).toFixed(2)})` : "";
  return `${signed(before)} \u2192 ${signed(then)} shaped${factor}`;
}

function picture(url, caption) {
  const image = el("img", { src: url || null, alt: caption });
  image.addEventListener("load", () => image.classList.toggle("pixels", image.naturalWidth < 200));
  return el("figure", {}, url ? image : el("div", { class: "no-image", text: "not readable" }),
    el("figcaption", { text: caption }));
}

function select(label, onChange) {
  const input = el("select", { "aria-label": label });
  input.addEventListener("change", () => onChange(input.value));
  const made = el("label", { class: `pick pick-${label.toLowerCase().replaceAll(" ", "-")}` }, el("span", { text: label }), input);
  made.input = input;
  return made;
}

function fillSelect(made, options) {
  made.input.replaceChildren(...options.map(([value, text]) => el("option", { value, text })));
}
