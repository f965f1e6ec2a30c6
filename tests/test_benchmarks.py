"""The benchmarks' command, comparisons, and what they compare with; never how long anything takes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import compare, main_job, page
from benchmarks.budget import draws
from benchmarks.cases import digits_case, forward_pass, tiny_case, training_step
from benchmarks.compare import MACHINE, OtherPrograms, compared, machine
from benchmarks.networks import plain
from benchmarks.operators import KINDS, is_of, shares_of
from benchmarks.pairs import Timings, alternate
from benchmarks.rate import MatrixProduct
from benchmarks.reference import PlainGLiT
from recipes.glit.model import DEIT_TINY, GLIT_TINY, build


def test_a_benchmark_prints_one_document(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "run", lambda name, data: [{"named": name, "draws/s": 1.0}])
    assert command.main(["budget.draws", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.keys() == {MACHINE, "budget.draws"}
    assert printed["budget.draws"] == [{"named": "budget.draws", "draws/s": 1.0}]
    assert printed[MACHINE]["torch"] == torch.__version__


def test_every_benchmark_is_there() -> None:
    for name in (*command.BENCHMARKS, *command.ON_GPU, *command.ON_IMAGES.values()):
        assert callable(command._function(name)), name


def test_a_part_of_a_name_stands_for_all_that_begin_with_it() -> None:
    assert command.chosen(["budget"]) == ["budget.draws", "budget.tables"]
    assert command.chosen(["startup.imports", "startup"])[0] == "startup.imports"
    assert len(command.chosen(["startup.imports", "startup"])) == 3
    assert command.chosen([]) == list(command.BENCHMARKS)


def test_the_shares_of_a_step_are_those_of_its_operators() -> None:
    x = torch.randn(256, 256)

    def products() -> None:
        torch.mm(x, x)

    def elements() -> None:
        torch.exp(x)

    assert shares_of(products, 2)["matrix products"] > 0.5
    assert sum(shares_of(elements, 2).values()) == 0
    assert is_of("aten::mkldnn_convolution", KINDS["convolutions"])
    assert not is_of("aten::mm_like", ("::mm_other",))
    step = training_step(digits_case().network(), *digits_case().images(4))
    assert all(0 < share < 1 for share in shares_of(step, 1).values())


def test_results_are_compared_with_those_that_come_with_the_repository() -> None:
    assert json.loads(command.BASELINE.read_text())[MACHINE]


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="only Linux tells what all programs use of the CPU")
def test_what_other_programs_use_of_the_machine_is_told_from_what_a_benchmark_uses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = iter([(0.0, 100.0, 10.0), (10.0, 112.0, 20.0), (20.0, 125.0, 30.0), None])
    monkeypatch.setattr(compare, "_taken", lambda: next(taken))
    others = OtherPrograms()
    assert others.row() == {"cores of others": 0.2, "busy": True}  # 12 s were used in 10 s, 10 of them by this program
    assert others.row() == {"cores of others": 0.25, "busy": True}
    assert others.row() == {"cores of others": None, "busy": False}
    monkeypatch.undo()
    assert OtherPrograms().row()["cores of others"] >= 0


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for names in (["budgets"], ["budget.draw"], ["bud"]):
        with pytest.raises(SystemExit) as ended:
            command.main(names)
        assert ended.value.code == 2
        assert "budget.draws" in capsys.readouterr().err


def test_results_are_set_beside_those_of_another_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    then: dict[str, Any] = {
        MACHINE: machine(),
        "loop.steps": [{"loop": "bare", "ratio": 2.0, "ms": 4.0}, {"loop": "gone", "ratio": 1.0}],
    }
    now = {MACHINE: machine(), "loop.steps": [{"loop": "bare", "ratio": 1.0, "ms": 6.0, "new": 1.0}]}
    rows = list(compared(now, then))
    assert [(row["column"], row["now / then"]) for row in rows] == [("ratio", 0.5), ("ms", 1.5)]
    then[MACHINE]["processor"] = "another"  # whose milliseconds mean nothing here
    assert [row["column"] for row in compared(now, then)] == ["ratio"]

    path = tmp_path / "then.json"
    path.write_text(json.dumps(then))
    monkeypatch.setattr(command, "run", lambda name, data: now[name])
    assert command.main(["loop.steps", "--json", "--compare", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["compared"] == [
        {"benchmark": "loop.steps", "row": "bare", "column": "ratio", "then": 2.0, "now": 1.0, "now / then": 0.5}
    ]


def test_functions_are_timed_in_turns_in_both_orders() -> None:
    called: list[str] = []
    timed = alternate({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, seconds=0, warm_up=1)
    assert "".join(called) == "ab" + "abba" * 2 + "ab"
    assert timed.rounds == 5


def test_ratios_are_of_neighbours() -> None:
    # the machine got twice as slow after the first round
    timed = Timings({"a": np.array([1.0, 2.0, 2.0]), "b": np.array([3.0, 6.0, 6.0])})
    assert timed.ratio("b", to="a") == 3
    assert timed.spread("b", to="a") == (3, 3)
    assert timed.median("a") == 2


def test_a_matrix_product_counts_its_operations() -> None:
    product = MatrixProduct()
    product()
    torch.testing.assert_close(product._out, product.left @ product.right)
    assert product.flops == 2 * len(product.left) ** 3


def test_the_page_agrees_with_the_committed_results() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page(), "write it again: python -m benchmarks page"


def test_the_page_shows_what_was_measured_and_says_what_was_not(tmp_path: Path) -> None:
    results = {
        MACHINE: {**machine(), "busy": True},
        "loop.steps": [{"network": "digits", "loop": "bare", "ratio": 1.2345, "quartile 1": 1.0, "quartile 3": 2.0}],
    }
    (tmp_path / "cpu.json").write_text(json.dumps(results))
    found = page.page(tmp_path)
    assert "| digits | bare | 1.23 | 1 | 2 |" in found
    assert "Other programs were using this machine" in found
    assert found.count("Nothing has been measured here yet") == 2, "neither the main job nor a GPU"
    assert set(page.SHOWN) == {name for name in page.SHOWN if command.chosen([name])}


def test_the_main_job_of_two_checkouts_is_compared_round_by_round(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def summary(checkout: Path, settings: Any, directory: Path) -> dict[str, Any]:
        asked.append(checkout.name)
        retrained = directory / "details" / "retrain"
        retrained.mkdir(parents=True)
        for number in range({"before": 1, "now": 2}[checkout.name]):
            (retrained / f"{number}.safetensors").touch()
        seconds = {"before": 3.0, "now": 1.5}[checkout.name]
        stages = {"heads/supernet": seconds, "details/supernet": seconds, "details/retrain": seconds, "x/search": 99.0}
        return {
            "stages": {name: {"seconds": spent} for name, spent in stages.items()},
            "networks": {
                "searched": {"macs": 30, "test_accuracy": 0.9},
                "random": {"macs": 10, "test_accuracy": 0.8},
            },
        }

    monkeypatch.setattr(main_job, "summary", summary)
    rows = main_job.compared(Path("before"), Path("now"), (), rounds=2)
    assert asked == ["before", "now", "now", "before"]
    assert [row["training"] for row in rows] == ["supernets", "networks trained alone"]
    # of the second, this side trained two networks in the same time
    assert [(row["ratio"], row["before, s"]) for row in rows] == [(2.0, 3.0), (4.0, 3.0)]
    assert rows[0]["test accuracy now"] == pytest.approx(0.85)
    assert rows[0]["MACs before"] == 20


@pytest.mark.parametrize("arch", [GLIT_TINY, DEIT_TINY])
def test_the_network_written_the_plain_way_computes_the_same(arch: object) -> None:
    torch.manual_seed(0)
    network = build(arch, num_classes=10, image_size=32)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    other = PlainGLiT(arch, image_size=32, num_classes=10).load(network)  # type: ignore[arg-type]
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(other(images), network(images), rtol=1e-4, atol=1e-5)  # batch statistics
    network.eval(), other.eval()
    torch.testing.assert_close(other(images), network(images), rtol=1e-4, atol=1e-5)


def test_the_cases_are_those_of_the_presets() -> None:
    assert tiny_case().macs == 1_472_873_280
    case = digits_case()
    images, labels = case.images(8)
    network, other = case.network(), plain(case)
    torch.testing.assert_close(other(images), network(images), rtol=1e-4, atol=1e-5)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    training_step(network, images, labels)()
    forward_pass(network, images)()
    assert not any(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_glits_joint_space_is_tabulated_in_less_than_500_mb() -> None:
    rows = draws(n=1_000)
    assert [f"{row['share of the space']:.2g}" for row in rows] == ["0.0094", "9.5e-05", "1.2e-09"]
    assert all(row["MB for that"] < 500 for row in rows)
    assert all(0 < row["rejection, expected/s"] < row["draws/s, mappings in full"] for row in rows)
