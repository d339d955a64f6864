// Sliders over reconstructions that were computed beforehand. `root` holds the page's elements, `data` what Python wrote:
// knobs, metrics per combination, one picture with all planes, a colour table. Nothing is asked of any kernel or host.
function explore(root, data) {
  const SIDE = data.side, PLANES = 3, PER_ROW = data.tiles_per_row;
  const AXES = [["R", "L", "A", "P"], ["R", "L", "H", "F"], ["A", "P", "H", "F"]];
  const table = Uint8Array.from(atob(data.colors), (c) => c.charCodeAt(0));
  const make = (tag, attributes = {}, ...children) => {
    const found = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) key === "text" ? (found.textContent = value) : found.setAttribute(key, value);
    found.append(...children);
    return found;
  };
  const chosen = [...data.start];
  const index = (at = chosen) => data.knobs.reduce((sum, knob, i) => sum * knob.values.length + at[i], 0);

  const controls = make("div", { class: "dse-controls" });
  const knobs = data.knobs.map((knob, i) => {
    const input = make("input", { type: "range", min: 0, max: knob.values.length - 1, step: 1, value: chosen[i], "aria-label": knob.name });
    const shown = make("output");
    const curve = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    curve.setAttribute("viewBox", "0 0 200 34");
    input.addEventListener("input", () => { chosen[i] = Number(input.value); draw(); });
    controls.append(make("label", {}, make("span", {}, make("b", { text: knob.name }), shown), input), curve);
    return { input, shown, curve };
  });
  const panels = make("div", { class: "dse-panels" });
  const shown = data.shown.map((name) => {
    const canvases = [0, 1, 2].map(() => make("canvas", { width: SIDE, height: SIDE, role: "img" }));
    const note = make("div", { class: "dse-note" });
    const stack = canvases.map((canvas, p) => {
      const box = make("div", { class: "dse-plane" }, canvas);
      AXES[p].forEach((edge, e) => box.append(make("span", { class: `dse-edge dse-edge${e}`, text: edge })));
      canvas.setAttribute("aria-label", `${name}, ${["transverse", "coronal", "sagittal"][p]} plane`);
      return box;
    });
    panels.append(make("figure", {}, make("figcaption", { text: name }), ...stack, note));
    return { name, canvases, note };
  });
  const ramp = make("canvas", { width: 256, height: 1, "aria-hidden": "true" });
  const scale = make("div", { class: "dse-scale" }, make("span", { text: "0" }), ramp, make("span", { text: `${data.top.toPrecision(3)} ${data.unit}` }));
  const metrics = make("div", { class: "dse-metrics", "aria-live": "polite" });
  root.append(controls, make("div", { class: "dse-main" }, panels, scale, metrics));

  let levels = null, width = 0; // of the sprite
  const sprite = new Image();
  sprite.onload = () => {
    const canvas = make("canvas", { width: sprite.width, height: sprite.height }), g = canvas.getContext("2d");
    g.drawImage(sprite, 0, 0);
    levels = g.getImageData(0, 0, sprite.width, sprite.height).data;
    width = sprite.width;
    const line = ramp.getContext("2d"), bar = line.createImageData(256, 1);
    for (let i = 0; i < 256; i++) { for (let k = 0; k < 3; k++) bar.data[4 * i + k] = table[3 * i + k]; bar.data[4 * i + 3] = 255; }
    line.putImageData(bar, 0, 0);
    draw();
  };
  sprite.src = `data:image/png;base64,${data.sprite}`;

  function paint(canvases, tile) {
    const x = (tile % PER_ROW) * PLANES * SIDE, y = Math.floor(tile / PER_ROW) * SIDE;
    canvases.forEach((canvas, p) => {
      const g = canvas.getContext("2d"), picture = g.createImageData(SIDE, SIDE);
      for (let r = 0; r < SIDE; r++) for (let c = 0; c < SIDE; c++) {
        const level = levels[4 * ((y + r) * width + x + p * SIDE + c)], at = 4 * (r * SIDE + c);
        for (let k = 0; k < 3; k++) picture.data[at + k] = table[3 * level + k];
        picture.data[at + 3] = 255;
      }
      g.putImageData(picture, 0, 0);
    });
  }
  function drawCurve(i) { // the score along this knob, the others as they are
    const { curve } = knobs[i], values = data.knobs[i].values, n = values.length;
    const score = values.map((_, v) => data.metrics[index(chosen.map((c, k) => (k === i ? v : c)))][data.score]);
    const [low, high] = [data.range[0], data.range[1]];
    const px = (v) => 6 + (188 * v) / Math.max(n - 1, 1), py = (s) => 30 - (26 * (s - low)) / Math.max(high - low, 1e-9);
    const points = score.map((s, v) => `${px(v)},${py(s)}`).join(" ");
    curve.innerHTML = `<title>${data.score_name} along ${data.knobs[i].name}</title><polyline points="${points}" fill="none" stroke="#0072b2" stroke-width="1.5"/>` +
      score.map((s, v) => `<circle cx="${px(v)}" cy="${py(s)}" r="${v === chosen[i] ? 4 : 2}" fill="${v === chosen[i] ? "#d55e00" : "#0072b2"}"/>`).join("");
  }
  function draw() {
    if (!levels) return;
    const at = index(), found = data.metrics[at];
    shown.forEach(({ name, canvases, note }) => {
      const tile = name === data.shown[0] ? at : data.others[name][data.follows[name] === null ? 0 : chosen[data.follows[name]]];
      paint(canvases, tile);
      const value = data.other_scores[name];
      const score = name === data.shown[0] ? found[data.score] : value ? value[data.follows[name] === null ? 0 : chosen[data.follows[name]]] : null;
      note.textContent = score === null || score === undefined ? "" : `${score.toFixed(2)} dB`;
    });
    knobs.forEach(({ input, shown: text }, i) => { input.value = chosen[i]; text.textContent = data.knobs[i].labels[chosen[i]]; drawCurve(i); });
    metrics.textContent = Object.entries(data.metric_names).map(([key, name]) => `${name}: ${found[key].toPrecision(4)}`).join(" · ");
    root.dataset.drawn = String(Number(root.dataset.drawn || 0) + 1);
  }
}
