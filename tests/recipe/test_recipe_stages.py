from pathlib import Path

import torch
from safetensors.torch import load_file

from nasx import Arch
from nasx.cli import apply_settings
from nasx.recipe.machine import Machine
from nasx.recipe.problem import load_task
from nasx.recipe.stages import Stages
from nasx.run import RunDirectory
from recipes.glit.config import DIGITS
from recipes.glit.problem import GLiTProblem


def test_given_networks_are_trained_and_the_test_images_are_read_for_the_best_alone(tmp_path: Path) -> None:
    config = apply_settings(DIGITS, ["model.embed_dim=12", "retrain.epochs=1", "retrain.warmup_epochs=0"])
    problem = GLiTProblem(config, load_task(config, None))
    archs = problem.joint_space.sample(0, 2)
    make = Stages(problem, Machine(device="cpu", processes=1))
    with RunDirectory.open(tmp_path / "run", config={}, versions={}) as run:
        results = run.execute([*make.given("both", archs), *make.test("both")])
    trained, tested = results["both/retrain"], results["both/test"]
    assert [network["arch"] for network in trained["networks"]] == [dict(arch) for arch in archs]
    best = max(trained["networks"], key=lambda network: (network["val_accuracy"], -network["val_loss"]))
    assert tested["arch"] == best["arch"] == trained["winner"]
    assert (tested["macs"], tested["params"]) == (problem.macs(Arch(best["arch"])), problem.params(Arch(best["arch"])))

    network = problem.network(Arch(best["arch"]))().eval()
    network.load_state_dict(load_file(tmp_path / "run" / tested["weights"]))
    right = total = 0
    with torch.no_grad():
        for images, labels in problem.task.eval_batches(problem.task.dataset.open_test()):
            right, total = right + int((network(images).argmax(1) == labels).sum()), total + len(labels)
    assert tested["test_accuracy"] == right / total
