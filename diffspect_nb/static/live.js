// The live page: every control runs the method, in a worker, on the small world of diffspect_nb/live.py. `open` serves a
// web page, `render` a notebook; both call `build`, which knows neither.

const make = (tag, attributes = {}, ...children) => {
  const found = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) key === "text" ? (found.textContent = value) : found.setAttribute(key, value);
  found.append(...children);
  return found;
};
const svg = (tag, attributes, text = "") => {
  const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  found.textContent = text;
  return found;
};

const DOSES = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1];
const percent = (v) => `${Number((100 * v).toPrecision(3))} %`, plain = (digits) => (v) => Number(v).toFixed(digits);
// part of the state, name there, symbol, what it does, end of the slider, its step
const SLIDERS = [
  ["", "dose", "dose", "share of the full dose's counts", 0, DOSES.length - 1, 1, percent],
  ["", "views", "views", "pinholes on the half circle", 1, 19, 1, plain(0)],
  ["paper", "lambda_dps", "λ_dps", "pull towards the MLEM image", 0, 0.6, 0.01, plain(2)],
  ["paper", "lambda_mlem", "λ_mlem", "share given to MLEM's answer", 0, 0.6, 0.01, plain(2)],
  ["paper", "tv_weight", "λ_TV", "smoothing between neighbours", 0, 0.1, 0.002, plain(3)],
  ["paper", "steps", "N", "noise levels visited", 5, 50, 1, plain(0)],
  ["paper", "start", "T", "first noise level; low: late start", 100, 999, 1, plain(0)],
  ["anchored", "anchor", "b", "weight of the prior against the counts", -3, 1, 0.05, (v) => Number(v.toPrecision(2)).toString()],
  ["anchored", "steps", "N", "noise levels visited", 2, 30, 1, plain(0)],
  ["anchored", "start", "t₀", "first noise level; low: late start", 100, 999, 1, plain(0)],
];
const toSlider = { dose: (v) => DOSES.findIndex((d) => d >= v - 1e-9), anchor: Math.log10 };
const fromSlider = { dose: (v) => DOSES[v], anchor: (v) => 10 ** v };
const WALKS = { paper: "the paper's walk", anchored: "the anchored walk" };
const PENS = { defect: "a defect", gut: "a hot gut", heart: "a second heart" };

const LESSON = [
  ["At which dose does the defect go?", "This patient has a gap in the wall, at seven o'clock. Turn the dose down, one mark at a time. Which image loses the gap first, and which one still shows it at the lowest dose where MLEM does not?", { patient: 0, strokes: [["defect", -10, 33]], dose: 0.2, views: 19 }],
  ["What does the prior know alone?", "With λ_dps, λ_mlem and λ_TV at zero nothing but the first step has seen the counts. The image is a heart. Is it this patient's? Press new seed a few times.", { paper: { lambda_dps: 0, lambda_mlem: 0, tv_weight: 0 } }],
  ["Who is right, the image or the counts?", "λ_dps pulls every step to the MLEM image, noise included. λ_mlem asks the counts themselves. Raise one, then the other, and watch the PSNR: where does each turn round, and is it the same place for the next patient?", { paper: { lambda_dps: 0.05, lambda_mlem: 0.02, tv_weight: 0 }, dose: 0.05 }],
  ["What does smoothing cost?", "One per cent of the counts, and the gradient taken past the network: grain is left. Turn λ_TV up: the grain goes, and in the end the thin wall with it. Where is the PSNR best? Then let the gradient go through the network. Does smoothing still pay?", { patient: 1, dose: 0.01, views: 19, paper: { jacobian: "identity", tv_weight: 0 } }],
  ["Few views or few counts?", "Five views with every photon, or nineteen with a quarter of them: the same counts. Streaks or grain: which one does each walk repair better?", { views: 5, dose: 1 }],
  ["Can the prior be surprised?", "No training patient has two hearts. This one has. Let the prior weigh more (b up): from which value on does the second heart fade, and does the deviance tell you?", { strokes: [["heart", 60, 48]], dose: 0.05, views: 19 }],
  ["Does a late start help?", "Start the anchored walk low: it begins from a good image and changes little. Start high: it forgets. Where is its PSNR best, and do more steps change that place?", { anchored: { start: 300 } }],
];

