"""The command line: `python -m recipes.glit.bench run --data DIR` trains networks, `pack` makes the table of them."""

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from nasx.cli import DONE, INTERRUPTED, BadInput, print_json, run_command
from nasx.run import Interrupted, StopFlag
from nasx.train import run_jobs

from .settings import Settings, ordered_archs
from .table import pack, table
from .together import groups, train_group
from .training import Job, load_parts, result_path, train_job


def _run(options: argparse.Namespace) -> int:
    settings = Settings()
    if options.epochs:
        settings = replace(settings, epochs=options.epochs)
    load_parts(options.data, settings)  # refuses a folder that is none before any worker starts
    archs = ordered_archs(settings.space)[: options.networks]
    jobs = [
        Job(arch, seed, settings, options.data, path, options.device)
        for number, arch in enumerate(archs)
        for seed in settings.seeds
        if not (path := result_path(options.out, number, seed)).is_file()
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    print(f"{len(archs) * len(settings.seeds) - len(jobs)} trainings are done, {len(jobs)} to go", flush=True)
    with StopFlag() as stop:

        def stopping() -> bool:
            return stop.requested or time.monotonic() - started > 3600 * options.hours

        def show_count(number: int, _: None) -> None:
            done = sum(job.path.is_file() for job in jobs)
            spent = time.monotonic() - started
            print(f"{done} of {len(jobs)} in {spent / 60:.1f} min: {jobs[number].path.name}", flush=True)

        if torch.device(options.device).type == "cuda" and not options.apart:
            for group in groups(jobs):
                if stopping():
                    print("stopped; the same command continues")
                    return INTERRUPTED
                train_group(group)
                show_count(jobs.index(group[-1][-1]), None)
            return DONE
        try:
            run_jobs(train_job, jobs, processes=options.processes, on_result=show_count, stopping=stopping)
        except Interrupted:
            print("stopped; the same command continues")
            return INTERRUPTED
    return DONE


def _pack(options: argparse.Namespace) -> int:
    results = [json.loads(path.read_text()) for path in sorted(options.out.glob("*.json"))]
    if not results:
        raise BadInput(f"{options.out} holds no results; run the benchmark first")
    of_results = {key: ", ".join(sorted({result[key] for result in results})) for key in ("torch", "device")}
    facts = {**of_results, "machine": options.machine or platform.machine(), "commit": options.commit}
    pack(results, facts, options.table)
    print(table(options.table))
    return DONE


def _show(options: argparse.Namespace) -> int:
    found = table()
    rows = [
        {
            "heads": [int(v) for v in arch.only("block.*.global_heads").values()],
            "val": [round(row.val_accuracy, 4) for row in found.of(arch)],
            "test": [round(row.test_accuracy, 4) for row in found.of(arch)],
            "macs": found.of(arch)[0].macs,
        }
        for arch in found.archs
    ]
    if options.json:
        print_json({"table": repr(found), "facts": found.facts, "networks": rows})
        return DONE
    print(found)
    for row in rows:
        print(f"{row['heads']}  val {row['val']}  test {row['test']}  {row['macs']:,} MACs")
    return DONE


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command and its options."""
    parser = argparse.ArgumentParser(prog="python -m recipes.glit.bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train what is missing; stop and start it as often as you like")
    run.set_defaults(command=_run)
    run.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an image folder with train/ and test/")
    run.add_argument("--out", type=Path, default=Path("runs/glit-bench"), help="where results go (runs/glit-bench)")
    run.add_argument("--networks", type=int, default=256, help="how many of the 256 networks (default all)")
    run.add_argument("--hours", type=float, default=6.0, help="stop after this time (default 6)")
    run.add_argument("--processes", type=int, default=2, help="networks trained side by side (default 2)")
    run.add_argument("--device", default="cpu", help="a torch device (cpu)")
    run.add_argument("--apart", action="store_true", help="on a GPU too one network a process, not many at once")
    run.add_argument("--epochs", type=int, help="other than the benchmark's, to see how far from a plateau they end")
    packing = commands.add_parser("pack", help="make the table of the results")
    packing.set_defaults(command=_pack)
    packing.add_argument("--out", type=Path, default=Path("runs/glit-bench"), help="where results are")
    packing.add_argument("--table", type=Path, required=True, help="the file to write, such as cifar10.npz")
    packing.add_argument("--machine", default="", help="what the networks were trained on")
    packing.add_argument("--commit", default="", help="of the code that trained them")
    show = commands.add_parser("show", help="print the table that comes with the recipe")
    show.set_defaults(command=_show)
    show.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    options = parse(arguments)
    return run_command(lambda: options.command(options))


if __name__ == "__main__":
    sys.exit(main())
