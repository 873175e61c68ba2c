// Puts the page together: its sections, the navigation, light and dark, the keyboard help.

const PARTS = [
  ["ledger", "Objectives", ledgerSection], ["credit", "Tokens", (found) => creditSection(found, data.credit_notes)],
  ["agreement", "Agreement", agreementSection], ["theorem", "Variance", theoremSection],
  ["curves", "Curves", curvesSection], ["figures", "Perception", figuresSection],
  ["words", "Words", wordsSection], ["viewer", "Viewer", null],
  ["evaluations", "Evaluation", evaluationsSection], ["config", "Settings", configSection],
  ["provenance", "Provenance", provenanceSection],
];

/** A page of nothing else: its keys go to the viewer. */
const ALONE = ["viewer", "provenance"];

(function build() {
  const content = document.getElementById("content");
  const nav = document.getElementById("nav");
  const shown = PARTS.filter(([name]) => data[name]);
  document.getElementById("brand").textContent = data.title;
  content.replaceChildren();
  content.append(data.summary ? summarySection(data.summary)
    : el("section", { class: "summary" }, el("h1", { text: data.title }), about(data.line, "line")));
  for (const [name, label, make] of shown) {
    content.append(make ? make(data[name])
      : viewerSection(data.viewer, data.viewer_notes, shown.every(([known]) => ALONE.includes(known))));
    if (shown.length > 1) nav.append(el("a", { href: `#${name}`, text: label }));
  }
  content.setAttribute("aria-busy", "false");
})();

(function themeButton() {
  const button = document.getElementById("theme");
  button.addEventListener("click", theme.toggle);
  theme.listen((now) => {
    button.textContent = now === "dark" ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${now === "dark" ? "light" : "dark"} colours`);
  });
  document.addEventListener("keydown", (event) => {
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey && !typing(event.target);
    if (plain && event.key === "t") theme.toggle();
  });
})();

(function help() {
  const dialog = document.getElementById("help");
  const keys = [
    [["\u2190", "\u2192"], "previous, next response"], [["\u2191", "\u2193"], "previous, next prompt"],
    [["[", "]"], "previous, next step"], [["j", "k"], "next, previous token"],
    [["J", "K"], "next, previous kept token"], [["m", "M"], "next, previous mask, where there are several"], [["f"], "all, correct, wrong"], [["o"], "order of responses"],
    [["v"], "to the viewer"], [["t"], "light or dark"], [["?", "/"], "this help"], [["Esc"], "close"],
  ].filter(([names]) => data.viewer || ["t", "?", "Esc"].includes(names[0]));
  dialog.append(
    el("h2", { id: "help-title", text: "Keys" }),
    el("dl", { class: "keys" }, ...keys.flatMap(([names, text]) => [
      el("dt", {}, ...names.map((name) => el("kbd", { text: name }))), el("dd", { text })])),
    data.viewer ? about("Arrow keys move through responses once the viewer was clicked or reached by v. "
      + "On a chart they read its values.") : "",
    el("form", { method: "dialog" }, el("button", { class: "quiet", text: "Close" })));
  const open = () => dialog.open || dialog.showModal();
  document.getElementById("help-open").addEventListener("click", open);
  document.addEventListener("keydown", (event) => {
    if ((event.key === "?" || event.key === "/") && !typing(event.target)) {
      event.preventDefault();
      open();
    }
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
})();
