"use strict";
// Draws the plots in the colours of the page, again when these change (light, dark, paper) and when the width does.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const root = document.documentElement;
  const PAPER_WIDTH = 660; // CSS pixels between the margins of A4 and letter
  const WIDE = 640;
  let printing = false;

  const paint = (value, style) => {
    if (typeof value === "string") {
      return value.startsWith("var(") ? style.getPropertyValue(value.slice(4, -1)).trim() : value;
    }
    if (Array.isArray(value)) return value.map((entry) => paint(entry, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, paint(entry, style)]));
    }
    return value;
  };

  const draw = (id) => {
    const element = document.getElementById(id);
    const available = element.parentElement.clientWidth;
    if (!available) return;
    const columns = element.closest(".thirds") ? 3 : 1;
    const width = printing ? PAPER_WIDTH / columns - (columns > 1 ? 22 : 0) : available;
    const { data, layout } = paint(figures[id], getComputedStyle(root));
    const traces = data.filter((trace) => width >= WIDE || trace.meta?.when !== "wide");
    Plotly.react(element, traces, { ...layout, width }, { displayModeBar: false, responsive: false });
  };
  const drawAll = () => Object.keys(figures).forEach(draw);

  const setPrinting = (on) => {
    if (printing === on) return;
    printing = on;
    root.toggleAttribute("data-paper", on);
    document.querySelectorAll("details").forEach((details) => {
      if (on) {
        details.dataset.before = details.open ? "open" : "";
        details.open = true;
      } else {
        details.open = details.dataset.before === "open";
      }
    });
    drawAll();
  };

  let pending = 0;
  addEventListener("resize", () => {
    cancelAnimationFrame(pending);
    pending = requestAnimationFrame(() => printing || drawAll());
  });
  addEventListener("beforeprint", () => setPrinting(true));
  addEventListener("afterprint", () => setPrinting(false));
  matchMedia("print").addEventListener("change", (event) => setPrinting(event.matches));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();
})();
