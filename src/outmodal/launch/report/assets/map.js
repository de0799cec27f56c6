"use strict";
// Scatter maps: shapes are modalities, hues are classes or modalities; keys walk over the points.

// Unit shapes around 0, 0: circle, square, triangle, diamond, cross, star.
const SHAPES = [
  "M-1 0a1 1 0 1 0 2 0a1 1 0 1 0 -2 0", "M-.9-.9H.9V.9H-.9Z", "M0-1.15L1.05.8H-1.05Z",
  "M0-1.25L1.05 0L0 1.25L-1.05 0Z", "M-.35-1H.35V-.35H1V.35H.35V1H-.35V.35H-1V-.35H-.35Z",
  "M0-1.3L.4-.4L1.3 0L.4.4L0 1.3L-.4.4L-1.3 0L-.4-.4Z",
];

class ScatterMap {
  constructor(figure, data) {
    this.data = data;
    this.byClass = data.points.some((p) => p[3] >= 0);
    this.off = { 2: new Set(), 3: new Set() }; // by the place in a point: modalities, classes
    this.view = { x: 0, y: 0, half: 1.06 };
    this.chosen = null;
    this.order = data.points.map((_, i) => i).sort((a, b) => data.points[a][0] - data.points[b][0]);
    this.build(figure);
    whenSized(this.plot, (width) => this.draw(width));
    this.listen();
  }

  build(figure) {
    const { title, modalities, classes } = this.data;
    this.plot = el("div", {
      class: "plot", tabindex: 0, role: "group",
      "aria-label": `${title}. Arrow keys walk over the points from left to right, plus and minus zoom, 0 shows all.`,
    });
    this.tip = el("output", { class: "tip", "aria-live": "polite" });
    this.hue = tool("Colour by class", () => this.setHue(!this.byClass), String(this.byClass));
    this.hue.disabled = !this.byClass;
    const tools = el("div", { class: "tools", role: "group", "aria-label": `${title}: view` }, this.hue,
      tool("Zoom in", () => this.zoom(0.6)), tool("Zoom out", () => this.zoom(1 / 0.6)),
      tool("Show all", () => this.reset()));
    this.legends = el("div");
    figure.append(tools, this.plot, this.legends);
    this.legend();
  }

  legend() {
    const { title, modalities, classes, points } = this.data;
    const used = [...new Set(points.map((p) => p[3]))].filter((c) => c >= 0).sort((a, b) => a - b);
    const group = (name, ids, names, place) => el("div", { class: "legend", role: "group", "aria-label": `${title}: ${name}` },
      ...ids.map((i) => this.entry(names[i], i, place)));
    const keys = [...modalities.keys()];
    const parts = [group("modalities", keys, modalities, 2)];
    if (used.length) parts.push(group("classes", used, classes, 3));
    this.legends.replaceChildren(...parts);
  }

  entry(name, i, place) {
    const coloured = this.byClass === (place === 3);
    const swatch = svg("svg", { width: 14, height: 14, viewBox: "-1.6 -1.6 3.2 3.2", "aria-hidden": "true", class: coloured ? `h${i % HUES}` : "h6" },
      svg("path", { d: SHAPES[place === 2 ? i % SHAPES.length : 0], class: coloured && i % (2 * HUES) >= HUES ? "spot hollow" : "spot",
        "vector-effect": "non-scaling-stroke" }));
    const off = this.off[place];
    const button = el("button", { type: "button", "aria-pressed": String(!off.has(i)) }, swatch, name);
    button.addEventListener("click", () => {
      if (!off.delete(i)) off.add(i);
      button.setAttribute("aria-pressed", String(!off.has(i)));
      this.draw();
    });
    return button;
  }

  seen(i) {
    const p = this.data.points[i];
    return !this.off[2].has(p[2]) && !this.off[3].has(p[3]);
  }

  draw(width = this.width) {
    if (!width) return;
    this.width = width;
    const size = Math.min(width, 560), { x, y, half } = this.view;
    this.px = scale(x - half, x + half, 0, width);
    this.py = scale(y - (half * size) / width, y + (half * size) / width, 0, size);
    const shown = this.order.filter((i) => this.seen(i));
    this.root = svg("svg", { viewBox: `0 0 ${width} ${size}`, role: "img",
      "aria-label": `${this.data.title}: ${shown.length} points of ${this.data.modalities.join(", ")}` },
      ...shown.map((i) => this.spot(i)));
    this.plot.replaceChildren(this.root, this.tip);
    this.point(this.chosen);
  }

  spot(i) {
    const [x, y, modality, label] = this.data.points[i];
    const hue = this.byClass ? label : modality;
    const known = hue >= 0;
    const hollow = !known || hue % (2 * HUES) >= HUES;
    return svg("path", {
      d: SHAPES[modality % SHAPES.length], "data-i": i, "vector-effect": "non-scaling-stroke",
      class: `spot h${known ? hue % HUES : 6}${hollow ? " hollow" : ""}`,
      transform: `translate(${this.px(x).toFixed(1)} ${this.py(y).toFixed(1)}) scale(4)`,
    });
  }

  point(i) {
    this.root.querySelector(".chosen")?.classList.remove("chosen");
    this.chosen = i;
    const node = i === null ? null : this.root.querySelector(`[data-i="${i}"]`);
    if (!node) { this.tip.textContent = ""; return; }
    node.classList.add("chosen");
    const [x, , modality, label, sample] = this.data.points[i];
    this.tip.textContent = `${this.data.modalities[modality]}, ${label >= 0 ? this.data.classes[label] : "no class"}, sample ${sample}`;
    const right = this.px(x) > this.width / 2;
    this.tip.style.left = right ? "4px" : "auto";
    this.tip.style.right = right ? "auto" : "4px";
  }

  move(by) {
    const seen = this.order.filter((i) => this.seen(i)), at = seen.indexOf(this.chosen);
    if (!seen.length) return;
    this.point(seen[clamp((at < 0 ? (by > 0 ? -1 : seen.length) : at) + by, 0, seen.length - 1)]);
  }

  setHue(byClass) {
    if (this.hue.disabled) return;
    this.byClass = byClass;
    this.hue.setAttribute("aria-pressed", String(byClass));
    this.legend();
    this.draw();
  }

  zoom(factor) {
    const at = this.chosen === null ? null : this.data.points[this.chosen];
    this.view = { x: at ? at[0] : this.view.x, y: at ? at[1] : this.view.y, half: clamp(this.view.half * factor, 0.02, 1.06) };
    if (this.view.half === 1.06) this.view.x = this.view.y = 0;
    this.draw();
  }

  reset() {
    this.view = { x: 0, y: 0, half: 1.06 };
    this.draw();
  }

  listen() {
    const keys = {
      ArrowRight: () => this.move(1), ArrowLeft: () => this.move(-1), ArrowDown: () => this.move(20), ArrowUp: () => this.move(-20),
      Home: () => this.move(-1e9), End: () => this.move(1e9),
      "+": () => this.zoom(0.6), "=": () => this.zoom(0.6), "-": () => this.zoom(1 / 0.6), 0: () => this.reset(),
      Escape: () => this.point(null),
    };
    this.plot.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    });
    const under = (event) => event.target.dataset?.i;
    this.plot.addEventListener("pointermove", (event) => {
      if (under(event) !== undefined) this.point(Number(under(event)));
    });
    this.plot.addEventListener("pointerleave", () => this.point(null));
  }
}
