"""The commands that recipes share: `run`, `plan` and `trust`, with one way to choose a preset and change it."""

import argparse
import errno
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import nasx
from nasx.arch import Arch
from nasx.cli import DONE, INTERRUPTED, BadInput, apply_settings, bad_input, pick, print_json, run_command

if TYPE_CHECKING:
    from rich.console import Console

    from nasx.pipeline.config import RunConfig
    from nasx.pipeline.problem import ImageTask, Problem
    from nasx.pipeline.progress import Progress
    from nasx.pipeline.stages import Maker, Stages
    from nasx.run import RunDirectory, Stage
    from nasx.train import Group

_TOLD = 10  # broken images that are named
_VERSIONED = ("torch", "torchvision", "timm", "numpy", "safetensors")


@dataclass(frozen=True)
class Recipe:
    """A recipe as its command line sees it: presets, the problem that a configuration states, the stages of its run.

    `stages` strings a run together with a `nasx.pipeline.stages.Maker`. `recorded`, where commands of the recipe leave
    runs of other problems, is the problem of a run that is read back, given what the command recorded.
    """

    presets: "Mapping[str, RunConfig]"
    problem: "Callable[[Any, ImageTask], Problem[Any]]"
    stages: "Callable[[Maker[Any]], list[Any]]"
    recorded: "Callable[[Any, ImageTask, Mapping[str, Any]], Problem[Any]] | None" = None


@dataclass(frozen=True)
class Done:
    """What a run's stages came to: their results and seconds by name, and whether all of it was there before."""

    results: "Mapping[str, Any]"
    seconds: "Mapping[str, float]"
    already: bool


