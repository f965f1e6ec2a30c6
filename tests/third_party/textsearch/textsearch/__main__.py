"""The search: `python -m textsearch` trains the supernet, evolves inside a budget, and prints what it found."""

import json
from collections.abc import Iterator

import torch
from torch import Tensor

import nasx
from nasx import Arch, Budget
from nasx.search import Evolution
from nasx.train import UniformPaths, adamw, evaluate, seeded, train_supernet, use_threads
from nasx.verify import verify

from .data import MODULES, Snippets, load
from .space import TEXT, Macs, Params
from .supernet import TextSupernet, build

STEPS, BATCH, SEED = 200, 64, 0
MOST_PARAMS = 16_000


def batches(snippets: Snippets, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield random batches."""
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        rows = torch.randint(len(snippets.labels), (BATCH,), generator=generator)
        yield snippets.tokens[rows], snippets.labels[rows]


def main() -> None:
    """Search, and print one JSON document."""
    train, held_out = load()
    torch.manual_seed(SEED)
    supernet, inside = TextSupernet(), TEXT.within(Budget(Params(), at_most=MOST_PARAMS))
    optimizer = adamw(supernet, lr=3e-3, weight_decay=0.01)
    losses = [
        step.loss
        for step in train_supernet(supernet, seeded(batches(train, STEPS), SEED), UniformPaths(inside, SEED), optimizer)
    ]

    def accuracy(arch: Arch) -> float:
        return evaluate(supernet.extract(arch), [(held_out.tokens, held_out.labels)]).score

    searcher = Evolution(inside, population=8, generations=3, parents=3, seed=SEED)
    while not searcher.done:
        searcher.tell({arch: accuracy(arch) for arch in searcher.ask()})
    (best,) = searcher.best()
    proof = verify(supernet, best.arch, held_out.tokens[:2], macs=Macs(), params=Params(), build=build)
    document = {
        "nasx": nasx.__file__,
        "arch": dict(best.arch),
        "params": Params()(best.arch),
        "accuracy": best.score,
        "chance": float(torch.bincount(held_out.labels, minlength=len(MODULES)).max()) / len(held_out.labels),
        "size": TEXT.size,
        "feasible_size": inside.size,
        "evaluated": len(searcher.history),
        "losses": [losses[0], losses[-1]],
        "verified": proof.passed,
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    with use_threads(1):
        main()
