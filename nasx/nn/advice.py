"""Warnings of layers whose slices mean something else in each network, with the layout that keeps their meaning."""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.rnn import RNNCellBase

from nasx.nn.layout import Layout, Shape, most_exact, names
from nasx.nn.naming import Naming, plain_name
from nasx.nn.survey import Survey

logger = logging.getLogger(__name__)

_PACKED = {
    3: re.compile(r"(to_|in_proj_|c_)?W?qkv(_proj|_linear)?|query_key_value|c_attn"),
    2: re.compile(r"(to_|in_proj_)?W?kv(_proj|_linear)?|key_value|gate_up_proj|w12"),
}
"""Names of layers that stack this many parts along their rows, such as queries, keys and values."""

_INPUTS = "in_proj"
"""Queries, keys and values in torch's attention; elsewhere any number of parts, such as the two of Mamba's gate."""

_ANY_PARTS = "layout={%r: stacked(PARTS)} (nasx.nn.stacked), where PARTS is how many parts `forward` cuts its rows into"

_AROUND = (
    "stacked({count}) for the layers that make its inputs and the norms around it, and stacked({count}, dim=1) for the "
    "layers that read its outputs"
)

_GATES = {nn.LSTM: 4, nn.LSTMCell: 4, nn.GRU: 3, nn.GRUCell: 3}
_LEAF = re.compile(r"(?P<packed>\w+)_(weight|bias)")
_LAYER = re.compile(r"weight_ih_l(\d+)(_reverse)?")


@dataclass(frozen=True, slots=True)
class _Tensor:
    owner: type[nn.Module]
    largest: Shape
    shapes: frozenset[Shape]
    """Its shapes in all networks."""
    varying: frozenset[int]
    """The dimensions whose size differs between networks that share it."""


@dataclass(frozen=True, slots=True)
class _Advice:
    kind: str
    """What a layer seems to be."""
    rules: tuple[tuple[str, str], ...]
    """Rules as they are spelled, by the tensors of the layer that they are for: "" for all."""
    note: str = ""
    """What else the layout needs."""


def warn_of_stacks(found: Survey, layout: Layout) -> None:
    """Say which layers look like parts stacked in one, of which a plain prefix mixes one part with another."""
    tensors = _tensors(found)
    advice: dict[str, _Advice] = {}
    for module, own in _by_module(tensors).items():
        free = {leaf: tensor for leaf, tensor in own.items() if most_exact(layout, _joined(module, leaf)) is None}
        if not any(tensor.varying for tensor in free.values()):
            continue
        if issubclass(next(iter(own.values())).owner, nn.RNNBase | RNNCellBase):
            given = _of_recurrent(free, _directions(found, module))
        else:
            given = _of_packed(module, free)
        if given is not None:
            advice[module] = given
    _warn(advice, tensors, "the first rows and columns, which belong to other parts")


