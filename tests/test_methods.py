"Someone else's method: named, checked, benchmarked by the how-to's own commands."

import json
import re
import shlex
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT

from diffspect_nb.cli import main
from diffspect_nb.core import InputError, Step, last
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.methods import METHODS, Named, checked, needed, plugins
from diffspect_nb.mlem import mlem
from diffspect_nb.phantom import torso
from diffspect_nb.study import Study, simulate
from diffspect_nb.work import read_rows

HOWTO = (ROOT / "docs" / "site" / "howto" / "method.md").read_text(encoding="utf-8")
TOY = re.search(r"```python\n(.*?)```", HOWTO, re.DOTALL)[1]
COMMANDS = re.search(r"```sh\n(.*?)```", HOWTO, re.DOTALL)[1].splitlines()
MORE = """
from diffspect_nb.core import Step

def steps(study):
    for i in (1, 2):
        yield Step(i, 2, smoothed(study) * i, {})

def factory():
    return steps

class Kept:
    def __call__(self, study):
        return smoothed(study)

def two(study, strength): ...
def factory_of_nothing(): ...
def flat(study): return smoothed(study)[0]
def negative(study): return smoothed(study) - 1e9
def broken(study): return smoothed(study) / 0 * 0
def listed(study): return smoothed(study).tolist()
number = 3
"""


@pytest.fixture(scope="module")
def study() -> Study:
    rng = np.random.default_rng(0)
    return simulate(torso(rng, tiny_grid()), tiny(), 1e6, rng)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    "Where a stranger works: toy.py of the how-to in it, and a package that gives it a name."
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    monkeypatch.delitem(sys.modules, "toy", raising=False)
    (tmp_path / "toy.py").write_text(TOY + MORE)
    installed = tmp_path / "site" / "toy-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
    points = {"smoothed": "toy:smoothed", "mlem": "toy:negative"}  # the second takes a name that is taken
    text = "\n".join(f"{name} = {address}" for name, address in points.items())
    (installed / "entry_points.txt").write_text(f"[diffspect.methods]\n{text}\n")
    sys.path.append(str(tmp_path / "site"))
    yield tmp_path
    sys.modules.pop("toy", None)


def image_of(name: str, study: Study) -> torch.Tensor:
    return last(Named(name)(study)).image


def test_the_how_to_method_has_ten_lines():
    assert len([line for line in TOY.splitlines() if line.strip()]) <= 10
    assert len(COMMANDS) == 3 and all("--method toy:" in line for line in COMMANDS)


def test_images_steps_factories_and_objects_are_methods(folder, study):
    expected = image_of("toy:smoothed", study)
    assert expected.shape == study.truth.shape and expected.sum() == pytest.approx(float(study.truth.sum()), rel=0.2)
    assert [step.index for step in Named("toy:steps")(study)] == [1, 2]
    for name, times in (("toy:steps", 2), ("toy:factory", 2), ("toy:Kept", 1), ("smoothed", 1)):
        assert torch.equal(image_of(name, study), times * expected), name
    assert plugins()["smoothed"] == "toy:smoothed" and "mlem" not in plugins()


@pytest.mark.parametrize("name", ["mlem", "osem"])
def test_a_built_in_name_is_the_method_of_that_name(folder, study, name):
    found = last(Named(name, passes=4)(study)).image
    if name == "mlem":
        assert torch.allclose(found, mlem(study.measurement(), 4) / study.count_fraction)
    assert not torch.equal(found, last(Named(name)(study)).image)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nobody", "anchored, paper, mlem, osem, smoothed, or write package.module:function"),
        ("toy:", "package.module:function"),
        ("no_such:f", "no_such cannot be imported"),
        ("toy:nothing", "toy has no nothing"),
        ("toy:number", "type int"),
        ("toy:two", "needs 2 arguments"),
        ("toy:factory_of_nothing", "returned NoneType"),
        ("toy:flat", "shape"),
        ("toy:negative", "not negative"),
        ("toy:broken", "not finite"),
        ("toy:listed", "type list"),
    ],
)
def test_what_is_wrong_with_a_method_is_one_line_with_its_name(folder, study, name, says):
    with pytest.raises(InputError) as e:
        image_of(name, study)
    assert says in str(e.value) and name in str(e.value) and "\n" not in str(e.value)


