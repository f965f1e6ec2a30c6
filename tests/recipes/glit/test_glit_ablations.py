"""Tables 1, 4, 5 and 6 on very small runs, and the heat maps of figure 6."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nasx import Arch
from nasx.cli import apply_settings
from nasx.pipeline.ablation import seeds_of
from nasx.pipeline.machine import Machine
from recipes.glit.__main__ import main
from recipes.glit.ablations import ablation, kernels, windows
from recipes.glit.config import CIFAR10, DIGITS
from recipes.glit.cost import Macs, PaperMacs, Params
from recipes.glit.heatmaps import first_of_each_class, heat_maps_of_run, token_maps
from recipes.glit.model import GLiT, GLiTConfig, build_in
from recipes.glit.space import GLiTSpace, same_heads
from recipes.glit.variant import Locality, Variant
from tests.pipeline.problems import glit

SHORT = [
    *("model.embed_dim=12", "space.blocks=2", "data.val_fraction=0.1"),
    *("supernet.epochs=0.2", "supernet.warmup_epochs=0", "retrain.epochs=0.2", "retrain.warmup_epochs=0"),
    *("search.population=3", "search.generations=1", "search.parents=2", "search.recalibration_batches=1"),
    *("budget.heads_at_most=1e9", "budget.details_at_least=1", "budget.details_at_most=1e9"),
]
CONFIG = apply_settings(DIGITS, SHORT)
MACHINE = Machine(device="cpu", processes=1)


def run(table: str, root: Path, seeds: Sequence[int] = (0,)) -> dict[str, Any]:
    return ablation(table, CONFIG, None, MACHINE).run(root, MACHINE, seeds=seeds)


def rows(document: dict[str, Any]) -> dict[str, Any]:
    return {row["run"]: row for row in document["rows"]}


def test_table_1_trains_every_number_of_global_heads_with_every_seed(tmp_path: Path) -> None:
    document = run("table1", tmp_path, seeds=(3, 5))
    vit, choices = CONFIG.vit(in_channels=1, num_classes=10), CONFIG.choices()
    for heads, row in zip((3, 2, 1, 0), document["rows"], strict=True):
        arch = same_heads(heads, choices)
        assert [Arch(network["arch"]) for network in row["networks"]] == [arch, arch]
        assert [network["seed"] for network in row["networks"]] == [3, 5]
        assert (row["macs"]["mean"], row["params"]["mean"]) == (Macs(vit)(arch), Params(vit)(arch))
        assert row["paper_macs"]["mean"] == PaperMacs(vit)(arch)
        accuracies = [network["test_accuracy"] for network in row["networks"]]
        assert row["test_accuracy"] == {"mean": np.mean(accuracies), "std": statistics.stdev(accuracies)}
    assert [row["paper"]["accuracy"] for row in document["rows"]] == [72.20, 72.89, 73.98, 71.02]
    assert json.loads((tmp_path / "table1.json").read_text()) == document
    assert (tmp_path / "table1.svg").read_text().count("<svg") == 1


def test_rows_that_are_one_run_are_run_once_and_repeat_nothing(tmp_path: Path) -> None:
    fourth = rows(run("table4", tmp_path))
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    fifth, sixth = run("table5", tmp_path), run("table6", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert rows(fifth)["hierarchical"] == {**rows(sixth)["hierarchical"], "label": "hierarchical"}
    assert fifth["rows"][0]["networks"] == fourth["hierarchical"]["networks"]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        *("heads3", "hierarchical", "nlp", "spos", "random", "window", "conv2d")
    }

    # what the rows of the paper are
    only = {name: row["networks"][0]["arch"] for name, row in {**fourth, **rows(fifth), **rows(sixth)}.items()}
    assert {only["nlp"][f"block.{i}.global_heads"] for i in range(2)} == {3}
    assert not any("kernel_size" in name for name in only["nlp"])
    windowed = json.loads((tmp_path / "window/seed0/run.json").read_text())["config"]["config"]["space"]
    assert (windowed["locality"], windowed["window"], windowed["held_window"]) == ("window", [2, 4, 8], 4)
    squared = json.loads((tmp_path / "conv2d/seed0/run.json").read_text())["config"]["config"]["space"]
    assert (squared["locality"], squared["kernel_size"], squared["held_kernel_size"]) == ("conv2d", [3, 5], 3)
    steps = {name: tmp_path / name / "seed0" / "journal.jsonl" for name in ("nlp", "spos")}
    taken = {}
    for name, journal in steps.items():
        records = [json.loads(line)["record"] for line in journal.read_text().splitlines()]
        taken[name] = next(
            record["result"]["steps"]
            for record in records
            if record.get("stage") == "joint/supernet" and "result" in record
        )
    assert taken["spos"] == pytest.approx(2 * taken["nlp"], abs=1)
    assert not list(tmp_path.rglob("baselines")), "comparison networks are rows of their own"


def test_stage_one_only_is_the_first_half_of_both_stages(tmp_path: Path) -> None:
    first, both = (row for row in run("table4", tmp_path)["rows"] if row["run"] == "hierarchical")
    heads = [Arch(row["networks"][0]["arch"]).only("block.*.global_heads") for row in (first, both)]
    assert heads[0] == heads[1]
    searched = Arch(first["networks"][0]["arch"])
    for pattern, value in CONFIG.choices().held().items():
        assert set(searched.only(pattern).values()) <= {value}


def test_an_interrupted_table_goes_on_with_the_same_result(tmp_path: Path) -> None:
    whole = run("table1", tmp_path / "whole")

    def show(description: str, done: float, total: float, note: str = "") -> None:
        if description.startswith("heads1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablation("table1", CONFIG, None, MACHINE).run(tmp_path / "stopped", MACHINE, show)
    assert not (tmp_path / "stopped" / "table1.json").exists()
    again: list[str] = []

    def note(description: str, done: float, total: float, note: str = "") -> None:
        again.append(description)

    document = ablation("table1", CONFIG, None, MACHINE).run(tmp_path / "stopped", MACHINE, note)
    assert {text.split(":")[0] for text in again} == {"heads1 seed 0", "heads0 seed 0"}
    for row in (*whole["rows"], *document["rows"]):
        del row["networks"][0]["seconds"]
    assert document == whole


def test_what_a_row_cannot_do_is_said_before_anything_is_trained(tmp_path: Path) -> None:
    ablation("table6", DIGITS, None, MACHINE).check(tmp_path, MACHINE)
    nothing = ["budget.heads_at_most=1e8", "budget.details_at_least=1e7", "budget.details_at_most=2e7"]
    with pytest.raises(ValueError, match="attainable"):
        ablation("table5", apply_settings(DIGITS, nothing), None, MACHINE).check(tmp_path, MACHINE)
    for setting in ("supernet.paths=fair", 'search.mutation_probability={"block.*.global_heads": 0.2}'):
        with pytest.raises(ValueError, match=r"open subspaces|for the gene 'block\.0\.\w+'"):
            ablation("table5", apply_settings(DIGITS, [setting]), None, MACHINE).check(tmp_path, MACHINE)


@pytest.mark.parametrize(
    ("patches", "expected"), [(196, [14, 28, 49]), (64, [4, 8, 16]), (16, [2, 4, 8]), (256, [16, 32, 64])]
)
def test_windows_are_the_papers_at_its_size_and_divide_everywhere(patches: int, expected: list[int]) -> None:
    assert windows(patches) == expected


def test_kernels_are_the_papers_at_its_size_and_local_everywhere() -> None:
    assert kernels(14) == kernels(CIFAR10.data.image_size // CIFAR10.model.patch_size) == [3, 5, 7]
    assert kernels(4) == [3, 5]


def test_seeds_are_different_whole_numbers() -> None:
    assert seeds_of("0,1,7") == (0, 1, 7)
    for wrong in ("", "0,0", "a", "-1", "1.5"):
        with pytest.raises(ValueError, match="different whole numbers"):
            seeds_of(wrong)


@pytest.mark.parametrize("locality", ["conv1d", "conv2d"])
def test_a_heat_map_is_the_mean_over_channels_of_what_the_last_norm_reads(locality: Locality) -> None:
    vit = GLiTConfig(
        image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=12, variant=Variant(locality=locality)
    )
    choices = GLiTSpace(blocks=2, locality=locality, kernel_size=(3,), held_kernel_size=3)
    torch.manual_seed(0)
    network = build_in(vit, same_heads(1, choices), init_std=0.2).eval()
    images = torch.randn(3, 1, 8, 8)
    read: list[torch.Tensor] = []
    network.norm.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.no_grad():
        network(images)
    maps = token_maps(network, images)
    first = 1 if locality == "conv1d" else 0  # the class token
    assert maps.shape == (3, 4, 4)
    for row in range(4):
        for column in range(4):
            torch.testing.assert_close(maps[:, row, column], read[0][:, first + 4 * row + column].mean(1))


def test_one_image_of_each_class_is_shown() -> None:
    labels = np.array([2, 0, 2, 1, 0])
    assert first_of_each_class(labels, 8) == [1, 3, 0]
    assert first_of_each_class(labels, 2) == [1, 3]


def test_a_finished_run_has_its_figures(tmp_path: Path) -> None:
    settings = [word for setting in SHORT for word in ("--set", setting)]
    with pytest.raises(ValueError, match="no run directory"):
        heat_maps_of_run(tmp_path)
    assert main(["run", "--method", "random", "--run-dir", str(tmp_path), *settings]) == 0
    assert "DeiT-shaped (all heads global)" in (tmp_path / "figures/networks_over_macs.svg").read_text()

    panels = heat_maps_of_run(tmp_path, count=3).axes
    assert [panels[i].get_ylabel() for i in (0, 3, 6)] == ["images", "DeiT-shaped", "searched"]
    problem = glit([*SHORT, "method=random"])
    network = problem.make(Arch.from_json((tmp_path / "arch.json").read_text()))
    network.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert isinstance(network, GLiT)
    images, labels = next(iter(problem.task.eval_batches("val", 512)))
    for number in range(3):
        first = images[labels == number][:1]
        shown = np.asarray(panels[6 + number].images[0].get_array())
        np.testing.assert_allclose(shown, token_maps(network, first)[0].numpy(), rtol=1e-4, atol=1e-5)


def test_the_command_prints_one_document_and_continues(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [word for setting in SHORT for word in ("--set", setting)]
    words = ["ablate", "table1", "--run-dir", str(tmp_path), *settings]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "table1.json").read_text())
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "G 3, L 0 (DeiT-shaped)" in printed
    assert "72.2 %" in printed
    assert main([*words, "--set", "retrain.epochs=0.3"]) == 2
    assert "another retrain.epochs (0.2, now 0.3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table2"], "did you mean"),
        (["table1", "--seeds", "1,1"], "different whole numbers"),
        (["table1", "--seeds", ""], "different whole numbers"),
    ],
)
def test_bad_input_starts_nothing(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["ablate", *words, "--run-dir", str(tmp_path / "runs")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