export function build(root, { worker, buffer, colors, address = null, changed = () => {} }) {
  let about = null, state = null, run = 0, shown = null, following = true, queued = false, pen = "defect";
  let input = null, dirty = new Set(), cross = { x: 0, y: 0 };
  const steps = { paper: [], anchored: [] };

  // ---- what is on the page
  const controls = make("div", { class: "dsl-controls" }), figure = make("div", { class: "dsl-figure" }), lesson = make("div", { class: "dsl-lesson" });
  const status = make("div", { class: "dsl-status", role: "status", text: "loading …" });
  const button = (text, tip, act) => { const b = make("button", { type: "button", text, title: tip }); b.addEventListener("click", act); return b; };
  const group = (name, ...children) => { const g = make("fieldset", {}, make("legend", { text: name }), ...children); controls.append(g); return g; };
  const rows = {};
  const slider = ([part, name, symbol, meaning, low, high, step, format]) => {
    const range = make("input", { type: "range", min: low, max: high, step, "aria-label": `${symbol}: ${meaning}`, title: meaning }), value = make("output");
    range.addEventListener("input", () => {
      const number = (fromSlider[name] ?? ((v) => v))(Number(range.value));
      change(part ? { [part]: { [name]: number } } : { [name]: number });
    });
    rows[`${part}.${name}`] = () => {
      const now = part ? state[part][name] : state[name];
      range.value = (toSlider[name] ?? ((v) => v))(now);
      value.textContent = format(now);
    };
    return make("label", { title: meaning }, make("span", {}, make("b", { text: symbol }), value), range, make("small", { text: meaning }));
  };
  const of = (part) => SLIDERS.filter((s) => s[0] === part).map(slider);
  const backProp = make("input", { type: "checkbox" });
  backProp.addEventListener("change", () => change({ paper: { jacobian: backProp.checked ? "network" : "identity" } }));
  rows.jacobian = () => { backProp.checked = state.paper.jacobian === "network"; };
  group("the scan", make("div", { class: "dsl-buttons" },
    button("new patient", "the next of the patients", () => change({ patient: (state.patient + 1) % about.patients, strokes: [] })),
    button("new noise", "the same scan once more", () => change({ noise: state.noise + 1 }))), ...of(""));
  const pens = make("div", { class: "dsl-buttons", role: "radiogroup", "aria-label": "what to draw into the patient" });
  for (const [name, text] of Object.entries(PENS)) {
    const b = button(text, `click into the patient to draw ${text}`, () => { pen = name; showPens(); });
    b.setAttribute("role", "radio"); b.dataset.pen = name;
    pens.append(b);
  }
  const showPens = () => pens.querySelectorAll("button").forEach((b) => b.setAttribute("aria-checked", b.dataset.pen === pen));
  showPens();
  group("draw into the patient", pens, make("div", { class: "dsl-buttons" },
    button("undo", "take the last stroke away", () => change({ strokes: state.strokes.slice(0, -1) })),
    button("clear", "the patient as he came", () => change({ strokes: [] }))));
  group(WALKS.paper, ...of("paper"), make("label", { class: "dsl-check", title: "off: the Jacobian of a perfect denoiser, twice as fast" }, backProp, "back-propagate through the network"));
  group(WALKS.anchored, ...of("anchored"));
  group("both walks", make("div", { class: "dsl-buttons" },
    button("new seed", "other noise in the walks, the same counts", () => change({ paper: { seed: state.paper.seed + 1 }, anchored: { seed: state.anchored.seed + 1 } })),
    button("shipped values", "all sliders back", () => change(structuredClone(about.defaults))),
    ...(address ? [button("share", "copy the address of exactly this state", share)] : [])));

  const panels = {};
  const panel = (name, title) => {
    const canvas = make("canvas", { role: "img", "aria-label": title }), note = make("div", { class: "dsl-note" });
    panels[name] = { canvas, note, box: make("figure", {}, make("figcaption", { text: title }), make("div", { class: "dsl-canvas" }, canvas), note) };
    return panels[name].box;
  };
  const images = make("div", { class: "dsl-images" }, panel("truth", "patient: draw here"), panel("mlem", "MLEM, 50 updates"), panel("paper", WALKS.paper), panel("anchored", WALKS.anchored));
  const overlay = make("canvas", { class: "dsl-overlay", tabindex: 0, role: "application", "aria-label": "patient: arrow keys move the pen, Enter draws" });
  panels.truth.canvas.parentElement.append(overlay);
  const scrub = make("input", { type: "range", min: 1, max: 1, step: 1, value: 1, "aria-label": "step shown" }), where = make("output");
  scrub.addEventListener("input", () => { shown = Number(scrub.value); following = shown >= Number(scrub.max); show(); });
  const curve = svg("svg", { viewBox: "0 0 460 150", class: "dsl-curve", role: "img", "aria-label": "PSNR of the heart against the step" });
  figure.append(images, make("label", { class: "dsl-scrub" }, make("b", { text: "step" }), scrub, where), curve, status);
  for (const [question, text, wanted] of LESSON) {
    lesson.append(make("section", {}, make("h4", { text: question }), make("p", { text }), button("set the sliders", "put the figure into this state", () => change(fresh(wanted)))));
  }
  const before = [...root.childNodes];
  root.replaceChildren(make("div", { class: "dsl" }, controls, figure, lesson));
  root.classList.add("dsl-outer");
  root.addEventListener("keydown", (event) => event.stopPropagation()); // a notebook has uses of its own for arrows

  // ---- state
  const fresh = (wanted) => merge(structuredClone(about.defaults), wanted);
  function merge(into, part) { for (const [k, v] of Object.entries(part)) v && typeof v === "object" && !Array.isArray(v) ? merge((into[k] ??= {}), v) : (into[k] = v); return into; }
  function change(part) {
    if (!state) return;
    const before = JSON.stringify(state);
    merge(state, structuredClone(part));
    fit();
    if (JSON.stringify(state) === before) return;
    const old = JSON.parse(before), scan = (s) => JSON.stringify({ ...s, paper: 0, anchored: 0 });
    for (const walk of Object.keys(WALKS)) if (scan(old) !== scan(state) || JSON.stringify(old[walk]) !== JSON.stringify(state[walk])) dirty.add(walk);
    Object.values(rows).forEach((update) => update());
    order();
  }
  function fit() { // what cannot be is moved to what can
    state.paper.start = Math.max(state.paper.start, state.paper.steps - 1);
    state.anchored.start = Math.max(state.anchored.start, state.anchored.end + state.anchored.steps - 1);
  }
  function order() { // at most one a frame
    if (queued) return;
    queued = true;
    requestAnimationFrame(() => {
      queued = false;
      run += 1;
      for (const walk of dirty) panels[walk].box.classList.add("dsl-stale");
      worker.postMessage({ kind: "run", run, state: { ...state, walks: Object.keys(WALKS).filter((walk) => dirty.has(walk)) } });
      status.textContent = "computing …";
      address?.write(state, about.defaults);
      changed(state);
    });
  }
  async function share() {
    address.write(state, about.defaults, true);
    try { await navigator.clipboard.writeText(location.href); status.textContent = "the address of this state is copied"; }
    catch { status.textContent = location.href; }
  }

  // ---- pictures
  function paint(name, image) {
    const { canvas } = panels[name], side = about.side, g = canvas.getContext("2d"), picture = g.createImageData(side, side), top = 1.5 * input.photons;
    for (let j = 0; j < image.length; j++) {
      const level = Math.min(255, Math.max(0, Math.round((255 * image[j]) / top)));
      picture.data.set([colors[3 * level], colors[3 * level + 1], colors[3 * level + 2], 255], 4 * j);
    }
    g.putImageData(picture, 0, 0);
  }
  const told = ({ psnr, deviance, log_likelihood: l }) => [`PSNR ${psnr.toFixed(1)} dB`, `deviance ${deviance.toFixed(2)}`, `log L ${Math.round(l - input.best).toLocaleString("en")}`];
  function note(name, lines, tips = []) { panels[name].note.replaceChildren(...lines.map((text, i) => make("span", { text, title: tips[i] ?? "" }))); }
  const TIPS = ["in the heart, against the patient's true activity", "reduced: 1 is what Poisson noise makes", "log-likelihood of the counts, MLEM's set to 0"];
  function show() {
    if (!input) return;
    const last = Math.max(1, ...Object.values(steps).map((s) => s.length));
    if (following) shown = last;
    scrub.max = last; scrub.value = shown;
    where.textContent = `${Math.min(shown, last)} of ${last}`;
    for (const walk of Object.keys(WALKS)) {
      const step = steps[walk][Math.min(shown, steps[walk].length) - 1];
      if (!step) continue;
      paint(walk, step.image);
      note(walk, [...told(step.scores), `step ${step.i} of ${step.total}, t = ${step.t}`], TIPS);
    }
    draw();
  }
  function draw() { // PSNR against the step
    const most = Math.max(2, ...Object.values(steps).map((s) => s.at(-1)?.total ?? 0)), all = [...steps.paper, ...steps.anchored].map((s) => s.scores.psnr), base = input.scores.psnr;
    const low = Math.floor(Math.min(base, ...all) - 1), high = Math.ceil(Math.max(base, ...all) + 1);
    const px = (i) => 44 + (406 * (i - 1)) / (most - 1), py = (v) => 126 - (112 * (v - low)) / (high - low);
    const found = [svg("path", { d: "M44 10V126H450", class: "dsl-axis" }), svg("text", { x: 247, y: 146, "text-anchor": "middle" }, "step"), svg("text", { x: 4, y: 20 }, "dB")];
    for (const v of [low, Math.round((low + high) / 2), high]) found.push(svg("text", { x: 40, y: py(v) + 4, "text-anchor": "end" }, v));
    for (const i of [1, most]) found.push(svg("text", { x: px(i), y: 140, "text-anchor": "middle" }, i));
    found.push(svg("path", { d: `M44 ${py(base)}H450`, class: "dsl-base" }), svg("text", { x: 448, y: py(base) - 4, "text-anchor": "end", class: "dsl-base" }, "MLEM"));
    for (const walk of Object.keys(WALKS)) {
      const points = steps[walk].map((s) => `${px(s.i).toFixed(1)},${py(s.scores.psnr).toFixed(1)}`).join(" ");
      found.push(svg("polyline", { points, class: `dsl-line dsl-${walk}` }));
      const at = steps[walk][Math.min(shown, steps[walk].length) - 1];
      if (at) found.push(svg("circle", { cx: px(at.i), cy: py(at.scores.psnr), r: 4, class: `dsl-dot dsl-${walk}` }));
    }
    curve.replaceChildren(...found);
  }

  // ---- the pen
  const place = (event) => { const box = overlay.getBoundingClientRect(), mm = (at, size) => Math.round(((at / size) * about.side - about.side / 2) * about.voxel_mm); return { x: mm(event.clientX - box.left, box.width), y: mm(event.clientY - box.top, box.height) }; };
  function outline(visible) {
    const g = overlay.getContext("2d"), k = overlay.width / (about.side * about.voxel_mm), { radius, ring } = about.strokes[pen];
    g.clearRect(0, 0, overlay.width, overlay.height);
    if (!visible) return;
    g.strokeStyle = "#fff";
    for (const r of [radius, ring].filter(Boolean)) { g.beginPath(); g.arc(overlay.width / 2 + cross.x * k, overlay.height / 2 + cross.y * k, r * k, 0, 7); g.stroke(); }
  }
  const stroke = () => change({ strokes: [...state.strokes, [pen, cross.x, cross.y]].slice(-12) });
  overlay.addEventListener("pointermove", (event) => { if (about) { cross = place(event); outline(true); } });
  overlay.addEventListener("pointerleave", () => about && outline(false));
  overlay.addEventListener("click", (event) => { if (about) { cross = place(event); stroke(); } });
  overlay.addEventListener("focus", () => about && outline(true));
  overlay.addEventListener("blur", () => about && outline(false));
  overlay.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-4, 0], ArrowRight: [4, 0], ArrowUp: [0, -4], ArrowDown: [0, 4] }[event.key];
    if (way) { cross = { x: cross.x + way[0], y: cross.y + way[1] }; outline(true); }
    else if (event.key === "Enter" || event.key === " ") stroke();
    else return;
    event.preventDefault(); event.stopPropagation();
  });

  // ---- answers of the worker
  worker.onmessage = ({ data }) => {
    if (data.kind === "ready") {
      about = data.about;
      for (const { canvas } of Object.values(panels)) canvas.width = canvas.height = about.side;
      overlay.width = overlay.height = 4 * about.side;
      state = structuredClone(about.defaults);
      try { merge(state, address?.read(about.defaults) ?? {}); state.patient %= about.patients; } catch { state = structuredClone(about.defaults); }
      fit();
      dirty = new Set(Object.keys(WALKS));
      Object.values(rows).forEach((update) => update());
      order();
    } else if (data.run !== run) { return; // of an order that a newer one has replaced
    } else if (data.kind === "input") {
      input = { ...data, best: data.scores.log_likelihood };
      for (const walk of dirty) steps[walk] = [];
      paint("truth", data.truth);
      paint("mlem", data.mlem);
      note("truth", [`${Math.round(data.counts).toLocaleString("en")} counts`, `patient ${state.patient + 1}`]);
      note("mlem", told(data.scores), TIPS);
    } else if (data.kind === "step") {
      steps[data.which].push(data);
      if (data.i === data.total) dirty.delete(data.which);
      panels[data.which].box.classList.remove("dsl-stale");
      requestAnimationFrame(() => data.run === run && show());
    } else if (data.kind === "end") {
      status.textContent = `done in ${data.seconds.toFixed(2)} s, in this browser`;
      root.dataset.done = data.run; root.dataset.seconds = data.seconds;
    } else status.textContent = data.text;
  };
  worker.onerror = (event) => {
    if (about) status.textContent = `the computation failed: ${event.message}`;
    else root.replaceChildren(...before); // this browser cannot: what stood here says where to go
  };
  worker.postMessage({ kind: "load", buffer });
  root.live = { get state() { return state; }, get steps() { return steps; }, get run() { return run; }, change, fresh };
  return () => worker.terminate();
}

