"""Public names are those that docs/stability.md lists; `python tests/test_public_names.py` brings it up to date."""

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "stability.md"
PROVISIONAL = "nasx.recipe"

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


def test_recipes_and_others_import_public_names_only() -> None:
    public = actual()
    private = []
    for folder in ("recipes", "benchmarks", "tests/third_party"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "nasx":
                    for alias in node.names:
                        whole = f"{node.module}.{alias.name}" in public  # a module, imported from its package
                        if not whole and alias.name not in public.get(str(node.module), ()):
                            private.append(f"{path.relative_to(ROOT)}: from {node.module} import {alias.name}")
    assert not private, "\n".join(private)


if __name__ == "__main__":
    write()
