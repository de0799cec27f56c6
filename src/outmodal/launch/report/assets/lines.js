"use strict";
// Line charts: hover or arrow keys read values, the legend hides lines, drag or keys zoom.

const DASHES = ["", "7 3", "2 3", "9 3 2 3", "12 4"];
const SIDE = { left: 58, right: 12, top: 10, bottom: 34 };
const TABLE_ROWS = 200;

class Lines {
  constructor(figure, data) {
    this.data = data;
    this.hidden = new Set();
    this.log = false;
    this.cursor = null;
    this.steps = [...new Set(data.series.flatMap((s) => s.points.map((p) => p[0])))];
    this.steps.sort((a, b) => a - b);
    this.whole = this.steps.every(Number.isInteger); // rates lie between 0 and 1
    this.full = [this.steps[0], this.steps[this.steps.length - 1]];
    this.range = [...this.full];
    this.build(figure);
    whenSized(this.plot, (width) => this.draw(width));
    this.listen();
  }

  build(figure) {
    const title = this.data.title;
    this.plot = el("div", {
      class: "plot", tabindex: 0, role: "group",
      "aria-label": `${title}. Arrow keys read values, plus and minus zoom, 0 shows all, L switches the logarithmic scale.`,
    });
    this.tip = el("output", { class: "tip", "aria-live": "polite" });
    this.logButton = tool("Log scale", () => this.setLog(!this.log), "false");
    this.logButton.disabled = !this.data.series.some((s) => s.points.some((p) => p[1] > 0));
    const tools = el("div", { class: "tools", role: "group", "aria-label": `${title}: view` },
      this.logButton,
      tool("Zoom in", () => this.zoom(0.5)),
      tool("Zoom out", () => this.zoom(2)),
      tool("Show all", () => this.setRange(this.full)));
    const legend = el("div", { class: "legend", role: "group", "aria-label": `${title}: lines` },
      ...this.data.series.map((s, i) => this.entry(s.name, i)));
    figure.append(tools, this.plot, legend, this.values(title));
  }

