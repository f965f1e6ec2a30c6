import json

import pytest

from benchmarks.__main__ import BENCHMARKS, main


def test_a_benchmark_prints_one_document(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "budget.draws", lambda: [{"draws/s": 1.0}])
    assert main(["budget.draws", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"budget.draws": [{"draws/s": 1.0}]}


def test_an_unknown_benchmark_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["budgets"])
    assert ended.value.code == 2
    assert "budget.draws" in capsys.readouterr().err
