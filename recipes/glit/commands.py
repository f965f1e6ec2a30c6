"""GLiT's own commands: a network described, trained alone, evaluated, imported, exported and verified."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nasx import Arch, Space
from nasx.cli import DONE, INTERRUPTED, BadInput, apply_settings, bad_input, pick, print_json
from nasx.recipe.commands import CommandLine, read_arch
from nasx.recipe.machine import Machine
from nasx.recipe.outcome import Finished, read_run
from nasx.recipe.problem import ImageTask, load_task
from nasx.recipe.stages import Stages
from nasx.report import percent
from nasx.report.figures import architecture, save_svg
from nasx.run import Stage, StageContext
from nasx.train import evaluate, pick_device
from nasx.verify import Check, check_cost, verify
from nasx.weights import read_state_dict
from recipes.glit.config import CIFAR10, DIGITS, PRESETS, TINY, Config
from recipes.glit.cost import Macs, PaperMacs, Params
from recipes.glit.deploy import (
    WEIGHTS,
    Shipped,
    frame_of,
    from_file,
    from_published,
    from_run,
    with_weights,
    write_onnx,
    write_safetensors,
)
from recipes.glit.model import DEIT_BASE, DEIT_SMALL, DEIT_TINY, GLIT_TINY, build_in
from recipes.glit.picture import block_drawings
from recipes.glit.problem import GLiTProblem
from recipes.glit.space import Axes, details_space, table2
from recipes.glit.supernet import supernet as make_supernet
from recipes.glit.timm_problem import PREFIX, TimmProblem, timm_arch

KNOWN = {  # name: the network, and the preset of its size
    "glit-tiny": (GLIT_TINY, "glit-tiny"),
    "deit-tiny": (DEIT_TINY, "glit-tiny"),
    "deit-small": (DEIT_SMALL, "glit-small"),
    "deit-base": (DEIT_BASE, "glit-base"),
}

FAILED = 1


def describe(options: argparse.Namespace) -> int:
    """Show a network block by block, with its costs."""
    config = _preset(options, options.arch)
    axes, frame = config.axes(), _frame(config, options.classes)
    arch = _arch(options.arch, axes)
    with bad_input():
        counts = {"params": Params(frame)(arch), "macs": Macs(frame)(arch), "paper_macs": PaperMacs(frame)(arch)}
        if options.picture:
            legend = GLiTProblem.drawing_legend
            save_svg(architecture(block_drawings(arch, axes.num_heads), legend), options.picture)
    computed = {"variant": config.model.variant, "locality": axes.locality}
    blocks = [dict(part) for part in arch.parts("block")]
    if options.json:
        print_json({**counts, **computed, "blocks": blocks})
        return DONE
    names = ["global_heads", *axes.all_details]
    table = Table("block", *names, title=options.arch)
    for i, block in enumerate(blocks):
        table.add_row(str(i), *(str(block.get(name, "")) for name in names))
    console = Console()
    console.print(table)
    console.print(f"variant {config.model.variant}, locality {axes.locality}")
    console.print(
        f"{counts['params']:,} parameters, {counts['macs']:,} MACs ({counts['paper_macs']:,} by the paper's count)"
    )
    return DONE


def train(line: CommandLine, options: argparse.Namespace) -> int:
    """Train one network alone with the preset's retraining, and test it."""
    if options.method is not None:
        raise BadInput("nothing is searched, so there is no method to choose; leave --method out")
    config = line.config(options)
    arch = _arch(options.arch, config.axes())
    # what a search alone would need is no part of this, and may not refuse it
    config = apply_settings(
        config,
        [
            *("method=random", "budget.heads_at_most=null", "budget.details_at_least=null"),
            *("budget.details_at_most=null", "search.recalibration_batches=0"),
            f"supernet.batch_size={config.retrain.batch_size}",
        ],
    )

    problem = line.problem(options, config, lambda config, task: problem_of(config, task, arch))
    name = Path(options.arch.removeprefix(PREFIX)).stem
    directory = options.run_dir or Path("runs") / f"glit-{config.preset}-{name}-seed{config.seed}"
    done = line.execute(problem, directory, partial(_alone, arch=arch), {"arch": dict(arch)})
    if done is None:
        return INTERRUPTED
    if not done.results["evaluation"]:
        return DONE  # a rank of several that does not speak
    summary = line.outcome(problem, directory, done)
    if options.json:
        print_json(summary)
        return DONE
    trained = summary["networks"]["trained"]
    print(f"{options.arch}: {trained['params']:,} parameters, {trained['macs']:,} MACs")
    print(f"validation {percent(trained['val_accuracy'])}, test {percent(trained['test_accuracy'])}")
    print(f"summary, report and weights: {directory}/summary.json and beside it")
    return DONE


