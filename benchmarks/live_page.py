"""What the live page costs a reader: `python benchmarks/live_page.py [--walks 200]`, beside an otherwise idle machine.

In a headless Chromium, from a plain file server: bytes of the first visit; seconds of a walk of 25 steps with its
gradient (median of 10), of the anchored walk, and to the first step; whether 60 slider events in 3 s end in one image
of the last value; the longest task of the page's own thread; memory of its process before and after many short walks.
The machine's load stands below, since every other process makes these figures worse."""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from diffspect_nb.live_page import write_live_page

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import files_served, headless

ROOT = "document.getElementById('live')"
READY = f"(() => {{ const r = {ROOT}; return r.live && Number(r.dataset.done) === r.live.run; }})()"
WATCH = """window.longest = 0; new PerformanceObserver((list) => { for (const task of list.getEntries())
    window.longest = Math.max(window.longest, task.duration); }).observe({ type: "longtask", buffered: true });"""
DRAG = """() => new Promise((go) => { const range = document.querySelector("input[aria-label^='λ_dps']"); let n = 0;
    const timer = setInterval(() => { range.value = 0.005 * n; range.dispatchEvent(new Event("input"));
    if (++n === 60) { clearInterval(timer); go(); } }, 50); })"""


def renderer_mb() -> float:
    "Resident memory of the largest renderer of a Chromium that this process has started, MB; 0 without /proc."
    found = [0.0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if "--type=renderer" in (status.parent / "cmdline").read_text().replace("\0", " "):
                line = next(x for x in status.read_text().splitlines() if x.startswith("VmRSS"))
                found.append(int(line.split()[1]) / 1024)
        except (OSError, StopIteration):
            continue
    return max(found)


def changed(page, part: dict) -> float:
    "Order a state and wait for its end; seconds that the worker says."
    before = page.evaluate(f"{ROOT}.live.run")
    page.evaluate(f"{ROOT}.live.change({json.dumps(part)})")
    page.wait_for_function(f"{ROOT}.live.run > {before}", timeout=60_000)
    page.wait_for_function(READY, timeout=600_000)
    return float(page.evaluate(f"{ROOT}.dataset.seconds"))


def measure(page, address: str, walks: int) -> dict:
    "All figures, with the load average at the end of each."
    found, received = {}, []
    page.on("response", lambda answer: received.append(len(answer.body())))
    page.add_init_script(WATCH)
    page.goto(address)
    page.wait_for_function(READY, timeout=600_000)
    found["first visit, MB"] = sum(received) / 1e6
    for walk in ("paper", "anchored"):
        times, first = [], []
        for seed in range(1, 11):
            times.append(changed(page, {walk: {"seed": seed}}))
            first.append(page.evaluate(f"{ROOT}.live.steps.{walk}[0].seconds"))
        found[f"{walk}, s"], found[f"{walk}, first step, s"] = statistics.median(times), statistics.median(first)
    before = page.evaluate(f"{ROOT}.live.run")
    page.evaluate(DRAG)
    page.wait_for_function(READY, timeout=600_000)
    runs = page.evaluate(f"[...new Set({ROOT}.live.steps.paper.map((s) => s.run))].length")
    last = page.evaluate(f"{ROOT}.live.state.paper.lambda_dps")
    found["60 events"] = f"{page.evaluate(f'{ROOT}.live.run') - before} orders, {runs} image of λ_dps = {last:g}"
    found["longest task of the page's thread, ms"] = page.evaluate("window.longest")
    memory = []
    for n in range(walks):
        changed(page, {"anchored": {"seed": n + 20, "steps": 2, "fields": 1}})
        if n in (9, walks // 2, walks - 1):
            memory.append(round(renderer_mb()))
    found[f"memory after 10, {walks // 2}, {walks} walks, MB"] = memory
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--walks", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as top, headless() as browser, files_served(Path(top)) as address:
        write_live_page(Path(top) / "some" / "where")
        load = os.getloadavg()[0]
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        found = measure(page, f"{address}/some/where/", args.walks)
        for name, value in found.items():
            print(f"{name}: {value if isinstance(value, str | list) else f'{value:.3g}'}")
        print(f"load average {load:.1f} before, {os.getloadavg()[0]:.1f} after, {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
