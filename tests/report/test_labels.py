from nasx.arch import pattern_of
from nasx.report import short_labels
from nasx.report.labels import LONGEST, full_text


def test_a_short_name_says_what_tells_architectures_apart() -> None:
    first = {"width": 8, "block.0.kernel": 3, "block.1.kernel": 5, "block.0.act": "relu", "block.1.act": "relu"}
    second = {**first, "block.1.kernel": 3}
    assert short_labels([first, second]) == ["kernel 3·5", "kernel 3"]
    third = {name: value for name, value in first.items() if name != "block.1.kernel"}
    assert short_labels([first, third]) == ["kernel 3·5", "kernel 3·–"]


def test_one_architecture_alone_is_named_by_all_its_choices() -> None:
    assert short_labels([{"width": 8.0, "block.0.k": 3}]) == ["width 8, k 3"]
    assert short_labels([]) == []
    assert short_labels([{}]) == ["network"]


def test_names_are_short_and_unique() -> None:
    archs = [{f"block.{i}.kernel_size": 1000 + i for i in range(40)} | {"block.39.kernel_size": k} for k in range(3)]
    same = [archs[0], dict(archs[0])]
    labels = short_labels([*same, *archs])
    assert len(set(labels)) == len(labels)
    assert all(len(label) <= LONGEST + len(" (10)") for label in labels)


def test_choices_whose_last_words_are_alike_keep_more_of_their_names() -> None:
    archs = [{"encoder.0.width": a, "decoder.0.width": b} for a, b in ((1, 2), (2, 1))]
    assert short_labels(archs) == ["encoder.width 1, decoder.width 2", "encoder.width 2, decoder.width 1"]


def test_patterns_stand_for_the_numbers_of_repeated_parts() -> None:
    assert pattern_of("stage.3.block.12.hidden") == "stage.*.block.*.hidden"
    assert full_text({"a": 1, "b.0.c": "x", "b.1.c": "y"}) == "a 1, b.*.c x·y"
