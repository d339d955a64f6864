// Score against a knob: a line of means with its interval for each series, and every run as a point that can be opened.

const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]; // Okabe and Ito
const DASHES = ["", "6 3", "2 2", "8 2 2 2", "1 3", "10 3"];

function svg(tag, attributes = {}, ...children) {
  const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") found.textContent = value;
    else found.setAttribute(key, value);
  }
  found.append(...children);
  return found;
}

const short = (value) => (Math.abs(value) >= 1000 ? value.toExponential(1) : String(Number(value.toPrecision(3))));

function ticks(low, high, wanted = 5) {
  const rough = (high - low) / wanted, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + 1e-9 * step; at += step) found.push(at);
  return found;
}

function saved(root, name) { // as it is drawn, in black on white
  const copy = root.cloneNode(true), style = svg("style", { text: "text{font:11px sans-serif}path{fill:none;stroke:#000;opacity:.3}" });
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.prepend(style, svg("rect", { width: "100%", height: "100%", fill: "#fff" }));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([copy.outerHTML], { type: "image/svg+xml" }));
  link.download = `${name.replace(/[^\p{L}\p{N}]+/gu, "_")}.svg`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function render({ model, el }) {
  const get = (name) => model.get(name), box = document.createElement("div");
  box.className = "dsp";
  el.append(box);
  let focused = null;
  function build() {
    const points = get("points"), lines = get("lines"), names = [...new Set(points.map((p) => p.series))];
    if (!points.length) return box.replaceChildren();
    const width = 560, height = 250, pad = { l: 58, r: 12, t: 12 + 16 * (names.length > 1), b: 38 };
    const xs = points.map((p) => p.x), ys = [...points.map((p) => p.y), ...lines.flatMap((l) => [...l.low, ...l.high])].filter(Number.isFinite);
    const widen = (values) => { const [a, b] = [Math.min(...values), Math.max(...values)], by = (b - a || Math.abs(b) || 1) * 0.06; return [a - by, b + by]; };
    const [x0, x1] = widen(xs), [y0, y1] = widen(ys);
    const px = (x) => pad.l + ((x - x0) / (x1 - x0)) * (width - pad.l - pad.r), py = (y) => height - pad.b - ((y - y0) / (y1 - y0)) * (height - pad.t - pad.b);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": `${get("ylabel")} against ${get("xlabel")}` });
    const text = (words, x, y, anchor) => root.append(svg("text", { x, y, "text-anchor": anchor, text: words }));
    root.append(svg("path", { d: `M${pad.l} ${pad.t}V${height - pad.b}H${width - pad.r}`, class: "dsp-axis" }));
    for (const at of ticks(x0, x1)) text(short(at), px(at), height - pad.b + 14, "middle");
    for (const at of ticks(y0, y1)) { text(short(at), pad.l - 5, py(at) + 3, "end"); root.append(svg("path", { d: `M${pad.l} ${py(at)}H${width - pad.r}`, class: "dsp-grid" })); }
    text(get("xlabel"), (pad.l + width - pad.r) / 2, height - 6, "middle");
    root.append(svg("text", { x: -(height - pad.b + pad.t) / 2, y: 12, transform: "rotate(-90)", "text-anchor": "middle", text: get("ylabel") }));
    lines.forEach((line) => {
      const n = Math.max(names.indexOf(line.series), 0) % COLORS.length;
      const band = [...line.x.map((x, i) => [x, line.high[i]]), ...line.x.map((x, i) => [x, line.low[i]]).reverse()];
      root.append(svg("polygon", { points: band.map(([x, y]) => `${px(x)},${py(y)}`).join(" "), fill: COLORS[n], opacity: 0.18 }));
      root.append(svg("polyline", { points: line.x.map((x, i) => `${px(x)},${py(line.mean[i])}`).join(" "), fill: "none", stroke: COLORS[n], "stroke-width": 2, "stroke-dasharray": DASHES[n] }));
    });
    if (names.length > 1) names.forEach((name, n) => { root.append(svg("rect", { x: pad.l + 120 * n, y: 4, width: 9, height: 9, fill: COLORS[n % COLORS.length] })); text(name, pad.l + 14 + 120 * n, 12, "start"); });
    for (const point of points) {
      const n = names.indexOf(point.series) % COLORS.length, chosen = point.id === get("selected");
      const dot = svg("circle", { cx: px(point.x), cy: py(point.y), r: chosen ? 7 : 4.5, fill: COLORS[n], class: chosen ? "dsp-dot dsp-chosen" : "dsp-dot", tabindex: 0, role: "button", "aria-label": `open ${point.label}`, "data-id": point.id });
      dot.append(svg("title", { text: point.label }));
      const open = () => { focused = point.id; model.send({ what: "select", id: point.id }); };
      dot.addEventListener("click", open);
      dot.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); open(); } });
      root.append(dot);
    }
    const had = box.contains(document.activeElement);
    const save = document.createElement("button");
    Object.assign(save, { type: "button", className: "dsp-save", textContent: "Save plot", title: "this plot as an SVG file, among the browser's downloads" });
    save.addEventListener("click", () => saved(root, `${get("ylabel")} against ${get("xlabel")}`));
    box.replaceChildren(root, save);
    if (had && focused) root.querySelector(`[data-id="${focused}"]`)?.focus();
  }
  const names = ["points", "lines", "xlabel", "ylabel", "selected"];
  let waiting = 0;
  const later = () => { waiting ||= requestAnimationFrame(() => { waiting = 0; build(); }); };
  names.forEach((name) => model.on(`change:${name}`, later));
  build();
  return () => names.forEach((name) => model.off(`change:${name}`, later));
}

export default { render };