// ---- the state in an address: only what differs from the shipped values ----------------------------------------------------

export const address = {
  timer: 0,
  write(state, defaults, now = false) {
    clearTimeout(this.timer);
    const put = () => {
      const said = new URLSearchParams();
      const visit = (part, base, name) => {
        for (const [k, v] of Object.entries(part)) {
          if (JSON.stringify(v) === JSON.stringify(base[k])) continue;
          if (v && typeof v === "object" && !Array.isArray(v)) visit(v, base[k], `${name}${k}.`);
          else said.set(name + k, JSON.stringify(v));
        }
      };
      visit(state, defaults, "");
      history.replaceState(null, "", `#${said}`);
    };
    now ? put() : (this.timer = setTimeout(put, 300));
  },
  read(defaults) {
    const found = {};
    for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
      const [part, key] = name.includes(".") ? name.split(".") : [null, name], base = part ? defaults[part] : defaults, value = JSON.parse(text);
      if (base && key in base && typeof base[key] === typeof value) part ? ((found[part] ??= {})[key] = value) : (found[key] = value);
    }
    return found;
  },
};

export async function open(root, folder) { // a web page: files beside it; what the page said before stays where this cannot run
  const file = (name) => fetch(new URL(name, folder)).then((answer) => { if (!answer.ok) throw new Error(`${name}: ${answer.status}`); return answer; });
  const [buffer, colors] = await Promise.all([file("live.safetensors").then((a) => a.arrayBuffer()), file("colors.bin").then((a) => a.arrayBuffer())]);
  return build(root, { worker: new Worker(new URL("live_worker.js", folder)), buffer, colors: new Uint8Array(colors), address });
}

export function render({ model, el }) { // a notebook (anywidget)
  const bytes = (name) => { const view = model.get(name); return new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice(); };
  const url = URL.createObjectURL(new Blob([model.get("worker")], { type: "text/javascript" })), root = make("div");
  el.append(root);
  const changed = (state) => { model.set("state", structuredClone(state)); model.save_changes(); };
  const close = build(root, { worker: new Worker(url), buffer: bytes("bundle").buffer, colors: bytes("colors"), changed });
  return () => { close(); URL.revokeObjectURL(url); };
}

export default { render };
