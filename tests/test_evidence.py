"""The evidence page: every number of it comes from the committed results."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from benchmarks.evidence import claims, page, results
from benchmarks.evidence.markdown import points
from benchmarks.evidence.on_table import Listed, halve
from benchmarks.evidence.results import Truth, best_of, best_of_random
from nasx import Arch
from nasx.comparison import Difference
from nasx.search import Halving
from nasx.space import ArchSet
from recipes.glit.bench import table


def test_the_page_is_what_the_results_say() -> None:
    assert page.PAGE.read_text() == page.page(), "run `python -m benchmarks.evidence page`"


def test_the_readme_shows_what_the_results_say() -> None:
    text = page.README.read_text()
    assert page.with_table(text) == text, "run `python -m benchmarks.evidence page`"


TRUTH = Truth(
    indices=(3, 5, 8),
    val=np.array([[0.5, 0.9], [0.7, 0.6], [0.6, 0.8]]),
    test=np.array([[0.50, 0.60], [0.70, 0.80], [0.65, 0.55]]),
)


def test_the_best_of_some_networks_is_picked_by_validation_seed_by_seed() -> None:
    assert best_of(TRUTH, [0]) == pytest.approx(0.55)
    # the first seed's validation picks the second network, the second seed's the first
    assert best_of(TRUTH, [0, 1, 2]) == pytest.approx((0.75 + 0.55) / 2)
    assert best_of_random(TRUTH, 1) == pytest.approx(TRUTH.test.mean())
    assert best_of_random(TRUTH, 3) == pytest.approx(best_of(TRUTH, [0, 1, 2]))


def test_the_spread_of_the_truth_is_free_of_noise() -> None:
    rng = np.random.default_rng(0)
    true = rng.normal(0.9, 0.02, size=(4000, 1))
    test = true + rng.normal(0, 0.01, size=(4000, 2))
    truth = Truth(tuple(range(4000)), test, test)
    assert truth.noise == pytest.approx(0.01, rel=0.05)
    assert truth.spread == pytest.approx(0.02, rel=0.05)


def test_verdicts_need_intervals_on_one_side() -> None:
    def difference(low: float, high: float) -> Difference:
        return Difference((low + high) / 2, low, high, 3, 0.95, of_hits=False)

    above, below, around = difference(0.01, 0.02), difference(-0.02, -0.01), difference(-0.01, 0.02)
    assert "**holds**" in claims.verdict("c", [above, above])
    assert "**undecided**" in claims.verdict("c", [above, around])
    assert "**does not hold here**" in claims.verdict("c", [above, below])
    assert "no difference that this data can show" in points(around)


def test_halving_on_the_table_ends_with_the_best_where_checks_agree() -> None:
    found = table()
    archs = list(found.archs[:8])
    finished = halve(found, archs, Halving(8, 8), 0)
    final = {arch: found.of(arch)[0].val_curve[-1] for arch in archs}
    assert [final[arch] for arch in finished] == sorted(final.values(), reverse=True)
    assert len(halve(found, archs, Halving(8, 2), 0)) == 2


def test_the_table_says_what_it_covers() -> None:
    found = table()
    archs = found.archs
    assert len(archs) >= 160
    assert all({row.seed for row in found.of(arch)} >= {0, 1} for arch in archs)
    assert f"{len(archs)} of the 256 networks" in repr(found)
    totals = {sum(int(value) for value in arch.only("block.*.global_heads").values()) for arch in archs}
    assert totals == set(range(13))  # stratified: every number of global heads
    row = found[0]
    assert row.val_accuracy == pytest.approx(row.val_hits.mean())
    assert row.test_accuracy == pytest.approx(row.test_hits.mean())
    assert len(row.test_hits) == 10_000
    assert results.cifar10_truth(found).test.shape == (len(archs), 2)


def test_networks_of_a_table_are_drawn_as_those_of_any_set() -> None:
    found = table()
    archs = list(found.archs)
    listed, filtered = Listed(found.settings.space, archs), found.settings.space.where(frozenset(archs).__contains__)
    first, second = archs[0], archs[len(archs) // 2]
    draws: list[Callable[[ArchSet, np.random.Generator], Arch]] = [
        lambda archs, rng: archs.sample(rng),
        lambda archs, rng: archs.mutate(first, rng, 0.4),
        lambda archs, rng: archs.crossover(first, second, rng),
    ]
    for draw in draws:
        counts = [Counter(draw(of, np.random.default_rng(seed)) for seed in range(800)) for of in (listed, filtered)]
        often = [arch for arch in archs if counts[0][arch] + counts[1][arch] > 10]
        table_of_counts = [[count[arch] for arch in often] for count in counts]
        assert len(often) > 1
        assert stats.chi2_contingency(table_of_counts).pvalue > 1e-4
