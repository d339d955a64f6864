// Orthogonal planes of up to six linked volumes. The volumes arrive once, as 16-bit levels; every slice, projection and
// profile is made here, so that moving through them asks the kernel for nothing (and works where there is no kernel).

const PLANES = [
  // axis that the plane is perpendicular to, axes of its columns and rows (0: z, 1: y, 2: x), whether rows run upwards
  { name: "transverse", across: 0, col: 2, row: 1, up: false, edges: ["R", "L", "A", "P"] },
  { name: "coronal", across: 1, col: 2, row: 0, up: true, edges: ["R", "L", "H", "F"] },
  { name: "sagittal", across: 2, col: 1, row: 0, up: true, edges: ["A", "P", "H", "F"] },
];
const AXES = ["z", "y", "x"];
const COLORS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]; // Okabe and Ito: told apart by colour-blind readers
const DASHES = [[], [6, 3], [2, 2], [8, 2, 2, 2], [1, 3], [10, 3]];
const SIGNED = "RdBu_r", MIDDLE = 32768, DATA = ["data_0", "data_1", "data_2", "data_3", "data_4", "data_5"];

function node(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") found.textContent = value;
    else found.setAttribute(key, value);
  }
  found.append(...children);
  return found;
}

function levels(view) {
  // a DataView may start anywhere in its buffer; 16-bit numbers may not
  if (!view || view.byteLength === 0) return null;
  return new Uint16Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}

function short(value) {
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1000 || size < 0.01) return value.toExponential(1).replace("e+", "e");
  return size >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

function planeOf(volume, shape, plane, index, projection, box, zero = 0) {
  // the levels of one plane of a box, row by row, or those farthest from zero along its axis; relative to zero
  const stride = [shape[1] * shape[2], shape[2], 1];
  const [c0, c1] = box[plane.col], [r0, r1] = box[plane.row], columns = c1 - c0, rows = r1 - r0;
  const out = new Float32Array(columns * rows);
  const [from, to] = projection ? box[plane.across] : [index, index + 1];
  for (let r = 0; r < rows; r++) {
    const line = plane.up ? r1 - 1 - r : r0 + r;
    for (let c = 0; c < columns; c++) {
      const base = line * stride[plane.row] + (c0 + c) * stride[plane.col];
      let best = 0;
      for (let k = from; k < to; k++) {
        const level = volume[base + k * stride[plane.across]] - zero;
        if (Math.abs(level) > Math.abs(best)) best = level;
      }
      out[r * columns + c] = best;
    }
  }
  return out;
}

