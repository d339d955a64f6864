"The command line at its public door: exit codes, one clear line, nothing half-written, and the demo's promise."

import argparse
import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

import diffspect_nb
from diffspect_nb.cardiac import true_ventricle
from diffspect_nb.cli import COMMANDS, main, parser
from diffspect_nb.cli_study import WALKS, option_of, own_options
from diffspect_nb.files import load_image, read_json, save_image
from diffspect_nb.geometry import tiny, tiny_grid
from diffspect_nb.mlem import osem
from diffspect_nb.phantom import torso
from diffspect_nb.prior import pretrained, save_checkpoint
from diffspect_nb.reconstruction import reconstruct
from diffspect_nb.sampler import settings_of, weights_from_json
from diffspect_nb.slice_network import SliceUNet, UNetConfig
from diffspect_nb.study import Study, reduced_study, sample_folder, simulate, study_hashes


@pytest.fixture(scope="module")
def tiny_study(tmp_path_factory) -> Path:
    rng = np.random.default_rng(5)
    folder = tmp_path_factory.mktemp("study")
    simulate(torso(rng, tiny_grid()), tiny(), 5e5, rng).save(folder)
    return folder


@pytest.fixture
def broken(tiny_study, tmp_path) -> Path:
    "A copy of the study to spoil."
    return Path(shutil.copytree(tiny_study, tmp_path / "study"))


def refused(capsys, *argv) -> str:
    "Run a command that must end with exit code 2 and one line on standard error; returns the line."
    code = main([str(a) for a in argv])
    captured = capsys.readouterr()
    assert code == 2
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("diffspect: "), captured.err
    return lines[0]


def rewrite(folder: Path, name: str, change) -> None:
    "Replace an image of the study by a changed one."
    image = nibabel.load(folder / name)
    nibabel.save(nibabel.Nifti1Image(change(image.get_fdata()).astype(np.float32), image.affine), folder / name)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_a_sample_by_name_takes_the_place_of_a_study_folder(tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        main(["reconstruct", "--sample", "nine_views", "--method", "osem", "--counts", "0.05", "--out", str(out)]) == 0
    )
    made = read_json(out / "result.json")["input"]
    assert Path(made["folder"]).name == "nine_views" and made["study"] == study_hashes(sample_folder("nine_views"))
    new = tmp_path / "new"
    assert "hard, nine_views, normal" in refused(capsys, "reconstruct", "--sample", "nope", "--out", new)
    assert "not both" in refused(capsys, "reconstruct", "here", "--sample", "hard", "--out", new)
    assert not new.exists()


BAD_COUNTS = {
    "NaN": (lambda a: np.where(a == a.max(), np.nan, a), "finite"),
    "infinity": (lambda a: np.where(a == a.max(), np.inf, a), "finite"),
    "negative": (lambda a: a - 1, ">= 0"),
    "empty": (lambda a: a * 0, "not a single count"),
    "another scanner": (lambda a: a[:, :, :5], "must have shape"),
    "wrong pixels": (lambda a: a[:-1], "must have shape"),
}


@pytest.mark.parametrize("case", BAD_COUNTS)
def test_bad_projections_are_refused(case, broken, tmp_path, capsys):
    change, rule = BAD_COUNTS[case]
    rewrite(broken, "projections.nii.gz", change)
    line = refused(capsys, "reconstruct", broken, "--out", tmp_path / "out", "--method", "mlem")
    assert "projections.nii.gz" in line and rule in line
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("factor, rule", [(0.1, "mm⁻¹"), (1000 / 0.154, "Hounsfield")])
def test_attenuation_in_the_wrong_unit_is_recognised(factor, rule, broken, tmp_path, capsys):
    rewrite(broken, "mu.nii.gz", lambda a: np.minimum(a, 0.3) * factor)
    line = refused(capsys, "reconstruct", broken, "--out", tmp_path / "out")
    assert "mu.nii.gz" in line and rule in line


@pytest.mark.parametrize("name", ["projections.nii.gz", "mu.nii.gz", "truth.nii.gz", "study.json"])
def test_truncated_files_are_named(name, broken, tmp_path, capsys):
    truncate(broken / name)
    assert name in refused(capsys, "reconstruct", broken, "--out", tmp_path / "out", "--method", "mlem")


@pytest.mark.parametrize("name", ["projections.nii.gz", "study.json"])
def test_missing_files_are_named(name, broken, tmp_path, capsys):
    (broken / name).unlink()
    assert name in refused(capsys, "reconstruct", broken, "--out", tmp_path / "out")


