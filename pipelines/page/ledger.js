// The credit ledger: every objective on the same saved step. One choice of step for all its parts.

const ledgerStep = (() => {
  const listeners = [];
  let step = data.ledger ? data.ledger.steps[0].step : null;
  return {
    get now() { return data.ledger.steps.find((one) => one.step === step); },
    set(value) {
      step = value;
      for (const listener of listeners) listener();
    },
    listen(listener) {
      listeners.push(listener);
      listener();
    },
  };
})();

/** A choice of the step, where there are several; the same everywhere. */
function stepPick() {
  const steps = data.ledger.steps.map((one) => one.step);
  if (steps.length < 2) return null;
  const made = select("Step", (value) => ledgerStep.set(Number(value)));
  fillSelect(made, steps.map((step) => [String(step), String(step)]));
  ledgerStep.listen(() => { made.input.value = String(ledgerStep.now.step); });
  return made;
}

const weight = (value) => (value === 0 ? "0" : signed(value, 3));

const head = (text, title) => el("th", { scope: "col", class: "number", title }, text);

/** What every objective does with the step, a line each. */
function ledgerSection(found) {
  const line = el("p", { class: "about" });
  const body = el("tbody");
  const left = el("p", { class: "note" });
  const columns = found.columns.filter(([, , , ], i) => found.steps.some((step) => step.rows.some((row) => row[i] !== null)));
  const places = columns.map((column) => found.columns.indexOf(column));
  ledgerStep.listen(() => {
    const now = ledgerStep.now;
    line.textContent = `${counted(now.prompts, "prompt")}, ${counted(now.responses, "response")}, ${counted(now.tokens, "token")}`
      + (now.update_batches > 1 ? ` in ${now.update_batches} update batches` : "")
      + `; policy after ${counted(now.policy_updates, "update")}; VPPO keeps ${percent(now.kept_share)} of the tokens.`;
    const rows = now.objectives.map((one, r) => el("tr", { class: one.name === "vppo" ? "ours" : null },
      el("th", { scope: "row", title: one.formula || null, text: one.name }),
      ...places.map((i) => el("td", { class: "number", text: fixed(now.rows[r][i], found.columns[i][3]) }))));
    if (now.role_shares) {
      rows.push(el("tr", { class: "muted" }, el("th", { scope: "row", text: "all tokens" }),
        ...places.map((i) => el("td", { class: "number",
          text: now.role_shares[found.columns[i][0]] === undefined ? "" : fixed(now.role_shares[found.columns[i][0]], 2) }))));
    }
    body.replaceChildren(...rows);
    const out = Object.entries(now.left_out).map(([name, why]) => `${name}: ${why}`);
    left.textContent = out.length ? `Left out: ${out.join("; ")}` : "";
    left.hidden = !out.length;
  });
  return section("ledger", "One step, every objective", line, el("div", { class: "tools" }, stepPick()),
    el("div", { class: "scroll" }, el("table", { class: "pinned" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Objective" }),
        ...columns.map(([, title, what]) => head(title, what)))), body)),
    el("details", {}, el("summary", { text: "What the numbers are" }),
      el("dl", { class: "terms" }, ...columns.flatMap(([, title, what]) => [el("dt", { text: title }), el("dd", { text: what })]))),
    left, found.steps.length > 1 ? acrossSteps(found, columns, places) : null);
}

/** One number of every objective, the steps beside each other. */
function acrossSteps(found, columns, places) {
  const names = [...new Set(found.steps.flatMap((step) => step.names))];
  const body = el("tbody");
  const pick = select("Number", (value) => fill(Number(value)));
  fillSelect(pick, places.map((i, n) => [String(i), columns[n][1]]));
  function fill(i) {
    body.replaceChildren(...names.map((name) => el("tr", { class: name === "vppo" ? "ours" : null },
      el("th", { scope: "row", text: name }),
      ...found.steps.map((step) => {
        const row = step.rows[step.names.indexOf(name)];
        return el("td", { class: "number", text: row ? fixed(row[i], found.columns[i][3]) : "\u2013" });
      }))));
  }
  const first = places.find((i) => found.columns[i][0] === "to_dapo") ?? places[0];
  pick.input.value = String(first);
  fill(first);
  return el("div", { class: "group" }, el("h3", { text: "Steps beside each other" }),
    el("div", { class: "tools" }, pick),
    el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Objective" }),
        ...found.steps.map((step) => head(`step ${step.step}`)))), body)));
}

