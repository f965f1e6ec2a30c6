"""What tells one problem from another, so that a run is continued with the problem that it was started with."""

import hashlib
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from nasx.arch import Arch
from nasx.data.seeding import globals_kept, seed_globals
from nasx.nn.skeleton import build_skeleton
from nasx.space import Space
from nasx.train import evaluate, use_precision, use_threads
from nasx.train.losses import compute_loss

if TYPE_CHECKING:
    from nasx.pipeline.problem import Problem

_PROBES = 3  # architectures whose networks identify a builder
_SAMPLES = 8
_NOISE = 0.02  # added to weights, so that branches that start at zero show
_TOLERANCE = 1e-4  # rounding of other machines stays below


def fingerprint(problem: "Problem[Any]") -> dict[str, Any]:
    """Return what identifies a problem beside its settings and data, as JSON values.

    It covers the space, the budgets, and of some of the builder's networks the classes of modules with their rates and
    other fractions, names and shapes of tensors, and loss and score on a few samples before training, the loss in
    training mode too.
    """
    inside = problem.inside
    filtered = bool(getattr(inside, "predicates", ()))  # which only the networks drawn tell apart
    networks = inside if filtered else problem.space  # so that a builder is the same under another budget
    archs = [inside.sample(seed) for seed in range(_PROBES)]
    costs = [[float(budget.cost(arch)) for arch in archs] for budget in inside.budgets]
    digest = hashlib.sha256()
    tensors = parameters = 0
    for seed in range(_PROBES):
        network = build_skeleton(problem.make, networks.sample(seed))
        for line in (*_modules(network), *_tensors(network)):
            digest.update(f"{line}\n".encode())
        tensors = len(network.state_dict())
        parameters = sum(parameter.numel() for parameter in network.parameters())
    return {
        "space": {
            "size": str(problem.space.size),
            "sha256": digest_of(problem.space),
        },
        "budget": {"bounds": [str(budget) for budget in inside.budgets], "costs": costs},
        "network": {"tensors": tensors, "parameters": parameters, "sha256": digest.hexdigest()},
        "loss": problem.task.loss_name,
        "metric": problem.task.metric_name,
        "untrained": [_untrained(problem, arch) for arch in archs],
    }


def digest_of(space: Space) -> str:
    """Return what two equal spaces have in common."""
    return hashlib.sha256(space.to_json().encode()).hexdigest()


def _modules(network: nn.Module) -> list[str]:
    """Return the classes of modules with what they hold as fractions, such as dropout's rate."""
    found = []
    for name, module in network.named_modules():
        fractions = {key: value for key, value in sorted(vars(module).items()) if isinstance(value, float)}
        found.append(f"{name} {type(module).__qualname__} {fractions}")
    return found


def _tensors(network: nn.Module) -> list[str]:
    return [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in network.state_dict().items()]


@torch.no_grad()
def _untrained(problem: "Problem[Any]", arch: Arch) -> dict[str, float | str]:
    """Return loss and score of an untrained network on the first validation samples, and its loss in training mode."""
    task = problem.task
    with globals_kept(), use_threads(1), use_precision("float32"):
        seed_globals(0)
        network = problem.make(arch)
        seed_globals(0)
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.add_(_NOISE * torch.randn(parameter.shape).to(parameter))
        batch = task.first_batch(_SAMPLES)
        found = evaluate(network, [batch], loss=task.loss, metric=task.metric, unpack=task.unpack)
        seed_globals(0)
        args, kwargs, targets = task.unpack(batch)
        trained = compute_loss(task.loss, network.train()(*args, **kwargs), targets)
    return {"loss": _number(found.loss), "score": _number(found.score), "training loss": _number(float(trained))}


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def up_to_rounding(asked: dict[str, Any], recorded: Any, *, one_torch: bool = True) -> dict[str, Any]:
    """Return a fingerprint, with losses and scores as recorded where they differ by rounding, as on another machine.

    Without `one_torch`, two versions of torch computed them, which may draw other weights: then as recorded anyway.
    """
    if not isinstance(recorded, dict) or "untrained" not in recorded:
        return asked
    if one_torch and not _close(asked["untrained"], recorded["untrained"]):
        return asked
    return {**asked, "untrained": recorded["untrained"]}


def _close(ours: list[dict[str, float | str]], theirs: Any) -> bool:
    if not isinstance(theirs, list) or len(theirs) != len(ours):
        return False
    return all(_same(of[key], other.get(key)) for of, other in zip(ours, theirs, strict=True) for key in of)


def _same(ours: float | str, theirs: Any) -> bool:
    if isinstance(ours, str) or not isinstance(theirs, int | float):
        return ours == theirs
    return math.isclose(ours, theirs, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