def test_a_study_of_an_unknown_or_other_scanner_is_refused(broken, tmp_path, capsys):
    head = json.loads((broken / "study.json").read_text())
    for scanner, rule in (("gamma9", "known: dnm570c"), ("dnm570c", "must have shape")):
        (broken / "study.json").write_text(json.dumps(head | {"scanner": scanner, "views": None}))
        assert rule in refused(capsys, "reconstruct", broken, "--out", tmp_path / "out")


def test_unwritable_output_is_refused_before_any_work(tiny_study, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    line = refused(capsys, "reconstruct", tiny_study, "--out", tmp_path / "file" / "out")
    assert "cannot write" in line
    assert (tmp_path / "file").read_text() == "in the way"


def test_earlier_output_survives_a_failure(tiny_study, broken, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["reconstruct", str(tiny_study), "--out", str(out), "--method", "osem"]) == 0
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    truncate(broken / "projections.nii.gz")
    capsys.readouterr()
    refused(capsys, "reconstruct", broken, "--out", out)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_pickle_or_a_damaged_file_is_no_prior(tiny_study, tmp_path, capsys):
    pickle, damaged = tmp_path / "pickle.safetensors", tmp_path / "damaged.safetensors"
    torch.save({"a": torch.zeros(2)}, pickle)
    shipped = Path(sample_folder()).parents[1] / "diffspect_nb" / "weights" / "paper.safetensors"
    damaged.write_bytes(shipped.read_bytes()[:100_000])
    for prior in (pickle, damaged):
        line = refused(capsys, "reconstruct", tiny_study, "--out", tmp_path / "out", "--prior", prior)
        assert prior.name in line and "safetensors" in line


@pytest.mark.slow
def test_a_damaged_cache_file_is_named(tiny_study, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DIFFSPECT_CACHE", str(tmp_path / "cache"))
    argv = ["reconstruct", tiny_study, "--out", tmp_path / "out", "--method", "osem"]
    assert main([str(a) for a in argv]) == 0
    capsys.readouterr()
    image, shell = (tmp_path / "cache").iterdir()
    for cached in (image, shell):
        whole = cached.read_bytes()
        data = bytearray(whole)
        data[len(data) // 2] ^= 0xFF
        cached.write_bytes(data)
        assert cached.name in refused(capsys, *argv)
        truncate(cached)
        assert cached.name in refused(capsys, *argv)
        cached.write_bytes(whole)


@pytest.mark.parametrize(
    "option, rule",
    [
        (("--counts", "2"), "(0, 1]"),
        (("--views", "6"), "central row"),
        (("--steps", "0"), "steps"),
        (("--method", "paper", "--lambda-mlem", "2"), "lambda_mlem"),
        (("--method", "osem", "--iterations", "0"), "--iterations must be at least 1"),
    ],
)
def test_impossible_options_are_refused(option, rule, tiny_study, tmp_path, capsys):
    assert rule in refused(capsys, "reconstruct", tiny_study, "--out", tmp_path / "out", *option)


METHOD_OPTIONS = [
    ("paper", "--anchor", "anchored", "--lambda-dps"),
    ("anchored", "--lambda-dps", "paper", "--anchor"),
    ("anchored", "--tv-weight", "paper", "--samples"),
    ("osem", "--steps", "anchored and paper", "--iterations"),
    ("mlem", "--prior", "anchored and paper", "--iterations"),
]


@pytest.mark.parametrize("method, option, owner, has", METHOD_OPTIONS)
def test_an_option_of_another_method_is_refused(method, option, owner, has, tmp_path, capsys):
    "In one line that names the option, both methods and what the chosen one has; before anything is read."
    line = refused(capsys, "reconstruct", "nowhere", "--out", tmp_path / "out", "--method", method, option, "1")
    assert line.startswith(f"diffspect: {option} belongs to method {owner}, not {method}; {method} has --")
    assert has in line.rpartition(" has ")[2].split(", ") and option not in line.rpartition(" has ")[2].split(", ")


@pytest.mark.parametrize("method", WALKS)
def test_every_weight_of_a_walk_is_an_option(method, capsys):
    "Named, ranged and explained by the table of weights; there are no others."
    with pytest.raises(SystemExit):
        main(["reconstruct", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for name, setting in settings_of(WALKS[method]).items():
        assert f"{option_of(name)} " in printed
        if name != "seed":
            assert f"{setting.symbol}: {' '.join(setting.meaning.split())}" in printed
    assert set(own_options(method)) <= {*settings_of(WALKS[method]), "prior", "samples"}


@pytest.fixture(scope="module")
def slices(tmp_path_factory) -> Path:
    "A checkpoint of an untrained network for the tiny grid's slices."
    config = UNetConfig(n_slices=tiny_grid().shape[0], widths=(16, 32), blocks=1, embedding=32, head_width=32)
    path = tmp_path_factory.mktemp("prior") / "slices.safetensors"
    history = {"config": {"network": config.to_json(), "schedule": "cosine", "grid": tiny_grid().to_json()}}
    torch.manual_seed(0)
    save_checkpoint(path, SliceUNet(config), history)
    return path


def test_the_shipped_slice_prior_names_the_slices_that_it_takes(tiny_study, tmp_path, capsys):
    line = refused(capsys, "reconstruct", tiny_study, "--out", tmp_path / "out", "--method", "paper")
    assert "'paper' takes 50 slices, this study has 16" in line


@pytest.mark.parametrize("method, options", [("paper", ["--lambda-dps", "0.2"]), ("anchored", ["--anchor", "0.1"])])
def test_a_walk_on_the_command_line_is_the_library_s(method, options, tiny_study, slices, tmp_path, capsys):
    "Weights, prior and image; and the same once more, but with no other options."
    out, again = tmp_path / "out", tmp_path / "again"
    argv = ["reconstruct", str(tiny_study), "--method", method, "--steps", "2", "--seed", "3", *options]
    argv += ["--prior", str(slices)] if method == "paper" else []
    assert main([*argv, "--counts", "0.5", "--out", str(out)]) == 0
    result = json.loads((out / "result.json").read_text())
    low = reduced_study(Study.load(tiny_study), 0.5, None, 3)
    changed = {options[0][2:].replace("-", "_"): float(options[1])}
    weights = WALKS[method].for_study(low, steps=2, seed=3, **changed)
    assert result["method"] == method and result["weights"] == weights.to_json()
    name = str(slices) if method == "paper" else weights.prior
    assert result["prior"]["name"] == name and weights_from_json(result["weights"]) == weights
    torch.testing.assert_close(load_image(out / "image.nii.gz"), reconstruct(low, weights, pretrained(name)).image)
    assert main(["reconstruct", "--from", str(out / "result.json"), "--out", str(again)]) == 0
    assert torch.equal(load_image(again / "image.nii.gz"), load_image(out / "image.nii.gz"))
    capsys.readouterr()
    repeat = ("reconstruct", "--from", out / "result.json", "--out", again)
    for more in (("--steps", "3"), ("--method", "osem"), ("--seed", "0")):
        assert f"leave out {more[0]}" in refused(capsys, *repeat, *more)


@pytest.mark.parametrize("method", ["diffspect", "osem"])
def test_a_result_of_an_older_version_is_one_line(method, tiny_study, tmp_path, capsys):
    "It cannot be repeated, but the counts can still be asked about its image."
    out = tmp_path / "out"
    assert main(["reconstruct", str(tiny_study), "--out", str(out), "--method", "osem", "--iterations", "2"]) == 0
    result = json.loads((out / "result.json").read_text())
    old = {"counts": None, "views": None, "steps": None, "seed": 0, "device": "cpu", "prior": "diffspect"}
    result |= {"method": method, "versions": result["versions"] | {"diffspect_nb": "0.1.0"}}
    result |= {"guidance": {"solver": "renoise"}} if method == "diffspect" else {}
    result["input"]["options"] = old
    (out / "result.json").write_text(json.dumps(result))
    capsys.readouterr()
    line = refused(capsys, "reconstruct", "--from", out / "result.json", "--out", tmp_path / "again")
    assert "older version (0.1.0)" in line and "cannot be repeated" in line
    assert main(["probe", str(out), "--at", "0", "0", "0", "--radius-mm", "30", "--out", str(tmp_path / "probe")]) == 0


def test_another_checkpoint_of_the_same_name_is_not_the_same_once_more(tiny_study, tmp_path, capsys):
    shipped = Path(sample_folder()).parents[1] / "diffspect_nb" / "weights"
    mine, out = tmp_path / "mine.safetensors", tmp_path / "out"
    shutil.copy(shipped / "diffspect.safetensors", mine)
    argv = ["reconstruct", str(tiny_study), "--steps", "1", "--prior", str(mine), "--out", str(out)]
    assert main(argv) == 0
    shutil.copy(shipped / "paper.safetensors", mine)
    capsys.readouterr()
    repeat = ("reconstruct", "--from", out / "result.json", "--out", tmp_path / "again")
    assert "another checkpoint" in refused(capsys, *repeat)


def test_iterations_are_those_asked_for(tiny_study, tmp_path):
    "OSEM: so many passes; the image is the library's."
    assert main(["reconstruct", str(tiny_study), "--out", str(tmp_path), "--method", "osem", "--iterations", "3"]) == 0
    image = osem(Study.load(tiny_study).measurement(), 3)
    torch.testing.assert_close(load_image(tmp_path / "image.nii.gz"), image)
    assert json.loads((tmp_path / "result.json").read_text())["iterations"] == 3


def test_mlem_on_the_command_line(tiny_study, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["reconstruct", str(tiny_study), "--out", str(out), "--method", "mlem", "--counts", "0.5", "--views", "3"]
    assert main(argv) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["views"] == [1, 2, 3] and result["count_fraction"] == 0.5
    assert {r["reference"] for r in result["metrics"]} == {"truth"}
    image = nibabel.load(out / "image.nii.gz")
    assert image.shape == (20, 20, 16) and np.allclose(image.affine, tiny_grid().affine())
    assert (out / "views.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    truth = str(tiny_study / "truth.nii.gz")
    assert main(["evaluate", str(out / "image.nii.gz"), truth]) == 0
    assert "psnr_db" in capsys.readouterr().out
    assert main(["evaluate", truth, truth]) == 0
    assert "inf" in capsys.readouterr().out


def test_scanner_prints_json_that_is_a_scanner(capsys):
    assert main(["scanner", "dnm570c"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["pinholes"]) == 19 and printed["status"]["aperture_mm"].startswith("assumption")
    assert "known: dnm570c" in refused(capsys, "scanner", "nothing")


def test_a_result_says_how_many_threads_made_it(tiny_study, tmp_path, capsys):
    "They order the sums; a result that is repeated with others says so."
    out = tmp_path / "out"
    assert main(["reconstruct", str(tiny_study), "--out", str(out), "--method", "osem"]) == 0
    result = json.loads((out / "result.json").read_text())
    assert result["versions"]["threads"] == torch.get_num_threads()
    again = ["reconstruct", "--from", str(out / "result.json"), "--out", str(tmp_path / "again")]
    assert main(again) == 0 and "threads" not in capsys.readouterr().err
    result["versions"]["threads"] += 1
    (out / "result.json").write_text(json.dumps(result))
    assert main(again) == 0 and "other versions than then of threads" in capsys.readouterr().err


def test_info_names_versions_and_checkpoints(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed and all(f"checkpoint     {name}" in printed for name in ("diffspect", "paper"))


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--help"])
    printed = capsys.readouterr().out
    assert ended.value.code == 0 and printed.startswith(f"usage: diffspect {command}".rstrip())
    assert command or set(COMMANDS) <= set(printed.split())


@pytest.mark.slow
def test_the_installed_command_answers_and_usage_errors_exit_with_2():
    argv = [str(Path(sys.executable).parent / "diffspect")]
    done = subprocess.run([*argv, "--version"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"diffspect {diffspect_nb.__version__}\n"
    done = subprocess.run([*argv, "fly"], capture_output=True, text=True)
    assert done.returncode == 2 and "invalid choice: 'fly'" in done.stderr


@pytest.mark.slow
def test_a_heart_is_read_from_the_command_line(tmp_path, capsys):
    "Stress and rest of one phantom: where the apex points, a table of 17 segments, what fills in at rest."
    defect = {"territory": "RCA", "severity": 0.7, "center_deg": 180.0, "half_extent_deg": 45.0}
    defect |= {"height_from": 0.2, "height_to": 0.8, "edge_mm": 4.0}
    for name, defects in (("stress", [defect]), ("rest", [])):
        phantom = torso(np.random.default_rng(3), defects=defects, sex="m")
        blurred = gaussian_filter(phantom.activity.numpy(), 1.3)
        save_image(tmp_path / f"{name}.nii.gz", torch.from_numpy(blurred), phantom.grid)
    stress, rest = str(tmp_path / "stress.nii.gz"), str(tmp_path / "rest.nii.gz")
    out = tmp_path / "reading"
    assert main(["read", stress, rest, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "reversible" in printed and "simulated normals" in printed
    found = json.loads((out / "reading.json").read_text())["images"]
    truth = true_ventricle(phantom.meta["heart"])
    assert all(abs(found[name]["azimuth_deg"] - truth.azimuth_deg) < 12 for name in ("stress", "rest"))
    assert found["stress"]["extent_percent"] > found["rest"]["extent_percent"] + 3
    rows = list(csv.DictReader((out / "segments.csv").open()))
    mean = {(r["image"], r["name"]): float(r["mean"]) for r in rows}
    assert len(rows) == 34 and mean["stress", "mid inferior"] < mean["rest", "mid inferior"] - 15
    for name in ("views.png", "polar.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert main(["read", stress, "--azimuth", "50", "--out", str(out)]) == 0
    assert json.loads((out / "reading.json").read_text())["images"]["image"]["azimuth_deg"] == pytest.approx(50)
    save_image(tmp_path / "flat.nii.gz", torch.ones(phantom.grid.shape), phantom.grid)
    assert main(["read", str(tmp_path / "flat.nii.gz"), "--out", str(out)]) == 2
    assert "no heart in view" in capsys.readouterr().err


@pytest.mark.slow
def test_samples_and_a_probe_of_what_they_show(tiny_study, tmp_path, capsys):
    "Mean and interval beside the image; then the counts are asked about its hottest place."
    out, plain = tmp_path / "out", tmp_path / "plain"
    few = ["--counts", "0.5", "--seed", "3"]
    assert main(["reconstruct", str(tiny_study), "--out", str(out), "--samples", "2", *few]) == 0
    assert main(["reconstruct", str(tiny_study), "--out", str(plain), *few]) == 0
    image, mean, half = (load_image(out / f"{n}.nii.gz") for n in ("image", "mean", "uncertainty"))
    assert torch.equal(image, load_image(plain / "image.nii.gz")) and not (plain / "mean.nii.gz").exists()
    assert half.max() > 0 and (half >= 0).all() and not torch.equal(mean, image)
    about = json.loads((out / "result.json").read_text())["uncertainty"]
    assert about["samples"] == 2 and about["temperature"] > 0 and "uncertainty.nii.gz" in capsys.readouterr().out
    grid = tiny_grid()
    hottest = [str(float(v)) for v in grid.centers_mm()[int(image.argmax())]]
    asked = ["probe", str(out), "--radius-mm", "30", "--out", str(tmp_path / "probe"), "--at", *hottest]
    assert main(asked) == 0
    found = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert found["verdict"] in capsys.readouterr().out and found["voxels"] > 8 and found["replaced_by"] < found["shown"]
    assert main([*asked, "--level", "0"]) == 0  # a heart without its hottest part is not what was measured
    found = json.loads((tmp_path / "probe" / "probe.json").read_text())
    assert found["verdict"] == "the counts support what the image shows" and found["log_likelihood_ratio"] > 5
    for name in ("region.png", "probe.png"):
        assert (tmp_path / "probe" / name).read_bytes().startswith(b"\x89PNG")


def test_samples_and_probes_that_cannot_be(tiny_study, tmp_path, capsys):
    out = tmp_path / "out"
    assert "one has no spread" in refused(capsys, "reconstruct", tiny_study, "--out", out, "--samples", 1)
    four = ("reconstruct", tiny_study, "--out", out, "--samples", 4)
    for method in ("paper", "mlem"):
        line = refused(capsys, *four, "--method", method)
        assert f"--samples belongs to method anchored, not {method}; {method} has --" in line
    assert main([str(a) for a in (*four, "--steps", 2)]) == 2  # not what the temperatures were fitted for
    assert "fitted for another" in capsys.readouterr().err.splitlines()[-1] and not list(out.iterdir())
    assert main(["reconstruct", str(tiny_study), "--out", str(out), "--method", "osem", "--iterations", "1"]) == 0
    capsys.readouterr()
    again = ("--from", out / "result.json", "--out", tmp_path / "again", "--samples", 4)
    assert "belongs to method anchored, not osem" in refused(capsys, "reconstruct", *again)
    assert "which region" in refused(capsys, "probe", out)
    assert "region is empty" in refused(capsys, "probe", out, "--at", 900, 0, 0)
    assert "cannot be read" in refused(capsys, "probe", tmp_path / "nothing", "--at", 0, 0, 0)


@pytest.mark.slow
def test_training_from_the_command_line_and_using_what_it_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DIFFSPECT_CACHE", str(tmp_path / "cache"))
    network = {"n_slices": 16, "widths": [16, 32], "blocks": 1, "embedding": 32, "head_width": 32}
    config = {"label": "mlem50", "n_studies": 1, "steps": 3, "batch": 4, "scanner": "tiny", "network": network}
    config["grid"] = tiny_grid().to_json()
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["train", str(tmp_path / "config.json"), "--out", str(tmp_path / "run")]) == 0
    rng = np.random.default_rng(0)
    simulate(torso(rng, tiny_grid()), tiny(), 1e5, rng).save(tmp_path / "study")
    checkpoint = tmp_path / "run" / "checkpoint.safetensors"
    argv = ["reconstruct", tmp_path / "study", "--out", tmp_path / "out", "--prior", checkpoint, "--steps", "2"]
    assert main([str(a) for a in argv]) == 0
    assert json.loads((tmp_path / "out" / "result.json").read_text())["weights"]["steps"] == 2
    (tmp_path / "config.json").write_text(json.dumps(config | {"stepz": 3}))
    capsys.readouterr()
    assert "stepz" in refused(capsys, "train", tmp_path / "config.json", "--out", tmp_path / "other")


def test_an_impossible_benchmark_is_refused(tmp_path, capsys):
    assert "--studies" in refused(capsys, "benchmark", "--out", tmp_path, "--studies", "0")
    assert "of the PhysioNet 530c set" in refused(capsys, "benchmark", "--out", tmp_path, "--real", tmp_path)


@pytest.mark.slow
def test_a_quick_benchmark_writes_tables_and_figures(tmp_path, capsys):
    argv = ["benchmark", "--quick", "--first-seed", "910020", "--settings", "views 3", "--out", str(tmp_path)]
    assert main(argv) == 0
    assert "guided minus the best classical" in capsys.readouterr().out
    made = {p.name for p in tmp_path.iterdir()}
    assert made >= {"rows.jsonl", "summary.csv", "differences.csv", "worse.csv", "about.json", "curves_psnr_db.png"}
    about = json.loads((tmp_path / "about.json").read_text())
    assert about["studies"] == ["patient 910020"] and about["settings"] == ["views 3"]
    rows = (tmp_path / "rows.jsonl").read_text()
    assert main(argv) == 0 and (tmp_path / "rows.jsonl").read_text() == rows  # nothing is computed twice


@pytest.mark.slow
def test_demo_keeps_its_promise(tmp_path, capsys):
    "The guided image beats MLEM-50, the best Gaussian and the best-stopped MLEM against the truth, in both regions."
    assert main(["demo", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "result.json").read_text())["metrics"]
    assert {r["reference"] for r in rows} == {"truth", "full-dose MLEM-50"}
    for mask in ("field of view", "heart"):
        against_truth = {r["image"]: r for r in rows if r["reference"] == "truth" and r["mask"] == mask}
        guided = against_truth.pop("guided")
        del against_truth["full-dose MLEM-50"]
        assert len(against_truth) == 3
        for rival in against_truth.values():
            assert guided["psnr_db"] > rival["psnr_db"] and guided["nrmse"] < rival["nrmse"], (mask, rival["image"])
    for name in ("image.nii.gz", "mlem-50.nii.gz", "support.nii.gz", "views.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    assert Study.load(sample_folder()).truth.shape == nibabel.load(tmp_path / "image.nii.gz").shape[::-1]


def test_help_loads_nothing_heavy():
    "Whoever asks for help does not wait for PyTorch."
    code = """
import sys
from diffspect_nb.cli import main
try: main(["--help"])
except SystemExit: print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "reconstruct" in done.stdout
    assert not {"torch", "numpy", "matplotlib", "numba", "scipy"} & set(done.stdout.splitlines()[-1].split())


def test_the_parser_of_one_command_is_part_of_the_whole():
    "The options that a command is given alone are those of the full parser."
    for name in COMMANDS:
        whole, alone = parser(), parser(name)
        texts = [
            next(a for a in p._actions if isinstance(a, argparse._SubParsersAction)).choices[name].format_help()
            for p in (whole, alone)
        ]
        assert texts[0] == texts[1]
