"""What each switch between the paper's text and the released code changes, and that all of them are one network."""

import itertools
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from nasx import Arch
from nasx.measure import count_macs, count_params
from nasx.nn import Supernet
from nasx.testing import CostContract, SupernetContract
from recipes.glit.cost import Macs, Params, macs, paper_macs, params
from recipes.glit.model import DEIT_TINY, GLIT_TINY, GLiT, GLiTConfig, build, build_in
from recipes.glit.space import GLiTSpace, same_heads, table2
from recipes.glit.supernet import supernet
from recipes.glit.variant import OFFICIAL, PAPER, VARIANTS, Variant

CHOICES = GLiTSpace(blocks=2, kernel_size=(3, 5, 9), held_kernel_size=5, expansion=(1, 4), mlp_ratio=(2, 4))
SPACE = table2(CHOICES)
IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))

SWITCHES = [
    Variant(submodule_input="full"),
    Variant(projection="joint"),
    Variant(local_norm="every"),
    Variant(ffn_activation="swish"),
    Variant(local_dropout=0.3),
    Variant(ffn_dropout=0.3),
    Variant(attention_dropout=0.3),
    Variant(submodule_input="full", projection="joint"),
    PAPER,
]


def vit(variant: Variant) -> GLiTConfig:
    return GLiTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=24, variant=variant)


def spelled(variant: Variant) -> str:
    changed = [str(getattr(variant, f.name)) for f in fields(variant) if getattr(variant, f.name) != f.default]
    return "paper" if variant == PAPER else "-".join(changed)


every_switch = pytest.mark.parametrize("variant", SWITCHES, ids=spelled)


@every_switch
def test_every_kind_of_block_costs_what_is_counted(variant: Variant) -> None:
    own, one = vit(variant), table2(CHOICES.with_blocks(1))
    for arch in itertools.islice(one, 0, None, 9):
        network = build_in(own, arch)
        assert count_macs(network, IMAGES[:1]) == Macs(own)(arch)
        assert count_params(network) == Params(own)(arch)


class TestPaperSeparate(SupernetContract):
    space = SPACE

    def make_supernet(self) -> Supernet:
        return supernet(SPACE, vit(PAPER), sharing="separate", drop_path=0.2)

    def make_inputs(self) -> Tensor:
        return IMAGES


class TestPaperEntangled(SupernetContract):
    space = SPACE

    def make_supernet(self) -> Supernet:
        return supernet(SPACE, vit(PAPER), sharing="entangled", drop_path=0.2)

    def make_inputs(self) -> Tensor:
        return IMAGES


class TestPaperMacs(CostContract):
    space, cost = SPACE, Macs(vit(PAPER))

    def counted(self, arch: Arch) -> int:
        return count_macs(build_in(vit(PAPER), arch), IMAGES[:1])


def network(variant: Variant, arch: Arch) -> GLiT:
    return build_in(vit(variant), arch, init_std=0.2)


def test_the_released_code_is_the_default() -> None:
    assert GLiTConfig().variant == OFFICIAL == Variant() == VARIANTS["official"]
    assert VARIANTS["paper"] == PAPER
    assert OFFICIAL.locality == PAPER.locality == "conv1d"
    for switch in (f for f in fields(Variant) if f.name not in ("locality", "pointwise_init")):
        assert getattr(OFFICIAL, switch.name) != getattr(PAPER, switch.name), switch.name


def test_a_deit_block_is_one_in_both_but_for_the_activation() -> None:
    paper = {"variant": PAPER}
    assert params.configured(**paper)(DEIT_TINY) == params(DEIT_TINY)
    assert macs.configured(**paper)(DEIT_TINY) == macs(DEIT_TINY) == paper_macs.configured(**paper)(DEIT_TINY)
    swish, same = same_heads(3, CHOICES), replace(PAPER, ffn_activation="gelu")
    plain, joint = network(OFFICIAL, swish), network(same, swish).eval()
    for mine, theirs in zip(joint.blocks, plain.blocks, strict=True):
        state = theirs.state_dict()
        state |= {f"proj.{kind}": state.pop(f"attn.proj.{kind}") for kind in ("weight", "bias")}
        mine.load_state_dict({name: state[name] for name in mine.state_dict()})
    outer = {name: tensor for name, tensor in plain.state_dict().items() if not name.startswith("blocks.")}
    joint.load_state_dict(outer, strict=False)
    torch.testing.assert_close(joint(IMAGES), plain.eval()(IMAGES))


