"""Which networks of a space give a supernet its first values."""

import math
from collections.abc import Iterator, Mapping

from nasx.arch import Arch
from nasx.nn.layout import Shape
from nasx.nn.survey import Survey


def filling_order(found: Survey) -> list[tuple[Arch, list[str]]]:
    """Return networks in the order in which they are built, each with the tensors that it gives values.

    A tensor has the values of one network that has it at its largest size; where there is none, those of several, of
    which a larger slice overwrites a smaller one.
    """
    waiting = {key: shape for key, (_, shape) in found.stored.items()}
    whole: list[tuple[Arch, list[str]]] = []
    while waiting:
        # the network that has the most tensors at their largest size is built next
        given = {arch: [k for k, shape in own.items() if waiting.get(k) == shape] for arch, own in found.needed.items()}
        arch = max(given, key=lambda arch: len(given[arch]))
        if not given[arch]:
            break
        whole.append((arch, given[arch]))
        for key in given[arch]:
            del waiting[key]
    return [*_from_slices(waiting, found.needed), *whole]


def _from_slices(
    waiting: Mapping[str, Shape], needed: Mapping[Arch, Mapping[str, Shape]]
) -> Iterator[tuple[Arch, list[str]]]:
    """Yield the networks that between them fill tensors which none has at their largest size, small slices first."""
    steps: dict[tuple[int, Arch], list[str]] = {}
    for key in waiting:
        shapes: dict[Shape, Arch] = {}
        for arch, own in needed.items():
            if key in own:
                shapes.setdefault(own[key], arch)
        outer = [shape for shape in shapes if not any(_is_inside(shape, other) for other in shapes)]
        for place, shape in enumerate(sorted(outer, key=math.prod)):
            steps.setdefault((place, shapes[shape]), []).append(key)
    for (_, arch), keys in sorted(steps.items(), key=lambda step: step[0][0]):
        yield arch, keys


def _is_inside(shape: Shape, other: Shape) -> bool:
    return shape != other and all(size <= limit for size, limit in zip(shape, other, strict=True))
