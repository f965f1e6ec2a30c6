"""The code that README and the site show must run, and the commands that they show must exist."""

import ast
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from nasx.pipeline.recipe import recipe_names
from nasx.pipeline.run_report import report_of

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("tutorials/*.md"))]


OF_THEIR_OWN = ("own_search.md",)  # pages whose code another test runs, and interrupts
WITH_CODE = [page for page in PAGES if "```python" in page.read_text() and page.name not in OF_THEIR_OWN]


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda p: p.name)
def test_python_blocks_run_in_order(page: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_shown_commands_parse(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    for module, line in re.findall(r"-m (recipes\.[\w.]+|benchmarks\.evidence)([^`\n#&]*)", text):
        words = line.replace("...", "").split()
        parse = importlib.import_module(f"{module}.__main__").parse
        parse(words)  # exits with status 2 where a command or an option is unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_shown_commands_of_nasx_parse(page: Path) -> None:
    text = page.read_text().replace("\\\n", " ")
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in re.findall(r"^nasx ([^\n#&]*)", block, re.MULTILINE):
            name, *words = line.split()
            recipe = name if name in recipe_names() else "glit"
            parse = importlib.import_module(f"recipes.{recipe}.__main__").parse
            parse(words if name in recipe_names() else [name, *words])


MODULES = {"recipes", "nasx.faults", "benchmarks", "venv", "mkdocs"}
"""Modules that the pages run with `python -m`."""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_shown_modules_exist(page: Path) -> None:
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
        for name in re.findall(r"python -m (\S+)", block):
            assert any(name == known or name.startswith(f"{known}.") for known in MODULES), f"{page.name}: {name}"
            assert find_spec(name) is not None, f"{page.name} runs {name}, which does not exist"


def test_shown_benchmarks_exist() -> None:
    from benchmarks.__main__ import BENCHMARKS, ON_GPU

    for page in PAGES:
        for name in re.findall(r"-m benchmarks (?!--|\.)([\w.]+)", page.read_text()):
            known = (*BENCHMARKS, *ON_GPU, "page")
            assert any(full == name or full.startswith(f"{name}.") for full in known), f"{page.name} runs {name}"


def test_the_page_of_settings_is_in_step() -> None:
    shown = (DOCS / "settings.md").read_text()
    made = subprocess.run(
        [sys.executable, str(DOCS / "settings.py"), "--print"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    assert shown == made.stdout, "run `python docs/settings.py`"


def test_the_picture_of_a_report_is_that_of_a_run_that_is_here() -> None:
    shown = re.search(r"!\[([^\]]+)\]\(docs/drawings/report\.png\)", (ROOT / "README.md").read_text())
    assert shown is not None
    assert len(shown[1].split()) > 10, "a text for those who cannot see it"
    path = DOCS / "drawings" / "report.png"
    with Image.open(path) as picture:
        assert 1000 <= picture.width <= 1400
        assert 600 <= picture.height <= 1400
        assert len(picture.getcolors() or ()) > 16, "a page that was not drawn has few colours"
    assert path.stat().st_size < 250_000
    found = report_of(DOCS / "drawings" / "digits_run")
    assert found.state == "finished"
    assert f"all {sum(len(search.candidates) for search in found.searches)} candidates" in " ".join(shown[1].split())


def test_the_run_of_the_picture_is_in_the_repository(tmp_path: Path) -> None:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "docs/drawings"], capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("no git checkout")
    files = listed.stdout.split()
    assert {"docs/drawings/report.py", "docs/drawings/report.png"} <= set(files)
    for name in (name for name in files if "/digits_run/" in name):
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((ROOT / name).read_bytes())
    assert report_of(tmp_path / "docs/drawings/digits_run") == report_of(DOCS / "drawings" / "digits_run")


def test_relative_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def texts() -> list[str]:
    """Return the strings in the sources, with `{}` for what is filled in, and the names of classes."""
    found = []
    for folder in ("nasx", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.JoinedStr):
                    found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
                elif isinstance(node, ast.ClassDef):
                    found.append(node.name)
    return found


def test_messages_that_are_explained_exist() -> None:
    page = (DOCS / "messages.md").read_text()
    cells = [row.split("|")[1] for row in page.splitlines() if row.startswith("| `")]
    shown = [text for cell in cells for text in re.findall(r"`([^`]+)`", cell)]
    assert len(shown) > 20
    known = texts()
    patterns = {text: ".*".join(map(re.escape, re.split(r"\.\.\.|\bN\b", text))) for text in shown}
    missing = [text for text, pattern in patterns.items() if not any(re.search(pattern, k, re.DOTALL) for k in known)]
    assert not missing, f"docs/messages.md explains messages that are not in the sources: {missing}"


def code_of(page: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


def test_a_search_of_your_own_is_short() -> None:
    lines = [line for line in code_of(DOCS / "tutorials" / "own_search.md").splitlines() if line.strip()]
    assert len(lines) <= 80


@pytest.mark.slow
def test_a_search_of_your_own_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "search.py").write_text(code_of(DOCS / "tutorials" / "own_search.md"))
    command = [sys.executable, "search.py"]
    options = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}, "text": True}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # type: ignore[call-overload]
    while process.poll() is None and not (tmp_path / "traces" / "search" / "journal.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode not in (0, -signal.SIGINT)
    assert "Interrupted" in err
    done = subprocess.run(command, capture_output=True, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    assert "on the test data" in done.stdout
    assert (tmp_path / "network.pt2").stat().st_size
