"""The command `nasx`, and what it says of runs and networks; wheel and sdist carry everything that they need."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

import nasx
from nasx.__main__ import main
from nasx.pipeline.recipe import recipe_names

ROOT = Path(__file__).parent.parent


def test_help_lists_recipes_and_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(f"\n  {name}" in out for name in (*recipe_names(), "status", "report", "predict", "export"))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"nasx {nasx.__version__}\n"


def test_unknown_words_get_the_nearest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words, rule in (
        (["glitt"], "did you mean 'glit'?"),
        (["predict", str(tmp_path), "image.png"], f"{tmp_path} is neither a run directory nor a network"),
        (["evaluate"], "no run or exported network is named; write nasx evaluate RUN"),
        (["report", str(tmp_path)], "is no run directory"),
        (["verify", "--arch", "glit-tiny"], "glit-tiny does not say which of the recipes"),
        (["evaluate", "--weights", str(ROOT / "README.md")], "README.md does not say which of the recipes"),
        (["verify", str(tmp_path / "none")], f"there is no {tmp_path / 'none'}; name a run directory"),
    ):
        assert main(words) == 2
        captured = capsys.readouterr()
        assert rule in captured.err
        assert captured.err.count("\n") == 1


def test_the_path_that_is_no_network_is_blamed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run, missing = tmp_path / "run", tmp_path / "nope"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"config": {"recipe": "glit", "config": {}, "split": {}}}))
    for command in (["predict", str(missing), str(run)], ["export", str(missing), "--out", str(run)]):
        for words in (command, ["glit", *command]):
            assert main(words) == 2
            assert f"there is no {missing}; name a run directory" in capsys.readouterr().err
    for name in ("model.onnx", "model.pt2"):
        folder = tmp_path / name.partition(".")[2]
        folder.mkdir()
        (folder / name).write_bytes(b"")
        for words in (["predict", str(folder), "image.png"], ["evaluate", str(folder)]):
            assert main(words) == 2
            assert f"{folder} holds {name}, for use without nasx" in capsys.readouterr().err


def test_a_run_of_ones_own_networks_is_answered_with_what_reads_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"config": {"recipe": "search", "config": {}, "split": {}}}))
    for command in (["predict", str(tmp_path), "image.png"], ["evaluate", str(tmp_path)]):
        assert main(command) == 2
        assert "run the same problem again and take the `network` of what `run` returns" in capsys.readouterr().err


def test_a_reader_may_stop_reading() -> None:
    words = [sys.executable, "-m", "recipes.glit", "plan", "--no-timing"]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as plan:
        assert plan.stdout is not None
        assert plan.stderr is not None
        assert plan.stdout.readline()
        plan.stdout.close()
        assert plan.stderr.read() == "reading settings and images\n"
    assert plan.returncode == 0


def test_a_recipe_is_called_as_it_was_started(tmp_path: Path) -> None:
    for module, shown in (("nasx", "usage: nasx autoformer "), ("recipes", "usage: python -m recipes.autoformer ")):
        words = ["nasx", "autoformer"] if module == "nasx" else ["recipes.autoformer"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", *words, "--help"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(shown)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and the sdist of this tree."""
    if find_spec("hatchling") is None:
        pytest.skip("building needs hatchling installed")
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--directory", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out


def tracked() -> set[str]:
    """Return the files of this tree that git knows; all tests are skipped where it is no checkout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("what belongs to a release is known in a checkout alone")
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()}


def test_the_wheel_carries_library_and_recipes(built: Path) -> None:
    known = tracked()
    with zipfile.ZipFile(built / f"nasx-{nasx.__version__}-py3-none-any.whl") as wheel:
        names = set(wheel.namelist())
        entry = wheel.read(f"nasx-{nasx.__version__}.dist-info/entry_points.txt").decode()
        recipes = wheel.read("nasx/recipes/__init__.py")
    library = {name for name in known if name.startswith("nasx/")}
    assert library | {f"nasx/{name}" for name in known if name.startswith("recipes/")} <= names
    assert recipes == (ROOT / "recipes" / "__init__.py").read_bytes(), "not what a checkout has in its place"
    assert {name.split("/")[0] for name in names} == {"nasx", f"nasx-{nasx.__version__}.dist-info"}
    assert "nasx = nasx.__main__:main" in entry
    assert not any(name.endswith(".pyc") for name in names)


def test_the_sdist_carries_what_its_tests_need(built: Path) -> None:
    root = f"nasx-{nasx.__version__}/"
    with tarfile.open(built / f"nasx-{nasx.__version__}.tar.gz") as sdist:
        names = {name.removeprefix(root) for name in sdist.getnames()}
    assert {name for name in tracked() if not name.startswith(".")} <= names
    assert {name.split("/")[0] for name in names} <= {name.split("/")[0] for name in tracked()} | {"PKG-INFO"}


def test_the_installed_library_needs_no_checkout(built: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(built / f"nasx-{nasx.__version__}-py3-none-any.whl") as wheel:
        wheel.extractall(site)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    code = """
import json, sys
import nasx.__main__, nasx.pipeline.recipe as recipe
status = nasx.__main__.main(["glit", "describe", "--arch", "glit-tiny", "--json"])
import timm
for name in recipe.recipe_names():
    recipe.recipe_module(name, "timm")
names = timm.list_models("nasx_*")
print(json.dumps([status, names, sys.modules["nasx.recipes.glit"].__file__, "recipes" in sys.modules]), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["params"] == 7_264_456
    status, names, path, from_checkout = json.loads(done.stderr.splitlines()[-1])
    assert (status, names, from_checkout) == (0, ["nasx_autoformer", "nasx_glit", "nasx_localvit"], False)
    assert Path(path) == site / "nasx" / "recipes" / "glit" / "__init__.py"


def test_every_version_is_the_same() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {nasx.__version__}\n" in citation
    assert f"\n## {nasx.__version__}" in (ROOT / "CHANGELOG.md").read_text()
