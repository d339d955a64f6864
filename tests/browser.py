"A real browser and the servers it looks at: chromium (Debian's, installed if missing), JupyterLab, Voilà; on loopback."

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, TimeoutError, sync_playwright

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


def chromium() -> str:
    "Path of a chromium; installs Debian's if there is none and this user may. Skips the test where none can be had."
    names = ("chromium", "chromium-browser", "google-chrome")
    if not any(map(shutil.which, names)) and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "chromium", "fonts-dejavu"]):
            subprocess.run(command, check=False, capture_output=True, timeout=600)
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip("no chromium: install it (Debian: apt-get install chromium) for the browser tests")
    return found


@contextlib.contextmanager
def headless() -> Iterator[Browser]:
    "A headless browser."
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield browser
        browser.close()


def until(page, holds: Callable[[], object], seconds: float = 20) -> None:
    "Wait until what Python asks of the page holds."
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        page.wait_for_timeout(50)


CONTRAST = """(where) => {
  const parts = c => { const v = c.match(/[\\d.]+/g).map(Number); return [...v.slice(0, 3), v[3] ?? 1]; };
  const over = ([r, g, b, a], under) => [r, g, b].map((v, k) => a * v + (1 - a) * under[k]);
  const ground = e => { if (!e) return [255, 255, 255]; const c = parts(getComputedStyle(e).backgroundColor);
    return c[3] === 1 ? c.slice(0, 3) : over(c, ground(e.parentElement)); };
  const light = c => { const v = c.map(x => (x /= 255) <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * v[0] + 0.7152 * v[1] + 0.0722 * v[2]; };
  const veil = e => e ? Number(getComputedStyle(e).opacity) * veil(e.parentElement) : 1;
  const ratio = e => { const style = getComputedStyle(e), below = ground(e);
    const c = parts(e instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(over([...c.slice(0, 3), c[3] * veil(e)], below)), light(below)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); };
  const own = e => [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  const seen = [...document.querySelectorAll(where)].filter(e => e.checkVisibility() && own(e) && !e.disabled);
  const found = seen.map(e => [ratio(e), e.textContent.trim().slice(0, 60)]).sort((a, b) => a[0] - b[0]);
  return found[0] ?? [0, 'nothing']; }"""


def least_contrast(page, where: str) -> tuple[float, str]:
    "Least contrast of the texts that a selector finds with their ground (4.5 is enough to read), and that text."
    return tuple(page.evaluate(CONTRAST, where))


@contextlib.contextmanager
def files_served(folder: Path) -> Iterator[str]:
    "A plain file server on loopback until the block ends; gives its address."
    handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@contextlib.contextmanager
def serving(command: list[str], ready: str, cwd: Path, timeout_s: float = 90, **env: str) -> Iterator[str]:
    "Run a server until the block ends; gives what the group of `ready` caught in its output, usually its address."
    server = subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: queue.Queue[str] = queue.Queue()
    seen: list[str] = []

    def read() -> None:
        for line in server.stdout:
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()
    try:
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(queue.Empty):
                seen.append(lines.get(timeout=0.2))
                if found := re.search(ready, seen[-1]):
                    break
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not start:\n" + "".join(seen))
        yield found[1]
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextlib.contextmanager
def jupyter_lab(folder: Path) -> Iterator[str]:
    "JupyterLab on loopback without a token; gives its address."
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ip=127.0.0.1", "--port=0"]
    command += ["--IdentityProvider.token=", "--ServerApp.allow_root=True", f"--ServerApp.root_dir={folder}"]
    command += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    settings = folder / ".jupyter-test"
    quiet = settings / "lab/user-settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    with serving(command, r"(http://127\.0\.0\.1:\d+)/lab", folder, JUPYTER_CONFIG_DIR=str(settings)) as address:
        wait_for(f"{address}/api")
        yield address


def wait_for(url: str, timeout_s: float = 60) -> None:
    "Return once the address answers."
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def accept(dialogue) -> None:
    "Press its main button; say what it was, for whoever reads why a test failed."
    print("JupyterLab asked:", dialogue.inner_text(), file=sys.stderr)
    dialogue.locator(".jp-mod-accept").last.click()


def open_and_run(page, address: str, notebook: str) -> None:
    "Open a notebook by itself and run all of its cells; a dialogue that JupyterLab puts before it is accepted."
    page.add_locator_handler(page.locator("dialog.jp-Dialog"), accept)
    page.goto(f"{address}/doc/tree/{notebook}?reset", wait_until="domcontentloaded")
    page.locator(".jp-NotebookPanel").wait_for(timeout=60_000)
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(timeout=90_000)
    started = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[(\*|\d+)\]")).first
    for attempt in range(3):  # a click in a busy moment can be lost
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        try:
            started.wait_for(timeout=20_000)
            return
        except TimeoutError:
            if attempt == 2:
                raise
