// Light or dark, before anything is drawn: as the system has it, or as the reader chose.

const theme = (() => {
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const listeners = [];
  let chosen = null;
  try {
    chosen = localStorage.getItem("vppo-theme");
  } catch { /* a browser that keeps nothing for files */ }
  const now = () => (["light", "dark"].includes(chosen) ? chosen : dark.matches ? "dark" : "light");
  const show = () => {
    root.dataset.theme = now();
    for (const listener of listeners) listener(now());
  };
  dark.addEventListener("change", show);
  show();
  return {
    toggle() {
      chosen = now() === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("vppo-theme", chosen);
      } catch { /* then only until it is closed */ }
      show();
    },
    listen(listener) {
      listeners.push(listener);
      listener(now());
    },
  };
})();
