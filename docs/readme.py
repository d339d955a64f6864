"""Make README.md from nbs/index.ipynb, so that the front page and the first notebook cannot disagree.

python docs/readme.py          writes README.md
python docs/readme.py --check  writes nothing; exit code 1 if README.md is out of date"""
from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path

from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]


def readme_text(index: Path = ROOT / "nbs" / "index.ipynb") -> str:
    "The index as Markdown for the root of the repository: code left out, its outputs kept, relative links start there."
    text, resources = MarkdownExporter(exclude_input=True).from_filename(str(index))
    if resources.get("outputs"):
        raise ValueError(f"{index.name} must not hold pictures: {sorted(resources['outputs'])}")

    def relink(match: re.Match) -> str:
        return f"]({posixpath.normpath(posixpath.join('nbs', match[1]))})"

    text = re.sub(r"\]\((?!\w+:|#)([^)\s]+)\)", relink, text)
    return "<!-- Made from nbs/index.ipynb by `make readme`; edit the notebook. -->\n\n" + text.strip() + "\n"


def main() -> int:
    target, text = ROOT / "README.md", readme_text()
    if "--check" in sys.argv[1:]:
        same = target.exists() and target.read_text(encoding="utf-8") == text
        print("README.md agrees with nbs/index.ipynb" if same else "README.md is out of date: run `make readme`")
        return 0 if same else 1
    target.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