def warn_of_groups(found: Survey, layout: Layout, naming: Naming) -> None:
    """Say which grouped convolutions give a row of weights other inputs in one network than in another."""
    sizes: dict[str, set[tuple[int, int]]] = {}  # rows and columns of a group: equal ones meet the same inputs
    counts: dict[str, set[int]] = {}
    for network in found.blueprints:
        stored_names = naming.of(network.arch)
        for name, info in network.tensors.items():
            if issubclass(info.owner, _ConvNd) and len(info.shape) > 1:
                key = stored_names.stored(found.tied.get(name, name))
                sizes.setdefault(key, set()).add((info.shape[0] // info.groups, info.shape[1]))
                counts.setdefault(key, set()).add(info.groups)
    groups: dict[str, set[int]] = {}
    for key, of_group in sizes.items():
        name = plain_name(key)
        if len(of_group) > 1 and counts[key] != {1} and most_exact(layout, name) is None:
            groups.setdefault(name.rpartition(".")[0], set()).update(counts[key])
    advice = {module: _of_groups("a convolution of", sorted(own), _AROUND) for module, own in groups.items()}
    _warn(advice, found.names, "its first rows, which belong to other groups")


def warn_of_queries(found: Survey, layout: Layout, naming: Naming) -> None:
    """Say which heads of grouped-query attention attend to other keys and values in one network than in another."""
    counts: dict[str, dict[int, set[int]]] = {}  # rows of a group by how many groups there are
    for network in found.blueprints:
        stored_names = naming.of(network.arch)
        for name, info in network.tensors.items():
            if info.groups > 1 and not issubclass(info.owner, _ConvNd):
                key = stored_names.stored(found.tied.get(name, name))
                counts.setdefault(key, {}).setdefault(info.groups, set()).add(info.shape[0] // info.groups)
    advice: dict[str, _Advice] = {}
    for key, rows in counts.items():
        name = plain_name(key)
        if len(set.union(*rows.values())) > 1 and most_exact(layout, name) is None:
            note = "stacked({count}, dim=1) for the layer that reads the heads' outputs"
            advice[name.rpartition(".")[0]] = _of_groups("a projection of queries in", sorted(rows), note)
    _warn(advice, found.names, "its first heads, which attend to other keys and values")


def warn_of_projections(found: Survey) -> None:
    """Say which of torch's attentions have joint weights in one network and others in another."""
    attentions = {
        plain_name(key).rpartition(".")[0]: _Advice("attention", ())
        for key, (info, _) in found.stored.items()
        if issubclass(info.owner, nn.MultiheadAttention)
        and plain_name(key).rpartition(".")[2] == "in_proj_weight"
        and key.replace("in_proj_weight", "q_proj_weight") in found.stored
    }
    for pattern, _ in _patterns(attentions, found.names):
        logger.warning(
            "%s has one `in_proj_weight` in networks whose queries, keys and values have one width, and three weights "
            "in the others, so the two kinds of networks do not share them; bring keys and values to the width of "
            "queries by a layer before it in every network, or make the projections layers of their own",
            repr(pattern) if pattern else "the network",
        )


def _warn(advice: Mapping[str, _Advice], known: Iterable[str], slices: str) -> None:
    for pattern, given in _patterns(advice, known):
        logger.warning(
            "%s seems to be %s whose sizes vary, but its slices are %s in other networks; add %s, or "
            "layout={%r: prefix} to keep them",
            repr(pattern) if pattern else "the network",
            given.kind,
            slices,
            _mend(given, pattern),
            pattern or "*",
        )


def _of_groups(kind: str, groups: Sequence[int], note: str) -> _Advice:
    """Return the advice for a layer in some numbers of groups; `note` says what it is for others."""
    described = f"{kind} {' or '.join(map(str, groups))} groups"
    if len(groups) > 1:
        return _Advice(described, (), "separate={%r: CHOICE}, where CHOICE is the choice that decides the groups")
    (count,) = groups
    return _Advice(described, (("", f"stacked({count})"),), note.format(count=count))


def _of_packed(module: str, tensors: Mapping[str, _Tensor]) -> _Advice | None:
    packed: dict[tuple[str, str], list[_Tensor]] = {}
    for leaf, tensor in tensors.items():
        named = _LEAF.fullmatch(leaf)
        key = (named["packed"], f"{named['packed']}_*") if named else (module.rpartition(".")[2], "")
        packed.setdefault(key, []).append(tensor)
    for (name, part), own in packed.items():
        parts = _parts(name, own[0].owner)
        if (
            parts is not None
            and any(0 in tensor.varying for tensor in own)
            and len({tensor.largest[:1] for tensor in own}) == 1  # else the weight's rows are inputs
            and not any(shape[0] % (parts or 1) for tensor in own for shape in tensor.shapes)
        ):
            if not parts:
                return _Advice("a layer of stacked parts", (), _ANY_PARTS)
            return _Advice(f"a layer of {parts} stacked parts", ((part, f"stacked({parts})"),))
    return None


def _parts(name: str, owner: type[nn.Module]) -> int | None:
    """Return how many parts a layer of a name stacks, 0 where that is open, or None where it seems to stack none."""
    if name == _INPUTS:
        return 3 if issubclass(owner, nn.MultiheadAttention) else 0
    return next((count for count, pattern in _PACKED.items() if pattern.fullmatch(name)), None)


def _of_recurrent(tensors: Mapping[str, _Tensor], directions: set[int]) -> _Advice | None:
    owner = next(iter(tensors.values())).owner
    gates = next((count for kind, count in _GATES.items() if issubclass(owner, kind)), 1)
    kind = f"a recurrent layer of {gates} stacked gates" if gates > 1 else "a recurrent layer"
    rows = gates > 1 and any(0 in t.varying for leaf, t in tensors.items() if not leaf.startswith("weight_hr"))
    rules = [("", f"stacked({gates})")] if rows else []
    if rows and any(leaf.startswith("weight_hr") for leaf in tensors):
        rules.append(("weight_hr_l*", "prefix"))
    if 2 in directions:
        kind += " and two directions"
        halves = {
            int(layer[1])
            for leaf, tensor in tensors.items()
            if 1 in tensor.varying and (layer := _LAYER.fullmatch(leaf)) and layer[1] != "0"
        }
        if halves and len(directions) > 1:
            return _Advice(
                f"{kind} in some networks",
                (),
                "separate={%r: CHOICES}, where CHOICES are those that decide its sizes and directions: no slices keep "
                "the meaning of its columns",
            )
        both = f"{{0: stacked({gates}), 1: stacked(2)}}" if gates > 1 else "stacked(2, dim=1)"
        rules += [(f"weight_ih_l{layer}*", both) for layer in sorted(halves)]
    if not rules:
        return None
    return _Advice(kind, tuple(rules), "stacked(2, dim=1) for the layers that read its outputs" * (2 in directions))


def _mend(advice: _Advice, pattern: str) -> str:
    """Return the settings that an advice is for a pattern, as they are written."""
    if not advice.rules:
        return advice.note % (pattern or "*")
    rules = ", ".join(f"{(_joined(pattern, part) or '*')!r}: {rule}" for part, rule in advice.rules)
    return f"layout={{{rules}}} (nasx.nn.stacked){advice.note and f', and {advice.note}'}"


def _tensors(found: Survey) -> dict[str, _Tensor]:
    """Return the tensors of a space's networks by the builder's names; copies of one are one."""
    of_key: dict[str, set[Shape]] = {}
    for own in found.needed.values():
        for key, shape in own.items():
            of_key.setdefault(key, set()).add(shape)
    tensors: dict[str, _Tensor] = {}
    for key, shapes in of_key.items():
        info, largest = found.stored[key]
        varying = {dim for dim, sizes in enumerate(zip(*shapes, strict=True)) if len(set(sizes)) > 1}
        if (known := tensors.get(name := plain_name(key))) is not None:
            largest = max(largest, known.largest)
            shapes, varying = shapes | known.shapes, varying | known.varying
        tensors[name] = _Tensor(info.owner, largest, frozenset(shapes), frozenset(varying))
    return tensors


def _by_module(tensors: Mapping[str, _Tensor]) -> dict[str, dict[str, _Tensor]]:
    modules: dict[str, dict[str, _Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        modules.setdefault(module, {})[leaf] = tensor
    return modules


def _directions(found: Survey, module: str) -> set[int]:
    """Return the numbers of directions that a recurrent layer has in the networks."""
    first = _joined(module, "weight_ih_l0")
    return {1 + (f"{first}_reverse" in of.tensors) for of in found.blueprints if first in of.tensors}


def _joined(module: str, leaf: str) -> str:
    return f"{module}.{leaf}" if module and leaf else module or leaf


def _patterns(advice: Mapping[str, _Advice], known: Iterable[str]) -> Iterator[tuple[str, _Advice]]:
    """Yield a pattern for all modules that differ in numbers alone and need the same, or each module's own name."""
    alike: dict[tuple[str, _Advice], list[str]] = {}
    for module, given in advice.items():
        alike.setdefault((re.sub(r"\b\d+\b", "#", module), given), []).append(module)
    tensors = list(known)
    for (_, given), modules in alike.items():
        pattern = _pattern(modules)
        met = {name for name in tensors if names(pattern or "*", name)}
        if met == {name for name in tensors if any(_is_in(module, name) for module in modules)}:
            yield pattern, given
        else:
            yield from ((module, given) for module in modules)


def _pattern(modules: Sequence[str]) -> str:
    """Return the name that modules have in common, with `*` where their numbers differ."""
    segments = zip(*(module.split(".") for module in modules), strict=True)
    return ".".join(of_all[0] if len(set(of_all)) == 1 else "*" for of_all in segments)


def _is_in(module: str, name: str) -> bool:
    return not module or name.startswith(f"{module}.")