/** How alike two objectives are: their most weighted tokens, and their gradients. */
function agreementSection() {
  const overlaps = el("div");
  const cosines = el("div");
  ledgerStep.listen(() => {
    const now = ledgerStep.now;
    overlaps.replaceChildren(heatMap("Overlap of the most weighted tokens", now.names, now.overlaps,
      "Of each response as many tokens as VPPO keeps; the share of the smaller set that is in both. Where a method "
      + "weighs all tokens of a response alike it has none. Chance: about " + percent(now.kept_share) + "."));
    cosines.replaceChildren(now.cosines ? heatMap("Cosine of the gradients", now.names, now.cosines,
      "Of the real loss at the policy of the step, over all trained weights.")
      : about("No gradients were taken.", "empty"));
  });
  return section("agreement", "Who agrees with whom", el("div", { class: "tools" }, stepPick()), overlaps, cosines);
}

function heatMap(title, names, rows, text) {
  const shown = names.map((name, i) => i).filter((i) => rows[i].some((value) => value !== null));
  if (!shown.length) return el("div", { class: "group" }, el("h3", { text: title }), about(text), about("None to compare.", "empty"));
  return el("div", { class: "group" }, el("h3", { text: title }), about(text),
    el("div", { class: "scroll" }, el("table", { class: "heat pinned" },
      el("caption", { class: "hidden-text", text: title }),
      el("thead", {}, el("tr", {}, el("td"),
        ...shown.map((i) => el("th", { scope: "col" }, el("span", { class: "upright", text: names[i] }))))),
      el("tbody", {}, ...shown.map((i) => el("tr", {}, el("th", { scope: "row", text: names[i] }),
        ...shown.map((j) => shade(el("td", { text: fixed(rows[i][j], 2), title: `${names[i]}, ${names[j]}` }),
          rows[i][j] ?? 0))))))));
}

/** A background of one hue above 0 and another below; `value` in -1..1. */
function shade(made, value) {
  const size = Math.min(1, Math.abs(value));
  made.classList.add("shaded", value < 0 ? "minus" : "plus");
  if (size > HOT) made.classList.add("hot");
  made.style.setProperty("--shade", size.toFixed(4));
  return made;
}

const WINDOW = 120;

