"""Training steps in bfloat16 over steps in float32, on the CPU. One thread, both in turns."""

from benchmarks.cases import Row, Run, bench_case, digits_case, tiny_case, training_step
from benchmarks.pairs import alternate
from nasx.train import Precision, use_precision, use_threads

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def steps(seconds: float = 4.0) -> list[Row]:
    """Return a row for each size of networks; a ratio above 1 says that bfloat16 takes longer."""
    rows: list[Row] = []
    with use_threads(1):
        for case in (digits_case(), bench_case(), tiny_case(8)):
            functions: dict[str, Run] = {}
            for precision in PRECISIONS:
                step = training_step(case.network(), *case.images())

                def run(step: Run = step, precision: Precision = precision) -> None:
                    with use_precision(precision):
                        step()

                functions[precision] = run
            timed = alternate(functions, seconds=seconds)
            low, high = timed.spread("bfloat16", to="float32")
            ratio = timed.ratio("bfloat16", to="float32")
            row = {"network": case.name, "batch": case.batch, "ratio": ratio, "quartile 1": low, "quartile 3": high}
            rows.append(row)
    return rows
