"""Supernets that an earlier run trained: one training serves several searches."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasx.pipeline.context import Context
from nasx.pipeline.fingerprint import digest_of, sharing_of
from nasx.pipeline.records import read_asked, stage_results
from nasx.run.checkpoints import Checkpoint, unflatten_state
from nasx.run.stages import checkpoints_in
from nasx.space import Space

if TYPE_CHECKING:
    from nasx.pipeline.problem import Problem


@dataclass(frozen=True, slots=True)
class EarlierSupernet:
    """A supernet that a run trained: the result of its stage, and its weights."""

    result: Mapping[str, Any]
    checkpoint: Checkpoint


def check_earlier(problem: "Problem[Any]", finished: Collection[str] = ()) -> None:
    """Refuse an earlier run that has no supernet for a level which is known from the start; a ValueError says why.

    Stages that are `finished` need none any more.
    """
    from nasx.pipeline.supernet_stages import first_supernets  # which imports this module

    source = problem.config.supernet.from_run
    for stage in first_supernets(problem.stages()) if source is not None else ():
        if stage.name not in finished:
            space = stage.level.archs({}).space
            if find_earlier(problem, space) is None:
                raise ValueError(
                    f"supernet.from_run: the run in {source} has trained no supernet of this space of {space.size:,} "
                    "architectures; name a run of the same space, or remove supernet.from_run"
                )


def find_earlier(problem: "Problem[Any]", space: Space) -> EarlierSupernet | None:
    """Return the supernet of a space in the run that `supernet.from_run` names, or None where there is none.

    A ValueError says that it is no run, that its training images are others, or that its networks are.
    """
    if problem.config.supernet.from_run is None:
        return None
    directory = Path(problem.config.supernet.from_run)
    try:
        asked = read_asked(directory)["config"]
        if asked["split"].get("train") != problem.task.record()["train"]:
            raise ValueError(
                f"the run in {directory} trained on other data, which may hold what this run validates on; give both "
                "the same data, split by the same seed"
            )
        found = _trained(directory, digest_of(space))
        if found is not None:
            _check_weights(problem, space, found, directory)
    except ValueError as error:
        raise ValueError(f"supernet.from_run: {error}") from error
    return found


def earlier_run_has(problem: "Problem[Any]", space: Space) -> bool:
    """Return whether the run that `supernet.from_run` names records a trained supernet of a space.

    A run that cannot be read has none; `check_earlier` says what is wrong, unless the supernet has been taken already.
    """
    source = problem.config.supernet.from_run
    try:
        return source is not None and _stage_of(Path(source), digest_of(space)) is not None
    except (ValueError, OSError):
        return False


def take_earlier(context: Context, space: Space) -> dict[str, Any] | None:
    """Copy the supernet of an earlier run into a stage's folder and return its result, or None where there is none."""
    result = None
    if context.group.first and (found := find_earlier(context.problem, space)):
        context.checkpoints.save(found.checkpoint.step, found.checkpoint.tensors, found.checkpoint.state)
        result = {**found.result, "earlier": True}
    return context.group.from_first(result)


def trained_supernet_of(directory: Path, stage: str, result: Any) -> Checkpoint | None:
    """Return the checkpoint that a finished training of a supernet left, or None where it is there no more."""
    checkpoint = checkpoints_in(directory / stage, stage).latest()
    return checkpoint if checkpoint is not None and checkpoint.step == result["steps"] else None


def _stage_of(directory: Path, digest: str) -> tuple[str, Mapping[str, Any]] | None:
    """Return the stage that trained a supernet of a space, and its result."""
    results = stage_results(directory).items()
    return next(((s, r) for s, r in results if isinstance(r, dict) and r.get("space_sha256") == digest), None)


def _trained(directory: Path, digest: str) -> EarlierSupernet | None:
    found = _stage_of(directory, digest)
    if found is None:
        return None
    stage, result = found
    checkpoint = trained_supernet_of(directory, stage, result)
    if checkpoint is None:
        raise ValueError(f"the supernet in {directory / stage} is damaged or missing; name another run")
    return EarlierSupernet(result, checkpoint)


def _check_weights(problem: "Problem[Any]", space: Space, found: EarlierSupernet, directory: Path) -> None:
    held = unflatten_state(found.checkpoint.tensors, found.checkpoint.state)["model"]
    supernet = problem.supernet(space)
    shapes = [{n: tuple(tensor.shape) for n, tensor in state.items()} for state in (held, supernet.state_dict())]
    for name in (*shapes[0], *shapes[1]):
        theirs, ours = (of.get(name) for of in shapes)
        if theirs != ours:
            raise ValueError(
                f"the supernet in {directory} holds {name!r} as {theirs or 'nothing'}, but that of this run as "
                f"{ours or 'nothing'}: their builders differ; name a run of the same networks"
            )
    if found.result.get("sharing_sha256") != sharing_of(supernet, space):
        raise ValueError(
            f"networks took other parts of the tensors of the supernet in {directory}; give the same `supernet` "
            "(the same layout and parts), or train a supernet in this run"
        )
