"""The experiments: `python -m benchmarks.evidence EXPERIMENT --out DIR` continues where it was stopped."""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.evidence import claims, inherited, page, results, scenes
from benchmarks.evidence.on_table import compare_searchers
from benchmarks.evidence.scenes import spread
from benchmarks.evidence.supernets import SCORINGS, Setting, measure
from benchmarks.evidence.truth import measure_alone, measure_network
from nasx.measure import count_macs
from recipes.glit.bench import table
from recipes.glit.bench.settings import Settings
from recipes.glit.config import DIGITS
from recipes.glit.space import same_heads

Work = tuple[str, Callable[[Path], None]]
"""The name of a result, and what writes it to a file."""

NETWORKS = {"digits": 16, "cifar10": 160}


def digits_truth(options: argparse.Namespace) -> Iterator[Work]:
    """Networks of the digits preset's stage one, each trained alone with two seeds."""
    scene = scenes.digits()
    for seed, (number, arch) in itertools.product((0, 1), enumerate(spread(scene, NETWORKS[scene.name]))):
        yield f"{number:02}-{seed}", partial(measure_alone, scene, arch, seed, DIGITS.retrain.epochs)


def digits_plateau(options: argparse.Namespace) -> Iterator[Work]:
    """Networks with the same heads in every block, trained as the digits preset does and three times as long."""
    scene, epochs = scenes.digits(), DIGITS.retrain.epochs
    heads = range(scene.vit.num_heads + 1)
    for seed, global_heads, times in itertools.product((0, 1, 2), heads, (1, 3)):
        work = partial(measure_alone, scene, same_heads(global_heads, scene.choices), seed, times * epochs)
        yield f"{global_heads}-{times}-{seed}", work


def digits_supernets(options: argparse.Namespace) -> Iterator[Work]:
    """Supernets of the digits preset's stage one: five seeds of the shortest trainings, three of others."""
    scene = scenes.digits()
    archs = spread(scene, NETWORKS[scene.name])
    short = [Setting("entangled", 25, ema=0.98), Setting("separate", 25, ema=0.98)]
    others = [
        Setting("entangled", 75, ema=0.98),
        Setting("separate", 75, ema=0.98),
        Setting("entangled", 75, "four", ema=0.98),
        Setting("entangled", 75, "stratified", ema=0.98),
    ]
    for seed, setting in [*itertools.product(range(5), short), *itertools.product(range(3), others)]:
        yield f"{setting.name}-{seed}", partial(measure, scene, setting, seed, archs, SCORINGS)


def cifar10_supernets(options: argparse.Namespace) -> Iterator[Work]:
    """Supernets of the benchmark's networks, trained in several ways: five seeds of the shortest, three of others."""
    scene = scenes.cifar10(options.data)
    archs = spread(scene, NETWORKS[scene.name])
    short = [Setting("entangled", 50, ema=0.98), Setting("separate", 50, ema=0.98)]
    others = [
        Setting("entangled", 50, "stratified", ema=0.98),
        Setting("entangled", 50, "four", ema=0.98),
        Setting("entangled", 100, ema=0.98),
        Setting("separate", 100, ema=0.98),
    ]
    for seed, setting in [*itertools.product(range(5), short), *itertools.product(range(3), others)]:
        scorings = ("none", "1024 plain", "1024 plain, averaged") if seed == 0 else ("1024 plain",)
        yield f"{setting.name}-{seed}", partial(measure, scene, setting, seed, archs, scorings)


def cifar10_claims(options: argparse.Namespace) -> Iterator[Work]:
    """Networks that claims of the papers are about, trained alone with several seeds, two of GLiT's by the table."""
    scene = scenes.cifar10(options.data)
    networks = claims.networks(scene)
    for seed, claimed in itertools.product(range(max(claimed.seeds for claimed in networks)), networks):
        if seed >= claimed.seeds or (claimed.arch is not None and seed in Settings().seeds):
            continue
        facts = {"network": claimed.name, "macs": count_macs(claimed.make(), claims.example(scene))}
        work = partial(measure_network, scene, claimed.make, facts, seed, claims.EPOCHS)
        yield f"{claimed.name}-{seed}", work


def cifar10_inherited(options: argparse.Namespace) -> Iterator[Work]:
    """Networks that keep a supernet's weights, and random ones trained for as long as such a search takes."""
    scene = scenes.cifar10(options.data)
    setting = Setting("entangled", 100)
    whole = setting.epochs + inherited.NETWORKS * inherited.TUNING_EPOCHS
    for seed in range(5):
        yield f"{setting.name}-{seed}", partial(inherited.measure, scene, setting, seed)
        yield f"alone-{whole}-{seed}", partial(inherited.measure_random, scene, seed, whole)


EXPERIMENTS = {
    "digits-truth": digits_truth,
    "digits-plateau": digits_plateau,
    "digits-supernets": digits_supernets,
    "cifar10-supernets": cifar10_supernets,
    "cifar10-inherited": cifar10_inherited,
    "cifar10-claims": cifar10_claims,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command and its options."""
    experiments = "; ".join(f"{name}: {(work.__doc__ or '').strip()}" for name, work in EXPERIMENTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description=f"{__doc__} {experiments} searchers: Compare searchers on the "
        "table. collect: Put results beside the page. page: Write it.",
    )
    parser.add_argument("command", choices=[*EXPERIMENTS, "searchers", "collect", "page"])
    parser.add_argument("--repeats", type=int, default=200, help="of each searcher (default 200)")
    parser.add_argument("--out", type=Path, help="where results go, a folder for each experiment")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as an image folder")
    parser.add_argument("--part", default="0/1", help="share of the work, such as 0/2 and 1/2 in two processes")
    options = parser.parse_args(arguments)
    if options.out is None and (options.command in EXPERIMENTS or options.command == "collect"):
        parser.error(f"{options.command} needs --out DIR, where results are")
    if options.data is None and options.command.startswith("cifar10"):
        parser.error(f"{options.command} needs --data DIR, CIFAR-10 as an image folder")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an experiment, collect results or write the page, and return the exit status."""
    options = parse(arguments)
    if options.command == "page":
        page.write()
        return 0
    if options.command == "searchers":
        results.keep("searchers", compare_searchers(table(), repeats=options.repeats))
        return 0
    if options.command == "collect":
        for name in EXPERIMENTS:
            if any((options.out / name).glob("*.json")):
                print(results.collect(options.out, name))
        if any((options.out / "autoformer").glob("*/summary.json")):
            print(results.collect_runs(options.out, "autoformer"))
        for document in sorted((options.out / "ablations").glob("*.json")):
            print(results.collect_ablation(document))
        return 0
    torch.set_num_threads(1)
    share, shares = map(int, options.part.split("/"))
    folder = options.out / options.command
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, work) in enumerate(EXPERIMENTS[options.command](options)):
        path = folder / f"{name}.json"
        if number % shares != share or path.is_file():
            continue
        started = time.monotonic()
        work(path)
        print(f"{options.command} {name}: {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