def problem_of(config: Config, task: ImageTask, arch: Mapping[str, Any]) -> GLiTProblem | TimmProblem:
    """Return the problem of a run of this recipe, which may be the training of a network of timm."""
    return TimmProblem(config, task, Arch(arch)) if "timm" in arch else GLiTProblem(config, task)


def _alone(make: Stages, arch: Arch) -> list[Stage]:
    def evaluation(context: StageContext) -> dict[str, Any]:
        tested = context.inputs["network/test"]
        return {"trained": tested} if tested else {}

    return [*make.given("network", [arch]), *make.test("network"), Stage("evaluation", evaluation, ("network/test",))]


def evaluate_command(options: argparse.Namespace) -> int:
    """Tell the accuracy on the test images: of a run's network, of exported weights, or of weights and a name."""
    shipped, config = _shipped(options)
    frame, data = shipped.frame, options.data.resolve() if options.data else None
    settings: dict[str, Any] = {"image_size": frame.image_size}
    if shipped.mean:
        settings |= {"mean": shipped.mean, "std": shipped.std}
        if options.run is None or not (options.run / "run.json").exists():
            settings |= {"val_images": None, "leaks": "allow"}  # nothing is fitted or chosen here
    with bad_input():
        config = config.model_copy(update={"data": config.data.model_copy(update=settings)})
        machine = Machine()
        task = load_task(config, data, machine)
        _check_classes(shipped, task)
        network = shipped.network.to(pick_device(machine.device))
        tested = evaluate(network, task.eval_batches(task.dataset.open_test()))
    if options.json:
        print_json({"test_accuracy": tested.score, "images": tested.samples, **shipped.counts()})
        return DONE
    print(f"test {percent(tested.score)} of {tested.samples:,} images")
    return DONE


def import_official(options: argparse.Namespace) -> int:
    """Write what a published checkpoint holds as this recipe's network: weights, architecture and model card."""
    with bad_input():
        shipped = from_published(options.file, num_classes=options.classes, image_size=options.image_size)
        files = write_safetensors(shipped, options.out)
    return _written(options, shipped, files)


def export(options: argparse.Namespace) -> int:
    """Write a run's network, or one that was exported or imported, as safetensors or ONNX."""
    with bad_input():
        shipped, _ = _opened(options.source)
        files = (write_safetensors if options.format == "safetensors" else write_onnx)(shipped, options.out)
    return _written(options, shipped, files)


def _written(options: argparse.Namespace, shipped: Shipped, files: Sequence[Path]) -> int:
    if options.json:
        print_json({"files": [str(path) for path in files], "arch": dict(shipped.arch), **shipped.counts()})
        return DONE
    counts = shipped.counts()
    print(f"{counts['params']:,} parameters, {counts['macs']:,} MACs")
    print(f"written: {', '.join(str(path) for path in files)}")
    return DONE


def verify_command(options: argparse.Namespace) -> int:
    """Prove that a supernet's slice, the extracted network, its reloaded weights and the costs agree."""
    with bad_input():
        if (options.run is None) == (options.arch is None):
            raise ValueError("name either a run directory or --arch, one of both")
        run = read_run(options.run, "glit") if options.run else None
        config = _config_of(run) if run else _preset(options, options.arch)
        arch = run.arch if run else _arch(options.arch, config.axes())
        if "timm" in arch:
            raise ValueError(f"{arch['timm']!r} is a network of timm and has no supernet; name one of the space")
        frame = _frame(config, len(run.split["train"]["per_class"]) if run else options.classes)
        space, stage = _supernet_space(arch, config.axes(), run)
        torch.manual_seed(config.seed)
        supernet = make_supernet(space, frame, sharing=config.model.sharing, init_std=config.model.init_std)
        weights = run.supernet(stage) if run and stage else None
        if weights:
            supernet.load_state_dict(weights)
    size, generator = frame.image_size, torch.Generator().manual_seed(config.seed)
    images = torch.randn(2, frame.in_channels, size, size, generator=generator)
    found = verify(
        supernet,
        arch,
        images,
        macs=Macs(frame),
        params=Params(frame),
        build=partial(build_in, frame),
        onnx=options.onnx,
    )
    checks = [*found.checks, *(_kept(run, config) if run else ())]
    passed = all(check.passed is not False for check in checks)
    told = f"weights of the supernet {stage}" if weights else "fresh weights"
    if options.json:
        rows = [{"name": c.name, "passed": c.passed, "difference": c.difference, "detail": c.detail} for c in checks]
        print_json({"passed": passed, "weights": told, "checks": rows})
    else:
        print(f"{told}, {len(arch.parts('block'))} blocks, {size} pixels")
        print("\n".join(map(str, checks)))
    return DONE if passed else FAILED


