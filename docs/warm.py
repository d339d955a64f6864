"""Check notebooks as `docs/notebooks.py --check` does, but with kernels that have the heavy libraries from the start.

    python docs/warm.py     reads lines of JSON, {"path": "nbs/X.ipynb", "seconds": 900}, and answers each with one:
                            {"code": 0, "said": "X.ipynb: 1.2 s"}

Each notebook has a fresh kernel of its own, forked from this process, which imports torch and the like once and runs
nothing: no thread, no figure, and no module of this package. For tests, on Linux."""
from __future__ import annotations

import gc
import json
import os
import select
import signal
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from jupyter_client.provisioning import local_provisioner
from notebooks import ROOT, attempt

# not IPython's own display modules, ipywidgets or anywidget: they ask for the kernel while they are imported
HEAVY = [
    *("ipykernel.kernelapp", "ipykernel.ipkernel", "matplotlib.pyplot", "nibabel", "numba", "numba.np.arrayobj"),
    *("numba.extending", "pydicom", "safetensors.torch", "scipy.ndimage", "scipy.optimize", "scipy.sparse"),
    *("scipy.spatial.transform", "scipy.stats", "skimage.metrics", "skimage.morphology", "torch"),
]
LAUNCH = ["-m", "ipykernel_launcher"]


class WarmKernel:
    "A kernel's process, forked before its command is known; jupyter_client sees of it what it sees of a Popen."

    stdin = stdout = stderr = returncode = None

    def __init__(self):
        "In the kernel's own process this returns once the notebook is done."
        source, self.command = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.setpgid(0, 0)  # jupyter_client signals a kernel by its group
            os.close(self.command)
            with open(source) as told:
                be_a_kernel(**json.load(told))
        os.close(source)
        os.setpgid(self.pid, self.pid)

    def start(self, cmd: list[str], env: dict[str, str], cwd: str, **_) -> WarmKernel:
        "In the place of jupyter_client's `launch_kernel`."
        assert cmd[1:3] == LAUNCH, cmd
        with open(self.command, "w") as told:
            json.dump({"arguments": cmd[3:], "env": dict(env), "cwd": str(cwd)}, told)
        return self

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def be_a_kernel(arguments: list[str], env: dict[str, str], cwd: str) -> None:
    "What `python -m ipykernel_launcher` does, then the end of this process."
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[0] = str(ROOT)  # in the place of docs/
    sys.argv = ["ipykernel_launcher", *arguments]
    kernelapp = import_module("ipykernel.kernelapp")
    as_drawn = "--InlineBackend.print_figure_kwargs={'bbox_inches': None}"  # nobody looks: no second layout to crop it
    kernelapp.launch_new_instance([*arguments, as_drawn, f"--IPKernelApp.parent_handle={os.getppid()}"])
    sys.exit()


def check(path: Path) -> int:
    "Run one notebook; 0 or 1."
    local_provisioner.launch_kernel = WarmKernel().start
    return attempt(path, check=True, timeout_s=1800)


def forked(path: str, seconds: float) -> dict:
    "The exit code of a process that checks one notebook in so many seconds, and what it and its kernel said."
    assert len(os.listdir("/proc/self/task")) == 1, "a process that runs threads must not be forked"
    with tempfile.TemporaryFile("w+", errors="replace") as said:
        child = os.fork()
        if not child:
            for stream, number in ((open(os.devnull), 0), (said, 1), (said, 2)):
                os.dup2(stream.fileno(), number)
            code = check(Path(path))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # to take down what was imported would take longer than many a notebook
        with open(os.pidfd_open(child)) as ended:
            if not select.select([ended], [], [], seconds)[0]:
                os.kill(child, signal.SIGKILL)  # its kernel sees that, and ends
                print(f"{path} takes more than {seconds:g} seconds", file=said, flush=True)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        return {"code": os.waitstatus_to_exitcode(status), "said": said.read()}


def main() -> None:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # it starts its threads while it is imported
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")  # as kernels do, for matplotlib
    for name in HEAVY:
        import_module(name)
    sys.modules["matplotlib.pyplot"]._draw_all_if_interactive = lambda: None  # they are drawn where they are shown
    gc.collect()
    gc.freeze()  # a collection in a fork would copy all of that memory
    for line in sys.stdin:
        print(json.dumps(forked(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
