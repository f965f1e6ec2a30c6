"""What tells one problem from another, so that a run is continued with the problem that it was started with."""

import hashlib
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nasx.arch import Arch, pattern_of
from nasx.data.seeding import globals_kept, seed_globals
from nasx.nn import Supernet
from nasx.nn.layout import Index, Stack
from nasx.nn.skeleton import build_skeleton
from nasx.pipeline.samples import add_to
from nasx.space import ArchSet, Space
from nasx.train import Metric, evaluate, use_precision, use_threads
from nasx.train.dataset_metrics import is_dataset_metric, metric_name, metric_settings, on_few_samples
from nasx.train.losses import compute_loss, on_device

if TYPE_CHECKING:
    from nasx.pipeline.problem import Problem

_MOST = 32  # networks that identify a builder
_DRAWS = 100  # among which those networks are looked for
_FEW = 3  # architectures that identify costs and how weights are shared, and a builder at least
_SAMPLES = 8
_NOISE = 0.02  # added to weights, so that branches that start at zero show
_TOLERANCE = 1e-4  # rounding of other machines stays below


def fingerprint(problem: "Problem[Any]", supernets: Iterable[Space] = ()) -> dict[str, Any]:
    """Return what identifies a problem beside its settings and data, as JSON values.

    It covers the space, the budgets, the teachers, how the supernets of some spaces share weights, and of networks that
    between them take every option, 3 to 32, the classes of modules with their rates and other fractions, names and
    shapes of tensors, and loss and score on a few samples before training, the loss in training mode too.
    """
    inside = problem.inside
    filtered = bool(getattr(inside, "predicates", ()))  # which only the networks drawn tell apart
    archs = _with_every_option(inside if filtered else problem.space)  # so that a builder is the same under any budget
    costs = [[float(budget.cost(inside.sample(seed))) for seed in range(_FEW)] for budget in inside.budgets]
    digest = hashlib.sha256()
    tensors = parameters = 0
    for arch in archs:
        network = build_skeleton(problem.make, arch)
        for line in (*_modules(network), *_tensors(network)):
            digest.update(f"{line}\n".encode())
        tensors = len(network.state_dict())
        parameters = sum(parameter.numel() for parameter in network.parameters())
    trainings = problem.config.supernet, problem.config.retrain
    teachers = [(training.section, problem.teacher_of(training)) for training in trainings]
    return {
        "space": {
            "size": str(problem.space.size),
            "sha256": digest_of(problem.space),
        },
        "budget": {"bounds": [str(budget) for budget in inside.budgets], "costs": costs},
        "network": {"tensors": tensors, "parameters": parameters, "sha256": digest.hexdigest()},
        "sharing": [sharing_of(problem.supernet(space), space) for space in supernets],
        "teachers": {section: _weights_of(teacher) for section, teacher in teachers},
        "loss": problem.task.loss_name,
        "metric": _metric(problem.task.metric),
        "untrained": [_untrained(problem, arch, first=number == 0) for number, arch in enumerate(archs)],
    }


def _metric(metric: Metric) -> str:
    settings = ", ".join(f"{name}={value!r}" for name, value in metric_settings(metric).items())
    return f"{metric_name(metric)}({settings})" if settings else metric_name(metric)


def _with_every_option(networks: ArchSet) -> list[Arch]:
    """Return a few architectures, three at least, that between them take every option that draws find."""
    shown: set[tuple[str, Any]] = set()
    found: list[Arch] = []
    for seed in range(_DRAWS):
        arch = networks.sample_per_choice(np.random.default_rng(seed))
        options = {(pattern_of(name), value) for name, value in arch.items()}
        if len(found) < _FEW or not options <= shown:
            shown |= options
            found.append(arch)
    return found[:_MOST]


def sharing_of(supernet: nn.Module, space: Space) -> str:
    """Return what two supernets of a space have in common that give networks the same weights."""
    digest = hashlib.sha256("\n".join(_tensors(supernet)).encode())
    if isinstance(supernet, Supernet):
        for seed in range(_FEW):
            for name, indices in supernet.slices(space.sample(seed)).items():
                elements = [None if index is None else _written(index) for index in indices or ()]
                digest.update(f"{name} {elements}\n".encode())
    return digest.hexdigest()


def _written(index: Index) -> str:
    match index:
        case Stack():
            return f"{index.count} x {_written(index.inner)}"
        case Tensor():
            return str(index.tolist())
        case _:
            return str(index)


def _weights_of(teacher: nn.Module | None) -> str | None:
    """Return what two teachers have in common that teach the same."""
    if teacher is None:
        return None
    digest = hashlib.sha256("\n".join(_modules(teacher)).encode())
    add_to(digest, teacher.state_dict())
    return digest.hexdigest()


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
def _untrained(problem: "Problem[Any]", arch: Arch, *, first: bool) -> dict[str, float | str]:
    """Return loss and score of an untrained network on the first validation samples, and its loss in training mode.

    A metric of a whole data set is told from others by the score of more samples, of the first network alone.
    """
    task = problem.task
    with globals_kept(), use_threads(1), use_precision("float32"):
        network = untrained_network(problem, arch)
        batch = task.first_batch(_SAMPLES)
        found = evaluate(network, [batch], loss=task.loss, metric=on_few_samples(task.metric), unpack=task.unpack)
        score = task.score_of_some(network) if first and is_dataset_metric(task.metric) else found.score
        seed_globals(0)
        args, kwargs, targets = task.unpack(batch)
        trained = compute_loss(on_device(task.loss, torch.device("cpu")), network.train()(*args, **kwargs), targets)
    return {"loss": _number(found.loss), "score": _number(score), "training loss": _number(float(trained))}


@torch.no_grad()
def untrained_network(problem: "Problem[Any]", arch: Arch) -> nn.Module:
    """Return a network with the same weights each time, none of them zero; it sets the global generators."""
    seed_globals(0)
    network = problem.make(arch).cpu()
    seed_globals(0)
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.add_(_NOISE * torch.randn(parameter.shape).to(parameter))
    return network


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
