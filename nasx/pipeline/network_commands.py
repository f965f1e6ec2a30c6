"""The commands about single networks, for every recipe: describe, train, evaluate, import, verify, latency."""

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nasx._words import number_of
from nasx.cli import DONE, FAILED, INTERRUPTED, BadInput, apply_settings, bad_input, check_counts, pick, print_json
from nasx.pipeline.commands import CommandLine, is_first
from nasx.pipeline.deploy_commands import DeployCommands, show_written
from nasx.pipeline.outputs import check_output

if TYPE_CHECKING:
    from nasx.arch import Arch
    from nasx.pipeline.exported import ExportedModel
    from nasx.pipeline.finished_run import FinishedRun
    from nasx.pipeline.images import ImageTask
    from nasx.pipeline.problem import Problem
    from nasx.pipeline.recipe import Recipe
    from nasx.pipeline.vit import ViTProblem
    from nasx.verify import Check


_WIDTH = 1_000  # columns of a file or a pipe, which cut no table


class NetworkCommands:
    """Adds the commands to a command line.

    `known` is what `--arch` takes beside a file, for the help, and `alone` what it takes where a network is trained or
    tested by itself, because it is none of the space.
    """

    def __init__(self, line: CommandLine, known: Sequence[str], alone: Sequence[str] = ()) -> None:
        self.line = line
        files = "an arch.json", "or a run directory"
        arch, any_arch = ", ".join((*known, *files)), ", ".join((*known, *alone, *files))
        sub = line.add("describe", self.describe, "show a network block by block")
        sub.add_argument("--arch", required=True, help=arch)
        self._add_preset(sub)
        sub.add_argument("--classes", type=int, help="number of classes (default: that of the preset's data)")
        sub.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw it as well")

        sub = line.configured("train", self.train, "train one network alone with the preset's retraining, or continue")
        sub.add_argument("--arch", required=True, help=any_arch)
        sub.add_argument("--run-dir", type=Path, help=f"default: runs/{line.name}-PRESET-ARCH-seedSEED")

        sub = line.add("evaluate", self.evaluate, "accuracy on the test images")
        sub.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a run directory, or an exported network")
        sub.add_argument("--weights", type=Path, help="a weights file instead")
        sub.add_argument("--arch", help=f"its network, where the file does not say: {any_arch}")
        self._add_preset(sub)
        sub.add_argument("--data", type=Path, help="image folder with train/<class>/* and test/ or val/")
        sub.add_argument("--mean", type=_numbers, help="mean of each channel, for pixels in 0..1, such as 0.5,0.5,0.5")
        sub.add_argument("--std", type=_deviations, help="standard deviation of each channel")

        sub = line.add("import-official", self.import_official, "read published weights")
        sub.add_argument(
            "file", type=Path, metavar="FILE", help="a torch checkpoint or safetensors; nothing in it is run"
        )
        sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="where weights and model card go")
        sub.add_argument("--classes", type=int, help="another number of classes: a new head")
        sub.add_argument(
            "--image-size", type=int, metavar="PIXELS", help="another image size: positions are interpolated"
        )
        sub.add_argument("--heads", type=int, help="attention heads, where the file does not say")
        sub.add_argument("--key", help="which state dict to take of a checkpoint that holds several")
        sub.add_argument("--arch", help="the network to take of a supernet: an arch.json")
        sub.add_argument("--mean", type=_numbers, help="mean of each channel, for pixels in 0..1 (default: ImageNet's)")
        sub.add_argument("--std", type=_deviations, help="standard deviation of each channel")
        sub.add_argument("--force", action="store_true", help="overwrite what is there")

        sub = line.add("verify", self.verify, "prove that supernet, network, weights and costs agree")
        sub.add_argument("run", type=Path, nargs="?", metavar="RUN", help="a run directory")
        sub.add_argument("--arch", help=f"a network instead: {arch}")
        self._add_preset(sub)
        sub.add_argument("--classes", type=int, help="number of classes (default: that of the preset's data)")
        sub.add_argument("--onnx", action="store_true", help="compare with ONNX as well")

        DeployCommands(line)

        sub = line.add("latency", self.latency, "time every block on this machine, for budget.latency")
        self._add_preset(sub, default="the paper's smallest")
        sub.add_argument("--classes", type=int, help="number of classes (default: that of the preset's data)")
        sub.add_argument("--batch-size", type=int, default=1, help="images of a batch (default 1)")
        sub.add_argument("--rounds", type=int, default=30, help="times that every block is run (default 30)")
        sub.add_argument("--out", type=Path, required=True, metavar="TABLE.json", help="where the table goes")
        sub.add_argument("--force", action="store_true", help="overwrite a table that is there")

    def _add_preset(self, sub: argparse.ArgumentParser, default: str = "that of the network's size") -> None:
        sub.add_argument("--preset", help=f"the preset whose space and ViT config it has (default: {default})")
        sub.add_argument(
            "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change a field of it"
        )

    def describe(self, options: argparse.Namespace) -> int:
        """Show a network block by block, with its costs."""
        with bad_input():
            if options.picture:
                from nasx.report.figures import FORMATS, architecture, save_figure  # which load matplotlib

                check_output(options.picture, "--picture", tuple(FORMATS))
            problem, arch = self._described(options)
            counts = problem.describe(arch)
            if options.picture:
                shown = problem.presentation
                save_figure(architecture(shown.draw(arch), shown.legend), options.picture)
        blocks = [dict(part) for part in arch.parts("block")]
        if options.json:
            print_json({**counts, "blocks": blocks})
            return DONE
        from rich.console import Console
        from rich.table import Table

        names = list(dict.fromkeys(name for block in blocks for name in block))
        table = Table(title=options.arch)
        for heading in ("block", *names):
            table.add_column(heading, overflow="fold")
        for i, block in enumerate(blocks):
            table.add_row(str(i), *(str(block.get(name, "")) for name in names))
        console = Console(width=None if sys.stdout.isatty() else _WIDTH)
        console.print(table)
        further = {k: v for k, v in counts.items() if k not in ("params", "macs", "paper_macs")}
        for name, value in further.items():
            console.print(f"{name} {value}")
        paper = f" ({counts['paper_macs']:,} by the paper's count)" if "paper_macs" in counts else ""
        console.print(f"{counts['params']:,} parameters, {counts['macs']:,} MACs{paper}")
        return DONE

    def train(self, options: argparse.Namespace) -> int:
        """Train one network alone with the preset's retraining, and test it."""
        from nasx.pipeline.exported import alone
        from nasx.report import percent

        if getattr(options, "method", None) is not None:
            raise BadInput("one network is trained and nothing is searched, so --method has no effect; remove --method")
        recipe = self.line.recipe()
        config = self.line.config(options)
        with bad_input():
            arch, preset = self._arch(options.arch)
        # what a search alone would need is no part of this, and may not refuse it
        config = apply_settings(
            config,
            [
                *recipe.free,
                "search.recalibration_batches=0",
                "supernet.paths=uniform",
                f"supernet.batch_size={config.retrain.batch_size}",
            ],
        )

        def stated(config: Any, task: "ImageTask") -> "Problem[Any]":
            problem = alone(recipe, config, task, arch)
            try:
                problem.space.canonical(arch)
            except ValueError as error:
                fitting = f"; {options.arch} belongs to --preset {preset}" if preset else ""
                raise ValueError(f"{error}{fitting}") from error
            return problem

        problem = self.line.problem(options, config, stated)
        name = Path(options.arch.partition(":")[2] or options.arch).stem
        default = Path("runs") / f"{self.line.run_name(config, options.data)}-{name}"
        found = self.line.run_problem(problem, options.run_dir or default, {"arch": dict(arch)})
        if found is None:
            return INTERRUPTED
        if not is_first():
            return DONE
        if options.json:
            print_json(found.summary)
            return DONE
        trained = found.summary["networks"]["trained"]
        print(f"{options.arch}: {trained['params']:,} parameters, {trained['macs']:,} MACs")
        print(f"validation {percent(trained['val_score'])}, test {percent(trained['test_score'])}")
        print(f"summary, report and weights: {found.directory}/summary.json and beside it")
        return DONE

    def evaluate(self, options: argparse.Namespace) -> int:
        """Print the accuracy on the test images: of a run's network, of exported weights, or of weights and a name."""
        from nasx.report import percent
        from nasx.train import evaluate, pick_device, use_precision

        with bad_input(), warnings.catch_warnings():
            from nasx.data import DataWarning
            from nasx.pipeline.exported import check_classes
            from nasx.pipeline.image_sources import held_out_images
            from nasx.pipeline.machine import Machine

            if (options.mean is None) != (options.std is None):
                given, missing = ("--mean", "--std") if options.std is None else ("--std", "--mean")
                raise BadInput(f"{given} is given without {missing}; give both, or neither")
            model, config = self._model(options)
            machine = Machine.from_environment()
            warnings.simplefilter("ignore", DataWarning)  # which the remarks say again
            images = held_out_images(
                config.data,
                options.data.resolve() if options.data else None,
                image_size=model.vit["image_size"],
                channels=model.vit["in_channels"],
                classes=model.classes if isinstance(model.classes, tuple) else None,
                machine=machine,
            )
            check_classes(model, images.classes)
            for remark in images.remarks:
                print(remark, file=sys.stderr)
            network = model.network.to(pick_device(machine.device))
            mean, std = options.mean or model.mean, options.std or model.std
            with use_precision(config.precision):
                tested = evaluate(network, images.batches(config.search.eval_batch_size, mean, std, machine.workers))
        if options.json:
            print_json({"test_accuracy": tested.score, "images": tested.samples, **model.counts()})
            return DONE
        print(f"test {percent(tested.score)} of {number_of(tested.samples, 'image')}")
        return DONE

    def import_official(self, options: argparse.Namespace) -> int:
        """Write what published weights hold as this recipe's network: weights, architecture and model card."""
        with bad_input():
            from dataclasses import asdict

            from nasx.pipeline.export_formats import write_safetensors
            from nasx.pipeline.exported import ExportedModel
            from nasx.pipeline.presets import IMAGENET_MEAN, IMAGENET_STD
            from nasx.pipeline.recipe import ImportOptions, as_sentence
            from nasx.pipeline.records import read_arch
            from nasx.weights import read_state_dict

            recipe = self.line.recipe()
            arch = read_arch(Path(options.arch)) if options.arch else None
            asked = ImportOptions(options.classes, options.image_size, options.heads, arch)
            state = read_state_dict(options.file, key=options.key)
            imported = recipe.read_official(state, asked)
            remarks = [*imported.remarks, *map(as_sentence, state.remarks)]
            if options.mean is None or options.std is None:
                remarks.append("Normalisation is assumed to be ImageNet's.")
            model = ExportedModel(
                recipe=recipe.name,
                network=imported.network,
                arch=imported.arch,
                vit=asdict(imported.vit),
                classes=imported.vit.num_classes,
                mean=options.mean or IMAGENET_MEAN,
                std=options.std or IMAGENET_STD,
                origin=" ".join(remarks),
            )
            files = write_safetensors(model, options.out, force=options.force)
        return show_written(options, model, files, remarks)

    def verify(self, options: argparse.Namespace) -> int:
        """Prove that a supernet's slice, the extracted network, its reloaded weights and the costs agree."""
        with bad_input():
            import torch

            from nasx.pipeline.exported import problem_of_run
            from nasx.pipeline.finished_run import read_run
            from nasx.pipeline.weight_files import load_weights
            from nasx.verify import verify

            if (options.run is None) == (options.arch is None):
                raise ValueError(_one_of("a run directory", options.run, "--arch"))
            recipe = self.line.recipe()
            if options.run:
                run = read_run(options.run, recipe.name)
                problem, arch = problem_of_run(recipe, run), run.arch
            else:
                run = None
                problem, arch = self._described(options)
            if recipe.alone is not None and arch not in problem.space:
                raise ValueError("this network stands alone and has no supernet; name one of the space")
            space, stage = supernet_space(problem, arch, run)
            torch.manual_seed(problem.config.seed)
            supernet: Any = problem.supernet(space)
            weights = run.supernet(stage) if run and stage else None
            if weights:
                load_weights(supernet, weights)
            vit = problem.vit
            generator = torch.Generator().manual_seed(problem.config.seed)
            images = torch.randn(2, vit.in_channels, vit.image_size, vit.image_size, generator=generator)
            found = verify(
                supernet, arch, images, macs=problem.macs, params=problem.params, build=problem.make, onnx=options.onnx
            )
            checks = [*found.checks, *(self._own_weights(run) if run else ())]
        passed = all(check.passed is not False for check in checks)
        origin = f"weights of the supernet {stage}" if weights else "fresh weights"
        if options.json:
            rows = [
                {"name": c.name, "passed": c.passed, "difference": c.difference, "detail": c.detail} for c in checks
            ]
            print_json({"passed": passed, "weights": origin, "checks": rows})
        else:
            print(f"{origin}, {number_of(len(arch.parts('block')), 'block')}, {vit.image_size} pixels")
            print("\n".join(map(str, checks)))
        return DONE if passed else FAILED

    def latency(self, options: argparse.Namespace) -> int:
        """Measure a table of latencies, which `budget.latency` reads."""
        with bad_input():
            from nasx.feasible import attainable
            from nasx.latency import measure_latency
            from nasx.measure import ViTBlocks
            from nasx.pipeline.machine import Machine

            check_counts({"--batch-size": options.batch_size, "--rounds": options.rounds})
            check_output(options.out, "--out", (".json",))
            if options.out.exists() and not options.force:
                raise FileExistsError(
                    f"{options.out} is there already and would be overwritten; choose another --out, or add --force"
                )
            recipe = self.line.recipe()
            problem = self._preset_problem(recipe, options, None)
            blocks = ViTBlocks(recipe.build, problem.vit, options.batch_size)
            device = Machine.from_environment().device
            table = measure_latency(problem.space, blocks, device=device, rounds=options.rounds)
            table.save(options.out)
            reach = attainable(problem.space, table)
        summary = {"table": str(options.out), "device": table.measured_on.device, "blocks": len(table.part_times)}
        if options.json:
            print_json({**summary, "least": reach.low, "most": reach.high, "unit": table.unit})
            return DONE
        print(f"{number_of(len(table.part_times), 'block')} on {summary['device']}, batches of {options.batch_size}")
        print(f"networks take {reach.low:,} to {reach.high:,} {table.unit}; written: {options.out}")
        print(f"search inside a bound with --set budget.latency={options.out} --set budget.latency_at_most=...")
        return DONE

    def _own_weights(self, run: "FinishedRun") -> "list[Check]":
        """Check a run's own weights: that they fit, and have what its summary says; CorruptWeights for damaged ones."""
        from nasx.pipeline.errors import CorruptWeights
        from nasx.pipeline.exported import from_run
        from nasx.verify import Check, check_cost

        try:
            model = from_run(self.line.recipe(), run)
        except CorruptWeights:
            raise
        except ValueError as error:
            return [Check("the run's weights fit its architecture", False, detail=str(error))]
        winner = next(iter(run.summary["networks"].values()))
        counts = model.counts()
        return [
            check_cost(f"{unit} of the run's summary and weights", winner[key], counts[key])
            for unit, key in (("MACs", "macs"), ("parameters", "params"))
        ]

    def _arch(self, name: str) -> "tuple[Arch, str | None]":
        """Return an architecture by its name, or from a file or run, and the preset that it belongs to, if any."""
        from nasx.pipeline.records import ARCH, read_arch

        recipe = self.line.recipe()
        if name in recipe.known:
            return recipe.known[name].arch, recipe.known[name].preset
        if (foreign := recipe.foreign(name)) is not None:
            return foreign, None
        path = Path(name) / ARCH if Path(name).is_dir() else Path(name)
        if not path.is_file():
            names = f", or one of {', '.join(recipe.known)}" if recipe.known else ""
            raise ValueError(f"there is no architecture {name!r}: name a file or a run{names}")
        return read_arch(path), None

    def _described(self, options: argparse.Namespace) -> "tuple[ViTProblem[Any], Arch]":
        """Return an architecture with the problem whose space and ViT config it has: its run's, or a preset's."""
        from nasx.pipeline.exported import problem_of_run
        from nasx.pipeline.finished_run import read_run

        recipe = self.line.recipe()
        if recipe.foreign(options.arch) is not None:
            raise BadInput(
                f"{options.arch} is no network of the space, so `describe` and `verify` cannot take it; name one that "
                "is, or train it with `train`"
            )
        arch, preset = self._arch(options.arch)
        folder = _run_of(options.arch)
        if preset is None and options.preset is None and folder is not None:
            if options.set:
                raise BadInput(f"{folder} has settings of its own, so --set has no effect; remove it")
            problem = problem_of_run(recipe, read_run(folder, recipe.name))
            return problem, problem.space.canonical(arch)
        problem = self._preset_problem(recipe, options, preset)
        try:
            return problem, problem.space.canonical(arch)
        except ValueError as error:
            fitting = f"; {options.arch} belongs to --preset {preset}" if preset else ""
            raise ValueError(f"{error}{fitting}") from error

    def _preset_problem(self, recipe: "Recipe", options: argparse.Namespace, preset: str | None) -> "ViTProblem[Any]":
        """Return the problem of a preset, without images and without bounds on its networks."""
        from nasx.pipeline.image_sources import blank_images

        config = self._preset(recipe, options, preset)
        if options.classes is not None and options.classes < 1:
            raise BadInput(f"a network has at least one class, but got --classes {options.classes}")
        task = blank_images(config.data, options.classes or preset_classes(config))
        return recipe.problem(apply_settings(config, recipe.free), task)

    def _preset(self, recipe: "Recipe", options: argparse.Namespace, preset: str | None) -> Any:
        chosen = pick(options.preset or preset or recipe.default_preset, recipe.presets, "preset")
        return apply_settings(chosen, options.set)

    def _model(self, options: argparse.Namespace) -> "tuple[ExportedModel, Any]":
        """Return a network with weights, and the settings that its data are read by."""
        from nasx.pipeline.exported import ExportedModel, alone, config_of, open_model, with_weights
        from nasx.pipeline.finished_run import read_run
        from nasx.pipeline.image_sources import ImageSource, blank_images, class_names, load_images
        from nasx.run.stages import RUN
        from nasx.weights import read_state_dict

        recipe = self.line.recipe()
        if (options.run is None) == (options.weights is None):
            raise ValueError(_one_of("a run directory or an exported network", options.run, "--weights"))
        if options.arch is None:
            if options.preset or options.set:
                given = "--preset" if options.preset else "--set"
                raise BadInput(
                    f"the network has settings of its own, so {given} has no effect; remove it, or change the "
                    "normalisation with --mean and --std"
                )
            path = options.run or options.weights
            model = open_model(path, recipe)
            if (path / RUN).is_file():
                return model, config_of(recipe, read_run(path, recipe.name))
            grey = model.vit["in_channels"] == 1
            return model, recipe.presets[self.line.presets[0] if grey else recipe.default_preset]
        if options.run:
            raise ValueError("a run directory knows its network; remove --arch")
        arch, preset = self._arch(options.arch)
        folder = _run_of(options.arch)
        if preset is None and options.preset is None and folder is not None:
            config = apply_settings(config_of(recipe, read_run(folder, recipe.name)), options.set)
        else:
            config = self._preset(recipe, options, preset)
        data, mean, std = config.data, options.mean or config.data.mean, options.std or config.data.std
        source = ImageSource(data, config.seed, options.data.resolve() if options.data else None)
        if mean is None or std is None:  # measured, as a training would
            task = load_images(source)
            mean, std = task.statistics
        else:
            task = blank_images(data, class_names(source))
        problem = alone(recipe, apply_settings(config, recipe.free), task, arch)
        network = with_weights(problem.make(arch), len(task.dataset.classes), read_state_dict(options.weights))
        return ExportedModel(
            recipe=recipe.name,
            network=network,
            arch=arch,
            vit=problem.vit_settings,
            classes=task.dataset.classes,
            mean=mean,
            std=std,
        ), config


