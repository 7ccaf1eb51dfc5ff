"use strict";
// Asks again what stands on disk, replaces what changed, and draws the curves of trainings. What arrives as HTML was escaped by the
// server; what is drawn here is set as text.
(() => {
  const live = document.querySelector("[data-live]");
  if (!live) return;
  const EVERY_MS = 2000, IDLE_MS = 10000;
  const WIDTH = 560, HEIGHT = 250, LEFT = 52, RIGHT = 14, TOP = 12, BOTTOM = 34;
  const SVG = "http://www.w3.org/2000/svg";
  let before = {};

  const element = (name, attributes, text) => {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  };

  // Steps of 1, 2 or 5 times a power of ten, at most about five of them
  const ticks = (low, high) => {
    const raw = (high - low || 1) / 5, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= raw);
    const found = [];
    for (let at = Math.ceil(low / step - 1e-9); at * step <= high + 1e-9 * step; at += 1) found.push(at * step);
    return found;
  };

  const bounds = (values) => {
    const low = Math.min(...values), high = Math.max(...values), room = (high - low || Math.abs(high) || 1) * 0.06;
    return [low - room, high + room];
  };

  const draw = ({ stage, measure, epochs, lines }) => {
    const figure = document.createElement("figure");
    const title = document.createElement("h3");
    title.textContent = `${stage}: ${measure}`;
    const points = lines.flatMap((line) => line.points);
    const first = epochs[0], last = Math.max(epochs[1], first + 1);
    let [low, high] = bounds(points.map((point) => point[1]));
    if (measure.includes("%")) [low, high] = [Math.max(0, low), Math.min(100, high)];
    const x = (value) => LEFT + ((value - first) / (last - first)) * (WIDTH - LEFT - RIGHT);
    const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);
    const said = lines.map((line) => `${line.name} ${Number(line.points.at(-1)[1].toPrecision(4))}`).join(", ");
    const svg = element("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "curve", role: "img", "aria-label": `${stage}, ${measure} after epoch ${Math.max(...points.map((point) => point[0]))}: ${said}` });
    for (const value of ticks(low, high)) {
      svg.append(element("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
      svg.append(element("text", { x: LEFT - 8, y: y(value) + 4, "text-anchor": "end" }, String(Number(value.toPrecision(4)))));
    }
    for (const value of ticks(first, last).filter(Number.isInteger)) {
      svg.append(element("text", { x: x(value), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, String(value)));
    }
    svg.append(element("text", { x: WIDTH - RIGHT, y: HEIGHT - 2, "text-anchor": "end" }, "epoch"));
    const key = document.createElement("figcaption");
    key.className = "key";
    lines.forEach((line, place) => {
      const path = line.points.map(([a, b], index) => `${index ? "L" : "M"}${x(a).toFixed(1)},${y(b).toFixed(1)}`).join("");
      svg.append(element("path", { d: path, class: `line${place}` }));
      const [a, b] = line.points.at(-1);
      const dot = element("circle", { cx: x(a), cy: y(b), r: 3.5, class: `line${place}` });
      dot.append(element("title", {}, `epoch ${a}: ${Number(b.toPrecision(5))}`));
      svg.append(dot);
      const name = document.createElement("span");
      const sample = element("svg", { viewBox: "0 0 26 8", class: "curve", "aria-hidden": "true" });
      sample.append(element("path", { d: "M0,4L26,4", class: `line${place}` }));
      name.append(sample, `${line.name}: ${Number(b.toPrecision(4))}`);
      key.append(name);
    });
    figure.append(title, svg, key);
    return figure;
  };

  const replaceParts = (parts) => {
    for (const [name, html] of Object.entries(parts)) {
      if (before[name] === html) continue;
      const place = document.querySelector(`[data-part="${name}"]`);
      if (!place) continue;
      const chosen = new Set([...place.querySelectorAll("input:checked")].map((box) => box.value));
      const focused = place.contains(document.activeElement) ? document.activeElement : null;
      const mark = focused && (focused.value || focused.getAttribute("href") || focused.getAttribute("aria-label"));
      place.innerHTML = html;
      for (const box of place.querySelectorAll("input")) box.checked = chosen.has(box.value);
      if (mark) [...place.querySelectorAll("input, a, [tabindex]")].find((each) => [each.value, each.getAttribute("href"), each.getAttribute("aria-label")].includes(mark))?.focus();
      before[name] = html;
    }
  };

  const ask = async () => {
    let wait = EVERY_MS;
    const began = performance.now();
    try {
      if (!document.hidden) {
        const answer = await fetch(live.dataset.live);
        if (answer.ok) {
          const found = await answer.json();
          replaceParts(found.parts);
          const plots = JSON.stringify(found.plots ?? []);
          if (found.plots?.length && document.getElementById("plots") && before.plots !== plots) {
            document.getElementById("plots").replaceChildren(...found.plots.map(draw));
            before.plots = plots;
          }
          wait = found.going === false ? IDLE_MS : EVERY_MS;
        }
      }
    } catch {
      wait = IDLE_MS; // the server has ended; the page stays as it is
    }
    // where there are thousands of runs the answer takes a while, and the machine has other work
    setTimeout(ask, Math.max(wait, 10 * (performance.now() - began)));
  };
  ask();
})();
