// The parts of a report other than the viewer.

function summarySection(found) {
  const { run, mean_of: meanOf, state, done, steps, model, data: source, objective, estimator, facts } = found;
  const line = [
    run === data.title ? null : meanOf ? `${run}: ${meanOf}` : run, run === data.title && meanOf ? meanOf : null,
    state === "finished" ? counted(done, "step") : `${done} of ${steps} steps, ${state}`,
    objective, `model ${model}`, `data ${source}`, `perception by ${estimator}`,
  ];
  return el("section", { id: "summary", class: "summary", "aria-labelledby": "summary-title" },
    el("h1", { id: "summary-title", text: data.title }),
    el("p", { class: "line", text: there(line).join("  \u00b7  ") }),
    facts.length ? factList(facts) : null);
}

/** A few numbers, large: [label, value, remark]. */
function factList(facts) {
  return el("dl", { class: "facts" }, ...facts.map(([label, value, remark]) =>
    el("div", {}, el("dt", { text: label }), el("dd", { class: "big", text: value }),
      remark ? el("dd", { class: "remark", text: remark.replaceAll(" %", "\u00a0%") }) : null)));
}

function curvesSection(found) {
  if (!found.groups.length) {
    return section("curves", "Learning curves", about("No training step is finished yet.", "empty"));
  }
  return section("curves", "Learning curves", legend(found.legend, true),
    ...(found.notes || []).map((note) => about(note, "note")), ...found.groups.map((group) =>
    el("div", { class: "group" },
      el("h3", { text: group.title }), about(group.about),
      el("div", { class: "charts" }, ...group.charts.map(chart)))));
}

function figuresSection(found) {
  return section("figures", "What looks at the image",
    found.lead ? el("p", { class: "lead", text: found.lead }) : null,
    about(found.empty, "empty"),
    found.facts ? factList(found.facts) : null,
    found.charts.length ? legend(found.legend) : null,
    el("div", { class: "charts" }, ...found.charts.map(chart)),
    ...(found.tables || []).map(plainTable),
    ...(found.notes || []).map((note) => about(note, "note")));
}

function wordsSection(found) {
  const tables = found.tables.map((one) => wordTable(one, found.tables.length > 1));
  return section("words", "Which words look", about(found.empty, "empty"), about(found.note),
    el("div", { class: found.tables.length > 1 ? "columns" : "" }, ...tables));
}

function wordTable(found, named) {
  const few = 15;
  const highest = Math.max(...found.rows.map((row) => row[1]), 1e-12);
  const largest = Math.max(...found.rows.map((row) => row[3]), 1e-12);
  let [by, all] = [3, false];
  const body = el("tbody");
  const more = el("button", { type: "button", class: "quiet", on: { click: () => {
    all = !all;
    fill();
  } } });
  const heads = { 1: `Mean perception${UNIT && `, ${UNIT}`}`, 2: "Times", 3: "Share of all" };
  const sorters = Object.entries(heads).map(([column, text]) => {
    const button = el("button", { type: "button", class: "sort", text, on: { click: () => {
      by = Number(column);
      fill();
    } } });
    return [Number(column), el("th", { scope: "col", class: "number" }, button)];
  });
  function fill() {
    const rows = [...found.rows].sort((a, b) => b[by] - a[by]);
    body.replaceChildren(...rows.slice(0, all ? rows.length : few).map(([word, mean, times, share]) =>
      el("tr", {},
        el("th", { scope: "row" }, el("code", { text: word })),
        el("td", { class: "number" }, bar(mean / highest, mean.toFixed(3))),
        el("td", { class: "number", text: count(times) }),
        el("td", { class: "number" }, bar(share / largest, `${(100 * share).toFixed(1)} %`)))));
    for (const [column, head] of sorters) {
      head.setAttribute("aria-sort", column === by ? "descending" : "none");
    }
    more.textContent = all ? `The first ${few} only` : `All ${rows.length} words`;
    more.hidden = rows.length <= few;
  }
  fill();
  return el("div", { class: "scroll words" },
    named ? el("h3", { text: found.run }) : null,
    el("table", {},
      el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Word" }), ...sorters.map((s) => s[1]))),
      body),
    more, found.more ? about(`${found.more} more words occur in the run.`, "note") : null);
}

