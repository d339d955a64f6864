"""Spoiled files for every reader: `python benchmarks/fuzz.py [--inputs 5000] [--only NAME …] [--json FILE]`.

Each reader runs in a process of its own. A good file is truncated, flipped, spliced, stretched or repeated at random;
it must be read, or refused in one line, within 10 s and 1 GiB above the start. Exit code 1 if one reader did worse."""

import argparse
import json
import multiprocessing
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from fuzz import FILES, READERS, damaged, outcome

LONGEST_S, MOST_MIB = 10, 1024


def peak_mib() -> float:
    "Largest memory this process has had."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def too_slow(*_) -> None:
    raise TimeoutError(f"longer than {LONGEST_S} s")


def spoil(reader: str, inputs: int, pipe) -> None:
    "Runs in a process of its own; sends what was seen, and before each input the number of it."
    import warnings

    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, too_slow)
    kinds, slowest = Counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        good = FILES[reader](folder)
        outcome(reader, good)
        before = peak_mib()
        for number in range(inputs):
            pipe.send(number)
            path = damaged(good, folder / "damaged", np.random.default_rng([number, len(reader)]))
            started = time.perf_counter()
            signal.alarm(LONGEST_S)
            kinds[outcome(reader, path)] += 1
            signal.alarm(0)
            slowest = max(slowest, time.perf_counter() - started)
    pipe.send({"outcomes": dict(kinds), "slowest_s": slowest, "memory_above_start_mib": peak_mib() - before})


def watch(reader: str, inputs: int) -> dict:
    "The findings of one reader; a process that died is a finding too."
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=spoil, args=(reader, inputs, theirs))
    process.start()
    theirs.close()
    last = None
    try:
        while not isinstance(last, dict):
            last = ours.recv()
    except EOFError:
        process.join()
        return {"outcomes": {f"crash (exit code {process.exitcode}) at input {last}": 1}}
    process.join()
    return last


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=5000, help="per reader")
    parser.add_argument("--only", nargs="*", choices=list(READERS), default=list(READERS))
    parser.add_argument("--json", type=Path, help="also write the findings here")
    args = parser.parse_args()
    found, bad = {}, 0
    for reader in args.only:
        seen = watch(reader, args.inputs)
        worse = {k: v for k, v in seen["outcomes"].items() if k not in ("read", "refused")}
        bad += bool(worse) + (seen.get("memory_above_start_mib", 0) > MOST_MIB)
        found[reader] = seen
        print(reader, seen, flush=True)
    if args.json:
        args.json.write_text(json.dumps({"inputs": args.inputs, "readers": found}, indent=2) + "\n", encoding="utf-8")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
