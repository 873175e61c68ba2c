// A response, token by token: shaded by perception, kept tokens underlined; and what is known of a token.

const PIECE = 3000;

/** Shades beyond this are light in the dark theme, where text on them has to be dark. */
const HOT = 0.637;

/** Perception -> 0..1, by one scale for the whole page, so that shades compare between responses. */
const shading = (() => {
  const values = (data.viewer || []).flatMap((entry) => entry.responses)
    .flatMap((response) => response.perception).filter((v) => v > 0).sort((a, b) => a - b);
  // The highest few per thousand share the darkest shade; otherwise one outlier would pale the rest.
  const top = values.length ? values[Math.floor(0.995 * (values.length - 1))] : 1;
  const scales = {
    sqrt: (v) => Math.sqrt(v / top),
    log: (v) => Math.log1p(1000 * v / top) / Math.log1p(1000),
    linear: (v) => v / top,
  };
  const names = { sqrt: "square root", log: "logarithm", linear: "linear" };
  let kind = "sqrt";
  return {
    top, names,
    get kind() { return kind; },
    set kind(value) { kind = value; },
    share: (v) => (v > 0 ? Math.min(1, scales[kind](v)) : 0),
  };
})();

function shadeLegend() {
  const ticksAt = el("div", { class: "shade-ticks", "aria-hidden": "true" });
  const made = el("div", { class: "shade-legend" },
    el("div", { class: "shade-bar", role: "img",
      "aria-label": `Shades from 0 to ${measured(number(shading.top))} or more` }), ticksAt);
  made.refresh = () => {
    const values = { linear: [0, 0.25, 0.5, 0.75, 1], sqrt: [0, 0.04, 0.25, 0.5, 1],
      log: [0, 0.001, 0.01, 0.1, 1] }[shading.kind].map((share) => share * shading.top);
    ticksAt.replaceChildren(...values.map((value, i) => {
      const text = i === values.length - 1 ? `${measured(number(value, 2))} +` : number(value, 2);
      const tick = el("span", { text });
      tick.style.left = `${100 * shading.share(value)}%`;
      return tick;
    }));
  };
  made.refresh();
  return made;
}

/** White space that can be seen. */
function visible(text) {
  return text.replace(/\n/g, "\u21b5").replace(/\t/g, "\u21e5").replace(/ /g, "\u00b7") || "(empty)";
}

/** The element that shows a response; `onToken(index)` is called when a token is pointed at. */
function tokenView(onToken) {
  const box = el("div", { class: "tokens", role: "group", "aria-label": "Response, token by token",
    tabindex: -1 });
  let response = null;
  let generation = 0;
  let current = -1;

  function piece(start, end) {
    const part = document.createDocumentFragment();
    for (let i = start; i < end; i++) {
      const share = shading.share(response.perception[i]);
      const token = el("span", {
        class: `token${response.keep[i] ? " kept" : ""}${share > HOT ? " hot" : ""}`, "data-i": i,
        "data-perception": response.perception[i], text: response.tokens[i],
      });
      if (share > 0.004) token.style.setProperty("--shade", share.toFixed(4));
      part.append(token);
    }
    box.append(part);
  }

  /** Show a response; a long one in pieces, so that the page answers meanwhile. */
  function show(next) {
    response = next;
    current = -1;
    const mine = ++generation;
    box.replaceChildren();
    box.scrollTop = 0;
    const count = response.tokens.length;
    box.setAttribute("aria-busy", count > PIECE);
    const go = (start) => {
      if (mine !== generation) return;
      piece(start, Math.min(start + PIECE, count));
      if (start + PIECE < count) setTimeout(go, 0, start + PIECE);
      else box.setAttribute("aria-busy", "false");
    };
    go(0);
    const first = box.querySelector(".token");
    if (first) first.tabIndex = 0;
  }

  /** Point at a token; `tapped`: it is brought to where the sheet of a narrow screen does not cover it. */
  function mark(index, tapped = false) {
    box.querySelector(".token.current")?.classList.remove("current");
    current = index;
    const token = index < 0 ? null : box.querySelector(`[data-i="${index}"]`);
    onToken(token ? index : -1);
    token?.classList.add("current");
    if (token && tapped) token.scrollIntoView({ block: "nearest" });
    return token;
  }

  /** Move by one token, or to the next kept one. */
  function move(by, kept) {
    const count = response.tokens.length;
    let next = current < 0 && by < 0 ? count : current;
    do next += by; while (kept && next >= 0 && next < count && !response.keep[next]);
    if (next < 0 || next >= count) return;
    const token = mark(next);
    if (!token) return;
    box.querySelector('[tabindex="0"]')?.setAttribute("tabindex", "-1");
    token.tabIndex = 0;
    token.focus();
  }

  const pointed = (event) => {
    const token = event.target.closest(".token");
    if (token) mark(Number(token.dataset.i), event.type !== "pointerover");
  };
  box.addEventListener("pointerover", (event) => event.pointerType === "mouse" && pointed(event));
  box.addEventListener("click", pointed);
  box.addEventListener("focusin", pointed);
  return { box, show, move, mark };
}

