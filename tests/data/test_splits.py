import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nasx.data import stratified_split


def labels_with(*counts: int) -> np.ndarray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


@given(st.lists(st.integers(2, 30), min_size=1, max_size=8), st.floats(0.05, 0.5), st.integers(0, 2**32))
def test_parts_are_sorted_disjoint_exact_and_proportional(counts: list[int], fraction: float, seed: int) -> None:
    labels, total = labels_with(*counts), sum(counts)
    n_val = max(1, int(total * fraction))
    train, val = stratified_split(labels, n_val, seed)
    assert len(val) == n_val
    assert sorted([*train, *val]) == list(range(total))
    assert list(train) == sorted(train)
    assert list(val) == sorted(val)
    for label, count in enumerate(counts):
        assert abs((labels[val] == label).sum() - count * n_val / total) < 1


def test_largest_remainders_get_the_images_that_rounding_down_leaves() -> None:
    labels = labels_with(26, 25, 49)  # shares of 10: 2.6, 2.5, 4.9
    _, val = stratified_split(labels, 10, seed=0)
    assert np.bincount(labels[val]).tolist() == [3, 2, 5]


def test_equal_remainders_go_to_the_lower_class() -> None:
    labels = labels_with(10, 10, 10)
    _, val = stratified_split(labels, 4, seed=0)
    assert np.bincount(labels[val]).tolist() == [2, 1, 1]


def test_the_seed_decides() -> None:
    labels = labels_with(50, 50)
    first, again, other = (stratified_split(labels, 20, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_class_is_drawn_alike_whatever_the_other_classes_hold() -> None:
    few, many = np.repeat([0, 1], [20, 20]), np.repeat([0, 1, 2], [20, 20, 60])
    of_few, of_many = stratified_split(few, 10, seed=3)[1], stratified_split(many, 25, seed=3)[1]
    assert np.array_equal(of_few, of_many[of_many < 40])


def test_global_generators_are_left_alone() -> None:
    before: Any = np.random.get_state()  # noqa: NPY002
    stratified_split(labels_with(9, 9), 4, seed=0)
    after: Any = np.random.get_state()  # noqa: NPY002
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_splits_do_not_depend_on_the_hash_seed() -> None:
    program = "import json, nasx.data as d; print(json.dumps(d.load_digits(seed=5).split))"
    records = [
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert records[0] == records[1]
    assert json.loads(records[0])["seed"] == 5


@pytest.mark.parametrize("n_val", [-1, 0, 6, 7])
def test_a_part_without_images_is_refused(n_val: int) -> None:
    with pytest.raises(
        ValueError, match=f"1 to 5 of 6 training images can be held out for validation, but got {n_val}"
    ):
        stratified_split(labels_with(3, 3), n_val, seed=0)


def test_a_class_without_training_images_is_refused_by_name() -> None:
    message = (
        r"5 validation images of 6 leave some class no training .*, such as 'owl' \(3 images\); hold out 4 at most"
    )
    with pytest.raises(ValueError, match=message):
        stratified_split(np.repeat([0, 1], 3), 5, seed=0, classes=("owl", "ant"))
    with pytest.raises(ValueError, match=r"such as 0 \(3 images\)"):
        stratified_split(np.repeat([0, 1], 3), 5, seed=0)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=8), st.integers(0, 2**32), st.data())
def test_every_class_keeps_a_training_image_also_where_it_has_only_one(
    counts: list[int], seed: int, data: st.DataObject
) -> None:
    most = sum(counts) - len(counts)
    if not most:
        return
    labels, n_val = labels_with(*counts), data.draw(st.integers(1, most))
    train, val = stratified_split(labels, n_val, seed)
    assert len(val) == n_val
    assert set(labels[train]) == set(range(len(counts)))
    with pytest.raises(ValueError, match=f"hold out {most} at most|at least two images"):
        stratified_split(labels, most + 1, seed)


def test_a_single_image_of_each_class_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"leave 0 to hold out .*; give each class at least two images"):
        stratified_split(np.arange(3), 2, 0)
