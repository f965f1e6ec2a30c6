"""The command line: `python -m recipes.glit` runs the main job, `--help` lists the rest."""

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import nasx
from nasx import Arch
from nasx.cli import BadInput, apply_settings, bad_input, pick, print_json, run_command

VERSIONED = ("torch", "torchvision", "timm", "numpy", "safetensors")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: options.command(options))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line; without a command it is `run`. Exits with status 2 on unknown words."""
    given = list(arguments)
    if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
        given = ["run", *given]
    return _parser().parse_args(given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.glit", description="Search a GLiT network.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Any, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command)
        sub.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        return sub

    def configured(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--preset", default="digits", help="digits (default) or cifar10")
        sub.add_argument("--data", type=Path, help="image folder with train/<class>/* and test/ or val/")
        sub.add_argument("--method", help="hierarchical (default), spos or random")
        sub.add_argument("--seed", type=int, help="seed of the run (default 0)")
        sub.add_argument(
            "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change a field of the preset"
        )

    run = add("run", _run, "start a search, or continue the one in the run directory")
    configured(run)
    run.add_argument("--run-dir", type=Path, help="default: runs/glit-PRESET-METHOD-seedSEED")
    plan = add("plan", _plan, "show sizes, budgets and every setting; trains nothing")
    configured(plan)
    describe = add("describe", _describe, "show a network block by block")
    describe.add_argument("--arch", required=True, help="glit-tiny, deit-tiny or an arch.json")
    describe.add_argument("--preset", help="the preset whose space and frame it has (default: GLiT-Tiny on ImageNet)")
    describe.add_argument("--classes", type=int, default=10, help="with --preset: number of classes (default 10)")
    return parser


def _config(options: argparse.Namespace) -> Any:
    with bad_input():  # the extra that the recipes need may be missing
        from recipes.glit.config import METHODS, PRESETS
    for setting in options.set:
        if setting.startswith("preset="):
            raise BadInput(f"the preset is chosen by --preset, not by --set {setting}")
    config = pick(options.preset, PRESETS, "preset")
    if options.method is not None:
        pick(options.method, dict.fromkeys(METHODS), "method")
        config = config.model_copy(update={"method": options.method})
    if options.seed is not None:
        config = config.model_copy(update={"seed": options.seed})
    return apply_settings(config, options.set)


def _problem(options: argparse.Namespace) -> Any:
    from rich.console import Console

    from recipes.glit.problem import load_problem

    config = _config(options)
    with bad_input(), Console(stderr=True).status("reading images and counting architectures"):
        problem = load_problem(config, options.data.resolve() if options.data else None)
        problem.check()
    return problem


def _run(options: argparse.Namespace) -> int:
    from rich.console import Console

    from nasx.report import networks_table, progress, stages_table
    from nasx.run import ConfigChanged, Interrupted, RunDirectory, RunLocked
    from nasx.train import pick_device
    from recipes.glit.config import Machine
    from recipes.glit.outcome import network_rows, stage_rows, summarise, write_outcome
    from recipes.glit.stages import plan_stages

    problem = _problem(options)
    with bad_input():
        machine = Machine()
        pick_device(machine.device)
    config = problem.config
    directory = options.run_dir or Path("runs") / f"glit-{config.preset}-{config.method}-seed{config.seed}"
    recorded = {"recipe": "glit", "config": json.loads(config.model_dump_json()), "split": problem.dataset.split}
    errors = Console(stderr=True)
    try:
        with bad_input():
            run = RunDirectory.open(directory, config=recorded, versions=_versions())
    except (ConfigChanged, RunLocked) as error:
        raise BadInput(str(error)) from error
    with run, progress(errors) as bars:
        tasks: dict[str, Any] = {}

        def show(description: str, done: float, total: float, note: str = "") -> None:
            if description not in tasks:
                tasks[description] = bars.add_task(description, total=total, note=note)
            bars.update(tasks[description], completed=done, total=total, note=note)

        stages = plan_stages(problem, machine, show)
        already = run.is_finished(stages)
        try:
            results = run.execute(stages)
        except Interrupted:
            errors.print(f"interrupted; the same command continues this run in {directory}")
            return 75
        summary = summarise(problem, results, run.seconds, _versions())
        if not already or not (directory / "report.html").exists():
            write_outcome(directory, problem, results, summary)
    if options.json:
        print_json(summary)
        return 0
    console = Console()
    if already:
        console.print("this run was finished before; nothing was trained (choose another --run-dir to start anew)")
    console.print(networks_table(network_rows(summary)))
    console.print(stages_table(stage_rows(summary)))
    console.print(f"report, summary, architecture and weights: {directory}/report.html and beside it", soft_wrap=True)
    return 0


def _plan(options: argparse.Namespace) -> int:
    from nasx.feasible import attainable

    problem = _problem(options)
    config = problem.config
    reach = attainable(problem.joint_space, problem.cost)
    document: dict[str, Any] = {
        "size": problem.joint_space.size,
        "feasible_size": problem.joint.size,
        "cost_min": reach.low,
        "cost_max": reach.high,
        "cost": problem.cost.unit,
        "deit_shaped": {"macs": problem.macs(problem.deit_shaped), "params": problem.params(problem.deit_shaped)},
        "images": {"train": len(problem.dataset.train), "val": len(problem.dataset.val)},
        "config": json.loads(config.model_dump_json()),
    }
    if config.method == "hierarchical":
        low, high = problem.heads.size_bounds
        document["heads"] = {"size": problem.heads.space.size, "feasible_size_bounds": [low, high]}
    if options.json:
        print_json(document)
        return 0
    print(f"joint space     {document['size']:.4g} architectures, {reach.low:,} to {reach.high:,} {problem.cost.unit}")
    print(f"inside {problem.details_budget}: {document['feasible_size']:.4g}")
    print(f"images          {len(problem.dataset.train):,} train, {len(problem.dataset.val):,} validation")
    print(json.dumps(document["config"], indent=1))
    return 0


def _describe(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from recipes.glit.config import PRESETS
    from recipes.glit.cost import Macs, PaperMacs, Params
    from recipes.glit.model import DEIT_TINY, GLIT_TINY, Frame
    from recipes.glit.space import TINY, table2

    known = {"glit-tiny": GLIT_TINY, "deit-tiny": DEIT_TINY}
    axes, frame = TINY, Frame()
    if options.preset:
        config = pick(options.preset, PRESETS, "preset")
        channels = 1 if config.data.source == "digits" else 3
        axes, frame = config.axes(), config.frame(in_channels=channels, num_classes=options.classes)
    arch = known[options.arch] if options.arch in known else _read_arch(options.arch, list(known))
    with bad_input():
        arch = table2(axes).canonical(arch)
        counts = {"params": Params(frame)(arch), "macs": Macs(frame)(arch), "paper_macs": PaperMacs(frame)(arch)}
    blocks = [dict(part) for part in arch.parts("block")]
    if options.json:
        print_json({**counts, "blocks": blocks})
        return 0
    names = ["global_heads", "kernel_size", "expansion", "qkv_ratio", "mlp_ratio"]
    table = Table("block", *names, title=options.arch)
    for i, block in enumerate(blocks):
        table.add_row(str(i), *(str(block.get(name, "")) for name in names))
    console = Console()
    console.print(table)
    console.print(
        f"{counts['params']:,} parameters, {counts['macs']:,} MACs ({counts['paper_macs']:,} by the paper's count)"
    )
    return 0


def _read_arch(path: str, known: Sequence[str]) -> Arch:
    with bad_input():
        if not Path(path).is_file():
            raise ValueError(f"there is no architecture {path!r}: name a file, or one of {', '.join(known)}")
        return Arch.from_json(Path(path).read_text())


def _versions() -> dict[str, str]:
    found = {"nasx": nasx.__version__, "python": platform.python_version()}
    for package in VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


if __name__ == "__main__":
    sys.exit(main())
