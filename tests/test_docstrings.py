"""Docstrings of public names explain every parameter, and their examples run."""

import doctest
import importlib
import re
from pathlib import Path

import griffe
import pytest

from tests.test_public_names import listed

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"

CHECKED = ("nasx", "nasx.nn", "nasx.measure", "nasx.search", "nasx.train", "nasx.ranking", "nasx.comparison")
"""Modules whose names all explain their parameters."""

UNEXPLAINED: frozenset[str] = frozenset()
"""`module.name: parameter` of the modules above that is not explained yet."""

EXAMPLES = ("nasx.space", "nasx.cells", "nasx.search.halving")
"""Modules whose examples run as they stand."""


@pytest.fixture(scope="module")
def package() -> griffe.Object:
    return loaded("nasx", ROOT)


def loaded(name: str, folder: Path) -> griffe.Object:
    found = griffe.load(name, search_paths=[str(folder)], resolve_aliases=True)
    assert isinstance(found, griffe.Object)
    return found


def unexplained(thing: griffe.Object | griffe.Alias) -> list[str]:
    """Return the parameters of a function or a class that its docstrings do not name; a field may have its own."""
    thing = thing.final_target if isinstance(thing, griffe.Alias) else thing
    explained: dict[str, str] = {}
    if isinstance(thing, griffe.Class):
        for base in (thing, *thing.mro()):
            explained |= {name: member.docstring.value for name, member in base.members.items() if member.docstring}
    elif not isinstance(thing, griffe.Function):
        return []
    text = (thing.docstring.value if thing.docstring else "") + explained.get("__init__", "")
    names = [p.name.lstrip("*") for p in thing.parameters if p.name not in ("self", "cls", *explained)]
    return [n for n in names if not n.startswith("_") and not re.search(rf"\b{re.escape(n)}\b", text)]


@pytest.mark.parametrize("module", CHECKED)
def test_every_parameter_is_explained(package: griffe.Object, module: str) -> None:
    inside = f"{module}.".removeprefix("nasx.")
    found = {f"{module}.{n}: {p}" for n in listed()[module] for p in unexplained(package[inside + n])}
    allowed = {entry for entry in UNEXPLAINED if entry.rpartition(": ")[0].rpartition(".")[0] == module}
    assert found - allowed == set(), "explain these parameters by name in the docstring"
    assert allowed - found == set(), "these are explained by now: take them off UNEXPLAINED"


def test_an_unexplained_parameter_is_found(tmp_path: Path) -> None:
    source = '''
from dataclasses import dataclass

def f(images, size, *rest):
    """Resize `images` to a `size`."""

@dataclass
class GLiTConfig:
    """A ViT config of one width."""
    width: int
    height: int
    depth: int = 3
    """In pixels."""
'''
    (tmp_path / "some.py").write_text(source)
    module = loaded("some", tmp_path)
    assert unexplained(module["f"]) == ["rest"]
    assert unexplained(module["GLiTConfig"]) == ["height"]


def test_every_public_name_is_in_the_reference(package: griffe.Object) -> None:
    pages = "\n".join(page.read_text() for page in REFERENCE.glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)", pages, re.MULTILINE))
    shown |= {package[name.removeprefix("nasx.")].canonical_path for name in shown if name != "nasx"}
    missing = [
        f"{module}.{name}"
        for module, names in listed().items()
        for name in names
        if f"{module}.{name}" not in shown and not covered(module, shown)
    ]
    assert not missing, "\n".join(["docs/reference lacks these public names:", *missing])


def covered(module: str, shown: set[str]) -> bool:
    """Return whether a page shows a whole module; a package that exports names is shown name by name."""
    exports = (ROOT / module.replace(".", "/") / "__init__.py").exists() and module != "nasx"
    return (module in shown and not exports) or module == "nasx"


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_run(module: str) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted > 0
    assert result.failed == 0


def test_examples_are_shown_as_code() -> None:
    """Without the heading, an example would be rendered as a quotation."""
    wrong = [
        str(path.relative_to(ROOT))
        for folder in ("nasx", "recipes")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for before in re.findall(r"^(.*)\n\s*>>> ", path.read_text(), re.MULTILINE)
        if not re.search(r"Examples:$|>>> |^\s*\S+$|\.\.\. ", before)
    ]
    assert not wrong, "\n".join(wrong)
