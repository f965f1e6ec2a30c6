import numpy as np
import pytest

from nasx.report import Candidate, SearchHistory, survival


def search(rows: list[tuple[int, float | None, dict[str, object]]], best_kept: int = 2) -> SearchHistory:
    return SearchHistory("search", tuple(Candidate(g, 1.0, score, arch) for g, score, arch in rows), best_kept)


def test_shares_are_those_among_the_best_of_all_generations_so_far() -> None:
    (found,) = survival(
        search(
            [
                (0, 0.9, {"k": 3}),
                (0, 0.1, {"k": 5}),
                (0, 0.2, {"k": 5}),
                (1, 0.5, {"k": 5}),
                (1, 0.95, {"k": 5}),
                (1, None, {"k": 3}),
                (2, 0.96, {"k": 5}),
            ]
        )
    )
    assert (found.options, found.generations, found.names) == (("3", "5"), (0, 1, 2), ("k",))
    np.testing.assert_allclose(found.shares[:, 0], np.array([[0.5, 0.5], [0.5, 0.5], [0, 1]]))


def test_like_choices_of_all_blocks_stand_together_and_what_a_candidate_lacks_is_missing() -> None:
    (found,) = survival(
        search([(0, 0.9, {"block.0.k": 3, "block.1.k": 5}), (0, 0.8, {"block.0.k": 5}), (0, 0.1, {"block.0.k": 9})])
    )
    assert found.pattern == "block.*.k"
    assert (found.title, found.row_labels) == ("k", ["1", "2"])
    np.testing.assert_allclose(found.shares[0].sum(axis=1), [1, 0.5])


def test_blocks_stand_in_their_order_whichever_was_seen_first() -> None:
    rows: list[tuple[int, float | None, dict[str, object]]] = [
        (0, 0.9, {"block.10.k": 3, "block.2.k": 3}),
        (0, 0.8, {"block.2.k": 5, "block.0.k": 5}),
    ]
    (found,) = survival(search(rows))
    assert found.names == ("block.0.k", "block.2.k", "block.10.k")


def test_choices_with_one_option_and_searches_without_scores_show_nothing() -> None:
    assert survival(search([(0, 0.9, {"width": 8}), (0, 0.8, {"width": 8})])) == []
    assert survival(search([(0, None, {"width": 8}), (0, None, {"width": 4})])) == []
    assert survival(search([])) == []


@pytest.mark.parametrize(
    ("values", "options"), [((10, 9, 1.5), ("1.5", "9", "10")), (("relu", "gelu"), ("relu", "gelu"))]
)
def test_numbers_stand_in_their_order(values: tuple[object, ...], options: tuple[str, ...]) -> None:
    (found,) = survival(search([(0, 0.5, {"k": value}) for value in values], best_kept=9))
    assert found.options == options


def test_the_front_has_no_candidate_that_another_beats() -> None:
    rows = [(2.0, 0.5), (1.0, 0.4), (3.0, 0.45), (2.0, 0.55), (0.5, 0.4), (4.0, None)]
    history = SearchHistory("search", tuple(Candidate(0, cost, score) for cost, score in rows))
    assert [(c.cost, c.score) for c in history.front] == [(0.5, 0.4), (2.0, 0.55)]
    assert history.best is history.candidates[3]
