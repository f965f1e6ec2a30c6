"""Public names are those that docs/stability.md lists; `python tests/test_public_names.py` brings it up to date."""

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "stability.md"
PROVISIONAL = "nasx.pipeline"

Names = Mapping[str, list[str]]


def listed() -> dict[str, list[str]]:
    """Return the names that the page lists, by module."""
    found: dict[str, list[str]] = {}
    for block in re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL):
        for entry in filter(None, block.strip().split("\n\n")):
            module, *names = entry.split()
            found[module] = [name.rstrip(",") for name in names]
    return found


def actual() -> dict[str, list[str]]:
    """Return the public names of every public module, as the source has them."""
    chosen, found = listed(), {}
    for path in sorted((ROOT / "nasx").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        package = module.rpartition(".")[0]
        inside = package.count(".") > 0 and exported(ROOT / package.replace(".", "/") / "__init__.py") is not None
        if module.rpartition(".")[2].startswith("_") or (inside and module not in chosen):
            continue  # a package that exports names decides which of its modules are public by themselves
        names = exported(path)
        names = sorted(defined(path)) if names is None else names
        if names:
            found[module] = names
    return found


def exported(path: Path) -> list[str] | None:
    """Return `__all__` where a file has one."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return sorted(ast.literal_eval(node.value))
    return None


def defined(path: Path) -> Iterator[str]:
    """Yield what a file defines without a leading underscore, its logger aside."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("npt.NDArray["):
            continue  # short words for arrays, which any module may choose for itself
        elif isinstance(node, ast.Assign):
            names = [name for target in node.targets for name in re.findall(r"\w+", ast.unparse(target))]
        elif isinstance(node, ast.AnnAssign):
            names = [ast.unparse(node.target)]
        else:
            continue
        yield from (name for name in names if not name.startswith("_") and name != "logger")


def lines(names: Names) -> set[str]:
    return {f"{module}: {name}" for module, found in names.items() for name in found}


def write() -> None:
    """Put the actual names into the page's two lists."""
    names = actual()
    provisional = {module: found for module, found in names.items() if module.startswith(PROVISIONAL)}
    stable = {module: found for module, found in names.items() if module not in provisional}
    blocks = iter([stable, provisional])

    def block(_: re.Match[str]) -> str:
        wrap = textwrap.TextWrapper(110, initial_indent="    ", subsequent_indent="    ", break_long_words=False)
        return "```text\n" + "\n".join(f"{m}\n{wrap.fill(', '.join(n))}\n" for m, n in next(blocks).items()) + "```"

    PAGE.write_text(re.sub(r"```text\n.*?```", block, PAGE.read_text(), flags=re.DOTALL))


def test_public_names_are_those_listed() -> None:
    page, source = lines(listed()), lines(actual())
    changes = [f"add     {line}" for line in sorted(source - page)] + [
        f"remove  {line}" for line in sorted(page - source)
    ]
    assert not changes, "\n".join(
        ["docs/stability.md and the source differ; `python tests/test_public_names.py` writes these changes:", *changes]
    )


def test_the_scan_sees_what_python_sees() -> None:
    import nasx
    import nasx.arch
    import nasx.search

    names = actual()
    assert names["nasx"] == sorted(nasx.__all__)
    assert names["nasx.search"] == sorted(nasx.search.__all__)
    assert "nasx.search.searcher" not in names
    for name in names["nasx.arch"]:
        assert hasattr(nasx.arch, name)
    assert {"Arch", "Value", "matches"} <= set(names["nasx.arch"])
    assert "Mapping" not in names["nasx.arch"]


def imported(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield each module that a file imports, with each name that it takes from it; None for the module itself."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            assert isinstance(node.args[0], ast.Constant | ast.JoinedStr | ast.Name), path
            yield ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else "?", None


def private_names(path: Path, public: Names) -> Iterator[str]:
    """Yield what a file takes of nasx that is not public, through whichever kind of import."""
    for module, name in imported(path):
        if module.split(".")[0] == "nasx":
            known = module in public or any(other.startswith(f"{module}.") for other in public)
            whole = name is None or f"{module}.{name}" in public  # a module, imported from its package
            if not (whole and known) and name not in public.get(module, ()):
                yield f"{path.name}: {module} {name or ''}"
    names = {alias for module, alias in imported(path) if module.split(".")[0] == "nasx" and alias}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            value = ast.unparse(node.value)
            if value.split(".")[0] in names | {"nasx"}:
                yield f"{path.name}: {value}.{node.attr}"


def test_recipes_and_others_import_public_names_only() -> None:
    public = actual()
    folders = ("recipes", "benchmarks", "tests/third_party")
    private = [
        found for f in folders for path in sorted((ROOT / f).rglob("*.py")) for found in private_names(path, public)
    ]
    assert not private, "\n".join(private)


def test_private_names_are_seen(tmp_path: Path) -> None:
    source = """
import nasx.run.lock
from nasx.space import Space, _narrowed
from nasx import feasible
from nasx.search.searcher import Fresh
feasible._Table
Space._narrow
self._own
"""
    (tmp_path / "some.py").write_text(source)
    public = {
        "nasx.space": ["Space"],
        "nasx.feasible": ["Feasible"],
        "nasx.search": ["Evolution"],
        "nasx.run": ["Stage"],
    }
    assert list(private_names(tmp_path / "some.py", public)) == [
        "some.py: nasx.run.lock ",
        "some.py: nasx.space _narrowed",
        "some.py: nasx.search.searcher Fresh",
        "some.py: feasible._Table",
        "some.py: Space._narrow",
    ]


def test_no_recipe_knows_another_and_the_library_knows_none() -> None:
    recipes = sorted(path.name for path in (ROOT / "recipes").iterdir() if (path / "__init__.py").exists())
    assert recipes == ["autoformer", "glit", "localvit"]
    wrong = []
    for path in sorted([*(ROOT / "nasx").rglob("*.py"), *(ROOT / "recipes").rglob("*.py")]):
        own = ".".join(path.relative_to(ROOT).parts[:2])
        wrong += [
            f"{own}: {m}" for m, _ in imported(path) if m.startswith("recipes") and not f"{m}.".startswith(f"{own}.")
        ]
    assert not wrong, "\n".join(wrong)


if __name__ == "__main__":
    write()
