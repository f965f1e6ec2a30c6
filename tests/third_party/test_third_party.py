"""A package by somebody else, about text, that knows nothing of this checkout but the wheel built from it."""

import json
import os
import shutil
import subprocess
import sys
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


def run(site: Path, directory: Path, *arguments: str) -> str:
    """Run Python in a directory, with the installed wheels on its path and not the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    environment = {**kept, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def files(package: Path) -> set[str]:
    return {str(p.relative_to(package)) for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc"}


def test_the_wheel_is_the_library_alone(site: Path, tmp_path: Path) -> None:
    assert {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} == {"nasx", "textsearch"}
    assert files(site / "nasx") == files(ROOT / "nasx")
    code = "import sys, nasx; assert 'torch' not in sys.modules; print(nasx.__file__)"
    assert Path(run(site, tmp_path, "-c", code).strip()) == site / "nasx" / "__init__.py"


def test_a_search_over_text(site: Path, tmp_path: Path) -> None:
    found = json.loads(run(site, tmp_path, "-W", "error", "-m", "textsearch"))
    assert Path(found["nasx"]) == site / "nasx" / "__init__.py"
    assert found["verified"]
    assert found["size"] == 9 + 9**2 + 9**3
    assert 24 <= found["feasible_size"] < found["size"]
    assert found["evaluated"] == 24
    assert found["params"] <= 16_000
    assert found["losses"][1] < found["losses"][0]
    assert found["accuracy"] > found["chance"] + 0.1, "the network found has learned nothing"
    assert list(tmp_path.iterdir()) == []


def test_the_contracts_hold_for_it(site: Path, tmp_path: Path) -> None:
    words = ["-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    out = run(site, tmp_path, *words, "--pyargs", "textsearch.contracts")
    assert "22 passed" in out, out
    assert "skipped" not in out, out
