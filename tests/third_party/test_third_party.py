"""A package by somebody else, about text, that knows nothing of this checkout but the wheel built from it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PACKAGE = HERE / "textsearch"

pytestmark = pytest.mark.skipif(
    find_spec("hatchling") is None or find_spec("pip") is None,
    reason="building wheels without a network needs pip and hatchling installed",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory into which both wheels were installed, and nothing else."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    offline = ["--no-deps", "--no-index", "--quiet"]
    for project in (ROOT, shutil.copytree(PACKAGE, tmp_path_factory.mktemp("source") / "textsearch")):
        pip("wheel", *offline, "--no-build-isolation", "--wheel-dir", str(wheels), str(project))
    pip("install", *offline, "--target", str(target), *map(str, sorted(wheels.glob("*.whl"))))
    return target


def pip(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def environment(site: Path) -> dict[str, str]:
    """Return an environment with the installed wheels on Python's path and not the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    return {**kept, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "NASX_PROCESSES": "1"}


def run(site: Path, directory: Path, *arguments: str) -> str:
    """Run Python in a directory with the installed wheels and return what it prints."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=directory, env=environment(site), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(package: Path) -> set[str]:
    return {str(p.relative_to(package)) for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc"}


def test_the_wheel_is_library_and_recipes_alone(site: Path, tmp_path: Path) -> None:
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {
        "bin",  # the command nasx
        "nasx",
        "textsearch",
    }
    assert files(site / "nasx") == files(ROOT / "nasx") | {f"recipes/{name}" for name in files(ROOT / "recipes")}
    code = "import sys, nasx; assert 'torch' not in sys.modules; print(nasx.__file__)"
    assert Path(run(site, tmp_path, "-c", code).strip()) == site / "nasx" / "__init__.py"


def test_a_search_over_text_is_interrupted_and_goes_on(site: Path, tmp_path: Path) -> None:
    command = ["-W", "error", "-m", "textsearch", "run"]
    process = subprocess.Popen(
        [sys.executable, *command], cwd=tmp_path, env=environment(site), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while process.poll() is None and not (tmp_path / "run" / "search" / "journal.jsonl").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode != 0, "it was stopped"
    assert b"Interrupted" in err
    found = json.loads(run(site, tmp_path, *command))
    assert Path(found["nasx"]) == site / "nasx" / "__init__.py"
    assert found["stages"]["supernet"]["seconds"] > 0
    assert found["searches"]["search"]["evaluations"] == 24
    searched, chance = found["networks"]["searched"], 0.28  # the share of the most frequent module
    assert searched["test_accuracy"] > chance + 0.05, "the network found has learned nothing"
    assert searched["test_score"] == searched["test_accuracy"]
    assert len(found["random_all"]) == 2
    largest = found["networks"]["largest"]
    assert searched["params"] <= 0.85 * largest["params"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert json.loads(run(site, tmp_path, *command)) == found, "a finished run is only read"


def test_it_is_short() -> None:
    sources = sorted((PACKAGE / "textsearch").glob("*.py"))
    assert sum(len(path.read_text().splitlines()) for path in sources) <= 120


def test_the_contracts_hold_for_it(site: Path, tmp_path: Path) -> None:
    words = ["-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    out = run(site, tmp_path, *words, "--pyargs", "textsearch.contracts")
    assert re.search(r"\d+ passed", out), out
    assert "failed" not in out, out
    assert "skipped" not in out, out
