"""The command line as a user meets it: a whole run, its continuation, the three ways to weights, bad input."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nasx import Arch
from nasx.cli import BadInput, apply_settings
from nasx.pipeline.image_sources import ImageSource, load_images
from recipes.autoformer.__main__ import main
from recipes.autoformer.config import PRESETS
from recipes.autoformer.cost import Params
from recipes.autoformer.model import AutoFormer
from recipes.autoformer.problem import autoformer_problem
from recipes.autoformer.space import uniform

TINY_RUN = [
    *("--set", "supernet.epochs=0.5", "--set", "supernet.warmup_epochs=0", "--set", "retrain.epochs=0.3"),
    *("--set", "retrain.warmup_epochs=0", "--set", "finetune.epochs=0.2", "--set", "search.population=3"),
    *("--set", "search.generations=2", "--set", "search.parents=2"),
]


def test_a_run_compares_three_ways_to_weights_and_is_not_done_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = ["run", *TINY_RUN, "--run-dir", str(tmp_path), "--json"]
    assert main(run) == 0
    summary = json.loads(capsys.readouterr().out)
    networks = summary["networks"]
    assert list(networks) == ["searched", "fine-tuned", "retrained", "deit_shaped", "random"]
    config = PRESETS["digits"]
    vit = config.vit(in_channels=1, num_classes=10)
    arch = Arch(networks["searched"]["arch"])
    assert {json.dumps(networks[way]["arch"]) for way in ("fine-tuned", "retrained")} == {json.dumps(dict(arch))}
    assert isinstance(config.budget.at_least, float)
    assert isinstance(config.budget.at_most, float)
    assert config.budget.at_least <= Params(vit)(arch) == networks["searched"]["params"] <= config.budget.at_most
    weights = load_file(tmp_path / "model.safetensors")
    AutoFormer(vit, arch).load_state_dict(weights)
    (number,) = {
        path.stem
        for path in (tmp_path / "sizes" / "inherit").glob("*.safetensors")
        if path.read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    }
    tuned = load_file(tmp_path / "sizes" / "finetune" / f"{number}.safetensors")
    assert tuned.keys() == weights.keys()
    moved = [float((tuned[name] - weights[name]).abs().mean()) for name in weights if weights[name].ndim > 1]
    fresh = load_file(tmp_path / "sizes" / "retrain" / f"{number}.safetensors")
    away = [float((fresh[name] - weights[name]).abs().mean()) for name in weights if weights[name].ndim > 1]
    assert 0 < max(moved) < max(away) / 5, "fine-tuning starts from the inherited weights, retraining does not"
    before = (tmp_path / "report.html").stat().st_mtime_ns
    assert main(run) == 0
    assert json.loads(capsys.readouterr().out) == summary
    assert (tmp_path / "report.html").stat().st_mtime_ns == before


def test_plan_counts_the_space_and_the_budget(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--json", "--no-timing"]) == 0
    document = json.loads(capsys.readouterr().out)
    choices = PRESETS["digits"].space
    per_block = len(choices.num_heads) * len(choices.mlp_ratio)
    assert document["size"] == len(choices.embed_dim) * sum(per_block**depth for depth in choices.depth)
    assert 0 < document["feasible_size"] < document["size"]
    assert [stage["name"] for stage in document["stages"]] == [
        *("sizes/supernet", "sizes/search", "sizes/inherit", "sizes/finetune", "sizes/retrain"),
        *("baselines", "evaluation"),
    ]


def test_describe_counts_the_network_of_the_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "arch.json"
    path.write_text(uniform(240, 14, 4, 4).to_json())
    assert main(["describe", "--arch", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["params"] == 10_517_272
    assert len(document["blocks"]) == 14
    path.write_text(uniform(256, 14, 4, 4).to_json())
    assert main(["describe", "--arch", str(path)]) == 2
    assert "embed_dim" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "budget.at_most=100"], "`budget.at_least <= budget.at_most` must hold"),
        (["--set", "budget.at_most=100", "--set", "budget.at_least=null"], "attainable are"),
        (["--set", "budget.cost=flops"], "budget.cost"),
        (["--set", "budget.cost=macs"], "MACs"),  # a window of parameters
        (["--set", "space.embed_dims=[24]"], "did you mean 'space.embed_dim'"),
        (["--preset", "autoformer-tiny"], "--data DIR"),
        (
            ["--set", 'search.mutation_probability={"*":0.2,"*.*":0.2,"block.*.*":0.2,"typo":0.5}'],
            "'typo', which fits no",
        ),
        (["--set", 'search.mutation_probability={"*":0.2,"block.*.*":0.2}'], "for the gene 'block.count'"),
        (["--preset", "autoformer"], "did you mean 'autoformer-"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["run", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_the_supernet_that_a_run_trains_holds_the_space() -> None:
    config = PRESETS["digits"]
    problem = autoformer_problem(config, load_images(ImageSource(config.data, config.seed)))
    supernet = problem.supernet(problem.space).eval()
    images = torch.randn(2, 1, 8, 8)
    for arch in problem.inside.sample(0, 5):
        assert supernet(images, arch).shape == (2, 10)


def test_a_setting_replaces_a_mapping_whole() -> None:
    tiny = PRESETS["autoformer-tiny"]
    assert isinstance(tiny.search.mutation_probability, dict)
    for text in ("0.1", '{"*": 0.1, "block.count": 0.1, "block.*.*": 0.3}'):
        changed = apply_settings(tiny, [f"search.mutation_probability={text}"])
        assert changed.search.mutation_probability == json.loads(text)
    with pytest.raises(BadInput, match="there is no section 'search"):
        apply_settings(tiny, ["search.mutation_probability.embed_dim=0.1"])
