"""Situations that people reported in public of such tools, each made again by a script; what each must end in.

The scripts lie beside the checkout, in `../shared/cases`, or where CASES_DIR says.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

ROOT = Path(__file__).parents[1]
CASES = Path(os.environ.get("CASES_DIR", ROOT.parent / "shared" / "cases"))

PROGRAMS = ("07", "08")
"""Cases that call the library from Python, where a refusal is an exception."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CASES.is_dir(), reason="needs the scripts of ../shared/cases, or CASES_DIR"),
]


def output(case: str, changes: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return what the script of a case prints, on both streams, some of its words changed."""
    script = (CASES / case / "run.sh").read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in script
        script = script.replace(old, new)
    environment = {**os.environ, "PY": sys.executable, "PROJECT": str(ROOT), "COLUMNS": "1000"}
    done = subprocess.run(
        ["bash", "-c", script, CASES / case / "run.sh"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",  # a case shows the first bytes of a figure
        timeout=1800,
    )
    assert "Traceback" not in done.stdout or case in PROGRAMS
    return done.stdout


def accuracies(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"^test ([\d.]+) % of", text, re.MULTILINE)]


def test_a_hidden_file_is_no_image() -> None:
    shown = output("01")
    assert shown.count("report, summary, architecture and weights") == 2, "it is left out, also before it is removed"


def test_a_broken_test_image_is_found_before_training_and_the_run_goes_on_without_it() -> None:
    shown = output(
        "01",
        {"printf '\\x00\\x05": "cp $W/d/test/a/0000.png $W/d/test/a/0099.png; printf '\\x00\\x05", "._0000": "0099"},
    )
    first, last = shown.strip().splitlines()
    assert "test/a/0099.png" in first
    assert "replace or remove it" in first
    assert last.startswith("report, summary, architecture and weights")


def test_the_number_of_heads_is_asked_for_where_no_published_network_says_it() -> None:
    named = "--heads 2 --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225"
    again = f"plain.pth --out $W/refused; $G import-official $W/plain.pth {named} --out"
    shown = output("02", {"plain.pth --out": again})
    assert "no published size has that width and 2 blocks; say it with num_heads (--heads)" in shown
    ours, imported = accuracies(shown)
    assert ours == imported == pytest.approx(94, abs=4)


def test_weights_keep_their_accuracy_with_the_normalisation_that_they_were_trained_with() -> None:
    shown = output("03", {"plain.pth --out": "plain.pth --heads 1 --mean 0.5,0.5,0.5 --std 0.5,0.5,0.5 --out"})
    ours, imported = accuracies(shown)
    assert ours == imported
    assert shown.count("--set has no effect") == 2


def test_other_images_of_the_same_names_are_another_data_set() -> None:
    shown = output("04")
    assert "other training data" in shown
    assert "other test data" in shown


def test_damaged_weights_are_found_by_every_command_that_reads_them() -> None:
    shown = output("05")
    assert shown.count("not those that were written") == 3
    assert "verify: 2" in shown
    assert "accuracy" not in shown


def test_a_fractional_cost_is_inside_of_its_bounds() -> None:
    shown = output("07")
    assert [line.rpartition(" ")[2] for line in shown.splitlines() if "inside" in line] == ["True"] * 3


def test_hidden_folders_and_links_to_oneself_are_no_images() -> None:
    shown = output("08")
    assert re.search(r"d \('a', 'b', 'c'\) 108 train; 0 of 12", shown)
    assert re.search(r"e \('a', 'b', 'c'\) 108 train; 0 of 12", shown)
    assert "is a link that leads back" in shown


def test_a_diverged_training_can_be_continued_with_the_mend_that_is_named() -> None:
    shown = output("10")
    assert "lower retrain.lr" in shown
    assert shown.strip().splitlines()[-1].startswith("report, summary, architecture and weights")


def test_a_program_on_standard_input_or_without_a_guard_works() -> None:
    ended = {'main("run': 'print("status", main("run', ".split())\nP": ".split()))\nP"}
    shown = output("11", {**ended, "Error|Broken": "Error|Broken|^status", "grep error": "egrep 'rror|^status'"})
    assert shown.splitlines() == ["status 0", "no guard in a file:", "status 0"]


def test_a_device_that_is_not_there_is_refused_by_plan_and_run() -> None:
    shown = output("13")
    assert shown.count("error: the device 'mps' was asked for, but this machine or this PyTorch has none") == 1
    assert "plan says nothing" not in shown
    assert "status 2" in shown


def test_budgets_that_hardly_meet_are_counted_in_time() -> None:
    shown = output("15")
    assert "heads/supernet     425 steps; 1 of 2.33e+13 networks inside the budget" in shown, "one meets them after all"


def test_nothing_of_a_users_is_overwritten_and_figures_have_the_format_of_their_name() -> None:
    shown = output("18")
    assert "holds README.md already" in shown
    assert "# my project" in shown
    assert "PNG" in shown


def test_an_evaluation_needs_nothing_of_the_training_images() -> None:
    assert len(accuracies(output("19"))) == 2


def test_names_in_other_encodings_and_settings_as_people_write_them() -> None:
    shown = output("20").strip().splitlines()
    assert "search.recalibration_batch_size must be at most the 1,150 training samples, but got 5,000" in shown[2]
    assert shown[5].endswith("1.4G")
    assert "space.global_heads must offer at least one" in shown[6]
    assert "data.val_images" in shown[7]
    assert shown[8] == "0", "one class is no classification"
    assert not [line for line in (shown[0], shown[1], shown[3], shown[4]) if line.startswith("error")]
