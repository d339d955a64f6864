// One letter for what is pressed often, and words on what has the focus. The letters work anywhere in the dashboard but
// where one writes; the notebook's own shortcuts are silent there.

const BUTTONS = { r: ".dsd-key-run", c: ".dsd-key-cancel", "[": ".dsd-key-previous", "]": ".dsd-key-next" };

function render({ model, el }) {
  let root = null, tip = null, waiting = 0, stopped = false;
  const writes = (target) => target.closest("textarea, select, input:not([type=range]):not([type=checkbox]), [contenteditable=true]");
  function press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || writes(event.target)) return;
    const button = BUTTONS[event.key] && root.querySelector(BUTTONS[event.key]);
    if (!button) return;
    event.preventDefault();
    event.stopPropagation();
    if (!button.disabled) button.click();
  }
  function say(target) {
    const about = target.closest("[data-tip], button[title]");
    const words = about && root.contains(about) && (about.dataset.tip || about.title);
    tip.hidden = !words;
    if (!words) return;
    tip.textContent = words;
    const from = about.getBoundingClientRect(), box = root.getBoundingClientRect();
    tip.style.left = `${Math.max(0, Math.min(from.left - box.left, box.width - tip.offsetWidth - 4))}px`;
    const above = from.top - box.top - tip.offsetHeight - 22;
    tip.style.top = `${above >= 0 ? above : from.bottom - box.top + 12}px`;
  }
  const focus = (event) => { if (event.target.matches(":focus-visible")) say(event.target); };
  const hide = () => { clearTimeout(waiting); tip.hidden = true; };
  const over = (event) => {
    clearTimeout(waiting);
    const about = event.target.closest("[data-tip]");
    if (about) waiting = setTimeout(() => { if (!root.querySelector(":active")) say(about); }, 350);
  };
  function attach() {
    if (stopped) return;
    root = el.closest(".dsd");
    if (!root) return requestAnimationFrame(attach);
    root.setAttribute("data-lm-suppress-shortcuts", "true");
    if (!root.hasAttribute("tabindex")) root.setAttribute("tabindex", "-1");
    tip = document.createElement("div");
    tip.className = "dsd-tip";
    tip.setAttribute("role", "tooltip");
    tip.hidden = true;
    root.append(tip);
    root.addEventListener("keydown", press);
    root.addEventListener("focusin", focus);
    root.addEventListener("mouseover", over);
    for (const end of ["focusout", "mouseout", "pointerdown"]) root.addEventListener(end, hide);
  }
  attach();
  return () => {
    stopped = true;
    if (!tip) return;
    clearTimeout(waiting);
    tip.remove();
    root.removeEventListener("keydown", press);
    root.removeEventListener("focusin", focus);
    root.removeEventListener("mouseover", over);
    for (const end of ["focusout", "mouseout", "pointerdown"]) root.removeEventListener(end, hide);
  };
}

export default { render };
