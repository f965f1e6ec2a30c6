"""The papers' claims in small: networks that differ in what is claimed alone, each trained to its plateau."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.evidence.markdown import grid, percent, points
from benchmarks.evidence.results import Floats, records
from benchmarks.evidence.scenes import Scene
from nasx import Arch
from nasx.comparison import Difference, paired_difference
from recipes.glit.bench import table
from recipes.glit.bench.training import unpacked
from recipes.glit.space import same_heads
from recipes.localvit import model as localvit
from recipes.localvit.space import variant

EPOCHS = 50


@dataclass(frozen=True)
class Claimed:
    """A network that a claim is about."""

    name: str
    make: Callable[[], nn.Module]
    seeds: int
    """How many trainings, with the seeds from 0 on."""
    arch: Arch | None = None
    """Of networks that the tabular benchmark has."""


def networks(scene: Scene) -> list[Claimed]:
    """Return GLiT's networks with the same heads in every block (table 1), and LocalViT's with and without locality."""
    vit = localvit.LocalViTConfig(
        image_size=scene.vit.image_size,
        patch_size=scene.vit.patch_size,
        in_channels=scene.vit.in_channels,
        num_classes=scene.vit.num_classes,
        embed_dim=scene.vit.embed_dim,
        num_heads=scene.vit.num_heads,
    )
    blocks = scene.choices.blocks
    plain = variant(3, blocks=blocks, local=())
    local = variant(3, blocks=blocks, reduction=vit.embed_dim)
    return [
        *(
            Claimed(f"glit-{heads}-global", partial(scene.make, arch), 10, arch)
            for heads, arch in enumerate(same_heads(heads, scene.choices) for heads in range(scene.vit.num_heads + 1))
        ),
        Claimed("localvit-plain", partial(localvit.LocalViT, vit, plain, init_std=scene.init_std), 3),
        Claimed("localvit-local", partial(localvit.LocalViT, vit, local, init_std=scene.init_std), 3),
    ]


def example(scene: Scene) -> Tensor:
    """Return one blank image."""
    vit = scene.vit
    return torch.zeros(1, vit.in_channels, vit.image_size, vit.image_size)


def test_accuracies(name: str) -> Floats:
    """Return a network's test accuracies by seed; the tabular benchmark has the first two of GLiT's."""
    found: dict[int, float] = {}
    if name.startswith("glit"):
        heads = int(name.split("-")[1])
        found = {row.seed: row.test_accuracy for row in table().of(same_heads(heads, table().settings.choices))}
    for record in records("cifar10-claims"):
        if record["network"] == name:
            found[record["seed"]] = float(unpacked(record["test"]).mean())
    return np.array([found[seed] for seed in sorted(found)])


def glit_table() -> str:
    """GLiT's table 1: the same number of global heads in every block."""
    paper = {3: 72.20, 2: 72.89, 1: 73.98, 0: 71.02}
    rows = [
        [f"G {heads}, L {3 - heads}", f"{paper[heads]:.2f}", _accuracies(f"glit-{heads}-global")]
        for heads in sorted(paper, reverse=True)
    ]
    differences = [in_points("glit-1-global", f"glit-{heads}-global") for heads in (3, 0)]
    lines = [
        f"- {difference.sentence('G 1, L 2', other)}"
        for difference, other in zip(differences, ("G 3, L 0", "G 0, L 3"), strict=True)
    ]
    table_text = grid(("heads of every block", "paper, ImageNet %", "here, CIFAR-10 %"), rows)
    claim = "a block of one global and two local heads is better than a block of either kind alone"
    other_mix = in_points("glit-2-global", "glit-3-global").sentence("G 2, L 1", "G 3, L 0")
    return "\n".join([table_text, "", *lines, f"- {other_mix}", "", verdict(claim, differences)])


def localvit_table() -> str:
    """LocalViT's gain over the plain transformer."""
    rows = [
        ["plain feed-forward", "72.2", _accuracies("localvit-plain")],
        ["depthwise convolution, h-swish, squeeze-excitation", "75.9", _accuracies("localvit-local")],
    ]
    difference = in_points("localvit-local", "localvit-plain")
    return "\n".join(
        [
            grid(("network", "paper, ImageNet %", "here, CIFAR-10 %"), rows),
            "",
            f"- {difference.sentence('locality', 'the plain transformer')}",
            "",
            verdict("a depthwise convolution in the feed-forward raises accuracy", [difference]),
        ]
    )


