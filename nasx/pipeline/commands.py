"""The command line of a recipe: `run`, `plan`, `trust`, `status` and `report`; it parses, and says what happened.

Torch is imported once a command needs it, so that help and messages come at once.
"""

import argparse
import errno
import hashlib
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nasx._memory import keep_freed_memory
from nasx.cli import (
    DONE,
    INTERRUPTED,
    BadInput,
    apply_settings,
    bad_input,
    field_names,
    pick,
    print_json,
    run_command,
    system_message,
)
from nasx.pipeline.loggers import LOGS

if TYPE_CHECKING:
    from nasx.pipeline.images import ImageTask
    from nasx.pipeline.loggers import Log
    from nasx.pipeline.problem import Problem
    from nasx.pipeline.recipe import Recipe
    from nasx.pipeline.runner import SearchResult

Result = TypeVar("Result")

FOLDER = "folder"
"""The preset that fits itself to an image folder."""

_BROKEN_NAMED = 10  # broken images that are named


class CommandLine:
    """A recipe's command line, for the package that it lies in, whose module `problem` is imported once it is needed.

    `configure` adds options that choose a configuration, `choose` applies them. Exit statuses are those of `nasx.cli`.
    """

    def __init__(
        self,
        package: str,
        description: str,
        *,
        presets: Sequence[str],
        configure: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
        choose: Callable[[Any, argparse.Namespace], Any] = lambda config, options: config,
    ) -> None:
        self.package, self.name, self.presets = package, package.rpartition(".")[2], presets
        self.written = ""
        """The command line that is being run, as it could be typed."""
        self._configure, self._choose = configure, choose
        self.parser = argparse.ArgumentParser(prog=program(package), description=description)
        self._commands = self.parser.add_subparsers(required=True, metavar="COMMAND")
        run = self.configured("run", self._run, "start a search, or continue the one in the run directory")
        run.add_argument("--run-dir", type=Path, help=f"default: runs/{self.name}-PRESET-seedSEED and the like")
        run.add_argument(
            "--deterministic", action="store_true", help="the same bits each time on CUDA too, more slowly"
        )
        run.add_argument("--log", choices=LOGS, help="write losses and scores for this tool too (an extra each)")
        plan = self.configured("plan", self._plan, "sizes, budgets, time and memory, every setting; trains nothing")
        plan.add_argument("--devices", type=int, default=1, help="how many devices would share the work (default 1)")
        plan.add_argument("--time-limit", type=float, metavar="HOURS", help="warn of stages that would take longer")
        plan.add_argument("--no-timing", action="store_true", help="do not time real training steps")
        trust = self.configured(
            "trust", self._trust, "find out how far a supernet's ranking of networks can be trusted"
        )
        trust.add_argument("--run-dir", type=Path, help="default: the run directory of `run` with trust.n")
        trust.add_argument("--n", type=int, default=20, help="networks to train alone, per level (default 20)")
        status = self.add("status", self._status, "show the progress of a run; safe while it is running")
        status.add_argument("run", type=Path, metavar="RUN", help="the run directory")
        report = self.add("report", self._report, "write the report of a run, finished or not; compare several runs")
        report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run directory, or several to compare")
        report.add_argument(
            "--output", type=Path, help="default: report.html in the run directory; comparison.html here for several"
        )

    def add(self, name: str, command: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        """Add a command, which has `--json`, and return its parser."""
        sub = self._commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=command)
        sub.add_argument("--json", action="store_true", help="print one JSON document and nothing else")
        return sub

    def configured(self, name: str, command: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        """Add a command with the options that choose a configuration and images."""
        sub = self.add(name, command, help)
        sub.add_argument(
            "--preset",
            help=f"which settings to start from: {', '.join(self.presets)} (default: {self.presets[0]}"
            + (f", with --data {FOLDER})" if FOLDER in self.presets else ")"),
        )
        sub.add_argument(
            "--data", type=Path, help="images: train/<class>/* and test/ or val/; or what data.source says"
        )
        sub.add_argument("--seed", type=int, help="seed of the run (default 0)")
        sub.add_argument(
            "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="change a field of the preset"
        )
        self._configure(sub)
        return sub

    def main(self, arguments: Sequence[str] | None = None) -> int:
        """Run a command and return its exit status."""
        # Threads that spin while they wait slow each other down many times where other programs use the cores. It is
        # read when torch is imported, which commands do.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if arguments is None:  # else this process is the caller's
            keep_freed_memory()
        options = self.parse(sys.argv[1:] if arguments is None else arguments)
        return run_command(lambda: options.command(options))

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Return the options of a command line; without a command it is `run`. Exits with status 2 on unknown words."""
        given = list(arguments)
        self.written = shlex.join([*self.parser.prog.split(), *given])
        if not given or (given[0].startswith("-") and given[0] not in ("-h", "--help")):
            given = ["run", *given]
        return self.parser.parse_args(given)

    def recipe(self) -> "Recipe":
        """Return the recipe, imported; BadInput says which extra is missing."""
        with bad_input():
            found: Recipe = import_module(f"{self.package}.problem").RECIPE
            return found

    def config(self, options: argparse.Namespace, more: Sequence[str] = ()) -> Any:
        """Return the configuration that the options choose, with some more settings; BadInput says what is wrong."""
        recipe = self.recipe()
        for setting in options.set:
            if setting.startswith("preset="):
                raise BadInput(f"the preset is chosen by --preset, not by --set {setting}")
        name = options.preset or (FOLDER if options.data and recipe.fit else self.presets[0])
        if name == FOLDER and recipe.fit:
            config = self._fitted(recipe, options)
        else:
            config = pick(name, {**recipe.presets, **({FOLDER: None} if recipe.fit else {})}, "preset")
        config = self._choose(config, options)
        if options.seed is not None:
            config = config.model_copy(update={"seed": options.seed})
        config = apply_settings(config, [*options.set, *more])
        note_unused(options.set, config.unused())
        return config

    def task(self, options: argparse.Namespace, config: Any, *, read: bool = True) -> "ImageTask":
        """Return the images that the options name, with remarks about them on standard error.

        Without `read` only their headers are looked at, which takes a fraction of the time and is enough for a plan.
        """
        from rich.console import Console

        from nasx.report import progress

        errors = Console(stderr=True)
        with bad_input(), progress(errors) as bars, warnings.catch_warnings():
            from nasx.data import DataWarning
            from nasx.pipeline.image_sources import ImageSource, check_folder, load_images
            from nasx.pipeline.machine import Machine

            check_folder(config.data, options.data, self._for_folders())
            warnings.simplefilter("ignore", DataWarning)  # which the remarks say again
            shown: dict[str, Any] = {}

            def show(what: str, done: int, total: int) -> None:
                if what not in shown:
                    shown[what] = bars.add_task(what, total=total)
                bars.update(shown[what], completed=done, total=total)

            path = options.data.resolve() if options.data else None
            machine = Machine.from_environment()
            if not read:
                machine = machine.model_copy(update={"image_memory_gib": 0.0})
            source = ImageSource(config.data, config.seed, path, machine)
            task = load_images(source, partial(show, "reading images"), partial(show, "checking images"))
            task = task if read else task.unmeasured()
        broken = task.dataset.broken
        for image in broken[:_BROKEN_NAMED]:
            errors.print(f"left out: {image}", soft_wrap=True, markup=False)
        if len(broken) > _BROKEN_NAMED:
            errors.print(f"and {len(broken) - _BROKEN_NAMED} more broken training images")
        for remark in task.remarks:
            errors.print(remark, soft_wrap=True, markup=False)
        return task

    def problem(
        self,
        options: argparse.Namespace,
        config: Any = None,
        make: "Callable[[Any, ImageTask], Problem[Any]] | None" = None,
        *,
        read: bool = True,
    ) -> "Problem[Any]":
        """Return the checked problem that the options state; BadInput says what does not fit.

        `config` takes the place of the chosen configuration, `make` that of the recipe's own problem; `read` is
        `task`'s.
        """
        from rich.console import Console

        config = self.config(options) if config is None else config
        task = self.task(options, config, read=read)
        with bad_input(), Console(stderr=True).status("counting architectures"):
            problem = (make or self.recipe().problem)(config, task)
            problem.check()
        note_unused(options.set, unread(problem))
        return problem

    def run_problem(
        self,
        problem: "Problem[Any]",
        directory: Path,
        recorded: Mapping[str, Any] | None = None,
        log: "Log | None" = None,
    ) -> "SearchResult | None":
        """Run a problem and return what was found, None where it was interrupted; BadInput says what ended it."""
        from nasx.pipeline.runner import run

        return attempt(
            lambda: run(problem, directory, recorded=recorded, log=log, command=self.written),
            f"this run in {directory}",
        )

    def _run(self, options: argparse.Namespace) -> int:
        from rich.console import Console

        from nasx.pipeline.run_report import report_of
        from nasx.pipeline.runner import is_finished
        from nasx.report import networks_table, stages_table

        if options.deterministic:
            os.environ["NASX_DETERMINISTIC"] = "1"  # a setting of the machine, which no result on a CPU depends on
        problem = self.problem(options)
        directory = options.run_dir or Path("runs") / self.run_name(problem.config, options.data)
        with bad_input():
            already = is_finished(problem, directory)
        found = self.run_problem(problem, directory, log=options.log)
        if found is None:
            return INTERRUPTED
        if not is_first():
            return DONE
        if options.json:
            print_json(found.summary)
            return DONE
        console, summary = Console(), found.summary
        if already:
            console.print("this run was finished before; nothing was trained (choose another --run-dir to start anew)")
        report = report_of(directory)
        console.print(networks_table(report.networks, report.metric))
        for sentence in report.found:
            console.print(sentence, markup=False, highlight=False)
        console.print(stages_table(report.stages))
        for name, verdict in summary.get("trust", {}).items():
            console.print(f"ranking of {name}: {verdict}")
        console.print(
            f"report, summary, architecture and weights: {directory}/report.html and beside it", soft_wrap=True
        )
        return DONE

    def run_name(self, config: Any, data: Path | None) -> str:
        """Return the name of a run's default directory: one for each preset, way to search, folder and seed."""
        folder = []
        if data is not None:
            place = str(data.resolve())
            folder = [f"{data.resolve().name}-{hashlib.sha256(os.fsencode(place)).hexdigest()[:6]}"]
        words = [self.name, config.preset, *config.run_words, *folder, f"seed{config.seed}"]
        return "-".join(words)

    def _plan(self, options: argparse.Namespace) -> int:
        from rich.console import Console

        if options.no_timing and options.time_limit is not None:
            raise BadInput("--time-limit compares seconds, which --no-timing leaves out; remove one of them")
        errors = Console(stderr=True)
        errors.print("reading settings and images", style="dim")
        config = self.config(options)
        from nasx.pipeline.image_sources import check_folder
        from nasx.pipeline.machine import Machine
        from nasx.pipeline.planning import check_plan, plan, setting_lines, size_lines, stage_lines
        from nasx.train import pick_device

        with bad_input():
            check_plan(options.devices, options.time_limit)
            pick_device(Machine.from_environment().device)
            check_folder(config.data, options.data, self._for_folders())
        shown = False
        try:
            problem = self.problem(options, config, read=False)

            def show_sizes(document: Mapping[str, Any]) -> None:
                if not options.json:
                    print("\n".join([*size_lines(document), ""]), flush=True)

            with bad_input():
                document = plan(
                    problem,
                    devices=options.devices,
                    time_limit=options.time_limit,
                    timing=not options.no_timing,
                    on_timing=lambda what: errors.print(f"timing {what}", style="dim"),
                    on_sizes=show_sizes,
                )
            shown = True
        finally:
            if not shown and not options.json:  # they help to see what to change
                print("\n".join(setting_lines(config.model_dump(mode="json"))), flush=True)
        if options.json:
            print_json(document)
        else:
            print("\n".join([*stage_lines(document), "", *setting_lines(document["config"])]))
        return DONE

    def _trust(self, options: argparse.Namespace) -> int:
        from nasx.pipeline.runner import joined_group, run_stages
        from nasx.pipeline.trust import RANKING, write_trust

        if options.n < 1:
            raise BadInput(f"--n counts networks to train alone, at least 5, but got {options.n}")
        config = self.config(options, [f"trust.n={options.n}"])
        problem = self.problem(options, config)
        problem = problem.with_stages(up_to_trust(problem.stages()))
        if not problem.stages():
            raise BadInput("this run trains no supernet, so there is no ranking to judge; choose another method")
        directory = options.run_dir or Path("runs") / f"{self.run_name(config, options.data)}-trust{options.n}"

        def judge() -> Any:
            with joined_group() as (group, machine):
                return run_stages(problem, directory, machine=machine, group=group, command=self.written)

        finished = attempt(judge, f"this run in {directory}")
        if finished is None:
            return INTERRUPTED
        if not is_first():
            return DONE
        kinds = {stage.name: stage.kind for stage in problem.stages()}
        judged = {name: result for name, result in finished.results.items() if kinds[name] == "trust"}
        if not (finished.already and (directory / RANKING).is_file()):
            write_trust(directory, judged)
        if options.json:
            print_json(judged)
            return DONE
        for name, result in judged.items():
            print(f"{name}: {result['verdict']}")
        print(f"scatter plot: {directory}/{RANKING}")
        return DONE

    def _status(self, options: argparse.Namespace) -> int:
        from dataclasses import asdict

        from nasx.pipeline.run_status import status, status_lines

        with bad_input():
            found = status(options.run)
        if options.json:
            print_json({**asdict(found), "directory": str(found.directory), "finished": found.finished})
        else:
            print("\n".join(status_lines(found)))
        return DONE

    def _report(self, options: argparse.Namespace) -> int:
        with bad_input():
            from nasx.pipeline.run_report import report

            path = report(*options.runs, output=options.output)
        if options.json:
            print_json({"report": str(path)})
        else:
            print(f"report: {path}")
        return DONE

    def _for_folders(self) -> list[str]:
        recipe = self.recipe()
        fitted = [FOLDER] if recipe.fit else []
        return [*fitted, *(name for name, preset in recipe.presets.items() if preset.data.source != "digits")]

    def _fitted(self, recipe: "Recipe", options: argparse.Namespace) -> Any:
        from nasx.pipeline.config import RunConfig
        from nasx.pipeline.image_sources import folder_facts

        if options.data is None:
            raise BadInput(f"the preset {FOLDER!r} fits itself to an image folder; give --data DIR")
        assert recipe.fit is not None
        of_data = [setting for setting in options.set if setting.startswith(("data.", "data="))]
        data = apply_settings(RunConfig(), of_data).data  # which say how the images are read
        with bad_input():
            return recipe.fit(folder_facts(options.data.resolve(), data))


def program(package: str) -> str:
    """Return what calls a package's command line: `nasx NAME` for an installed recipe, else the module."""
    library, _, name = package.rpartition(".")
    return f"nasx {name}" if library == "nasx.recipes" else "nasx" if package == "nasx" else f"python -m {package}"


def note_unused(settings: Sequence[str], unused: Mapping[str, str]) -> None:
    """Say on standard error which settings have no effect; `unused` has the reasons.

    They are no error: one list of settings often serves several methods.
    """
    for setting in settings:
        name = setting.partition("=")[0]
        if name in unused:
            print(f"note: {name} has no effect, because {unused[name]}", file=sys.stderr)


def unread(problem: "Problem[Any]") -> dict[str, str]:
    """Return the fields that none of a problem's stages reads, and why."""
    kinds = {stage.kind for stage in problem.stages()}
    read_elsewhere = {"top_k", "eval_batch_size"}  # how many networks are trained, and how all are scored
    sections = {
        "supernet": (problem.config.supernet, set[str](), "no supernet is trained"),
        "search": (problem.config.search, read_elsewhere, "nothing is searched"),
    }
    return {
        f"{section}.{field}": why
        for section, (values, kept, why) in sections.items()
        if section not in kinds
        for field in field_names(values)
        if field not in kept
    }


def attempt(work: Callable[[], Result], where: str) -> Result | None:
    """Return what some work returns; None, after a word, where it was interrupted and the same command goes on.

    What else can end a run becomes BadInput. `where` is what messages call the run.
    """
    from rich.console import Console

    from nasx.data import BrokenImageError, WorkerDied
    from nasx.pipeline.errors import (
        CorruptWeights,
        Diverged,
        NotEnoughSpace,
        OutOfMemory,
        Refused,
        SearchFailed,
    )
    from nasx.run import ConfigChanged, Interrupted, JournalDamaged, RunLocked

    errors = Console(stderr=True)
    try:
        return work()
    except Interrupted:
        if is_first():
            errors.print(f"interrupted; the same command continues {where}", soft_wrap=True)
    except (
        Refused, ConfigChanged, RunLocked, JournalDamaged, CorruptWeights, NotEnoughSpace, SearchFailed
    ) as error:  # fmt: skip
        raise BadInput(str(error)) from error
    except (Diverged, OutOfMemory) as error:
        raise BadInput(f"{error}; {where} takes the change and begins this stage again") from error
    except (BrokenImageError, WorkerDied) as error:
        raise BadInput(f"{error}; the same command then continues {where}") from error
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise BadInput(system_message(error)) from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            raise
        errors.print(f"{error}; make room, and the same command continues {where}", soft_wrap=True)
    return None


def up_to_trust(stages: Sequence[Any]) -> Callable[[Any], list[Any]]:
    """Return the stages up to the last ranking; the winner of an earlier level stays, for a later one needs it."""
    judging = [number for number, stage in enumerate(stages) if stage.kind == "trust"]
    kept = list(stages[: judging[-1] + 1]) if judging else []
    return lambda problem: kept


def is_first() -> bool:
    """Return whether this process is the one of torchrun's that speaks."""
    return os.environ.get("RANK", "0") == "0"
