"""All messages that the code can end in or warn with, taken from its source: `python -m tests.messages`."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("nasx", "recipes")
WARNINGS = ("warning", "warn")


@dataclass(frozen=True, slots=True)
class Message:
    """A message as its source spells it; `{...}` stands for what is filled in."""

    path: Path
    line: int
    kind: str
    """The exception's class, or `warning`."""
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}: {self.kind}: {self.text}"


def messages() -> list[Message]:
    """Return the messages of the library and its recipes, by file and line."""
    found = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            found += list(of_source(path, path.read_text(encoding="utf-8")))
    return found


def of_source(path: Path, source: str) -> Iterator[Message]:
    """Yield the messages of a file: of `raise Class(message)`, and of warnings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            call, kind = node.exc, ast.unparse(node.exc.func)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WARNINGS:
            call, kind = node, "warning"
        else:
            continue
        if call.args and (text := spelled(call.args[0])):
            yield Message(path, call.lineno, kind, text)


def spelled(node: ast.expr) -> str:
    """Return the text of a literal, of an f-string, or of several that are joined; "" for what is computed."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(spelled(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return spelled(node.left) + spelled(node.right)
    return ""


if __name__ == "__main__":
    print("\n".join(map(str, messages())))