@torch.no_grad()
def test_what_a_sub_module_reads() -> None:
    arch = same_heads(1, CHOICES.with_blocks(1))
    for variant, global_reads in ((OFFICIAL, 8), (PAPER, 24)):
        block = network(variant, arch).eval().blocks[0]
        attention = block.get_submodule("attn.qkv")
        expand = block.get_submodule("local.expand")
        assert isinstance(attention, nn.Linear)
        assert isinstance(expand, nn.Linear)
        assert (attention.in_features, expand.in_features) == (global_reads, 24 if variant is PAPER else 16)
        tokens = torch.randn(1, 17, 24)
        moved = tokens.clone()
        moved[..., :8] += 1  # what belongs to the global head
        mixed = [block.get_submodule("local")(t if variant is PAPER else t[..., 8:]) for t in (tokens, moved)]
        assert torch.equal(*mixed) == (variant is OFFICIAL)
        assert mixed[0].shape == (1, 17, 16)


def test_one_projection_has_the_whole_width_whatever_the_heads_and_their_inner_width() -> None:
    for arch in table2(CHOICES.with_blocks(1)).sample(0, 20):
        projection = network(PAPER, arch).get_submodule("blocks.0.proj")
        assert isinstance(projection, nn.Linear)
        assert (projection.in_features, projection.out_features) == (24, 24)


@torch.no_grad()
def test_local_sub_module_of_the_paper_step_by_step() -> None:
    local = network(PAPER, same_heads(0, CHOICES.with_blocks(1))).get_submodule("blocks.0.local").eval()
    for norm in (m for m in local.modules() if isinstance(m, nn.BatchNorm1d)):
        norm.running_mean.normal_() if norm.running_mean is not None else None
        norm.weight.normal_()
    part = local.get_submodule
    x = torch.randn(2, 17, 24)
    value, gate = part("expand_norm")(part("expand")(x)).chunk(2, dim=-1)
    inside = part("norm")(part("depthwise")((value * gate.sigmoid()).mT).mT)
    inside = part("project_norm")(part("project")(inside * inside.sigmoid()))
    torch.testing.assert_close(local(x), inside * inside.sigmoid())


@pytest.mark.parametrize("name", ["local_dropout", "ffn_dropout", "attention_dropout"])
def test_each_dropout_acts_in_training_only_and_where_its_part_is(name: str) -> None:
    variant = Variant(**{name: 0.5})  # type: ignore[arg-type]
    part = {"local_dropout": 0, "ffn_dropout": 1, "attention_dropout": 3}[name]
    own = network(variant, same_heads(part, CHOICES))
    plain = network(OFFICIAL, same_heads(part, CHOICES))
    plain.load_state_dict(own.state_dict())
    assert not torch.equal(own.train()(IMAGES), plain.train()(IMAGES))
    assert torch.equal(own.eval()(IMAGES), own(IMAGES))
    if part in (0, 3):  # a network without that part is untouched
        own, plain = network(variant, same_heads(3 - part, CHOICES)), network(OFFICIAL, same_heads(3 - part, CHOICES))
        plain.load_state_dict(own.state_dict())
        assert torch.equal(own.train()(IMAGES), plain.train()(IMAGES))


def test_the_paper_s_glit_tiny_costs() -> None:
    image = torch.zeros(1, 3, 224, 224)
    with torch.device("meta"):
        network = build(GLIT_TINY, variant=PAPER)
    assert count_params(network) == params.configured(variant=PAPER)(GLIT_TINY) > params(GLIT_TINY)
    assert count_macs(network, image.to("meta")) == macs.configured(variant=PAPER)(GLIT_TINY) > macs(GLIT_TINY)


def test_words_and_rates_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match=r"projection is one of 'separate', 'joint', but got 'both'"):
        Variant(projection="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"0 <= ffn_dropout < 1"):
        Variant(ffn_dropout=1.0)