  entry(name, i) {
    const swatch = svg("svg", { width: 26, height: 10, class: `h${i % HUES}`, "aria-hidden": "true" },
      svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, class: "curve", "stroke-dasharray": DASHES[i % DASHES.length] }));
    const button = el("button", { type: "button", "aria-pressed": "true" }, swatch, name);
    button.addEventListener("click", () => {
      if (!this.hidden.delete(i)) this.hidden.add(i);
      button.setAttribute("aria-pressed", String(!this.hidden.has(i)));
      this.draw();
    });
    return button;
  }

  // A table of the same numbers, made when it is asked for.
  values(title) {
    const details = el("details", { class: "values" }, el("summary", {}, "Values"));
    details.addEventListener("toggle", () => {
      if (!details.open || details.children.length > 1) return;
      const every = Math.ceil(this.steps.length / TABLE_ROWS);
      const steps = this.steps.filter((_, i) => i % every === 0 || i === this.steps.length - 1);
      const maps = this.data.series.map((s) => new Map(s.points));
      const head = el("tr", {}, ...[this.data.x, ...this.data.series.map((s) => s.name)].map((t) => el("th", { scope: "col" }, t)));
      const rows = steps.map((x) => el("tr", {}, el("th", { scope: "row" }, shown(x)),
        ...maps.map((m) => el("td", {}, m.has(x) ? shown(m.get(x), this.data.percent) : "–"))));
      details.append(el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Values of ${title}` },
        el("table", { class: "numbers" }, el("thead", {}, head), el("tbody", {}, ...rows))));
    });
    return details;
  }

  visible() {
    const [from, to] = this.range;
    return this.data.series
      .map((s, i) => ({ name: s.name, i, points: s.points.filter((p) => p[0] >= from && p[0] <= to) }))
      .filter((s) => !this.hidden.has(s.i));
  }

  bounds(series) {
    const numbers = series.flatMap((s) => s.points.map((p) => p[1]))
      .filter((v) => v !== null && (!this.log || v > 0));
    if (!numbers.length) return this.log ? [0.1, 1] : [0, 1];
    let low = numbers.reduce((a, b) => Math.min(a, b)), high = numbers.reduce((a, b) => Math.max(a, b));
    if (this.log) return low === high ? [low / 2, high * 2] : [low / 1.05, high * 1.05];
    const room = (high - low) * 0.05 || Math.abs(high) * 0.1 || 1;
    return [low >= 0 && low - room < 0 ? 0 : low - room, high + room];
  }

  draw(width = this.width) {
    if (!width) return;
    this.width = width;
    const height = width < 480 ? 220 : 270;
    const series = this.visible(), [low, high] = this.bounds(series);
    const [from, to] = this.range[0] === this.range[1] ? [this.range[0] - 1, this.range[1] + 1] : this.range;
    this.x = scale(from, to, SIDE.left, width - SIDE.right);
    this.y = scale(low, high, height - SIDE.bottom, SIDE.top, this.log);
    const over = svg("g");
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.summary(series) },
      this.axes(width, height, low, high, from, to), ...series.map((s) => this.line(s)), over);
    this.over = over;
    this.height = height;
    this.plot.replaceChildren(root, this.tip);
    this.point(this.cursor);
  }

  summary(series) {
    const ends = series.slice(0, 8).map((s) => {
      const last = s.points[s.points.length - 1];
      return last ? `${s.name} ends at ${shown(last[1], this.data.percent)}` : `${s.name} has no value here`;
    });
    return `${this.data.title}, ${this.data.x} ${shown(this.range[0])} to ${shown(this.range[1])}: ${ends.join("; ") || "all lines are hidden"}`;
  }

  axes(width, height, low, high, from, to) {
    const group = svg("g", { "aria-hidden": "true" }), bottom = height - SIDE.bottom;
    for (const v of this.log ? logTicks(low, high) : ticks(low, high, 5)) {
      const y = this.y(v);
      group.append(svg("line", { class: "grid", x1: SIDE.left, x2: width - SIDE.right, y1: y, y2: y }),
        svg("text", { x: SIDE.left - 6, y: y + 4, "text-anchor": "end" }, shown(v, this.data.percent)));
    }
    for (const v of ticks(from, to, width < 480 ? 4 : 7)) {
      if (this.whole && !Number.isInteger(v)) continue;
      group.append(svg("text", { x: this.x(v), y: bottom + 16, "text-anchor": "middle" }, shown(v)));
    }
    group.append(svg("line", { class: "grid", x1: SIDE.left, x2: width - SIDE.right, y1: bottom, y2: bottom }),
      svg("text", { x: width - SIDE.right, y: height - 4, "text-anchor": "end" }, this.data.x));
    return group;
  }

  line(s) {
    const group = svg("g", { class: `h${s.i % HUES}`, "data-series": s.i });
    let path = "", pen = "M";
    for (const [x, v] of s.points) {
      if (v === null || (this.log && v <= 0)) { pen = "M"; continue; }
      path += `${pen}${this.x(x).toFixed(1)} ${this.y(v).toFixed(1)}`;
      pen = "L";
      if (s.points.length <= 30) group.append(svg("circle", { class: "dot", cx: this.x(x), cy: this.y(v), r: 3 }));
    }
    group.prepend(svg("path", { class: "curve", d: path, "stroke-dasharray": DASHES[s.i % DASHES.length] }));
    return group;
  }

  // Show the values at a step; null shows none.
  point(step) {
    this.cursor = step;
    this.over.replaceChildren();
    if (step === null || step < this.range[0] || step > this.range[1]) { this.tip.textContent = ""; return; }
    const x = this.x(step), rows = [];
    this.over.append(svg("line", { class: "cursor", x1: x, x2: x, y1: SIDE.top, y2: this.height - SIDE.bottom }));
    for (const s of this.visible()) {
      const found = s.points.find((p) => p[0] === step);
      if (!found) continue;
      rows.push(`${s.name}: ${shown(found[1], this.data.percent)}`);
      if (found[1] !== null && (!this.log || found[1] > 0)) {
        this.over.append(svg("circle", { class: `dot h${s.i % HUES}`, cx: x, cy: this.y(found[1]), r: 4.5 }));
      }
    }
    this.tip.textContent = [`${this.data.x} ${step}`, ...rows].join("\n");
    const right = x > this.width / 2;
    this.tip.style.left = right ? `${SIDE.left}px` : "auto";
    this.tip.style.right = right ? "auto" : `${SIDE.right}px`;
  }

  here() {
    const shownSteps = new Set(this.visible().flatMap((s) => s.points.map((p) => p[0])));
    return this.steps.filter((x) => shownSteps.has(x));
  }

  nearest(pixel) {
    let best = null;
    for (const step of this.here()) {
      if (best === null || Math.abs(this.x(step) - pixel) < Math.abs(this.x(best) - pixel)) best = step;
    }
    return best;
  }

  move(by) {
    const steps = this.here(), at = steps.indexOf(this.cursor);
    if (!steps.length) return;
    const start = by > 0 ? -1 : steps.length;
    this.point(steps[clamp((at < 0 ? start : at) + by, 0, steps.length - 1)]);
  }

  setLog(on) {
    if (this.logButton.disabled) return;
    this.log = on;
    this.logButton.setAttribute("aria-pressed", String(on));
    this.draw();
  }

  setRange([from, to]) {
    this.range = [Math.max(this.full[0], from), Math.min(this.full[1], to)];
    this.draw();
  }

  zoom(factor) {
    const [from, to] = this.range, middle = this.cursor ?? (from + to) / 2;
    const least = this.whole ? 0.5 : (this.full[1] - this.full[0]) / 100;
    const half = Math.max(least, ((to - from) * factor) / 2);
    this.setRange([middle - half, middle + half]);
  }

  listen() {
    const keys = {
      ArrowRight: () => this.move(1), ArrowLeft: () => this.move(-1),
      PageDown: () => this.move(10), PageUp: () => this.move(-10),
      Home: () => this.move(-1e9), End: () => this.move(1e9),
      "+": () => this.zoom(0.5), "=": () => this.zoom(0.5), "-": () => this.zoom(2),
      0: () => this.setRange(this.full), l: () => this.setLog(!this.log), L: () => this.setLog(!this.log),
      Escape: () => this.point(null),
    };
    this.plot.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
      event.preventDefault();
      keys[event.key]();
    });
    let begin = null;
    const pixel = (event) => event.clientX - this.plot.getBoundingClientRect().left;
    const value = (p) => {
      const share = (p - SIDE.left) / (this.width - SIDE.right - SIDE.left);
      return this.range[0] + clamp(share, 0, 1) * (this.range[1] - this.range[0]);
    };
    this.plot.addEventListener("pointerdown", (event) => { begin = event.button ? null : pixel(event); });
    this.plot.addEventListener("pointermove", (event) => {
      const now = pixel(event);
      this.point(this.nearest(now));
      if (begin !== null && Math.abs(now - begin) > 8) {
        this.over.append(svg("rect", { class: "brush", x: Math.min(now, begin), y: SIDE.top,
          width: Math.abs(now - begin), height: this.height - SIDE.top - SIDE.bottom }));
      }
    });
    this.plot.addEventListener("pointerup", (event) => {
      const now = pixel(event);
      if (begin !== null && Math.abs(now - begin) > 8) this.setRange([value(begin), value(now)].sort((a, b) => a - b));
      begin = null;
    });
    this.plot.addEventListener("pointerleave", () => { begin = null; this.point(null); });
    this.plot.addEventListener("dblclick", () => this.setRange(this.full));
  }
}
