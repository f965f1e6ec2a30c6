import io

import pytest
from rich.console import Console
from rich.table import Table

from nasx.report import NetworkRow, StageRow, duration, large, networks_table, percent, progress, si, stages_table
from nasx.report.formats import amount


def text_of(table: Table) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (360, "360"),
        (999, "999"),
        (1000, "1.000 k"),
        (999_949, "999.9 k"),
        (999_960, "1.000 M"),
        (24_563_712, "24.56 M"),
        (1_472_968_128, "1.473 G"),
        (-5_717_416, "-5.717 M"),
        (None, "–"),
    ],
)
def test_si_keeps_four_digits_and_never_shows_a_thousand_of_a_smaller_unit(number: int | None, text: str) -> None:
    assert si(number) == text


def test_si_puts_the_prefix_on_the_unit() -> None:
    assert si(1_253_683_200, "MACs") == "1.254 GMACs"
    assert si(12, "s") == "12 s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.44, "0.4 s"),
        (59.94, "59.9 s"),
        (59.97, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.7, "1 h 00 min"),
        (11_220, "3 h 07 min"),
    ],
)
def test_durations_carry_over_into_the_larger_unit(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_accuracies_are_percentages_and_what_is_absent_is_a_dash() -> None:
    assert percent(0.7631) == "76.31 %"
    lines = text_of(
        networks_table([NetworkRow("found", 24_563_712, 1_472_968_128, 0.7631, 0.75), NetworkRow("other", None, 10)])
    ).splitlines()
    found, other = (next(line for line in lines if name in line).split() for name in ("found", "other"))
    assert found == ["found", "24.56", "M", "1.473", "G", "76.31", "%", "75.00", "%"]
    assert other == ["other", "–", "10", "–", "–"]


def test_what_else_budgets_bound_has_a_column() -> None:
    rows = [NetworkRow("found", 10, 20, 0.5, 0.5, costs={"µs": 1234.5}), NetworkRow("other", 10, 20, 0.5, 0.5)]
    lines = text_of(networks_table(rows)).splitlines()
    heading, found, other = (next(line for line in lines if name in line).split() for name in ("µs", "found", "other"))
    assert heading == ["network", "parameters", "MACs", "µs", "validation", "test"]
    assert found[:4] == ["found", "10", "20", "1,234"]
    assert other[:4] == ["other", "10", "20", "–"]
    assert [amount(number) for number in (0.01234, 12.0, 99.96)] == ["0.0123", "12", "100"]


def test_stage_times_are_listed_and_summed() -> None:
    text = text_of(stages_table([StageRow("supernet", 61), StageRow("search", 64.2, "500 candidates")]))
    assert "1 min 01 s" in text
    assert "500 candidates" in text
    assert "2 min 05 s" in text


def test_names_that_look_like_markup_are_printed_as_they_are() -> None:
    name = "[bold]x[/nothing]"
    assert name in text_of(networks_table([NetworkRow(name, 1, 1)]))
    assert name in text_of(stages_table([StageRow(name, 1, name)]))


def test_a_log_gets_a_line_when_one_is_due_and_no_more() -> None:
    now = 0.0
    log = io.StringIO()
    with progress(Console(file=log, width=80), every=10, clock=lambda: now) as bars:
        task = bars.add_task("heads/[supernet]", total=400)
        for step in range(1, 36):
            now = float(step)
            bars.update(task, completed=step, note=f"loss {step}")
    # one step a second: what is left takes as many seconds as steps
    left = {10: "6 min 30 s", 20: "6 min 20 s", 30: "6 min 10 s"}
    printed = [f"heads/[supernet]  {step}/400  loss {step}  {left[step]} left" for step in left]
    assert log.getvalue().splitlines() == printed


def test_a_terminal_gets_bars_with_count_and_note() -> None:
    screen = io.StringIO()
    with progress(Console(file=screen, width=100, force_terminal=True, color_system=None)) as bars:
        task = bars.add_task("heads/[supernet]", total=400)
        bars.update(task, completed=120, note="loss 1.25")
    shown = screen.getvalue()
    assert "heads/[supernet]" in shown
    assert "120/400" in shown
    assert "loss 1.25" in shown


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (9_999_999, "9,999,999"),
        (10_000_000, "1.00 × 10⁷"),
        (1_537_000_000, "1.54 × 10⁹"),
        (1_533_000_000, "1.53 × 10⁹"),
        (99_960_000, "1.00 × 10⁸"),
        (4_118 * 10**400, "4.12 × 10⁴⁰³"),
    ],
)
def test_large_counts_are_rounded(count: int, text: str) -> None:
    assert large(count) == text
