import json

import pytest

from benchmarks.__main__ import BENCHMARKS, main
from benchmarks.budget import draws


def test_a_benchmark_prints_one_document(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "budget.draws", lambda: [{"draws/s": 1.0}])
    assert main(["budget.draws", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"budget.draws": [{"draws/s": 1.0}]}


def test_glits_joint_space_is_tabulated_in_less_than_500_mb() -> None:
    rows = draws(n=1_000)
    assert [f"{row['share of the space']:.2g}" for row in rows] == ["0.0094", "9.5e-05", "1.2e-09"]
    assert all(row["MB for that"] < 500 for row in rows)
    assert all(0 < row["rejection, expected/s"] < row["draws/s, mappings in full"] for row in rows)


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["budgets"])
    assert ended.value.code == 2
    assert "budget.draws" in capsys.readouterr().err