def test_steps_are_steps_and_at_least_one(study):
    with pytest.raises(InputError, match="mine: .* no step"):
        list(checked("mine", study, iter([])))
    with pytest.raises(InputError, match="mine: .* tuple, not a Step"):
        list(checked("mine", study, iter([(1, 2)])))
    good = Step(1, 1, torch.zeros(study.grid.shape), {})
    assert list(checked("mine", study, iter([good]))) == [good]


def test_what_needs_no_argument_is_a_factory():
    assert [needed(f) for f in (lambda: 0, lambda s: 0, lambda s=1: 0, lambda s, t: 0, lambda *a: 0)] == [0, 1, 0, 2, 1]


def test_commands_know_the_names(folder, study, capsys):
    study.save(folder / "study")
    assert main(["info"]) == 0
    said = capsys.readouterr().out
    assert all(re.search(rf"^method +{name}: built in$", said, re.MULTILINE) for name in METHODS)
    assert re.search(r"^method +smoothed: toy:smoothed$", said, re.MULTILINE)
    for name in ("smoothed", "toy:steps"):
        assert main(["reconstruct", "study", "--out", f"out/{name[:3]}", "--method", name, "--counts", "0.5"]) == 0
        made = json.loads((folder / "out" / name[:3] / "result.json").read_text())
        assert made["method"] == name and made["function"].startswith("toy:") and made["reduced_deviance"] > 0
    capsys.readouterr()
    for words, text in (
        (("--method", "nobody"), "no method is called 'nobody'"),
        (("--method", "toy:smoothed", "--anchor", "0.1"), "--anchor belongs to method anchored, not toy:smoothed"),
        (("--method", "toy:flat"), "method toy:flat: its image has shape"),
    ):
        assert main(["reconstruct", "study", "--out", "out/no", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line
    assert main(["reconstruct", "--from", "out/toy/result.json", "--out", "out/again"]) == 0
    first, again = ((folder / "out" / name / "image.nii.gz").read_bytes() for name in ("toy", "again"))
    assert first == again


def test_a_benchmark_refuses_before_any_work(folder, capsys):
    for words, text in (
        (("--method", "nobody"), "no method is called"),
        (("--method", "toy:smoothed", "--prior", "paper"), "--prior belongs to methods anchored and paper"),
        (("--method", "toy:smoothed", "--ablation"), "leave out --method"),
        (("--workers", "0", "--method", "toy:smoothed"), "at least 1"),
    ):
        assert main(["benchmark", "--tiny", "--out", "out", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line
    assert not (folder / "out" / "rows.jsonl").exists()


@pytest.mark.slow
def test_the_three_commands_of_the_how_to_give_a_row(folder, capsys):
    "The first as it stands; the others on the toy scanner too, at one setting, OSEM in the place of ours."
    settings = ["counts 0.05", "counts 1.0", "views 3"]
    for line in COMMANDS:
        words = shlex.split(line.replace(" --method anchored --workers 2", " --method osem").replace("--quick", ""))
        assert words[:2] == ["diffspect", "benchmark"]
        assert main([*words[1:], *([] if "--tiny" in words else ["--tiny", "--settings", "views 3"])]) == 0
    assert "toy:smoothed minus the best classical" in capsys.readouterr().out
    for name in ("tiny", "quick", "mine"):
        out = folder / "out" / name
        rows = [row for row in read_rows(out / "rows.jsonl") if row["method"] == "toy:smoothed"]
        assert {row["setting"] for row in rows} == set(settings if name == "tiny" else settings[2:])
        assert re.search(r"^views 3,toy:smoothed,heart,truth,1,", (out / "summary.csv").read_text(), re.MULTILINE)
        assert json.loads((out / "about.json").read_text())["methods"]["toy:smoothed"] == "toy:smoothed"
    apart = (folder / "out" / "mine" / "differences.csv").read_text()
    assert "views 3,toy:smoothed,osem,1," in apart and "views 3,osem,toy:smoothed,1," in apart
