"""The command line as a user meets it: a whole run under a MAC budget, published networks, bad input."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from nasx import Arch
from recipes.localvit.__main__ import main
from recipes.localvit.config import PRESETS
from recipes.localvit.cost import Macs
from recipes.localvit.model import LocalViT

TINY_RUN = [
    *("--set", "supernet.epochs=0.5", "--set", "supernet.warmup_epochs=0", "--set", "retrain.epochs=0.3"),
    *("--set", "retrain.warmup_epochs=0", "--set", "search.population=3", "--set", "search.generations=2"),
    *("--set", "search.parents=2", "--set", "search.recalibration_batches=1", "--set", "space.blocks=2"),
    *("--set", "budget.at_least=3e5", "--set", "budget.at_most=5e5"),
]


def test_a_run_finds_a_network_inside_its_mac_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *TINY_RUN, "--run-dir", str(tmp_path), "--json"]) == 0
    networks = json.loads(capsys.readouterr().out)["networks"]
    assert list(networks) == ["searched", "deit_shaped", "localvit_shaped", "random"]
    vit = PRESETS["digits"].vit(in_channels=1, num_classes=10)
    for name in ("searched", "random"):
        assert 3e5 <= networks[name]["macs"] == Macs(vit)(Arch(networks[name]["arch"])) <= 5e5
    arch = Arch.from_json((tmp_path / "arch.json").read_text())
    LocalViT(vit, arch).load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert "ECA" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [("localvit-tiny-act3", 5_908_696, 1_266_475_008), ("localvit-tiny-act1", 7_655_080, 1_621_346_304)],
)
def test_describe_counts_the_published_networks(
    name: str, params: int, macs: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["describe", "--arch", name, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["params"], document["macs"], len(document["blocks"])) == (params, macs, 12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "budget.at_most=1e5", "--set", "budget.at_least=null"], "attainable are"),
        (["--set", "space.kernel_size=[2,3]"], "odd"),
        (["--set", 'space.activation=["relu"]'], "activation"),
        (["--set", "model.num_heads=5"], "write model.embed_dim=35"),
        (["--preset", "localvit-tiny"], "--data DIR"),
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


def test_a_description_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "--arch", "localvit-tiny-act3"]) == 0
    out = capsys.readouterr().out
    assert "…" not in out
    assert all(name in out for name in ("mlp_ratio", "depthwise", "kernel_size", "activation", "channel_attention"))


def test_images_beside_the_digits_are_refused_with_the_presets_for_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--data", str(tmp_path)]) == 2
    assert "remove --data, or choose a preset for image folders: --preset localvit-tiny" in capsys.readouterr().err
