"""Presets: which settings of the paper they hold, and that variant and locality reach networks, spaces and costs."""

import pytest

from nasx.cli import BadInput, apply_settings
from recipes.glit.config import PRESETS, Config
from recipes.glit.model import Frame
from recipes.glit.space import TINY_CONV2D, TINY_WINDOW, Axes
from recipes.glit.variant import OFFICIAL, PAPER


def test_a_configuration_without_variant_or_locality_means_the_released_code() -> None:
    plain = Config(preset="plain")
    assert (plain.axes(), plain.frame()) == (Axes(), Frame())
    assert plain.variant() == OFFICIAL


def test_variant_and_locality_reach_frame_and_axes() -> None:
    plain = Config(preset="plain")
    assert apply_settings(plain, ["model.variant=paper"]).frame().variant == PAPER
    windows = apply_settings(plain, ["space.locality=window"])
    assert windows.axes() == TINY_WINDOW
    assert windows.frame().variant.locality == "window"
    grid = ["space.locality=conv2d", "space.kernel_size=[3,5,7]", "space.held_kernel_size=5"]
    assert apply_settings(plain, grid).axes() == TINY_CONV2D
    assert not apply_settings(plain, grid).frame().has_class_token


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["space.locality=conv2d"], r"space.kernel_size=\[3,5,7\]"),
        (["space.locality=conv3d"], "'conv2d'"),
        (["space.locality=window", "data.image_size=240"], "divide the 225 patches"),
        (["space.held_window=30"], "held_window"),
        (["model.variant=paperr"], "'paper'"),
    ],
)
def test_what_no_variant_or_locality_can_be_is_refused(settings: list[str], told: str) -> None:
    with pytest.raises(BadInput, match=told):
        apply_settings(Config(preset="plain"), settings)


def test_presets_of_before_compute_as_before() -> None:
    for name in ("digits", "cifar10"):
        assert PRESETS[name].variant() == OFFICIAL