/** One response, a line for each objective: how much it would move each token, and which way. */
function creditSection(entries, notes) {
  const state = { entry: 0, start: 0, scale: "common", token: null };
  const pick = {
    response: select("Response", (value) => { Object.assign(state, { entry: Number(value), start: 0, token: null }); draw(); }),
    part: select("Tokens", (value) => { state.start = Number(value); state.token = null; draw(); }),
    scale: select("Shades", (value) => { state.scale = value; draw(); }),
  };
  fillSelect(pick.scale, [["common", "one scale for all"], ["own", "each line by itself"]]);
  const problem = el("p", { class: "problem" });
  const facts = el("dl", { class: "pairs facts-of" });
  const grid = el("div", { class: "scroll credit" });
  const told = el("div", { class: "told", "aria-live": "polite" });
  const apart = el("div", { class: "group" });

  const mine = () => entries.map((entry, i) => [i, entry]).filter(([, entry]) => entry.step === ledgerStep.now.step);

  function open(prompt, response, token) {
    const found = mine().find(([, entry]) => entry.prompt === prompt && entry.response === response);
    if (!found) return;
    Object.assign(state, { entry: found[0], start: Math.floor((token - 1) / WINDOW) * WINDOW, token: token - 1 });
    draw();
    grid.scrollIntoView({ block: "center" });
    grid.querySelector(".current")?.scrollIntoView({ block: "nearest", inline: "center" });
  }

  function draw() {
    const names = ledgerStep.now.names;
    const entry = entries[state.entry];
    fillSelect(pick.response, mine().map(([i, one]) => [String(i),
      `${one.prompt}.${one.response}: ${(one.outcome || "").replace("_", " ")}, ${counted(one.tokens.length, "token")}`]));
    pick.response.input.value = String(state.entry);
    const parts = [];
    for (let at = 0; at < entry.tokens.length; at += WINDOW) {
      parts.push([String(at), `${at + 1} to ${Math.min(at + WINDOW, entry.tokens.length)}`]);
    }
    fillSelect(pick.part, parts);
    pick.part.hidden = parts.length < 2;
    pick.part.input.value = String(state.start);
    problem.textContent = asked(entry.problem);
    facts.replaceChildren(...[["Gold", entry.gold], ["Answer", entry.answer || "none"], ["Reward", number(entry.reward)]]
      .map(([name, value]) => el("div", {}, el("dt", { text: name }), el("dd", { text: String(value).slice(0, 200) }))));
    const places = entry.tokens.map((_, t) => t).slice(state.start, state.start + WINDOW);
    // The highest few share the darkest shade; otherwise one outlier would pale all other lines.
    const sizes = entry.weights.flat().map(Math.abs).filter((size) => size > 0).sort((a, b) => a - b);
    const most = sizes.length ? sizes[Math.floor(0.95 * (sizes.length - 1))] : 1;
    const cells = (values, largest, name) => places.map((t) => {
      const made = el("td", { "data-t": t, title: `${name}: ${weight(values[t])}`,
        class: t === state.token ? "current" : null }, el("span", { class: "hidden-text", text: weight(values[t]) }));
      return shade(made, Math.sign(values[t]) * Math.sqrt(Math.abs(values[t]) / largest));
    });
    const role = (t) => (entry.roles ? ` role-${entry.roles[t]}` : "");
    grid.replaceChildren(el("table", { class: "pinned strips" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Objective" }),
        ...places.map((t) => el("th", { scope: "col", "data-t": t, class: `word${role(t)}${t === state.token ? " current" : ""}`,
          title: entry.roles ? entry.roles[t] : null }, el("code", { text: visible(entry.tokens[t]) }))))),
      el("tbody", {}, ...names.map((name, n) => {
        const values = entry.weights[n];
        const largest = state.scale === "own" ? Math.max(...values.map(Math.abs), 1e-12) : most;
        return el("tr", {}, el("th", { scope: "row", text: name }), ...cells(values, largest, name));
      }))));
    tell(entry, names);
  }

  function tell(entry, names) {
    const t = state.token;
    if (t === null) {
      told.replaceChildren(about("Point at a token: its weight by each objective, and its rank in the response.", "note"));
      return;
    }
    const ranked = names.map((name, n) => {
      const sizes = entry.weights[n].map(Math.abs);
      const above = sizes.filter((size) => size > sizes[t]).length;
      const equal = sizes.filter((size) => size === sizes[t]).length;
      return [name, entry.weights[n][t], above + (equal + 1) / 2];
    });
    told.replaceChildren(el("p", { class: "token-head" }, el("code", { text: visible(entry.tokens[t]).slice(0, 200) }),
      el("span", { class: "muted", text: `${t + 1} of ${entry.tokens.length}`
        + (entry.roles ? `, ${entry.roles[t]}` : "") + `, perception ${number(entry.perception[t])}` })),
    el("ul", { class: "weights" }, ...ranked.map(([name, value, rank]) => el("li", {},
      el("span", { text: name }), el("b", { text: weight(value) }),
      el("span", { class: "muted", text: `rank ${number(rank)}` })))));
  }

  function point(event) {
    const cell = event.target.closest("[data-t]");
    if (!cell) return;
    const t = Number(cell.dataset.t);
    if (t === state.token) return;
    state.token = t;
    for (const one of grid.querySelectorAll(".current")) one.classList.remove("current");
    for (const one of grid.querySelectorAll(`[data-t="${t}"]`)) one.classList.add("current");
    tell(entries[state.entry], ledgerStep.now.names);
  }
  grid.addEventListener("pointerover", (event) => event.pointerType === "mouse" && point(event));
  grid.addEventListener("click", point);

  function drawApart() {
    const rows = ledgerStep.now.disagreements;
    apart.replaceChildren(el("h3", { text: "Where they disagree most" }),
      about("The token of each response whose rank by |w| differs most between two objectives (random choices left out)."),
      rows.length ? el("div", { class: "scroll" }, el("table", {},
        el("thead", {}, el("tr", {}, ...["Token", "Role", "In", "Ranked highest by", "lowest by"]
          .map((text) => el("th", { scope: "col", text })))),
        el("tbody", {}, ...rows.map((one) => el("tr", {},
          el("th", { scope: "row" }, el("code", { text: visible(one.text) })),
          el("td", { text: one.role || "" }),
          el("td", {}, el("button", { type: "button", class: "quiet", text: `${one.prompt}.${one.response}`,
            "aria-label": `Show prompt ${one.prompt}, response ${one.response}`,
            on: { click: () => open(one.prompt, one.response, one.token) } })),
          el("td", { text: `${one.most}: ${number(one.ranks[one.most])} of ${one.length}` }),
          el("td", { text: `${one.least}: ${number(one.ranks[one.least])} of ${one.length}` })))))) : about("Nowhere.", "empty"));
  }

  ledgerStep.listen(() => {
    Object.assign(state, { entry: mine()[0][0], start: 0, token: null });
    draw();
    drawApart();
  });
  const roles = entries.some((entry) => entry.roles);
  return section("credit", "Token by token",
    about("Each line is an objective, each column a token; blue raises its probability, orange lowers it, and the "
      + "shade grows with the square root of the weight."
      + (roles ? " Under the tokens: a bar where they tell what was seen, a dotted one where they compute." : "")),
    el("div", { class: "tools" }, stepPick(), pick.response, pick.part, pick.scale),
    problem, facts, grid, told, ...(notes || []).map((note) => about(note, "note")), apart);
}

