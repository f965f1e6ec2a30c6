"""The command line as a user meets it: bad input, plain documents, continuing, and what a run leaves."""

import itertools
import json
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from nasx import Arch
from nasx.data import Dataset, Images, load_digits
from nasx.pipeline.commands import CommandLine
from nasx.ranking import rank_agreement
from recipes.glit.__main__ import main
from recipes.glit.config import PRESETS
from recipes.glit.cost import macs, params
from recipes.glit.model import GLIT_TINY, build
from recipes.glit.space import GLiTSpace, table2

KINDS = ("supernet", "search", "retrain")
ROOT = Path(__file__).parents[3]
TINY_RUN = [
    *("--set", "supernet.epochs=0.5", "--set", "supernet.warmup_epochs=0", "--set", "retrain.epochs=0.3"),
    *("--set", "retrain.warmup_epochs=0", "--set", "search.population=3", "--set", "search.generations=2"),
    *("--set", "search.parents=2", "--set", "search.recalibration_batches=1", "--set", "model.embed_dim=12"),
    *("--set", "budget.heads_at_most=1e9", "--set", "budget.details_at_least=1", "--set", "budget.details_at_most=1e9"),
]


def folder(root: Path, *, per_class: int = 12, splits: tuple[str, ...] = ("train", "test"), classes: int = 3) -> Path:
    from PIL import Image

    data = load_digits(seed=0)
    for split in splits:
        for label in range(classes):
            (root / split / f"class{label}").mkdir(parents=True)
            members = np.flatnonzero(data.train.labels == label)[:per_class]
            for i, pixels in enumerate(data.train.load(members)):
                Image.fromarray(pixels[0].numpy()).resize((32, 32)).save(root / split / f"class{label}" / f"{i}.png")
    return root


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    status = main(arguments)
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "")
    error = "".join(line for line in captured.err.splitlines(keepends=True) if not line.startswith("note: "))
    assert error.startswith("error: ")
    assert error.count("\n") == 1, "one message, on one line"
    return error


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--preset", "digit"], "'digits'"),
        (["--method", "spo"], "'spos'"),
        (["--set", "supernet.epoch=3"], "'supernet.epochs'"),
        (["--set", "supernett.epochs=3"], "'supernet.epochs'"),
        (["--set", "supernet=3"], "supernet"),
        (["--set", "supernet.epochs"], "section.field=value"),
        (["--set", "supernet.epochs=many"], "supernet.epochs"),
        (["--set", "supernet.epochs=-1"], "supernet.epochs"),
        (["--set", "search.mutation_probability=1.5"], "search.mutation_probability"),
        (
            ["--set", 'search.mutation_probability={"block.*.global_heads": 0.2}'],
            "no search.mutation_probability is given for",
        ),
        (
            ["--set", "space.kernel_size=[4]"],
            "space.kernel_size.0: must be odd, such as 3 or 5, so that 'same' padding is symmetric, but got 4",
        ),
        (["--set", "space.global_heads=[0,4]"], "0..3, which is model.num_heads, but got [0, 4]; write [0, 1, 2, 3]"),
        (["--set", "space.global_heads=[0,1,7]", "--set", "model.num_heads=6"], "write [0, 2, 4, 6]"),
        (["--set", "model.embed_dim=50"], "write model.embed_dim=51"),
        (["--set", "model.patch_size=3"], "write model.patch_size=2"),
        (["--set", "model.patch_size=16"], "write model.patch_size=4"),
        (["--set", "supernet.batch_size=5000"], "batch"),
        (["--set", "budget.details_at_most=1e3"], "details_at_least <= budget.details_at_most"),
        (["--set", "budget.details_at_most=1e3", "--set", "budget.details_at_least=null"], "attainable are"),
        (["--set", "budget.heads_at_most=1.4"], "write 1.4e9"),
        (["--set", "budget.details_at_most=4.4"], "write 4.4e9"),
        (["--set", "budget.details_at_least=1e12", "--set", "budget.details_at_most=2e12"], "attainable are"),
        (["--set", "budget.details_at_least=2e6"], "details_at_least <= budget.details_at_most"),
        (
            [
                "--set",
                "budget.heads_at_most=1.06e6",
                "--set",
                "budget.details_at_least=1.6e6",
                "--set",
                "budget.details_at_most=2e6",
            ],
            "no architecture meets both",
        ),
        (["--set", "search.recalibration_batch_size=2000"], "batch"),
        (["--set", "supernet.paths=fair"], "open subspaces"),
        (["--set", "supernet.paths=best"], "'stratified'"),
        (["--set", "retrain.batch_size=63", "--set", "retrain.mixup=0.8"], "batch_size"),
        (["--set", "data.image_size=16"], "data.image_size must be 8"),
        (["--set", "space.mlp_ratio=[-1,4]"], "mlp_ratio"),
        (["--set", "space.mlp_ratio=[0.01,4]"], "space.mlp_ratio must leave a hidden width"),
        (["--set", "space.qkv_ratio=[0.4,1]"], "space.qkv_ratio must give each of"),
        (["--set", "supernet.warmup_epochs=30"], "supernet.warmup_epochs must be less than supernet.epochs"),
        (["--set", "retrain.augment.resized_crop=[0.1,1]"], "`retrain.augment.resized_crop`, `retrain.augment.au"),
        (["--set", "supernet.teacher=nowhere"], "supernet.teacher: a teacher is"),
        (
            ["--set", "budget.latency=nowhere.json", "--set", "budget.latency_at_most=5"],
            "budget.latency cannot be read",
        ),
        (["--set", "preset=cifar10"], "--preset"),
        (["--preset", "digits", "--data", "somewhere"], "embedded"),
        (["--data", "somewhere"], "there is no directory"),
        (["--preset", "cifar10"], "--data DIR"),
        (["--preset", "cifar10", "--data", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    arguments: list[str],
    found: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert found in refused(["run", *arguments], capsys)
    assert not list(tmp_path.iterdir()), "nothing was started"


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        (
            ["--set", "supernet.strata=4"],
            "supernet.strata has no effect, because supernet.paths is uniform, not stratified",
        ),
        (["--method", "random", "--set", "supernet.lr=1"], "supernet.lr has no effect, because no supernet is trained"),
    ],
)
def test_a_setting_without_effect_is_noted(arguments: list[str], note: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--no-timing", *arguments]) == 0
    assert f"note: {note}\n" in capsys.readouterr().err


def test_every_folder_has_a_default_run_directory_of_its_own(tmp_path: Path) -> None:
    line = CommandLine("recipes.glit", "", presets=("digits",))
    config = PRESETS["cifar10"]
    names = {line.run_name(config, tmp_path / name) for name in ("a/photos", "b/photos")}
    assert len(names) == 2
    assert all(name.startswith("glit-cifar10-hierarchical-photos-") for name in names)
    assert line.run_name(config, tmp_path / "a" / ".." / "a" / "photos") in names, "however the folder is written"


def test_an_unknown_device_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NASX_DEVICE", "warp")
    assert "'warp'" in refused(["run"], capsys)
    assert not list(tmp_path.iterdir())


def test_an_image_memory_without_bound_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NASX_IMAGE_MEMORY_GIB", "inf")
    assert "NASX_IMAGE_MEMORY_GIB" in refused(["run"], capsys)
    assert not list(tmp_path.iterdir())


def test_bad_folders(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "test/ nor val/" in refused(["run", "--preset", "cifar10", "--data", str(tmp_path / "empty")], capsys)
    for split in ("train", "test"):
        (tmp_path / "bare" / split).mkdir(parents=True)
    assert "class" in refused(["run", "--preset", "cifar10", "--data", str(tmp_path / "bare")], capsys)
    root = folder(tmp_path / "hollow")
    for file in (root / "train" / "class1").iterdir():
        file.unlink()
    assert "class1" in refused(["run", "--preset", "cifar10", "--data", str(root)], capsys)


def test_an_architecture_that_is_not_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "glit-tiny" in refused(["describe", "--arch", "glit-tin"], capsys)
    (tmp_path / "list.json").write_text("[1]")
    assert "object" in refused(["describe", "--arch", str(tmp_path / "list.json")], capsys)
    (tmp_path / "broken.json").write_text("{")
    refused(["describe", "--arch", str(tmp_path / "broken.json")], capsys)
    wrong = {**GLIT_TINY, "block.3.global_heads": 7}
    (tmp_path / "wrong.json").write_text(Arch(wrong).to_json())
    assert "block.3.global_heads" in refused(["describe", "--arch", str(tmp_path / "wrong.json")], capsys)


def test_describe_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["describe", "--arch", "glit-tiny", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["params"], found["macs"], len(found["blocks"])) == (7_264_456, 1_472_873_280, 12)
    assert round(found["paper_macs"] / 1e6, 1) == 1332.5
    (tmp_path / "arch.json").write_text(GLIT_TINY.to_json())
    assert main(["describe", "--arch", str(tmp_path / "arch.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == found


def test_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json", "--no-timing"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["size"] == 198**4
    assert 0 < found["feasible_size"] < found["size"]
    assert found["cost_min"] < found["baselines"]["deit_shaped"]["macs"] < found["cost_max"]
    assert found["images"] == {"train": 1150, "val": 287}
    assert sum(found["cost_histogram"]["shares"]) == pytest.approx(1)
    stages = {stage["name"]: stage for stage in found["stages"]}
    assert list(stages) == [f"{level}/{kind}" for level in ("heads", "details") for kind in KINDS] + [
        *("baselines", "evaluation")
    ]
    assert stages["heads/supernet"]["size"] == 4**4
    assert stages["heads/supernet"]["trained_images"] == 25 * (1150 // 64) * 64
    assert stages["heads/search"]["images"] == 120 * (2 * 256 + 287)
    assert stages["heads/retrain"]["trained_images"] == 2 * 32 * (1150 // 64) * 64
    assert found["seconds"] is None


def test_plan_measures_time_and_memory_and_warns(capsys: pytest.CaptureFixture[str]) -> None:
    short = [*TINY_RUN, "--method", "spos", "--set", "trust.n=6", "--time-limit", "1e-9", "--devices", "2"]
    assert main(["plan", "--json", *short]) == 0
    found = json.loads(capsys.readouterr().out)
    measured = [stage for stage in found["stages"] if stage["name"] != "evaluation"]
    assert [stage["name"] for stage in measured] == [
        "joint/supernet",
        "joint/search",
        "joint/trust",
        "joint/retrain",
        "baselines",
    ]
    assert found["seconds"] == pytest.approx(sum(stage["seconds"] for stage in measured))
    assert all(stage["seconds"] > 0 and stage["peak_bytes"] > 2**20 for stage in measured)
    assert all("more devices" in stage["warning"] for stage in measured)
    assert main(["plan", *short]) == 0
    found = capsys.readouterr().out
    assert "warning: would take about" in found
    assert "on 2 devices" in found


def test_trust_judges_the_ranking_of_a_supernet_and_draws_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["trust", *TINY_RUN, "--method", "spos", "--n", "6", "--run-dir", str(tmp_path / "run"), "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)["joint/trust"]
    archs = [Arch(row["arch"]) for row in found["architectures"]]
    assert len(set(archs)) == 6
    costs = sorted(row["macs"] for row in found["architectures"])
    widest = max(b - a for a, b in itertools.pairwise(costs))
    assert widest <= 2 * (max(costs) - min(costs)) / 5 + 1  # one in each of six equal spans
    agreement = rank_agreement(*([row[key] for row in found["architectures"]] for key in ("score", "accuracy", "macs")))
    assert found["agreement"]["tau"]["value"] == agreement.tau.value
    assert json.loads((tmp_path / "run" / "trust.json").read_text())["joint/trust"] == found
    assert "<svg" in (tmp_path / "run" / "trust.svg").read_text()
    assert not (tmp_path / "run" / "joint" / "retrain").exists()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["joint/trust"] == found
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "it is only read"
    assert "no supernet" in refused(["trust", "--method", "random", "--run-dir", str(tmp_path / "other")], capsys)


def test_a_run_asked_to_judges_its_rankings_before_it_retrains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", *TINY_RUN, "--method", "spos", "--set", "trust.n=5", "--run-dir", str(tmp_path), "--json"]
    assert main(run) == 0
    summary = json.loads(capsys.readouterr().out)
    assert list(summary["stages"])[:4] == ["joint/supernet", "joint/search", "joint/trust", "joint/retrain"]
    assert summary["trust"]["joint"] in " ".join((tmp_path / "report.html").read_text().split()).replace("&#39;", "'")


@pytest.mark.parametrize("method", ["hierarchical", "spos", "random"])
def test_a_run_and_its_continuation(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    once = Dataset.open_test

    def counted(data: Dataset) -> Images:
        opened.append(data.name)
        return once(data)

    monkeypatch.setattr(Dataset, "open_test", counted)
    monkeypatch.setattr("nasx.pipeline.image_sources._loaded", {})  # as in a process that has read no images yet
    command = ["run", "--method", method, "--run-dir", str(tmp_path / "run"), "--json", *TINY_RUN]
    assert main(command) == 0
    summary = json.loads(capsys.readouterr().out)
    assert len(opened) == 1, "the test images are read by the final evaluation alone"

    run = tmp_path / "run"
    assert json.loads((run / "summary.json").read_text()) == summary
    assert set(summary["networks"]) == {"searched", "deit_shaped", "random"}
    arch = Arch.from_json((run / "arch.json").read_text())
    choices = GLiTSpace(blocks=4, kernel_size=(3, 5, 9), held_kernel_size=5)
    assert arch in table2(choices)
    vit = {"image_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 10, "embed_dim": 12}
    searched = summary["networks"]["searched"]
    assert searched["params"] == params.configured(**vit)(arch)
    assert searched["macs"] == macs.configured(**vit)(arch)
    assert all(0 <= network["test_accuracy"] <= 1 for network in summary["networks"].values())
    assert all(stage["seconds"] >= 0 for stage in summary["stages"].values())
    build(arch, 10, 8, patch_size=2, in_channels=1, embed_dim=12).load_state_dict(load_file(run / "model.safetensors"))
    for name in ("arch.json", "model.safetensors"):
        assert str(tmp_path).encode() not in (run / name).read_bytes()
    HTMLParser().feed((run / "report.html").read_text())
    assert f"{searched['test_accuracy'] * 100:.2f}" in (run / "report.html").read_text()
    assert (run / "figures/architecture.svg").read_text().count('id="block-') == 4

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
    assert main([argument for argument in command if argument != "--json"]) == 0
    assert "finished before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")} == before
    assert len(opened) == 1

    assert "search.parents" in refused([*command, "--set", "search.parents=1"], capsys)


def test_a_run_races_where_validation_images_are_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"data.val_fraction": "0.7", "search.recalibration_batch_size": "64", "supernet.paths": "stratified"}
    settings = [part for key, value in asked.items() for part in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    command = ["run", "--method", "spos", "--run-dir", str(run), *TINY_RUN, *settings]
    assert main([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    search = summary["searches"]["joint/search"]
    assert summary["split"]["val"]["images"] >= 1_000
    assert search["validation_images"] < search["validation_images_in_full"]
    assert search["recalibration_images"] == search["evaluations"] * 64
    assert search["racing_error"] == 0.05
    assert main(command) == 0
    assert "racing took" in " ".join(capsys.readouterr().out.split())


def test_a_killed_run_goes_on_after_the_last_finished_step(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "recipes.glit", "--run-dir", str(tmp_path / "run"), "--json", *TINY_RUN]
    killed = subprocess.run(
        [sys.executable, "-c", _KILL_AFTER_FIRST_SEARCH, *arguments[3:]], cwd=ROOT, capture_output=True, text=True
    )
    assert killed.returncode == 9, killed.stderr
    again = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    whole = subprocess.run(
        [*arguments[:4], str(tmp_path / "whole"), *arguments[5:]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(again.stdout)["networks"] == json.loads(whole.stdout)["networks"]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]


_KILL_AFTER_FIRST_SEARCH = """
import os, sys
from nasx.run import RunDirectory
import nasx.run.directory as directory
work = directory.RunDirectory._work
def killed(self, stage, stop):
    if stage.name == "heads/retrain":
        os._exit(9)
    return work(self, stage, stop)
directory.RunDirectory._work = killed
from recipes.glit.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_same_run_under_two_hash_seeds(tmp_path: Path) -> None:
    results = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [
                sys.executable,
                "-m",
                "recipes.glit",
                "--run-dir",
                str(tmp_path / seed),
                "--json",
                *TINY_RUN,
                "--method",
                "spos",
            ],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": seed, "NASX_PROCESSES": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        results.append(json.loads(done.stdout)["networks"])
    assert results[0] == results[1]
    files = [[(tmp_path / s / name).read_bytes() for name in ("arch.json", "model.safetensors")] for s in ("1", "2")]
    assert files[0] == files[1]


def test_presets_state_their_data() -> None:
    assert set(PRESETS) == {"digits", "cifar10", "glit-tiny", "glit-small", "glit-base"}
    assert all(re.fullmatch(r"[a-z0-9-]+", name) and config.preset == name for name, config in PRESETS.items())


def test_a_stopped_run_says_so_and_goes_on(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "recipes.glit", "--run-dir", str(tmp_path / "run"), "--json", *TINY_RUN]
    process = subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "run" / "heads" / "search" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (75, ""), err
    assert "continues" in err
    again = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(json.loads(again.stdout)["networks"]) == {"searched", "deit_shaped", "random"}
