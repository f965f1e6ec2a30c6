"""How long it takes until something happens: imports, building supernets, the first answer of a command."""

import subprocess
import sys
import time
from functools import partial

from benchmarks.cases import Row, Run, digits_case, tiny_case
from benchmarks.pairs import alternate
from nasx.nn import Subnet
from nasx.train import use_threads
from recipes.glit.supernet import supernet

IMPORTS = {
    "python": "pass",
    "numpy": "import numpy",
    "nasx": "import nasx",
    "torch": "import torch",
    "nasx.nn": "import nasx.nn",
    "nasx.train": "import nasx.train",
    "nasx.pipeline": "import nasx.pipeline",
}
COMMANDS = {
    "--help": ["--help"],
    "describe": ["describe", "--arch", "glit-tiny", "--json"],
}


def imports() -> list[Row]:
    """Return seconds of processes that import something, in turns; `ratio` is over what it needs most of."""
    functions = {name: _process("-c", code) for name, code in IMPORTS.items()}
    timed = alternate(functions, seconds=0, warm_up=1, wall=True, at_least=3)
    over = {"nasx": "numpy", "nasx.pipeline": "numpy", "nasx.nn": "torch", "nasx.train": "torch"}
    return [
        {"import": name, "seconds": timed.median(name), "over": other, "ratio": timed.ratio(name, to=other)}
        for name, other in ((name, over.get(name, "python")) for name in IMPORTS)
    ]


def commands() -> list[Row]:
    """Return seconds of commands of the recipe that train nothing; `ratio` is over importing torch alone."""
    functions = {name: _process("-m", "recipes.glit", *arguments) for name, arguments in COMMANDS.items()}
    functions["torch"] = _process("-c", "import torch")
    timed = alternate(functions, seconds=0, warm_up=1, wall=True, at_least=3)
    return [
        {"command": name, "seconds": timed.median(name), "ratio": timed.ratio(name, to="torch")} for name in COMMANDS
    ]


def supernets() -> list[Row]:
    """Return seconds of building supernets and networks to run in them. One thread."""
    rows: list[Row] = []
    with use_threads(1):
        for case in (digits_case(), tiny_case()):
            for sharing in ("separate", "entangled"):
                begun = time.process_time()
                whole = supernet(case.space, case.vit, sharing=sharing, init_std=case.init_std)
                built = time.process_time() - begun
                timed = alternate(
                    {
                        "skeleton": lambda: Subnet(whole, case.arch),  # noqa: B023
                        "extracted": lambda: whole.extract(case.arch),  # noqa: B023
                        "built": lambda: case.network(case.arch),  # noqa: B023
                    },
                    seconds=1,
                )
                rows.append(
                    {
                        "network": case.name,
                        "sharing": sharing,
                        "supernet, s": built,
                        "ready to run, ms": 1e3 * timed.median("skeleton"),
                        "extracted, ms": 1e3 * timed.median("extracted"),
                        "ratio": timed.ratio("skeleton", to="built"),
                    }
                )
    return rows


def _process(*arguments: str) -> Run:
    return partial(subprocess.run, [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
