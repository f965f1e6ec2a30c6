from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from nasx.train import batch_size, move, unpack

X, Y, LABELS = torch.zeros(3, 2), torch.ones(3, 2), torch.tensor([0, 1, 2])


def test_pairs_and_longer_tuples_end_in_their_targets() -> None:
    assert unpack((X, LABELS)) == ((X,), {}, LABELS)
    assert unpack([X, LABELS]) == ((X,), {}, LABELS)  # as a data loader collates
    args, kwargs, targets = unpack((X, Y, LABELS))
    assert args[0] is X
    assert args[1] is Y
    assert kwargs == {}
    assert targets is LABELS


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target"])
@pytest.mark.parametrize("kind", [dict, UserDict])  # tokenizers give their own kind of mapping
def test_a_mapping_is_keyword_arguments_without_its_targets(key: str, kind: type) -> None:
    args, kwargs, targets = unpack(kind({"input_ids": X, key: LABELS, "mask": Y}))
    assert args == ()
    assert kwargs == {"input_ids": X, "mask": Y}
    assert targets is LABELS


def test_the_first_of_the_usual_keys_counts_and_others_go_to_the_network() -> None:
    _, kwargs, targets = unpack({"target": X, "labels": LABELS})
    assert targets is LABELS
    assert kwargs == {"target": X}


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": X, "answer": LABELS}, r"'input_ids', 'answer'.* none of labels, label, targets, target"),
        ((X,), "this one has 1 entries"),
        (X, "but got Tensor; pass `unpack`"),
        ("abc", "but got str"),
    ],
)
def test_what_cannot_be_taken_apart_is_refused(batch: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack(batch)


Pair = namedtuple("Pair", "first second")


class Graph:
    """Has a method `to`, as batches of other libraries do."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def to(self, device: torch.device) -> "Graph":
        return Graph(str(device))


def test_everything_in_a_nested_value_moves_and_its_structure_stays() -> None:
    value = {"a": [X, (LABELS, "text", 3)], "b": Pair(X, None), "c": Graph()}
    moved = move(value, torch.device("meta"))
    assert [type(moved["a"]), type(moved["a"][1]), type(moved["b"])] == [list, tuple, Pair]
    tensors = [moved["a"][0], moved["a"][1][0], moved["b"].first]
    assert all(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors)
    assert moved["a"][1][1:] == ("text", 3)
    assert moved["b"].second is None
    assert moved["c"].device == "meta"
    assert not X.is_meta


def test_the_targets_first_dimension_is_the_size_of_a_batch() -> None:
    assert batch_size(LABELS) == 3
    assert batch_size({"boxes": [torch.zeros(5, 4)], "labels": LABELS}) == 5
    assert batch_size((None, LABELS)) == 3
    assert batch_size([{"boxes": torch.zeros(count, 4)} for count in (0, 7)]) == 2, "objects of two images"
    with pytest.raises(ValueError, match="a single number"):
        batch_size(torch.tensor(1))
    with pytest.raises(ValueError, match=r"no tensor \(list\)"):
        batch_size(["a", "b"])


@dataclass
class Boxes:
    corners: Tensor
    names: list[str]

    def __init__(self, corners: Tensor) -> None:  # which takes other arguments than its fields
        self.corners, self.names = corners, ["a"] * len(corners)


def test_tensors_in_dataclasses_are_moved_whatever_their_constructor() -> None:
    boxes = Boxes(X)
    found = move({"boxes": [boxes]}, torch.device("meta"))["boxes"][0]
    assert isinstance(found, Boxes)
    assert found.corners.device.type == "meta"
    assert found.names == ["a"] * 3
    assert boxes.corners is X


def test_targets_in_dataclasses_have_a_batch_size() -> None:
    assert batch_size(Boxes(X)) == batch_size({"boxes": Boxes(X)}) == 3
    assert batch_size([Boxes(X), Boxes(X[:0])]) == 2, "one for each sample"