def _supernet_space(arch: Arch, axes: Axes, run: Finished | None) -> tuple[Space, str | None]:
    """Return a space around a network and the stage that trained its supernet, where there is one."""
    if run and "joint/supernet" in run.results:
        return table2(axes), "joint/supernet"
    heads = arch.only("block.*.global_heads")
    details = details_space(heads, axes)
    if arch in details:
        return details, "details/supernet"
    return table2(axes).pin(heads), None


def _kept(run: Finished, config: Config) -> list[Check]:
    """Check a run's own weights: that they fit its architecture, and have what its summary says."""
    try:
        shipped = from_run(run, config)
    except ValueError as error:
        return [Check("the run's weights fit its architecture", False, detail=str(error))]
    winner = next(iter(run.summary["networks"].values()))
    counts = shipped.counts()
    return [
        check_cost(f"{unit} of the run's summary and weights", winner[key], counts[key])
        for unit, key in (("MACs", "macs"), ("parameters", "params"))
    ]


def heatmaps(options: argparse.Namespace) -> int:
    """Draw heat maps (paper, figure 6) of a finished run's networks."""
    from recipes.glit.heatmaps import heat_maps_of_run

    with bad_input():
        save_svg(heat_maps_of_run(options.run, options.data, options.count), options.out)
    print_json({"figure": str(options.out)}) if options.json else print(f"figure: {options.out}")
    return DONE


def _preset(options: argparse.Namespace, name: str | None) -> Config:
    """Return the configuration that `--preset` and `--set` choose; by default that of a known network's size."""
    default = KNOWN[name][1] if name in KNOWN else TINY.preset
    config: Config = pick(options.preset or default, PRESETS, "preset")
    return apply_settings(config, options.set)


def _frame(config: Config, classes: int | None) -> Any:
    if classes is not None and classes < 1:
        raise BadInput(f"a network has at least one class, but got --classes {classes}")
    ten = config.preset in (DIGITS.preset, CIFAR10.preset)
    channels = 1 if config.data.source == "digits" else 3
    return config.frame(in_channels=channels, num_classes=classes or (10 if ten else 1000))


def _arch(name: str, axes: Axes) -> Arch:
    """Return an architecture by its name, from a file, or as timm's; a member of the space, but for timm's."""
    with bad_input():
        if name.startswith(PREFIX):
            return timm_arch(name.removeprefix(PREFIX))
        arch = read_arch(name, {known: arch for known, (arch, _) in KNOWN.items()})
        try:
            return table2(axes).canonical(arch)
        except ValueError as error:
            fitting = f"; {name} belongs to --preset {KNOWN[name][1]}" if name in KNOWN else ""
            raise ValueError(f"{error}{fitting}") from error


def _config_of(run: Finished) -> Config:
    return type(TINY).model_validate(run.config)


def _opened(path: Path) -> tuple[Shipped, Config]:
    """Return the network of a run, or of a directory or file that `export` or `import-official` has written."""
    if (path / "run.json").is_file():
        run = read_run(path, "glit")
        return from_run(run, _config_of(run)), _config_of(run)
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path} is neither a run directory nor a network that was exported or imported")
    shipped = from_file(file)
    return shipped, DIGITS if shipped.frame.in_channels == 1 else TINY


def _shipped(options: argparse.Namespace) -> tuple[Shipped, Config]:
    with bad_input():
        if (options.run is None) == (options.weights is None):
            raise ValueError("name either a run directory or --weights, one of both")
        if options.arch is None:
            shipped, config = _opened(options.run or options.weights)
            if options.preset:
                config = pick(options.preset, PRESETS, "preset")
            return shipped, apply_settings(config, options.set)
        if options.run:
            raise ValueError("a run directory knows its network; leave --arch out")
        config = _preset(options, options.arch)
        arch, state = _arch(options.arch, config.axes()), read_state_dict(options.weights)
        task = load_task(config, options.data.resolve() if options.data else None)
        classes = task.dataset.classes
        frame, (mean, std) = frame_of(config, arch, len(classes)), task.statistics
        return Shipped(
            network=with_weights(arch, frame, state), arch=arch, frame=frame, classes=classes, mean=mean, std=std
        ), config


def _check_classes(shipped: Shipped, task: ImageTask) -> None:
    theirs = task.dataset.classes
    known = shipped.classes if isinstance(shipped.classes, int) else len(shipped.classes)
    if known != len(theirs):
        raise ValueError(
            f"the network tells {known} classes apart, but the data have {len(theirs)}; give the data that it was "
            "trained for"
        )
    if isinstance(shipped.classes, tuple) and shipped.classes != theirs:
        ours, other = next((a, b) for a, b in zip(shipped.classes, theirs, strict=True) if a != b)
        raise ValueError(f"the network was trained for other classes: {ours!r} where the data have {other!r}")
