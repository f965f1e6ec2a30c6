"""Settings as people write them on a command line, and what is said of those that are wrong."""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from nasx.cli import BadInput, apply_settings, bad_input
from nasx.pipeline import RunConfig
from nasx.pipeline.config import Search
from recipes.autoformer.config import DIGITS as AUTOFORMER
from recipes.glit.config import DIGITS as GLIT
from recipes.localvit.config import DIGITS as LOCALVIT


@pytest.mark.parametrize(
    ("config", "setting", "value"),
    [
        *[(GLIT, f"retrain.clip_norm={word}", None) for word in ("none", "None", "null")],
        *[(GLIT, f"retrain.refit={word}", True) for word in ("true", "True", "yes")],
        (GLIT, "retrain.compile=False", False),
        (GLIT, "retrain.compile=auto", "auto"),
        (GLIT, "budget.details_at_most=none", None),
        (GLIT, "budget.details_at_most=60%", "60%"),
        (GLIT, "space.kernel_size=3,5", (3, 5)),
        (GLIT, "space.kernel_size=(3, 5)", (3, 5)),
        (GLIT, "retrain.augment.resized_crop=None", None),
        (LOCALVIT, "space.activation=relu6,hardswish", ("relu6", "hardswish")),
        (LOCALVIT, "space.activation=['hardswish', 'relu6']", ("hardswish", "relu6")),
        (LOCALVIT, "space.activation=[relu6]", ("relu6",)),
        (LOCALVIT, "space.channel_attention=none,se", ("none", "se")),
        (LOCALVIT, "space.depthwise=[False, True]", (False, True)),
        (LOCALVIT, "space.depthwise=true,", (True,)),
        # text stays text
        (GLIT, "retrain.teacher=none", None),
        *[(GLIT, f"retrain.teacher={text}", text) for text in ("1", "true", "runs/a,b", "[a]", "null/x")],
        (GLIT, "retrain.augment.auto_augment=rand-m9-mstd0.5-inc1", "rand-m9-mstd0.5-inc1"),
    ],
)
def test_values_are_read_as_their_fields_ask(config: Any, setting: str, value: object) -> None:
    found = reduce(getattr, setting.partition("=")[0].split("."), apply_settings(config, [setting]))
    assert found == value
    assert type(found) is type(value)


def test_an_object_sets_the_fields_of_a_section_one_by_one() -> None:
    changed = apply_settings(GLIT, ['retrain={"epochs": 5, "augment": {"flip": true, "auto_augment": "rand-m9"}}'])
    single = ["retrain.epochs=5", "retrain.augment.flip=true", "retrain.augment.auto_augment=rand-m9"]
    assert changed == apply_settings(GLIT, single)
    assert changed.retrain.lr == GLIT.retrain.lr
    for setting in ("search.recalibration_augment.flip=true", 'search.recalibration_augment={"flip": true}'):
        augment = apply_settings(GLIT, [setting]).search.recalibration_augment
        assert augment is not None
        assert augment.flip


