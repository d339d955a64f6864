// A slider whose value is exactly what was set: pointer and arrow keys move by steps, marks are caught, and the box
// beside it takes any number. The kernel's value is never rounded back, and every key press counts.

function node(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) found.setAttribute(key, value);
  found.append(...children);
  return found;
}

function render({ model, el }) {
  const range = node("input", { type: "range", step: "any" }), box = node("input", { type: "number", step: "any" });
  const marks = node("div", { class: "dsk-marks" });
  el.classList.add("dsk");
  el.append(node("div", { class: "dsk-row" }, range, box), marks);
  const get = (name) => model.get(name);
  const tidy = (value) => {
    const inside = Math.min(get("max"), Math.max(get("min"), value));
    return get("whole") ? Math.round(inside) : Number(inside.toPrecision(9));
  };
  function put(value) {
    if (!Number.isFinite(value)) return show();
    const next = tidy(value);
    if (next !== get("value")) { model.set("value", next); model.save_changes(); }
    show();
  }
  function show() {
    const value = get("value");
    range.min = get("min"); range.max = get("max"); range.value = value;
    range.disabled = box.disabled = get("disabled");
    if (document.activeElement !== box) box.value = get("whole") ? value : Number(value.toPrecision(4));
    for (const input of [range, box]) {
      input.setAttribute("aria-label", input === range ? get("label") : `${get("label")}, exactly`);
      input.dataset.tip = get("tip");
    }
  }
  function showMarks() {
    const [low, high] = [get("min"), get("max")];
    marks.replaceChildren(...get("marks").map((mark, n) => {
      const share = (100 * (Math.min(high, Math.max(low, mark.value)) - low)) / (high - low || 1);
      const said = `${mark.word} ${Number(mark.value.toPrecision(3))}`;
      const button = node("button", { type: "button", class: `dsk-mark dsk-mark-${n}`, "aria-label": `set to ${said}`, title: `set to ${said}`, style: `left:${share}%` });
      button.addEventListener("click", () => put(mark.value));
      return button;
    }));
  }
  range.addEventListener("input", () => {
    const value = Number(range.value), step = get("step"), width = get("max") - get("min");
    const near = get("marks").find((mark) => Math.abs(mark.value - value) < 0.008 * width);
    put(near ? near.value : get("min") + Math.round((value - get("min")) / step) * step);
  });
  range.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 10, PageDown: -10 }[event.key];
    const end = { Home: get("min"), End: get("max") }[event.key];
    if (way === undefined && end === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (end !== undefined) return put(end);
    const step = get("step"), at = (get("value") - get("min")) / step;
    const next = way > 0 ? Math.floor(at + 1e-6) + way : Math.ceil(at - 1e-6) + way;
    put(get("min") + next * step);
  });
  box.addEventListener("change", () => { if (box.value !== "") put(Number(box.value)); });
  box.addEventListener("blur", show);
  box.addEventListener("keydown", (event) => { if (event.key === "Enter") put(Number(box.value)); });
  const values = ["value", "min", "max", "step", "label", "tip", "disabled"], ends = ["marks", "min", "max"];
  values.forEach((name) => model.on(`change:${name}`, show));
  ends.forEach((name) => model.on(`change:${name}`, showMarks));
  show();
  showMarks();
  return () => {
    values.forEach((name) => model.off(`change:${name}`, show));
    ends.forEach((name) => model.off(`change:${name}`, showMarks));
  };
}

export default { render };
