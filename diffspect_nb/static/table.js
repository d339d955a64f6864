// Runs as rows: choose one, compare another, sort, rename, pin, restore its sliders, delete. What a row is and what becomes
// of it the kernel knows; here are only the buttons.

function node(tag, attributes = {}, ...children) {
  const found = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") found.textContent = value;
    else if (value !== null) found.setAttribute(key, value);
  }
  found.append(...children);
  return found;
}

function render({ model, el }) {
  const get = (name) => model.get(name);
  const table = node("table", { class: "dst", "aria-label": "runs" }), box = node("div", { class: "dst-box" }, table);
  el.classList.add("dst-root");
  el.append(box);
  let sort = null, editing = null, wanted = null, seen = null;
  const send = (what, id, value) => model.send({ what, id, value });
  const shown = (value, column) => {
    if (value === null || value === undefined) return "";
    return typeof value === "number" && column.digits !== undefined ? value.toFixed(column.digits) : String(value);
  };
  function sorted() {
    const rows = [...get("rows")];
    if (!sort) return rows;
    const { key, way } = sort, of = (row) => row.values[key];
    const less = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
    return rows.sort((a, b) => {
      if (of(a) == null || of(b) == null) return (of(a) == null) - (of(b) == null);
      return way * less(of(a), of(b));
    });
  }
  function button(text, label, what, id, pressed = null) {
    const found = node("button", { type: "button", text, "aria-label": label, title: label, "aria-pressed": pressed, "data-what": what });
    found.addEventListener("click", (event) => { event.stopPropagation(); wanted = [id, what]; send(what, id); });
    return found;
  }
  function nameOf(row) {
    if (editing !== row.id) {
      const name = node("button", { type: "button", class: "dst-name", text: row.name, title: "choose this run (F2 or double click: rename)", "data-what": "select" });
      name.addEventListener("click", (event) => { event.stopPropagation(); wanted = [row.id, "select"]; send("select", row.id); });
      const edit = () => { if (row.editable) { editing = row.id; build(); } };
      name.addEventListener("dblclick", edit);
      name.addEventListener("keydown", (event) => {
        if (event.key === "F2") edit();
        if (event.key === "Delete" && row.editable) send("delete", row.id);
        const way = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (!way) return;
        event.preventDefault();
        const names = [...table.querySelectorAll(".dst-name")];
        names[names.indexOf(name) + way]?.focus();
      });
      return name;
    }
    const input = node("input", { type: "text", value: row.name, "aria-label": "name of the run" });
    let done = false;
    const end = (keep) => {
      if (done) return;
      done = true;
      editing = null;
      wanted = [row.id, "select"];
      if (keep && input.value.trim() && input.value !== row.name) send("rename", row.id, input.value.trim());
      build();
    };
    input.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") end(false);
    });
    input.addEventListener("blur", () => end(true));
    requestAnimationFrame(() => { input.focus(); input.select(); });
    return input;
  }
  function build() {
    const columns = get("columns"), head = node("tr", {});
    head.append(node("th", { scope: "col", text: "run" }), node("th", { scope: "col", "aria-label": "actions" }));
    for (const column of columns) {
      const mark = sort && sort.key === column.key ? (sort.way > 0 ? " ↑" : " ↓") : "";
      const sorter = node("button", { type: "button", text: column.label + mark, title: `sort by ${column.label}${column.about ? `: ${column.about}` : ""}` });
      sorter.addEventListener("click", () => {
        const first = column.up ? 1 : -1;
        sort = !sort || sort.key !== column.key ? { key: column.key, way: first } : sort.way === first ? { key: column.key, way: -first } : null;
        wanted = ["head", column.key];
        build();
      });
      sorter.dataset.what = column.key;
      const state = mark ? (sort.way > 0 ? "ascending" : "descending") : "none";
      head.append(node("th", { scope: "col", "aria-sort": state, "data-id": "head" }, sorter));
    }
    const body = sorted().map((row) => {
      const chosen = row.id === get("selected"), other = row.id === get("second");
      const line = node("tr", { "data-id": row.id, "aria-selected": String(chosen), class: `${chosen ? "dst-chosen" : ""} ${other ? "dst-second" : ""} ${row.editable ? "" : "dst-given"}` });
      line.append(node("th", { scope: "row" }, node("span", { class: "dst-tag", text: chosen ? "A" : other ? "B" : "" }), nameOf(row)));
      const acts = node("td", { class: "dst-acts" }, button("B", `compare ${row.name} with the chosen run`, "second", row.id, String(other)));
      acts.append(button("sliders", `give the sliders the values of ${row.name}`, "restore", row.id));
      if (row.editable) {
        acts.append(button(row.pinned ? "unpin" : "pin", row.pinned ? `let ${row.name} go when there are too many` : `keep ${row.name} on top`, "pin", row.id, String(row.pinned)));
        acts.append(button("delete", `delete ${row.name} (Undo brings it back)`, "delete", row.id));
      }
      line.append(acts);
      for (const column of columns) line.append(node("td", { class: typeof row.values[column.key] === "number" ? "dst-number" : "", text: shown(row.values[column.key], column) }));
      line.addEventListener("click", () => { if (editing !== row.id) send("select", row.id); });
      return line;
    });
    table.replaceChildren(node("thead", {}, head), node("tbody", {}, ...body));
    const chosen = table.querySelector(".dst-chosen");
    if (chosen && seen !== get("selected")) { // a run that was chosen elsewhere is brought into sight
      const top = chosen.offsetTop - 24, bottom = chosen.offsetTop + chosen.offsetHeight - box.clientHeight;
      box.scrollTop = Math.min(top, Math.max(bottom, box.scrollTop));
    }
    seen = get("selected");
    if (!wanted) return;
    const [id, what] = wanted; // the button that was pressed keeps the focus when the table is made anew
    const kept = [...table.querySelectorAll(`[data-id="${id}"] button`)].find((one) => one.dataset.what === what);
    if (kept && (document.activeElement === document.body || el.contains(document.activeElement))) kept.focus();
  }
  const rebuild = () => { if (!editing) build(); };
  const names = ["columns", "rows", "selected", "second"];
  names.forEach((name) => model.on(`change:${name}`, rebuild));
  el.addEventListener("focusout", () => setTimeout(() => { if (!el.contains(document.activeElement) && document.activeElement !== document.body) wanted = null; }, 0));
  build();
  return () => names.forEach((name) => model.off(`change:${name}`, rebuild));
}

export default { render };