class CommandLine:
    """A recipe's command line: `run` (the default), `plan`, `trust` and `report`, and what the recipe adds.

    `load` imports the recipe, which is not done for `--help`. `configure` adds options that choose a configuration,
    `choose` applies them. Exit statuses are those of `nasx.cli`.
    """

    def __init__(
        self,
        name: str,
        description: str,
        load: Callable[[], Recipe],
        *,
        preset: str = "digits",
        configure: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
        choose: "Callable[[RunConfig, argparse.Namespace], RunConfig]" = lambda config, options: config,
    ) -> None:
        self.name, self.load, self.preset = name, load, preset
        self._configure, self._choose = configure, choose
        self.parser = argparse.ArgumentParser(prog=f"python -m recipes.{name}", description=description)
        self._commands = self.parser.add_subparsers(required=True, metavar="COMMAND")
        run = self.configured("run", self._run, "start a search, or continue the one in the run directory")
        run.add_argument("--run-dir", type=Path, help=f"default: runs/{name}-PRESET-seedSEED and the like")
        run.add_argument(
            "--deterministic", action="store_true", help="the same bits each time on CUDA too, more slowly"
        )
        plan = self.configured("plan", self._plan, "sizes, budgets, time and memory, every setting; trains nothing")
        plan.add_argument("--devices", type=int, default=1, help="how many devices would share the work (default 1)")
        plan.add_argument("--time-limit", type=float, metavar="HOURS", help="warn of stages that would take longer")
        plan.add_argument("--no-timing", action="store_true", help="leave out the seconds of real steps")
        trust = self.configured("trust", self._trust, "ask whether a supernet's ranking of networks deserves belief")
        trust.add_argument("--run-dir", type=Path, help="default: the run directory of `run` with trust.n")
        trust.add_argument("--n", type=int, default=20, help="networks to train alone, per level (default 20)")
        report = self.add("report", self._report, "write report.html of a finished run again, from its journal")
        report.add_argument("run", type=Path, metavar="RUN", help="the run directory")

    def add(self, name: str, command: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        """Add a command, which has `--json`, and return its parser."""
        sub = self._commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command)
        sub.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        return sub

    def configured(self, name: str, command: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        """Add a command with the options that choose a configuration and images."""
        sub = self.add(name, command, help)
        sub.add_argument("--preset", default=self.preset, help=f"which configuration to start from ({self.preset})")
        sub.add_argument("--data", type=Path, help="image folder with train/<class>/* and test/ or val/")
        sub.add_argument("--seed", type=int, help="seed of the run (default 0)")
        sub.add_argument(
            "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change a field of the preset"
        )
        self._configure(sub)
        return sub

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run a command and return its exit status."""
        options = self.parse(sys.argv[1:] if arguments is None else arguments)
        return run_command(lambda: options.command(options))

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the options of a command line; without a command it is `run`. Exits with status 2 on unknown words."""
        given = list(arguments)
        if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
            given = ["run", *given]
        return self.parser.parse_args(given)

    def config(self, options: argparse.Namespace) -> Any:
        """Return the configuration that the options choose."""
        with bad_input():  # the extra that recipes need may be missing
            recipe = self.load()
        for setting in options.set:
            if setting.startswith("preset="):
                raise BadInput(f"the preset is chosen by --preset, not by --set {setting}")
        config = self._choose(pick(options.preset, recipe.presets, "preset"), options)
        if options.seed is not None:
            config = config.model_copy(update={"seed": options.seed})
        return apply_settings(config, options.set)

    def problem(
        self,
        options: argparse.Namespace,
        config: Any = None,
        make: "Callable[[Any, ImageTask], Problem[Any]] | None" = None,
    ) -> "Problem[Any]":
        """Return the checked problem that the options state; BadInput says what cannot be.

        `config` takes the place of the chosen configuration, `make` that of the recipe's own problem.
        """
        from rich.console import Console

        from nasx.report import progress

        config = self.config(options) if config is None else config
        errors = Console(stderr=True)
        with bad_input(), progress(errors) as bars:
            from nasx.pipeline.machine import Machine
            from nasx.pipeline.problem import load_task

            reading: list[Any] = []

            def show(done: int, total: int) -> None:
                if not reading:
                    reading.append(bars.add_task("reading images", total=total))
                bars.update(reading[0], completed=done, total=total)

            task = load_task(config, options.data.resolve() if options.data else None, Machine(), show)
        for image in task.dataset.broken[:_TOLD]:
            errors.print(f"left out: {image}", soft_wrap=True, markup=False)
        if len(task.dataset.broken) > _TOLD:
            errors.print(f"and {len(task.dataset.broken) - _TOLD} more broken training images")
        with bad_input(), errors.status("counting architectures"):
            problem = (make or self.load().problem)(config, task)
            problem.check()
        return problem

    def _run(self, options: argparse.Namespace) -> int:
        from rich.console import Console

        from nasx.pipeline.outcome import network_rows, stage_rows
        from nasx.report import networks_table, stages_table

        if options.deterministic:
            os.environ["NASX_DETERMINISTIC"] = "1"  # a setting of the machine, which no result on a CPU depends on
        problem = self.problem(options)
        self._check_stages(problem)
        directory = options.run_dir or Path("runs") / self._run_name(problem.config)
        done = self.execute(problem, directory, self.load().stages)
        if done is None:
            return INTERRUPTED
        if not _is_first():
            return DONE
        summary, already = self.outcome(problem, directory, done), done.already
        if options.json:
            print_json(summary)
            return DONE
        console = Console()
        if already:
            console.print("this run was finished before; nothing was trained (choose another --run-dir to start anew)")
        console.print(networks_table(network_rows(problem, summary)))
        console.print(stages_table(stage_rows(summary)))
        for name, told in summary.get("trust", {}).items():
            console.print(f"ranking of {name}: {told}")
        console.print(
            f"report, summary, architecture and weights: {directory}/report.html and beside it", soft_wrap=True
        )
        return DONE

    def _check_stages(self, problem: "Problem[Any]") -> None:
        """Refuse now what a later stage would refuse after hours."""
        from nasx.pipeline.estimate import Estimator

        with bad_input():
            self.load().stages(Estimator(problem, timing=False))

    def _run_name(self, config: Any) -> str:
        words = [self.name, config.preset, config.search_method, f"seed{config.seed}"]
        return "-".join(word for word in words if word)

    def execute(
        self,
        problem: "Problem[Any]",
        directory: Path,
        plan: "Callable[[Stages], list[Stage]]",
        asked: "Mapping[str, Any]" = MappingProxyType({}),
    ) -> "Done | None":
        """Run the stages that `plan` makes, or what is missing of them, and return what came of them.

        None where they were interrupted. `asked` is recorded beside the configuration, and may not change either.
        """
        from rich.console import Console

        from nasx.data import BrokenImageError, WorkerDied
        from nasx.pipeline.machine import Machine
        from nasx.pipeline.ranks import execute
        from nasx.pipeline.stages import Stages
        from nasx.pipeline.training import Damaged
        from nasx.run import Interrupted
        from nasx.train import pick_device, process_group, use_deterministic_algorithms

        with bad_input():
            machine = Machine()
            device = pick_device(machine.device)
        if machine.deterministic:
            use_deterministic_algorithms()
        errors = Console(stderr=True)
        with process_group(device) as group:
            with bad_input():
                problem.task.supernet_batches(seed=0, part=group.part)  # refuses batches that ranks cannot share
            try:
                with self._opened(problem, directory, group, asked) as run, self._bars(errors, group) as show:
                    stages = plan(Stages(problem, machine, show, group))
                    already = run.is_finished(stages) if run else False
                    results = execute(run, directory, stages, group)
                    return Done(results, run.seconds if run else {}, already)
            except Interrupted:
                if group.first:
                    errors.print(f"interrupted; the same command continues this run in {directory}")
                return None
            except (BrokenImageError, WorkerDied) as error:
                raise BadInput(f"{error}; the same command then continues this run in {directory}") from error
            except Damaged as error:
                raise BadInput(str(error)) from error
            except OSError as error:
                errors.print(told_of_disk(error, f"this run in {directory}"))
                return None

    def outcome(self, problem: "Problem[Any]", directory: Path, done: "Done") -> dict[str, Any]:
        """Return the summary of a run that ended in an evaluation, and write its files where they are missing."""
        from nasx.pipeline.outcome import summarise, write_outcome

        summary = summarise(problem, done.results, done.seconds, _versions())
        if not done.already or not (directory / "report.html").exists():
            write_outcome(directory, problem, done.results, summary)
        return summary

    def _opened(
        self, problem: "Problem[Any]", directory: Path, group: "Group", asked: "Mapping[str, Any]"
    ) -> "AbstractContextManager[RunDirectory | None]":
        from nasx.run import ConfigChanged, RunDirectory, RunLocked

        if not group.first:
            return nullcontext()
        split = problem.task.dataset.split
        config = json.loads(problem.config.model_dump_json())
        recorded = {"recipe": self.name, **asked, "config": config, "split": split}
        try:
            with bad_input():
                return RunDirectory.open(directory, config=recorded, versions=_versions())
        except (ConfigChanged, RunLocked) as error:
            raise BadInput(str(error)) from error

    @contextmanager
    def _bars(self, console: "Console", group: "Group") -> "Iterator[Progress]":
        from nasx.pipeline.progress import silent
        from nasx.report import progress

        if not group.first:
            yield silent
            return
        with progress(console) as bars:
            tasks: dict[str, Any] = {}

            def show(description: str, done: float, total: float, note: str = "") -> None:
                if description not in tasks:
                    tasks[description] = bars.add_task(description, total=total, note=note)
                bars.update(tasks[description], completed=done, total=total, note=note)

            yield show

    def _plan(self, options: argparse.Namespace) -> int:
        from nasx.pipeline.estimate import plan_document, plan_lines

        problem = self.problem(options)
        with bad_input():
            document = plan_document(
                problem,
                self.load().stages,
                devices=options.devices,
                time_limit=options.time_limit,
                timing=not options.no_timing,
            )
        if options.json:
            print_json(document)
        else:
            print("\n".join(plan_lines(document)))
        return DONE

    def _trust(self, options: argparse.Namespace) -> int:
        from nasx.pipeline.machine import Machine
        from nasx.pipeline.stages import Stages
        from nasx.pipeline.trust import write_trust

        if options.n < 1:
            raise BadInput(f"--n counts networks to train alone, at least 5, but got {options.n}")
        config = apply_settings(self.config(options), [f"trust.n={options.n}"])
        problem = self.problem(options, config)
        self._check_stages(problem)
        if not _up_to_trust(self.load().stages(Stages(problem, Machine()))):
            raise BadInput("this run trains no supernet, so there is no ranking to judge; choose another method")
        directory = options.run_dir or Path("runs") / f"{self._run_name(config)}-trust{options.n}"
        done = self.execute(problem, directory, lambda make: _up_to_trust(self.load().stages(make)))
        if done is None:
            return INTERRUPTED
        if not _is_first():
            return DONE
        judged = {name: result for name, result in done.results.items() if name.endswith("/trust")}
        write_trust(directory, judged)
        if options.json:
            print_json(judged)
            return DONE
        for name, result in judged.items():
            print(f"{name}: {result['verdict']}")
        print(f"scatter plot: {directory}/trust.svg")
        return DONE

    def _report(self, options: argparse.Namespace) -> int:
        from nasx.pipeline.outcome import make_report, read_run
        from nasx.pipeline.problem import recorded_task
        from nasx.report.html import write_report

        with bad_input():
            recipe = self.load()
            run = read_run(options.run, self.name)
            config = pick(run.config["preset"], recipe.presets, "preset").model_validate(run.config)
            task = recorded_task(config, run.split)
            problem = recipe.recorded(config, task, run.asked) if recipe.recorded else recipe.problem(config, task)
            report = make_report(problem, run.results, run.summary, run.arch)
        path = run.directory / "report.html"
        write_report(path, report)
        if options.json:
            print_json({"report": str(path)})
        else:
            print(f"report: {path}")
        return DONE


def told_of_disk(error: OSError, where: str) -> str:
    """Return what to say where a full or failing disk ends a run; any other error is raised again."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        raise error
    return f"{error}; make room, and the same command continues {where}"


def read_arch(path: str, known: Mapping[str, Arch] = MappingProxyType({})) -> Arch:
    """Return a known architecture by its name, or one from a file; BadInput where there is neither."""
    if path in known:
        return known[path]
    with bad_input():
        if not Path(path).is_file():
            names = f", or one of {', '.join(known)}" if known else ""
            raise ValueError(f"there is no architecture {path!r}: name a file{names}")
        return Arch.from_json(Path(path).read_text())


def _up_to_trust(stages: "list[Stage]") -> "list[Stage]":
    """Leave out what no ranking waits for; what a later level needs of an earlier one, its winner, stays."""
    judging = [number for number, stage in enumerate(stages) if stage.name.endswith("/trust")]
    return stages[: judging[-1] + 1] if judging else []


def _is_first() -> bool:
    """Return whether this process is the one of torchrun's that speaks."""
    return os.environ.get("RANK", "0") == "0"


def _versions() -> dict[str, str]:
    found = {"nasx": nasx.__version__, "python": platform.python_version()}
    for package in _VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found
