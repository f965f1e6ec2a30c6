"""The command `nasx`: `nasx glit run ...` runs a recipe, and `nasx status DIR` and the like read what is there."""

import sys
from collections.abc import Sequence
from pathlib import Path

import nasx
from nasx._memory import keep_freed_memory
from nasx.cli import DONE, BadInput, bad_input, nearest, run_command
from nasx.pipeline.commands import CommandLine
from nasx.pipeline.network_commands import NetworkCommands
from nasx.pipeline.recipe import no_network, recipe_module, recipe_names, recipe_of

_OF_RUNS = {"status": "show the progress of a run", "report": "write the report of a run again"}
_OF_NETWORKS = {
    "predict": "classes and probabilities of image files",
    "export": "write a network as safetensors, ONNX or torch.export's pt2",
    "evaluate": "accuracy on the test images",
    "verify": "prove that supernet, network, weights and costs of a run agree",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    if arguments is None:  # else this process is the caller's
        keep_freed_memory()
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _run(words))


def _run(words: list[str]) -> int:
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in ("-h", "--help"):
        print(_usage())
        return DONE
    if command == "--version":
        print(f"nasx {nasx.__version__}")
        return DONE
    if command in recipe_names():
        return _line(command).main(rest)
    if command in _OF_RUNS:
        return CommandLine("nasx", "Read runs, whichever recipe they are of.", presets=("",)).main(words)
    if command in _OF_NETWORKS:
        with bad_input():
            name = _recipe_named(words)
        return _line(name).main(words)
    raise BadInput(
        f"there is no recipe or command {command!r}{nearest(command, [*recipe_names(), *_OF_RUNS, *_OF_NETWORKS])}"
    )


def _line(recipe: str) -> CommandLine:
    line: CommandLine = recipe_module(recipe, "__main__").LINE
    return line


def _recipe_named(words: Sequence[str]) -> str:
    """Return the recipe of the run or network that a command names; a ValueError says why there is none."""
    line = CommandLine("nasx", "Read networks, whichever recipe they are of.", presets=("",))
    NetworkCommands(line, ())
    options = line.parse(words)
    command, known = words[0], ", ".join(recipe_names())
    given = [getattr(options, name, None) for name in ("source", "run", "weights")]
    networks = [Path(path) for path in given if path is not None]
    arch = getattr(options, "arch", None)
    for path in [*networks, *([] if arch is None else [Path(arch)])]:
        if (name := recipe_of(path)) in recipe_names():
            return str(name)
        if name is not None:
            raise ValueError(
                f"`nasx {command}` reads networks of the recipes {known}, but {path} is of {name!r}, built by code of "
                "your own; run the same problem again and take the `network` of what `run` returns"
            )
    if networks and not networks[0].is_file():
        raise ValueError(no_network(networks[0]))
    if networks or arch is not None:
        silent = networks[0] if networks else arch
        raise ValueError(f"{silent} does not say which of the recipes {known} it is of; write nasx RECIPE {command}")
    raise ValueError(f"no run or exported network is named; write nasx {command} RUN")


def _usage() -> str:
    lines = ["usage: nasx RECIPE COMMAND ...", "       nasx COMMAND RUN ...", "", "recipes (nasx RECIPE --help):"]
    lines += [f"  {name}" for name in recipe_names()]
    lines += ["", "commands for a run directory or an exported network, whichever recipe it is of:"]
    lines += [f"  {name:<10} {what}" for name, what in (_OF_RUNS | _OF_NETWORKS).items()]
    return "\n".join([*lines, "", "  --version  print the version"])


if __name__ == "__main__":
    sys.exit(main())