def _run_of(arch: str) -> Path | None:
    """Return the run that an architecture is of, by the name of its folder or of a file in it."""
    from nasx.run.stages import RUN

    folder = Path(arch) if Path(arch).is_dir() else Path(arch).parent
    return folder if (folder / RUN).is_file() else None


def supernet_space(problem: "Problem[Any]", arch: "Arch", run: "FinishedRun | None") -> Any:
    """Return a space with an architecture, and the stage that trained its supernet, where a run has one."""
    from nasx.pipeline.supernet_stages import SupernetStage

    if run is not None:
        for stage in reversed(problem.stages()):
            if isinstance(stage, SupernetStage) and set(stage.inputs) <= run.results.keys():
                archs = stage.level.archs({name: run.results[name] for name in stage.inputs})
                if arch in archs.space:
                    return archs.space, stage.name
    return problem.space, None


def _one_of(source: str, given: Path | None, option: str) -> str:
    """Return that a source or an option is needed, both or none of which was given."""
    if given is None:
        return f"nothing is named; name {source}, or {option}"
    return f"{given} is named and {option} too; remove one of them"


def preset_classes(config: Any) -> int:
    """Return how many classes the data of a preset have."""
    return 10 if config.data.source == "digits" or config.preset == "cifar10" else 1000


def _numbers(text: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(word) for word in text.split(","))
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(f"finite numbers with commas between, such as 0.5,0.5,0.5, but got {text!r}")
    return numbers


def _deviations(text: str) -> tuple[float, ...]:
    numbers = _numbers(text)
    if min(numbers) <= 0:
        raise argparse.ArgumentTypeError(f"numbers above 0, such as 0.5,0.5,0.5, but got {text!r}")
    return numbers
