"""The studies in data_samples, made again but for `patient`: `python benchmarks/samples.py [--only NAME …]`.

Also data_samples/README.md with a line for each, and the picture in it. Five minutes of one core."""

import argparse
from pathlib import Path

from diffspect_nb.files import atomic_path
from diffspect_nb.samples import SAMPLE_NAMES, SAMPLES, load_sample, plot_samples

FOLDER = Path(__file__).parents[1] / "data_samples"
HEAD = """# Sample studies

Simulated, each with its truth, all at full dose; `diffspect reconstruct --sample NAME --counts 0.05 --out result` takes
5 % of the counts of one. Made by `python benchmarks/samples.py`; lesson 15a tells what each is for. No patient is real.

![Truth, and full-dose OSEM below it, transverse through the defect or the heart of each](samples.png)

| sample | counts | views | MB | what it is |
|---|---|---|---|---|
"""


def described(name: str) -> str:
    "Its line of the table."
    study, size = load_sample(name), sum(f.stat().st_size for f in (FOLDER / name).iterdir()) / 1e6
    about = SAMPLES[name].about if name in SAMPLES else "a man with a defect, acquired as the model says"
    return f"| `{name}` | {study.counts:,.0f} | {len(study.views)} | {size:.2f} | {about} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=list(SAMPLES), help="none: only the table and the picture")
    only = parser.parse_args().only
    for name in SAMPLES if only is None else only:
        SAMPLES[name].make().save(FOLDER / name)
        print(name, flush=True)
    with atomic_path(FOLDER / "README.md") as tmp:
        tmp.write_text(HEAD + "".join(described(name) for name in SAMPLE_NAMES), encoding="utf-8")
    with atomic_path(FOLDER / "samples.png") as tmp:
        plot_samples().savefig(tmp, dpi=90, format="png")


if __name__ == "__main__":
    main()
