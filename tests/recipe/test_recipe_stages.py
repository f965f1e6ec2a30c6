from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nasx import Arch, Budget, Space, one_of, repeat
from nasx.cli import apply_settings
from nasx.feasible import attainable
from nasx.recipe.machine import Machine
from nasx.recipe.problem import load_task
from nasx.recipe.stages import Stages, supernet_paths
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


def test_a_configuration_chooses_the_paths_of_supernets() -> None:
    problem = GLiTProblem(DIGITS, load_task(DIGITS, None))
    space, inside, cost = problem.joint_space, problem.joint, problem.cost
    costs: dict[str, list[int]] = {}
    for paths in ("uniform", "architectures", "budget", "stratified", "sandwich"):
        config = DIGITS.supernet.model_copy(update={"paths": paths, "strata": 3})
        drawn = supernet_paths(config, space, inside, cost, seed=0)
        costs[paths] = [cost(arch) for step in range(30) for arch in drawn(step)]
    low, high = DIGITS.budget.details_at_least, DIGITS.budget.details_at_most
    assert low is not None
    assert high is not None
    for paths in ("budget", "stratified"):
        assert all(low <= cost <= high for cost in costs[paths])
    for paths in ("uniform", "architectures"):
        assert not all(low <= cost <= high for cost in costs[paths])
    edges = [low + (high - low) * i / 3 for i in range(4)]
    assert [sum(left <= c < right for c in costs["stratified"]) for left, right in pairwise(edges)] == [10, 10, 10]
    assert len(costs["sandwich"]) == 4 * 30
    reach = attainable(space, cost)
    (teacher,) = set(costs["sandwich"][0::4])
    assert teacher < reach.high  # the costliest network has no attention to teach
    assert set(costs["sandwich"][1::4]) == {reach.low}


def test_fair_paths_need_a_space_that_has_them() -> None:
    fair = DIGITS.supernet.model_copy(update={"paths": "fair"})
    flat = Space(block=repeat(Space(kernel=one_of(3, 5, 7)), 4))
    problem = GLiTProblem(DIGITS, load_task(DIGITS, None))
    drawn = supernet_paths(fair, flat, flat.within(Budget(lambda arch: 0)), problem.cost, seed=0)
    assert sorted(arch["block.2.kernel"] for arch in drawn(5)) == [3, 5, 7]
    with pytest.raises(ValueError, match="open subspaces"):
        supernet_paths(fair, problem.joint_space, problem.joint, problem.cost, seed=0)