@pytest.mark.parametrize(
    ("config", "setting", "message"),
    [
        (
            GLIT,
            "search.mutation_probability=0",
            "search.mutation_probability: Input should be greater than 0, but got 0",
        ),
        (
            GLIT,
            "search.mutation_probability=abc",
            "search.mutation_probability: Input should be a valid number or a valid mapping, but got 'abc'",
        ),
        (
            GLIT,
            'search.mutation_probability={"*": 0}',
            "search.mutation_probability.*: Input should be greater than 0, but got 0",
        ),
        (GLIT, "budget.details_at_most=0", "budget.details_at_most: Input should be greater than 0, but got 0"),
        (
            GLIT,
            "budget.details_at_most=abc",
            "budget.details_at_most: an amount is a number, alone or followed by k, M, G, T or %, but got 'abc'; write "
            "1.4G or 60%",
        ),
        (
            GLIT,
            "retrain.compile=maybe",
            "retrain.compile: Input should be a valid boolean or 'auto', but got 'maybe'",
        ),
        (GLIT, "seed=true", "seed: Input should be a valid integer, but got 'true'"),
        (GLIT, "data.val_fraction=0", "data.val_fraction: Input should be greater than 0, but got 0"),
        (GLIT, "space.qkv_ratio=[1, 1]", "space.qkv_ratio must offer different options, but 1 comes twice; remove one"),
        (GLIT, "space.held_qkv_ratio=x", "space.held_qkv_ratio: Input should be a valid number, but got 'x'"),
        (AUTOFORMER, "space.depth=3", "space.depth: Input should be a valid list, but got 3"),
        (LOCALVIT, "space.activation=relu6", "space.activation: Input should be a valid list, but got 'relu6'"),
        (
            LOCALVIT,
            "space.activation=relu7,relu6",
            "space.activation.0: Input should be 'relu6' or 'hardswish', but got 'relu7'",
        ),
        (
            LOCALVIT,
            "space.depthwise=[]",
            "space.depthwise must offer at least one option, but got []; write one, or leave it out",
        ),
        (
            GLIT,
            "retrain.augment=none",
            "retrain.augment is a section of settings, but got 'none'; set its fields, such as "
            'retrain.augment.pad_crop=VALUE, or write a JSON object, such as {"field": value}',
        ),
        (
            GLIT,
            'retrain.augment={"flips": true}',
            "there is no field 'retrain.augment.flips'; did you mean 'retrain.augment.flip'?",
        ),
        (
            GLIT,
            "search.top_k.x=1",
            "there is no section 'search.top_k', which is a field; write search.top_k=VALUE",
        ),
        (
            GLIT,
            "model.patch_size=3",
            "data.image_size must be a multiple of model.patch_size, but got 8 and 3; write model.patch_size=2",
        ),
        (
            GLIT,
            "data.mean=[0.5]",
            "data.mean and data.std need a value for each channel, both or neither, but got [0.5] and none",
        ),
    ],
)
def test_messages_name_field_rule_and_value_once(config: Any, setting: str, message: str) -> None:
    with pytest.raises(BadInput) as refused:
        apply_settings(config, [setting])
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("setting", "start", "end"),
    [
        ("search.method=foo", "search.method must be one of evolution, random", "but got 'foo'"),
        ("trust.n=3", "trust.n must be at least 5 to judge a ranking", "but got 3"),
    ],
)
def test_rules_that_name_their_field_are_not_prefixed(setting: str, start: str, end: str) -> None:
    with pytest.raises(BadInput) as refused:
        apply_settings(GLIT, [setting])
    assert str(refused.value).startswith(start)
    assert str(refused.value).endswith(end)
    assert str(refused.value).count("but got") == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            ["supernet.final_lr=5"],
            "supernet.final_lr must be at most supernet.lr, the highest rate, but got 5 and 0.01",
        ),
        (["retrain.warmup_lr=5"], "retrain.warmup_lr must be at most retrain.lr"),
        (["finetune.epochs=3", "finetune.final_lr=1"], "finetune.final_lr must be at most finetune.lr"),
        (["retrain.repeats=65"], "retrain.repeats must be at most retrain.batch_size"),
        (["retrain.method=halving", "retrain.start=1"], "but got 1 and 2; write retrain.start=4"),
        (["threads=100000"], "threads: Input should be less than or equal to 4096"),
        (["data.channels=3"], "data.channels must be 1 for the digits, which are grey, but got 3; remove it"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(BadInput) as refused:
        apply_settings(GLIT, settings)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"search": {"populaton": 3}}, "there is no field 'search.populaton'; did you mean 'search.population'?"),
        ({"supernets": {"lr": 1}}, "there is no field 'supernets'; did you mean 'supernet'?"),
        ({"retrain": {"augment": {"flips": True}}}, "there is no field 'retrain.augment.flips'; did you mean"),
        ({"supernet": {"lr": -1}}, "supernet.lr: Input should be greater than 0, but got -1"),
        ({"trust": {"n": 3}}, "trust.n must be at least 5"),
    ],
)
def test_settings_from_python_are_refused_in_the_same_words(values: dict[str, Any], message: str) -> None:
    makes: list[Callable[[], RunConfig]] = [lambda: RunConfig(**values), lambda: RunConfig.model_validate(values)]
    for make in makes:
        with pytest.raises(ValueError, match=f"^{re.escape(message)}") as refused:
            make()
        assert type(refused.value) is ValueError
    with pytest.raises(ValueError, match=r"^there is no field 'populaton'; did you mean 'population'"):
        Search(populaton=3)  # type: ignore[call-arg]


def test_settings_that_mean_something_are_kept() -> None:
    for settings in (
        ["supernet.final_lr=0.01"],  # a constant rate
        ["supernet.warmup_epochs=0", "supernet.warmup_lr=5"],  # no warm-up
        ["search.parents=100"],  # of all candidates so far
        ["retrain.start=1"],  # without halving
        ["retrain.repeats=64"],
    ):
        apply_settings(GLIT, settings)


def test_what_the_system_refuses_is_said_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as refused, bad_input():
        (tmp_path / "none" / "file").read_text()
    assert str(refused.value) == f"{tmp_path / 'none' / 'file'}: no such file or directory; choose another path"
    with pytest.raises(BadInput, match=r"^mine$"), bad_input():
        raise FileExistsError("mine")


def test_a_name_that_is_no_utf_8_is_printed_as_an_escape() -> None:
    code = r"from nasx.cli import run_command; run_command(lambda: print('caf\udce9') or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "caf\\udce9\n", done.stderr