def ablation(table: str, ours: str, claim: str) -> str:
    """One of GLiT's ablations of the search on the digits: every row against `ours`, and what that decides."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for network in records(f"ablation-{table}"):
        rows.setdefault(network["row"], []).append(network)
    accuracies = {row: 100 * np.array([n["test_accuracy"] for n in found]) for row, found in rows.items()}
    cells = [
        [
            row,
            f"{found[0]['paper']:.1f}",
            f"{accuracies[row].mean():.2f} ± {accuracies[row].std(ddof=1):.2f}",
            f"{np.mean([n['macs'] for n in found]) / 1e6:.2f}",
        ]
        for row, found in rows.items()
    ]
    differences = {row: paired_difference(accuracies[ours], other) for row, other in accuracies.items() if row != ours}
    return "\n".join(
        [
            grid(("row", "paper, ImageNet %", f"here, digits % ({len(accuracies[ours])} seeds)", "M MACs"), cells),
            "",
            *(f"- {difference.sentence(ours, row)}" for row, difference in differences.items()),
            "",
            verdict(claim, list(differences.values())),
        ]
    )


def whole_search() -> str:
    """What the whole search of the digits preset finds, beside random networks of its budget."""
    of_row: dict[str, list[float]] = {}
    for network in records("ablation-table5"):
        of_row.setdefault(network["row"], []).append(network["test_accuracy"])
    searched, random = (np.array(of_row[row]) for row in ("hierarchical", "best of 2 random networks"))
    return (
        f"The preset `digits` as it runs, both stages, finds networks of {percent(float(searched.mean()))} % on the "
        f"test images (mean of {len(searched)} seeds); the best of 2 random networks of its budget, which need no "
        f"supernet, have {percent(float(random.mean()))} %. The difference in points is "
        f"{points(paired_difference(searched, random))}."
    )


def autoformer_table() -> str:
    """AutoFormer's inherited weights against fine-tuned and retrained ones, on the digits."""
    names = {"searched": "inherited from the supernet", "fine-tuned": "fine-tuned", "retrained": "retrained"}
    runs = records("autoformer")
    accuracies = {name: 100 * np.array([run["networks"][name]["test_accuracy"] for run in runs]) for name in names}
    rows = [
        [words, ", ".join(f"{accuracy:.2f}" for accuracy in accuracies[name]), f"{accuracies[name].mean():.2f}"]
        for name, words in names.items()
    ]
    differences = {
        name: paired_difference(accuracies["searched"], accuracies[name]) for name in names if name != "searched"
    }
    return "\n".join(
        [
            grid(("weights", "test accuracy % by seed", "mean %"), rows),
            "",
            *(f"- {difference.sentence('inherited', names[name])}" for name, difference in differences.items()),
        ]
    )


def sizes_found(table: str, first: str, second: str) -> str:
    """Whether the search of one row finds larger networks than that of another."""
    macs = {
        row: np.array([n["macs"] / 1e6 for n in records(f"ablation-{table}") if n["row"] == row])
        for row in (first, second)
    }
    difference = paired_difference(macs[first], macs[second])
    said = "an interval that contains 0" if not difference.shown else "an interval that excludes 0"
    return (
        f"The networks of {first} have {difference.value:+.3f} million MACs ({difference.low:+.3f} to "
        f"{difference.high:+.3f}) compared with those of {second}: {said}."
    )


def in_points(first: str, second: str) -> Difference:
    """Return the difference of two networks' test accuracies in points, over the seeds that both have."""
    accuracies = [100 * test_accuracies(name) for name in (first, second)]
    both = min(map(len, accuracies))
    return paired_difference(*(of_seeds[:both] for of_seeds in accuracies))


def _accuracies(name: str) -> str:
    values = 100 * test_accuracies(name)
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f} ({len(values)} seeds)"


def verdict(claim: str, differences: Sequence[Difference]) -> str:
    """Return what the differences, which the claim says are all above 0, decide about it."""
    if all(difference.low > 0 for difference in differences):
        word = "holds"
    elif any(difference.high < 0 for difference in differences):
        word = "does not hold here"
    else:
        word = "undecided"
    return f"Verdict: **{word}** ({claim})."