function render({ model, el }) {
  const root = node("div", { class: "dsv", role: "group", "aria-label": "volume viewer" });
  el.append(root);
  let volumes = [], ct = null, panels = [], waiting = 0, turn = 0, ticking = 0, held = null;

  // --- controls -------------------------------------------------------------------------------------------------
  const bar = node("div", { class: "dsv-bar" });
  const maps = node("select", { "aria-label": "colour map" });
  const low = node("input", { type: "range", min: 0, max: 1000, "aria-label": "lower end of the colour scale" });
  const high = node("input", { type: "range", min: 1, max: 1000, "aria-label": "upper end of the colour scale" });
  const opacity = node("input", { type: "range", min: 0, max: 100, "aria-label": "CT underlay" });
  const maxima = node("input", { type: "checkbox" });
  const smooth = node("input", { type: "checkbox" });
  const along = node("select", { "aria-label": "profile along" });
  for (const [value, text] of [["x", "x"], ["y", "y"], ["z", "z"], ["", "none"]]) along.append(node("option", { value, text }));
  const labelled = (text, ...inputs) => node("label", {}, node("span", { text }), ...inputs);
  const ctLabel = labelled("CT", opacity);
  const part = node("select", { "aria-label": "part of the volume" }, node("option", { value: "heart", text: "heart" }), node("option", { value: "whole", text: "whole volume" }));
  const zoom = node("input", { type: "range", min: 1, max: 4, step: 0.25, "aria-label": "zoom round the crosshair" });
  const blink = node("input", { type: "checkbox" });
  const spread = node("input", { type: "range", min: 1, max: 1000, "aria-label": "end of the difference's scale" });
  const partLabel = labelled("show", part), blinkLabel = labelled("blink A and B", blink), spreadLabel = labelled("A − B to ±", spread);
  bar.append(partLabel, labelled("zoom", zoom), labelled("colours", maps), labelled("from", low), labelled("to", high), spreadLabel, blinkLabel, ctLabel,
    labelled("maxima", maxima), labelled("smooth", smooth), labelled("profile", along));
  const scale = node("div", { class: "dsv-scale" });
  const ramp = node("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  const [scaleLow, scaleHigh, scaleUnit] = ["", "", "dsv-unit"].map((c) => node("span", { class: c }));
  const signedRamp = node("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  const [signedLow, signedHigh] = [0, 1].map(() => node("span", {}));
  const signedScale = node("div", { class: "dsv-scale" }, signedLow, signedRamp, signedHigh, node("span", { text: "A − B" }));
  scale.append(scaleLow, ramp, scaleHigh, scaleUnit);
  const stage = node("div", { class: "dsv-stage" });
  const sliders = node("div", { class: "dsv-sliders" });
  const slider = AXES.map((axis, i) => {
    const input = node("input", { type: "range", min: 0, step: 1, "aria-label": `slice along ${axis}` });
    const value = node("output", {});
    input.addEventListener("input", () => moveTo(i, Number(input.value)));
    sliders.append(node("label", {}, node("span", { text: axis }), input, value));
    return { input, value };
  });
  const readout = node("div", { class: "dsv-readout", "aria-live": "polite" });
  const plot = node("canvas", { class: "dsv-profile", role: "img", "aria-label": "profile through the crosshair" });
  root.append(bar, scale, signedScale, stage, sliders, readout, plot);

  // --- state ----------------------------------------------------------------------------------------------------
  const get = (name) => model.get(name);
  function put(name, value) { model.set(name, value); waiting ||= requestAnimationFrame(() => { waiting = 0; model.save_changes(); }); }
  function mm(axis, index) {
    const shape = get("shape");
    return (index - (shape[axis] - 1) / 2) * get("voxel_mm") + get("center_mm")[2 - axis];
  }
  function moveTo(axis, index) {
    const cursor = [...get("cursor")], n = get("shape")[axis];
    cursor[axis] = Math.max(0, Math.min(n - 1, Math.round(index)));
    if (cursor[axis] !== get("cursor")[axis]) put("cursor", cursor);
  }
  function boxOf() { // what is shown of z, y, x: the region or all, closer round the crosshair by the zoom
    const shape = get("shape"), region = get("region"), cursor = get("cursor"), cut = region.length === 6 && !get("whole");
    return [0, 1, 2].map((a) => {
      const [from, to] = cut ? [region[2 * a], Math.min(region[2 * a + 1], shape[a])] : [0, shape[a]];
      const size = Math.min(to - from, Math.max(4, Math.round((to - from) / get("zoom"))));
      const start = Math.min(Math.max(cursor[a] - Math.floor(size / 2), from), to - size);
      return [start, start + size];
    });
  }
  function lookUp(name = get("colormap")) { // a colour map as 256 × RGB
    const view = get("colormaps")[name];
    return view ? new Uint8Array(view.buffer, view.byteOffset, view.byteLength) : new Uint8Array(768);
  }

  // --- building -------------------------------------------------------------------------------------------------
  function readVolumes() {
    const signed = get("signed");
    volumes = get("names").map((name, i) => ({ name, data: levels(get(DATA[i])), unit: get("scales")[i], zero: signed.includes(name) ? MIDDLE : 0 }));
    ct = levels(get("ct"));
    ctLabel.hidden = !ct;
  }
  function build() {
    readVolumes();
    const shape = get("shape");
    stage.replaceChildren();
    stage.style.setProperty("--volumes", Math.max(volumes.length, 1));
    stage.classList.toggle("dsv-single", volumes.length === 1);
    panels = [];
    volumes.forEach((volume, v) => {
      const column = node("div", { class: "dsv-volume" });
      const title = node("div", { class: "dsv-title", title: volume.name }, node("i", { style: `background:${COLORS[v]}` }), node("span", { text: volume.name }));
      const row = node("div", { class: "dsv-planes" });
      column.append(title, row);
      for (const plane of PLANES) {
        const canvas = node("canvas", { tabindex: 0, role: "img", "aria-label": `${volume.name}, ${plane.name} plane; arrow keys move the crosshair, page keys the slice` });
        const frame = node("div", { class: "dsv-panel" }, canvas);
        row.append(frame);
        const panel = { canvas, frame, plane, v, title, buffer: node("canvas") };
        listen(panel);
        panels.push(panel);
      }
      stage.append(column);
    });
    slider.forEach((s, axis) => { s.input.max = shape[axis] - 1; });
    maps.replaceChildren(...Object.keys(get("colormaps")).filter((name) => name !== SIGNED).map((name) => node("option", { value: name, text: name })));
    draw();
  }
  function listen(panel) {
    const { canvas, plane } = panel;
    const point = (event) => {
      const at = canvas.getBoundingClientRect(), [c0, c1] = panel.box[plane.col], [r0, r1] = panel.box[plane.row];
      const c = Math.floor(((event.clientX - at.left) / at.width) * (c1 - c0));
      const r = Math.floor(((event.clientY - at.top) / at.height) * (r1 - r0));
      moveTo(plane.col, c0 + c);
      moveTo(plane.row, plane.up ? r1 - 1 - r : r0 + r);
    };
    canvas.addEventListener("pointerdown", (event) => { canvas.setPointerCapture(event.pointerId); canvas.focus({ preventScroll: true }); held = panel.box; point(event); });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { held = null; later(); });
    canvas.addEventListener("pointermove", (event) => { if (event.buttons & 1) point(event); });
    canvas.addEventListener("wheel", (event) => {
      if (!canvas.matches(":focus")) return; // a page that scrolls must not get caught
      event.preventDefault();
      moveTo(plane.across, get("cursor")[plane.across] + Math.sign(event.deltaY));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const cursor = get("cursor"), rise = plane.up ? 1 : -1;
      const move = {
        ArrowLeft: [plane.col, -1], ArrowRight: [plane.col, 1], ArrowUp: [plane.row, rise], ArrowDown: [plane.row, -rise],
        PageUp: [plane.across, 1], PageDown: [plane.across, -1],
      }[event.key];
      if (!move) return;
      event.preventDefault();
      event.stopPropagation();
      moveTo(move[0], cursor[move[0]] + move[1]);
    });
  }

  // --- drawing --------------------------------------------------------------------------------------------------
  function drawPanel(panel, colours) {
    if (!volumes[panel.v]) return; // fewer volumes than panels, which are made anew in a moment
    const { canvas, frame, buffer, plane, v } = panel, shape = get("shape"), cursor = get("cursor"), box = panel.box = held || boxOf();
    const pair = get("blinking"), other = get("blink") && turn && pair.length === 2 && volumes[v].name === pair[0];
    const volume = other ? volumes.find((one) => one.name === pair[1]) || volumes[v] : volumes[v];
    if (panel.title.lastChild.textContent !== volume.name) panel.title.lastChild.textContent = volume.name;
    const [c0, c1] = box[plane.col], [r0, r1] = box[plane.row], columns = c1 - c0, rows = r1 - r0;
    if (panel.ratio !== columns / rows) frame.style.aspectRatio = panel.ratio = columns / rows; // layout is dear
    if (buffer.width !== columns || buffer.height !== rows) { buffer.width = columns; buffer.height = rows; }
    const place = canvas.getBoundingClientRect(), dpr = window.devicePixelRatio || 1;
    const width = Math.max(1, Math.round((place.width || 200) * dpr)), height = Math.round((width * rows) / columns);
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const g = buffer.getContext("2d"), picture = g.createImageData(columns, rows);
    const index = cursor[plane.across], projection = get("projection");
    const values = volume.data ? planeOf(volume.data, shape, plane, index, projection, box, volume.zero) : new Float32Array(columns * rows);
    const under = ct && !volume.zero && get("opacity") > 0 ? planeOf(ct, shape, plane, index, projection, box) : null;
    const [from, to] = volume.zero ? [-get("spread"), get("spread")] : get("window"), share = get("opacity");
    if (volume.zero) colours = lookUp(SIGNED);
    for (let i = 0; i < values.length; i++) {
      const e = Math.max(0, Math.min(1, (values[i] * volume.unit - from) / Math.max(to - from, 1e-30)));
      const level = 3 * Math.round(255 * e);
      const w = under ? share * (1 - e) : 0, grey = under ? (255 * under[i]) / 65535 : 0;
      for (let k = 0; k < 3; k++) picture.data[4 * i + k] = (1 - w) * colours[level + k] + w * grey;
      picture.data[4 * i + 3] = 255;
    }
    g.putImageData(picture, 0, 0);
    const out = canvas.getContext("2d");
    out.imageSmoothingEnabled = get("smooth");
    out.imageSmoothingQuality = "high";
    out.drawImage(buffer, 0, 0, width, height);
    const x = ((cursor[plane.col] - c0 + 0.5) / columns) * width;
    const r = plane.up ? r1 - 1 - cursor[plane.row] : cursor[plane.row] - r0;
    const y = ((r + 0.5) / rows) * height, gap = 6 * dpr;
    out.strokeStyle = "rgba(120,220,255,0.75)";
    out.lineWidth = dpr;
    out.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) { out.moveTo(x0, y0); out.lineTo(x1, y1); }
    out.stroke();
    out.font = `${11 * dpr}px system-ui, sans-serif`;
    out.fillStyle = "white";
    out.strokeStyle = "rgba(0,0,0,0.7)";
    out.lineWidth = 3 * dpr;
    const [left, right, top, bottom] = plane.edges;
    const write = (text, tx, ty, align, base) => { out.textAlign = align; out.textBaseline = base; out.strokeText(text, tx, ty); out.fillText(text, tx, ty); };
    write(left, 3 * dpr, height / 2, "left", "middle");
    write(right, width - 3 * dpr, height / 2, "right", "middle");
    write(top, width / 2, 2 * dpr, "center", "top");
    const where = projection ? "maxima" : `${AXES[plane.across]} = ${mm(plane.across, index).toFixed(0)} mm`;
    const narrow = out.measureText(where).width + 12 * dpr > width / 2; // the place would run into the letter
    write(bottom, narrow ? width - 3 * dpr : width / 2, height - 2 * dpr, narrow ? "right" : "center", "bottom");
    write(where, 3 * dpr, height - 2 * dpr, "left", "bottom");
  }
  function drawProfile() {
    const axis = AXES.indexOf(get("profile"));
    plot.hidden = axis < 0;
    if (axis < 0) return;
    const dpr = window.devicePixelRatio || 1, box = plot.getBoundingClientRect();
    const width = Math.round((box.width || 600) * dpr), height = Math.round((box.height || 150) * dpr);
    plot.width = width; plot.height = height;
    const g = plot.getContext("2d"), shape = get("shape"), cursor = get("cursor");
    const stride = [shape[1] * shape[2], shape[2], 1], n = shape[axis];
    const base = cursor.reduce((sum, c, a) => sum + (a === axis ? 0 : c * stride[a]), 0);
    const lines = volumes.map((v) => v.zero ? [] : Array.from({ length: n }, (_, k) => (v.data ? v.data[base + k * stride[axis]] * v.unit : 0)));
    const top = Math.max(1e-30, ...lines.flat()), ink = getComputedStyle(root).color;
    const pad = { l: 52 * dpr, r: 10 * dpr, t: 8 * dpr, b: 30 * dpr };
    const px = (k) => pad.l + (k / (n - 1)) * (width - pad.l - pad.r), py = (v) => height - pad.b - (v / top) * (height - pad.t - pad.b);
    g.clearRect(0, 0, width, height);
    g.font = `${11 * dpr}px system-ui, sans-serif`;
    g.fillStyle = g.strokeStyle = ink;
    g.globalAlpha = 0.35;
    g.lineWidth = dpr;
    g.beginPath(); g.moveTo(pad.l, pad.t); g.lineTo(pad.l, height - pad.b); g.lineTo(width - pad.r, height - pad.b); g.stroke();
    g.setLineDash([3 * dpr, 3 * dpr]);
    g.beginPath(); g.moveTo(px(cursor[axis]), pad.t); g.lineTo(px(cursor[axis]), height - pad.b); g.stroke();
    g.setLineDash([]);
    g.globalAlpha = 1;
    g.textAlign = "right"; g.textBaseline = "middle";
    for (const share of [0, 0.5, 1]) g.fillText(short(share * top), pad.l - 4 * dpr, py(share * top));
    g.textAlign = "center"; g.textBaseline = "top";
    for (let at = Math.ceil(mm(axis, 0) / 50) * 50; at <= mm(axis, n - 1); at += 50) g.fillText(at, px((at - mm(axis, 0)) / get("voxel_mm")), height - pad.b + 3 * dpr);
    g.fillText(`${AXES[axis]} (mm) · ${get("unit")}`, (pad.l + width - pad.r) / 2, height - 13 * dpr);
    lines.forEach((line, v) => {
      g.strokeStyle = COLORS[v];
      g.lineWidth = 1.8 * dpr;
      g.setLineDash(DASHES[v].map((d) => d * dpr));
      g.beginPath();
      line.forEach((value, k) => (k ? g.lineTo(px(k), py(value)) : g.moveTo(px(k), py(value))));
      g.stroke();
    });
    g.setLineDash([]);
  }
  function draw() {
    const colours = lookUp(), cursor = get("cursor"), [from, to] = get("window"), top = Math.max(get("top"), 1e-30);
    panels.forEach((panel) => drawPanel(panel, colours));
    slider.forEach((s, axis) => { s.input.value = cursor[axis]; s.value.textContent = `${mm(axis, cursor[axis]).toFixed(0)} mm`; });
    maps.value = get("colormap");
    low.value = (1000 * from) / top; high.value = (1000 * to) / top;
    opacity.value = 100 * get("opacity"); maxima.checked = get("projection"); smooth.checked = get("smooth"); along.value = get("profile");
    const g = ramp.getContext("2d"), line = g.createImageData(256, 1);
    for (let i = 0; i < 256; i++) { for (let k = 0; k < 3; k++) line.data[4 * i + k] = colours[3 * i + k]; line.data[4 * i + 3] = 255; }
    g.putImageData(line, 0, 0);
    const signed = get("signed").length > 0, rainbow = lookUp(SIGNED);
    part.value = get("whole") ? "whole" : "heart"; zoom.value = get("zoom"); blink.checked = get("blink");
    spread.value = (1000 * get("spread")) / Math.max(get("spread_top"), 1e-30);
    partLabel.hidden = get("region").length !== 6; blinkLabel.hidden = get("blinking").length !== 2; spreadLabel.hidden = signedScale.hidden = !signed;
    const h = signedRamp.getContext("2d"), row = h.createImageData(256, 1);
    for (let i = 0; i < 256; i++) { for (let k = 0; k < 3; k++) row.data[4 * i + k] = rainbow[3 * i + k]; row.data[4 * i + 3] = 255; }
    h.putImageData(row, 0, 0);
    signedLow.textContent = `−${short(get("spread"))}`; signedHigh.textContent = `+${short(get("spread"))}`;
    scaleLow.textContent = short(from); scaleHigh.textContent = short(to); scaleUnit.textContent = get("unit");
    const [k, j, i] = cursor, shape = get("shape"), at = (k * shape[1] + j) * shape[2] + i;
    readout.replaceChildren(node("span", { text: `x ${mm(2, i).toFixed(0)}, y ${mm(1, j).toFixed(0)}, z ${mm(0, k).toFixed(0)} mm` }),
      ...volumes.map((v, n) => node("span", {}, node("i", { style: `background:${COLORS[n]}` }), `${v.name}: ${v.data ? short((v.data[at] - v.zero) * v.unit) : "–"}`)));
    drawProfile();
    root.dataset.drawn = String(Number(root.dataset.drawn || 0) + 1);
  }
  let pending = 0;
  const later = () => { pending ||= requestAnimationFrame(() => { pending = 0; draw(); }); };

  // --- events ---------------------------------------------------------------------------------------------------
  maps.addEventListener("change", () => put("colormap", maps.value));
  const window_ = () => {
    const top = get("top"), a = (Number(low.value) * top) / 1000, b = (Number(high.value) * top) / 1000;
    put("window", [Math.min(a, b - top / 1000), b]);
  };
  low.addEventListener("input", window_);
  high.addEventListener("input", window_);
  opacity.addEventListener("input", () => put("opacity", Number(opacity.value) / 100));
  maxima.addEventListener("change", () => put("projection", maxima.checked));
  smooth.addEventListener("change", () => put("smooth", smooth.checked));
  along.addEventListener("change", () => put("profile", along.value));
  part.addEventListener("change", () => put("whole", part.value === "whole"));
  zoom.addEventListener("input", () => put("zoom", Number(zoom.value)));
  blink.addEventListener("change", () => put("blink", blink.checked));
  spread.addEventListener("input", () => put("spread", (Number(spread.value) * get("spread_top")) / 1000));
  const tick = () => {
    clearInterval(ticking);
    turn = 0;
    ticking = get("blink") ? setInterval(() => { turn = 1 - turn; draw(); }, 700) : 0;
    later();
  };
  const redraw = ["cursor", "window", "colormap", "opacity", "projection", "smooth", "profile", "unit", "top", "spread", "spread_top", "region", "whole", "zoom", "blinking"];
  const reread = () => { readVolumes(); later(); };
  redraw.forEach((name) => model.on(`change:${name}`, later));
  ["scales", "ct", ...DATA].forEach((name) => model.on(`change:${name}`, reread));
  model.on("change:blink", tick);
  const rebuild = () => requestAnimationFrame(build);
  ["names", "shape", "signed"].forEach((name) => model.on(`change:${name}`, rebuild));
  const observer = new ResizeObserver(later);
  observer.observe(root);
  build();
  tick();
  return () => {
    observer.disconnect();
    redraw.forEach((name) => model.off(`change:${name}`, later));
    ["scales", "ct", ...DATA].forEach((name) => model.off(`change:${name}`, reread));
    model.off("change:blink", tick);
    clearInterval(ticking);
    ["names", "shape", "signed"].forEach((name) => model.off(`change:${name}`, rebuild));
  };
}

export default { render };