/** "mask 2 of 3", from 0. */
const maskName = (mask, masks) => `mask ${mask + 1} of ${masks.length}`;

/** What is known of one token, and what one of several masks alone makes of it; nothing yet while none is
 * pointed at. */
function inspector() {
  const made = el("div", { class: "inspector", "aria-live": "polite" });
  let [shown, at, mask] = [null, -1, 0];
  /** By another mask. */
  made.by = (other) => {
    mask = other;
    made.show(shown, at);
  };
  made.show = (response, i) => {
    [shown, at] = [response, i];
    made.classList.toggle("open", i >= 0);
    if (i < 0) {
      made.replaceChildren(el("p", { class: "empty",
        text: "Point at a token, or press j: its perception, its probability with and without the image, "
          + "and what else could have stood there." }));
      return;
    }
    const masks = response.masks;
    const view = masks ? masks[mask] : response;
    const which = masks ? `with ${maskName(mask, masks)}` : "with the image perturbed";
    const p = response.logp[i];
    const q = view.logp_perturbed ? view.logp_perturbed[i] : null;
    const entropy = response.entropy ? response.entropy[i] : null;
    const probability = (logp) => `${percent(Math.exp(logp))}  (log ${number(logp)})`;
    const rows = [
      [`Perception (${data.estimator || "kl"})${masks ? `, mean of ${masks.length} masks` : ""}`,
        measured(number(response.perception[i], 4))],
      masks ? [which, measured(number(view.perception[i], 4))] : null,
      ["Probability", p === null ? "\u2013" : probability(p)],
      [which, q === null ? "not recorded" : probability(q)],
      entropy === null ? null : ["Entropy", `${number(entropy)} nats`],
    ].filter(Boolean);
    const swatch = el("span", { class: "swatch" });
    swatch.style.setProperty("--shade", shading.share(response.perception[i]).toFixed(4));
    made.replaceChildren(...there([
      el("button", { type: "button", class: "quiet close", "aria-label": "Close", text: "\u00d7",
        on: { click: (event) => { event.stopPropagation(); made.show(response, -1); } } }),
      el("p", { class: "token-head" }, swatch, el("code", { text: visible(response.tokens[i]).slice(0, 200) }),
        el("span", { class: "muted",
          text: `${i + 1} of ${response.tokens.length}${response.keep[i] ? ", kept" : ""}` })),
      el("dl", { class: "pairs" }, ...rows.flatMap(([name, value]) =>
        [el("dt", { text: name }), el("dd", { text: value })])),
      alternatives("Likeliest with the image", view.top, i, masks ? `mask ${mask + 1}` : "perturbed"),
      alternatives(masks ? `Likeliest ${which}` : "Likeliest with it perturbed", view.top_perturbed, i,
        masks ? `mask ${mask + 1}` : "perturbed")]));
  };
  made.show(null, -1);
  return made;
}

const chance = (p) => (p > 0 && p < 0.001 ? "< 0.1 %" : `${number(100 * p, 2)} %`);

function alternatives(title, lists, i, other) {
  const found = lists && lists[i];
  if (!found || !found.length) return null;
  return el("table", { class: "alternatives" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col", text: title }),
      el("th", { scope: "col", text: "image" }),
      el("th", { scope: "col", text: other }))),
    el("tbody", {}, ...found.map(([text, p, q]) => el("tr", {},
      el("th", { scope: "row" }, el("code", { text: visible(text).slice(0, 40) })),
      el("td", {}, bar(p, chance(p))),
      q === null ? el("td", { text: "\u2013" }) : el("td", {}, bar(q, chance(q)))))));
}
