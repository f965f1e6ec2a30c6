"""Sizes of the paper's spaces, and what contains what."""

from nasx import Space
from recipes.glit.model import DEIT_TINY, GLIT_TINY
from recipes.glit.space import (
    BASE,
    GLIT,
    SMALL,
    TABLE2,
    details_space,
    heads_space,
    reduced,
    table2,
    with_unused_choices,
)


def test_sizes() -> None:
    assert GLIT.size == 36**12
    assert TABLE2.size == 198**12
    assert with_unused_choices().size == 324**12
    assert heads_space().size == 4**12 == 16_777_216
    assert details_space(GLIT_TINY).size == 9**12 == 282_429_536_481
    for choices in (SMALL, BASE):
        assert (table2(choices).size, reduced(choices).size) == (198**12, 36**12)


def test_table2_contains_glit_and_the_published_networks() -> None:
    blocks: list[Space] = [space.parts("block")[0] for space in (GLIT, TABLE2)]
    assert set(blocks[0]) < set(blocks[1])
    assert (len(set(blocks[0])), len(set(blocks[1]))) == (36, 198)
    for arch in (GLIT_TINY, DEIT_TINY):
        assert arch in TABLE2
    assert DEIT_TINY in GLIT
    assert GLIT_TINY in details_space(GLIT_TINY)
