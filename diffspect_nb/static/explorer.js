// Sliders over reconstructions that were computed beforehand. `root` holds the page's elements; each of `pages` is what
// Python wrote: knobs, metrics per combination, one picture with all planes, a colour table. No kernel or host is asked.
function explore(root, pages) {
  const PLANES = 3, AXES = [["R", "L", "A", "P"], ["R", "L", "H", "F"], ["A", "P", "H", "F"]];
  const attach = (found, attributes, children) => {
    for (const [key, value] of Object.entries(attributes)) key === "text" ? (found.textContent = value) : found.setAttribute(key, value);
    found.append(...children);
    return found;
  };
  const make = (tag, attributes = {}, ...children) => attach(document.createElement(tag), attributes, children);
  const draws = (tag, attributes = {}, ...children) => attach(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const body = make("div", { class: "dse-page" });
  const choices = pages.map((page, n) => {
    const button = make("button", { type: "button", text: page.title });
    button.addEventListener("click", () => open(n));
    return button;
  });
  if (pages.length > 1) root.append(make("div", { class: "dse-choices", role: "group", "aria-label": "data and method" }, ...choices));
  root.append(body);
  open(0);

  function open(n) {
    choices.forEach((button, k) => button.setAttribute("aria-pressed", String(k === n)));
    body.replaceChildren();
    show(pages[n]);
  }

  function show(data) {
    const SIDE = data.side, PER_ROW = data.tiles_per_row, [GUIDED] = data.shown;
    const table = Uint8Array.from(atob(data.colors), (c) => c.charCodeAt(0));
    const chosen = [...data.start], counts = data.knobs.map((knob) => knob.values.length);
    const alone = data.places && data.metrics.length < counts.reduce((a, b) => a * b, 1);
    const index = (at) => (data.places ? data.places[at.join()] : data.knobs.reduce((sum, knob, i) => sum * counts[i] + at[i], 0));
    const others = (at, i) => { // a combination that was not made: the other weights go back to where they started
      if (index(at) === undefined) data.knobs.forEach((knob, k) => { if (k !== i && !knob.of_data) at[k] = data.start[k]; });
      return at;
    };
    const controls = make("div", { class: "dse-controls" });
    const knobs = data.knobs.map((knob, i) => {
      const input = make("input", { type: "range", min: 0, max: counts[i] - 1, step: 1, value: chosen[i], "aria-label": knob.name });
      const told = make("output");
      const curve = draws("svg", { viewBox: "0 0 240 92", role: "img" });
      input.addEventListener("input", () => { chosen[i] = Number(input.value); others(chosen, i); draw(); });
      controls.append(make("label", {}, make("span", {}, make("b", { text: knob.name }), told), input), curve);
      return { input, told, curve };
    });
    if (alone) controls.prepend(make("p", { class: "dse-note", text: "One slider at a time: moving one sets the others back to where they started." }));
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
    const scale = make("div", { class: "dse-scale" }, make("span", { text: "0" }), ramp, make("span", { text: `${Number(data.top.toPrecision(3)).toLocaleString("en")} ${data.unit}` }));
    const metrics = make("div", { class: "dse-metrics", "aria-live": "polite" });
    body.append(controls, make("div", { class: "dse-main" }, panels, scale, metrics));

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
    const following = (name) => (data.follows[name] === null ? 0 : chosen[data.follows[name]]); // which of an image's versions
    const scoreOf = (name) => (name === GUIDED ? data.metrics[index(chosen)][data.score] : data.other_scores[name]?.[following(name)]);

    function drawCurve(i) { // the score along this knob, the others as they are; lines for the images beside it
      const { curve } = knobs[i], knob = data.knobs[i], last = Math.max(counts[i] - 1, 1);
      const off = alone && data.knobs.some((k, j) => j !== i && !k.of_data && chosen[j] !== data.start[j]); // through the start
      const from = data.knobs.map((k, j) => (off && !k.of_data ? data.start[j] : chosen[j]));
      const score = knob.values.map((_, v) => data.metrics[index(from.map((c, k) => (k === i ? v : c)))][data.score]);
      const lines = data.shown.filter((name) => name !== GUIDED).map((name) => [name, scoreOf(name)]).filter(([, s]) => Number.isFinite(s));
      const all = [...data.range, ...lines.map(([, s]) => s)], low = Math.min(...all), high = Math.max(low + 0.1, ...all);
      const px = (v) => 48 + (178 * v) / last, py = (s) => 74 - (46 * (s - low)) / (high - low);
      const step = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20].find((s) => (high - low) / s <= 3.5) ?? 50;
      const text = (x, y, words, kind = "") => draws("text", { x, y, class: kind, text: words });
      const parts = [draws("title", { text: `${data.score_name} along ${knob.name}` })];
      for (let s = Math.ceil(low / step) * step; s <= high + 1e-9; s += step) {
        parts.push(draws("path", { d: `M36 ${py(s)}H236`, class: "dse-grid" }), text(33, py(s) + 3, String(Number(s.toFixed(1))), "dse-left"));
      }
      parts.push(text(33, 10, "dB", "dse-left"));
      lines.forEach(([name, s], n) => parts.push(draws("path", { d: `M36 ${py(s)}H236`, class: `dse-line dse-line${n}` }, draws("title", { text: `${name} ${s.toFixed(1)} dB` }))));
      const marked = [];
      for (const [word, value] of Object.entries(knob.marks ?? {})) {
        const after = knob.values.findIndex((v) => v >= value - 1e-9), before = Math.max(after - 1, 0);
        if (after < 0 || value < knob.values[0]) continue;
        const gap = knob.values[after] - knob.values[before];
        const x = px(gap ? before + (value - knob.values[before]) / gap : after);
        if (marked.some((other) => Math.abs(other - x) < 24)) continue; // its word would lie on another's
        marked.push(x);
        parts.push(draws("path", { d: `M${x} 74V12`, class: "dse-mark" }), text(x, 9, word, "dse-word"));
      }
      parts.push(draws("polyline", { points: score.map((s, v) => `${px(v)},${py(s)}`).join(" ") }));
      score.forEach((s, v) => {
        const now = v === chosen[i] && !off ? "dse-now" : "";
        parts.push(draws("circle", { cx: px(v), cy: py(s), r: now ? 4 : 2.5, class: now }));
        parts.push(text(px(v), py(s) - 6, s.toFixed(1), `dse-value ${now}`), text(px(v), 87, knob.labels[v], now));
      });
      curve.setAttribute("aria-label", `${data.score_name}: ${score.map((s, v) => `${s.toFixed(1)} at ${knob.labels[v]}`).join(", ")}`);
      curve.replaceChildren(...parts);
    }
    function draw() {
      if (!levels) return;
      const at = index(chosen), found = data.metrics[at];
      shown.forEach(({ name, canvases, note }) => {
        paint(canvases, name === GUIDED ? at : data.others[name][following(name)]);
        const score = scoreOf(name);
        const line = ["", "╌╌ ", "┈┈ "][data.shown.indexOf(name)] ?? ""; // as in the curves
        note.textContent = Number.isFinite(score) ? `${line}${score.toFixed(2)} dB` : "";
      });
      knobs.forEach(({ input, told }, i) => { input.value = chosen[i]; told.textContent = data.knobs[i].labels[chosen[i]]; drawCurve(i); });
      metrics.textContent = Object.entries(data.metric_names).map(([key, name]) => `${name}: ${found[key].toPrecision(4)}`).join(" · ");
      root.dataset.drawn = String(Number(root.dataset.drawn || 0) + 1);
    }
  }
}