/** A number with a bar before it. */
function bar(share, text) {
  const inner = el("span", { class: "bar-fill" });
  inner.style.width = `${(100 * Math.max(0, Math.min(share, 1))).toFixed(1)}%`;
  return el("span", { class: "bar-cell" }, el("span", { class: "bar-track" }, inner),
    el("span", { class: "bar-text", text }));
}

function evaluationsSection(found) {
  const parts = [about(found.empty, "empty")];
  if (found.changes.length) {
    parts.push(el("h3", { text: found.methods ? "Between the methods" : "Between the runs" }),
      about(`${found.methods ? "Differences of the means" : "Paired differences"} in points of accuracy, on the questions `
        + `${found.methods ? "all runs" : "both"} were asked`
        + `${found.changes.some((row) => Object.keys(row.rewards).length) ? ", and below it of the reward and its parts" : ""}.`),
      changesTable(found.changes));
  }
  parts.push(...(found.notes || []).map((note) => about(note, "note")));
  if (found.own.length) {
    const paid = found.own.some((row) => Object.keys(row.rewards).length);
    if (found.changes.length) parts.push(el("h3", { text: "Run by run" }));
    parts.push(about(`Accuracy in %${paid ? ", below it the reward and its parts" : ""}, with 95 % intervals over questions.`),
      ownTable(found.own));
  }
  for (const report of found.reports) {
    // Alone, our row says what stands above; beside the published rows it is the table to read.
    const beside = report.tables[0].rows.length > 1 ? 1 : 0;
    const others = report.tables.slice(1);
    parts.push(el("h3", { text: report.model }), ...report.tables.slice(0, beside).map(plainTable),
      ...report.warnings.map((warning) => about(warning, "note")),
      el("details", {}, el("summary", { text: "Graders, outcomes, scores and breakdowns" }),
        ...others.map(plainTable)));
  }
  return section("evaluations", "Evaluation", ...parts);
}

function ownTable(rows) {
  const columns = ["Run", "Benchmark", "Questions", "Policy", "Accuracy", "", "Change, points"];
  const named = new Set(rows.map((row) => row.run)).size > 1;
  const numbers = new Set([2, 4, 6]);
  const points = (row) => row.difference === null ? "" : change(row.difference, row.difference_interval);
  const paid = (row) => Object.entries(row.rewards).map(([name, { value, interval, ...more }]) => el("tr", { class: "muted" },
    named ? el("td", {}) : null, el("td", {}), el("td", {}), el("td", { text: name }),
    el("td", { class: "number", text: `${fixed(value, 3)} [${interval.map((v) => fixed(v, 3)).join(", ")}]` }),
    el("td", {}), el("td", { class: "number", text: "difference" in more
      ? change(more.difference, more.difference_interval, more.places) : "" })));
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, ...columns.map((text, i) => (i || named)
      ? el("th", { scope: "col", class: numbers.has(i) ? "number" : null, text }) : null))),
    el("tbody", {}, ...rows.flatMap((row) => [el("tr", {},
      named ? el("th", { scope: "row", class: "run-name", text: row.run }) : null,
      el("td", { text: row.benchmark }), el("td", { class: "number", text: row.asked }),
      el("td", { text: row.policy }),
      el("td", { class: "number", text: `${rounded(100 * row.accuracy, 1)} `
        + `[${row.interval.map((v) => rounded(100 * v, 1)).join(", ")}]` }),
      el("td", {}, intervalMark(row)),
      el("td", { class: "number", text: points(row) })), ...paid(row)]))));
}

/** `+29.3 [+27.0, +31.6]`; an interval without width says nothing of other questions. */
function change(points, interval, places = 1) {
  const [value, ...ends] = [points, ...interval].map((v) => signed(v, places));
  return interval[0] < interval[1] ? `${value} [${ends.join(", ")}]` : `${value} at every question`;
}

/** Accuracy and its interval on a line from 0 to 100 %. */
function intervalMark(row) {
  const [low, high] = row.interval.map((v) => 160 * v);
  return el("svg", { class: "interval", width: 160, height: 14, viewBox: "0 0 160 14",
    "aria-hidden": "true" },
  el("line", { class: "grid", x1: 0, x2: 160, y1: 7, y2: 7 }),
  el("line", { class: "whisker run-0", x1: low, x2: Math.max(high, low + 1), y1: 7, y2: 7 }),
  el("line", { class: "mean", x1: 160 * row.accuracy, x2: 160 * row.accuracy, y1: 1, y2: 13 }));
}

