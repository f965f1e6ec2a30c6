"""What a search found is fine-tuned from the supernet's weights too, where the settings ask for it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nasx.pipeline import Diverged, Machine, Problem, RunConfig, SearchResult, plan, run
from nasx.pipeline.config import Finetuning
from nasx.run import Interrupted
from recipes.autoformer.config import DIGITS as AUTOFORMER
from recipes.autoformer.config import Config as AutoFormerConfig
from tests.pipeline import test_tied_weights
from tests.pipeline.problems import glit
from tests.pipeline.test_run import changed, problem

MACHINE = Machine(device="cpu", processes=1)
TUNED = {"epochs": 1.0, "lr": 1e-3}


def searched(directory: Path, **sections: Any) -> SearchResult:
    return run(problem(changed(**{"finetune": TUNED, **sections})), directory, machine=MACHINE)


def trained(directory: Path, stage: str) -> list[dict[str, Any]]:
    """Return a stage's networks."""
    lines = (directory / "journal.jsonl").read_text().splitlines()
    results = {r["stage"]: r["result"] for r in (json.loads(line)["record"] for line in lines) if "result" in r}
    networks: list[dict[str, Any]] = results[stage]["networks"]
    return networks


def weights_of(found: SearchResult, name: str) -> str:
    return str(found.tests["evaluation"][name]["weights"])


@pytest.mark.parametrize("good", ["retrain", "finetune"])
def test_what_is_better_on_validation_is_found(good: str, tmp_path: Path) -> None:
    never = "supernet" if good == "retrain" else "retrain"
    found = searched(tmp_path, **{never: {"lr": 1e-9}, "finetune": {"epochs": 0.1, "lr": 1e-9}})
    rows = found.summary["networks"]
    assert list(rows)[:3] == ["searched", "fine-tuned", "retrained"]
    better, worse = ("retrained", "fine-tuned") if good == "retrain" else ("fine-tuned", "retrained")
    assert rows[better]["val_score"] > rows[worse]["val_score"]
    assert weights_of(found, "searched") == weights_of(found, better)
    assert weights_of(found, better).startswith(f"{good}/")


def test_a_fine_tuning_that_diverges_names_its_own_rate(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"lower finetune\.lr\n"):
        searched(tmp_path, retrain={"clip_norm": None}, finetune={"epochs": 1.0, "lr": 1e30})


def test_fine_tuning_starts_from_the_supernets_weights(tmp_path: Path) -> None:
    searched(tmp_path, finetune={"epochs": 0.1, "lr": 1e-9})
    for number in range(2):
        inherited, tuned = (load_file(tmp_path / stage / f"{number}.safetensors") for stage in ("inherit", "finetune"))
        weights = [name for name in inherited if "running" not in name and "num_batches" not in name]
        assert all(torch.allclose(inherited[name], tuned[name], atol=1e-6) for name in weights)
        alone = load_file(tmp_path / "retrain" / f"{number}.safetensors")
        assert not torch.allclose(inherited["stem.weight"], alone["stem.weight"], atol=1e-2)
    assert [n["arch"] for n in trained(tmp_path, "finetune")] == [n["arch"] for n in trained(tmp_path, "retrain")]


def test_an_interrupted_fine_tuning_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    whole = searched(tmp_path / "whole")

    def stop(description: str, done: float, total: float, note: str = "") -> None:
        if description.startswith("finetune") and done > 0.2:
            raise Interrupted("asked to")

    asked = problem(changed(finetune=TUNED))
    with pytest.raises(Interrupted):
        run(asked, tmp_path / "cut", machine=MACHINE, progress=stop)
    again = run(asked, tmp_path / "cut", machine=MACHINE)
    assert again.summary["networks"] == whole.summary["networks"]


def test_networks_with_tied_weights_are_fine_tuned(tmp_path: Path) -> None:
    tied = test_tied_weights.problem()
    config = tied.config.model_copy(update={"finetune": Finetuning(**TUNED)})
    asked = Problem(tied.space, test_tied_weights.NextWord, tied.task, config=config)
    assert "fine-tuned" in run(asked, tmp_path, machine=MACHINE).summary["networks"]


def test_halving_leaves_fine_tuning_to_the_best(tmp_path: Path) -> None:
    search = {"top_k": 2, "generations": 3}
    searched(tmp_path, retrain={"method": "halving", "start": 4}, search=search)
    assert len(trained(tmp_path, "retrain")) == 4
    assert len(trained(tmp_path, "finetune")) == 2


def test_a_front_has_what_was_made_in_either_way(tmp_path: Path) -> None:
    found = searched(tmp_path, search={"method": "pareto", "population": 6, "generations": 1, "top_k": 4})
    assert len(found.summary["front"]) == 2 * len(trained(tmp_path, "retrain"))
    assert len(trained(tmp_path, "retrain")) == len(trained(tmp_path, "finetune")) > 1


def test_a_plan_counts_fine_tuning() -> None:
    with_it, without = (
        {stage["name"]: stage for stage in plan(problem(changed(finetune={"epochs": epochs})), timing=False)["stages"]}
        for epochs in (1.0, 0.0)
    )
    assert with_it.keys() - without.keys() == {"inherit", "finetune"}
    assert 2 * with_it["finetune"]["trained_images"] == with_it["retrain"]["trained_images"]


def test_glit_fine_tunes_in_its_last_level() -> None:
    for method, level in (("hierarchical", "details"), ("spos", "joint")):
        names = [stage.name for stage in glit([f"method={method}", "finetune.epochs=1"]).stages()]
        assert [name for name in names if name.endswith(("inherit", "finetune"))] == [
            f"{level}/inherit",
            f"{level}/finetune",
        ]
    random = glit(["method=random", "finetune.epochs=1"])
    assert not [stage for stage in random.stages() if stage.kind == "finetune"]
    assert "trains no supernet" in random.config.unused()["finetune.epochs"]


def test_what_contradicts_fine_tuning_is_refused() -> None:
    with pytest.raises(ValueError, match=r"retrain\.refit trains from scratch .* finetune\.epochs=1; set one"):
        RunConfig(retrain={"refit": True}, finetune=TUNED)
    kept = AUTOFORMER.model_dump() | {"finetune": {"epochs": 0}}
    with pytest.raises(ValueError, match=r"retrain\.refit must be false"):
        AutoFormerConfig(**{**kept, "retrain": {**kept["retrain"], "refit": True}})
    with pytest.raises(ValueError, match=r"finetune\.warmup_epochs must be less than finetune\.epochs"):
        Finetuning(epochs=1, warmup_epochs=1)


def test_settings_of_no_fine_tuning_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        problem(RunConfig(finetune=Finetuning(lr=1e-3)))
    assert "finetune.lr=0.001 has no effect, because finetune.epochs is 0" in caplog.text