/** Theorem 3.1: what it predicts of the gradient's variance, and whether it may. */
function theoremSection() {
  const seen = el("div");
  const table = el("div");
  ledgerStep.listen(() => {
    const now = ledgerStep.now;
    const rows = now.objectives.filter((one) => one.variance !== null);
    seen.replaceChildren(rows.length ? el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Objective" }),
        ...[["found", "over the groups of the step, DAPO's is 1"], ["sum w\u00b2", "over DAPO's: what the argument gives"],
          ["k E[\u03b1\u00b2]", "as the theorem is written"]].map(([text, title]) => head(text, title)))),
      el("tbody", {}, ...rows.map((one) => el("tr", { class: one.name === "vppo" ? "ours" : null },
        el("th", { scope: "row", text: one.name }), ...[one.variance, one.predicted, one.paper]
          .map((value) => el("td", { class: "number", text: fixed(value, 2) }))))))) : about("No gradients were taken.", "empty"));
    table.replaceChildren(now.assumption_rows.length ? el("div", { class: "scroll" }, el("table", {},
      el("caption", { text: `On ${now.assumptions.tokens} tokens of ${now.assumptions.responses} responses, drawn by the run's seed; 95 % intervals, whole responses drawn again` }),
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Assumption" }), head("assumed"), head("found"), head("95 % interval"))),
      el("tbody", {}, ...now.assumption_rows.map(([text, assumed, value, low, high]) => el("tr", {},
        el("th", { scope: "row", text }), el("td", { class: "number", text: assumed }),
        el("td", { class: "number", text: fixed(value, 3) }),
        el("td", { class: "number", text: value === null ? "\u2013" : `[${fixed(low, 3)}, ${fixed(high, 3)}]` })))))) : "");
  });
  return section("theorem", "Variance, and Theorem 3.1",
    about("Var(g of VPPO) = k E[\u03b1\u00b2] Var(g of GRPO), if the gradients of log \u03c0 of a response's tokens are uncorrelated, "
      + "of equal norm, and independent of \u03b1 and A. For any weights w the same argument makes the variance proportional to "
      + "\u03a3 w\u00b2; for VPPO both say the same where \u03b1 and A are independent."),
    el("div", { class: "tools" }, stepPick()), el("div", { class: "columns" }, seen, table));
}

function provenanceSection(found) {
  return section("provenance", "Where this comes from",
    el("dl", { class: "pairs facts-of stacked" }, ...found.facts.map(([name, value]) =>
      el("div", {}, el("dt", { text: name }), el("dd", { text: value })))),
    ...(found.steps ? ledgerProvenance(found) : []));
}

function ledgerProvenance(found) {
  return [
    el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, ...["Step", "Rollouts", "Key of the policy"].map((text) => el("th", { scope: "col", text })),
        head("log-probs moved, nats", "Mean difference from the run's own scores of these tokens"))),
      el("tbody", {}, ...found.steps.map(([step, rollout, key, moved]) => el("tr", {}, el("th", { scope: "row", text: String(step) }),
        el("td", {}, el("code", { text: rollout })), el("td", {}, el("code", { text: key })),
        el("td", { class: "number", text: number(moved) })))))),
    el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, ...["Objective", "Weight", "Source", "Known from", "Constants", "Loss"]
        .map((text) => el("th", { scope: "col", text })))),
      el("tbody", {}, ...found.objectives.map(([name, ...cells]) => el("tr", {},
        el("th", { scope: "row", text: name }), ...cells.map((text) => el("td", { text }))))))),
    ...found.left_out.map(([name, why]) => about(`Left out: ${name}, ${why}`, "note"))];
}
