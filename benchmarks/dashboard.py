"""How quickly the dashboard answers, in a headless browser: `python benchmarks/dashboard.py [--method paper]`.

From releasing a slider to the first new picture and to the final one, at full resolution; the longest time that cancel
took; memory of the kernel over many runs. JupyterLab and chromium run on this machine and share its cores."""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from browser import headless, jupyter_lab, open_and_run

CELL = """from diffspect_nb.dashboard import ReconstructionDashboard
dashboard = ReconstructionDashboard()
dashboard"""
WATCH = """() => {
    window.drawn = [];
    const seen = () => document.querySelectorAll('.dsv-volume')[1].querySelector('canvas').toDataURL();
    let before = seen();
    const look = () => {
        const now = seen();
        if (now !== before) { before = now; window.drawn.push(performance.now()); }
        requestAnimationFrame(look);
    };
    look();
    const released = () => { window.released = performance.now(); window.drawn = []; };
    document.addEventListener('pointerup', released, true);
}"""


def memory_mb(pid: int) -> float:
    "Resident memory of a process."
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def kernel_pid() -> int:
    "The newest IPython kernel."
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ipykernel_launcher" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return max(found)


KNOBS = {"anchored": "anchor", "paper": "λ_dps"}  # method → whose slider is moved
LONGEST_MS = 600_000  # the paper's walk, back-propagated, on a slow machine


class Driver:
    "A hand on one slider of the method, and a clock."

    def __init__(self, page, method: str):
        self.page = page
        self.state = page.locator(".dsd-state")
        self.done = page.locator(".dsd-state", has_text="done in")
        chosen = page.locator(".widget-dropdown", has_text="method").locator("select").first
        chosen.locator("option").first.wait_for(state="attached", timeout=120_000)
        names = chosen.locator("option").all_text_contents()
        chosen.select_option(label=next(name for name in names if method in name.lower()))
        self.knob = page.locator(f".dsd-knob:has(b:text-is('{KNOBS[method]}')) input[type=range]")
        self.knob.wait_for(timeout=60_000)
        page.wait_for_timeout(1000)
        self.done.wait_for(timeout=LONGEST_MS)
        page.evaluate(WATCH)

    def drag(self, pixels: float) -> None:
        box = self.knob.bounding_box()
        share = self.knob.evaluate("s => (s.value - s.min) / (s.max - s.min)")
        x, y = box["x"] + 8 + share * (box["width"] - 16), box["y"] + box["height"] / 2
        self.page.mouse.move(x, y)
        self.page.mouse.down()
        self.page.mouse.move(x + pixels, y, steps=3)
        self.page.mouse.up()

    def press(self, name: str) -> None:
        self.page.locator(".dsd").get_by_role("button", name=name, exact=True).click()

    def finished(self) -> float:
        "Seconds that the run took by its own clock."
        self.page.locator(".dsd-state", has_text=re.compile("^step|done")).wait_for(timeout=60_000)
        self.page.wait_for_timeout(300)
        self.done.wait_for(timeout=LONGEST_MS)
        return float(re.search(r"done in ([\d.]+)", self.state.inner_text())[1])


def pictures(hand: Driver, moves: int) -> dict:
    "From releasing the slider to the first new picture, and from the end of the walk to the last."
    first, extra, page = [], [], hand.page
    for n in range(moves):
        hand.drag(40 if n % 2 == 0 else -40)
        page.wait_for_function("window.drawn.length > 0 && window.drawn[0] > window.released", timeout=60_000)
        first.append(page.evaluate("(window.drawn[0] - window.released) / 1000"))
        walk = hand.finished()
        page.wait_for_timeout(300)
        extra.append(page.evaluate("(window.drawn.at(-1) - window.released) / 1000") - walk)
    slowest, last = max(first), statistics.median(extra)
    return {
        "first_picture_s": statistics.median(first),
        "first_picture_slowest_s": slowest,
        "final_picture_beyond_sampler_s": last,
    }


def cancels(hand: Driver, times: int = 5) -> dict:
    "How long cancelling takes at worst."
    seconds = []
    for _ in range(times):
        hand.drag(40)
        hand.page.locator(".dsd-state", has_text=re.compile("^step [2-9] of")).wait_for(timeout=60_000)
        started = time.perf_counter()
        hand.press("Cancel")
        hand.page.locator(".dsd-state", has_text="cancelled").wait_for(timeout=60_000)
        seconds.append(time.perf_counter() - started)
        hand.drag(-40)
        hand.finished()
    return {"cancel_s": max(seconds)}


def memory(hand: Driver, runs: int) -> dict:
    "Resident memory of the kernel before, when the history is full (twelve results), and after so many runs."
    pid, used = kernel_pid(), []
    for _ in range(runs):
        used.append(memory_mb(pid))
        hand.press("Run")
        hand.finished()
    used.append(memory_mb(pid))
    settled = used[min(13, len(used) - 1)]
    return {"memory_mb": [round(m) for m in (used[0], settled, used[-1])], "memory_growth": used[-1] / used[0] - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=list(KNOBS), default="anchored")
    parser.add_argument("--moves", type=int, default=20, help="slider moves to time")
    parser.add_argument("--runs", type=int, default=50, help="runs over which memory is watched")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, headless() as browser:
        folder = Path(name)
        (folder / "data_samples").symlink_to(ROOT / "data_samples")
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
        nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(nb, folder / "dashboard.ipynb")
        with jupyter_lab(folder) as address:
            page = browser.new_page(viewport={"width": 1280, "height": 1500})
            open_and_run(page, address, "dashboard.ipynb")
            hand = Driver(page, args.method)
            found = pictures(hand, args.moves) | cancels(hand) | memory(hand, args.runs)
    print(json.dumps(found, indent=2))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