function changesTable(rows) {
  const paid = (row) => Object.entries(row.rewards).map(([name, { difference, difference_interval: interval, places }]) =>
    el("tr", { class: "muted" }, el("td", {}), el("td", { text: name }),
      el("td", { class: "number", text: change(difference, interval, places) })));
  return el("div", { class: "scroll" }, el("table", {},
    el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Benchmark" }),
      el("th", { scope: "col", text: "Difference" }),
      el("th", { scope: "col", class: "number", text: "Points" }))),
    el("tbody", {}, ...rows.flatMap((row) => [el("tr", {},
      el("td", { text: row.benchmark }),
      el("td", { text: `${row.run} ${MINUS} ${row.against}` }),
      el("td", { class: "number",
        text: change(row.difference, row.interval) })), ...paid(row)]))));
}

function plainTable(found) {
  const kind = (i) => (found.right[i] ? "number" : null);
  return el("div", { class: "scroll" }, el("table", {},
    el("caption", { text: found.caption }),
    el("thead", {}, el("tr", {}, ...found.header.map((text, i) =>
      el("th", { scope: "col", class: kind(i), text })))),
    el("tbody", {}, ...found.rows.map((row, r) =>
      el("tr", { class: found.bold.includes(r) ? "ours" : null },
        ...row.map((text, i) => el(i ? "td" : "th", { scope: i ? null : "row", class: kind(i), text })))))));
}

function configSection(found) {
  const several = found.runs.length > 1;
  const differing = found.rows.filter((row) => row.differs).length;
  const search = el("input", { type: "search", placeholder: "Find a setting", "aria-label": "Find a setting" });
  const only = el("input", { type: "checkbox", id: "only-differing" });
  only.checked = several && differing > 0;
  const rows = found.rows.map((row) => [row, settingRow(row)]);
  const nothing = about("No setting is like that.", "empty");
  function filter() {
    const wanted = search.value.toLowerCase();
    let shown = 0;
    for (const [row, made] of rows) {
      const fits = (row.name + row.values.join(" ") + row.about).toLowerCase().includes(wanted);
      made.hidden = !fits || (only.checked && !row.differs);
      shown += !made.hidden;
    }
    nothing.hidden = shown > 0;
  }
  search.addEventListener("input", filter);
  only.addEventListener("change", filter);
  filter();
  return section("config", "Settings",
    several ? about(differing ? `${differing === 1 ? "1 setting differs" : `${differing} settings differ`}.` : "All settings are the same.") : null,
    el("div", { class: "tools" }, search,
      several ? el("label", { for: "only-differing" }, only, " only those that differ") : null),
    el("div", { class: "scroll tall", tabindex: 0, role: "group", "aria-label": "Settings" },
      el("table", { class: "settings" },
        el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "Setting" }),
          ...found.runs.map((name) => el("th", { scope: "col", text: several ? name : "Value" })))),
        el("tbody", {}, ...rows.map((pair) => pair[1]))), nothing),
    el("h3", { text: "Made with" }), versions(found));
}

function settingRow(row) {
  return el("tr", { class: row.differs ? "differs" : null },
    el("th", { scope: "row" }, el("code", { text: row.name }), el("span", { class: "help", text: row.about })),
    ...row.values.map((text) => el("td", {}, el("code", { text }))));
}

function versions(found) {
  const several = found.runs.length > 1;
  const differing = found.versions.filter((row) => row.differs);
  const same = found.versions.filter((row) => !row.differs)
    .map((row) => `${row.name} ${row.values[0]}`).join("  \u00b7  ");
  const line = el("p", { class: "made-with", text: several ? `The same in all: ${same}` : same });
  if (!differing.length) return line;
  return el("div", {}, line, el("div", { class: "scroll" }, el("table", { class: "settings versions" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col", text: "" }),
      ...found.runs.map((name) => el("th", { scope: "col", text: name })))),
    el("tbody", {}, ...differing.map((row) => el("tr", { class: row.differs ? "differs" : null },
      el("th", { scope: "row" }, el("code", { text: row.name })),
      ...row.values.map((text) => el("td", {}, el("code", { text: text || "\u2013" }))))))),
  ));
}
