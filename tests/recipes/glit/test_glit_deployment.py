"""Networks outside of eager float32: compiled, in bfloat16, and as ONNX with a batch of any size."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nasx import Arch
from nasx.verify import check_onnx
from recipes.glit.model import GLiT, GLiTConfig, build_in
from recipes.glit.space import GLiTSpace, table2, with_heads
from recipes.glit.supernet import supernet as make_supernet
from recipes.glit.variant import OFFICIAL, PAPER, Locality, Variant

IMAGES = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
KINDS = {
    "official": OFFICIAL,
    "paper": PAPER,
    "conv2d": Variant(locality="conv2d"),
    "window": Variant(locality="window"),
}

every_kind = pytest.mark.parametrize("variant", KINDS.values(), ids=KINDS.keys())


def vit(variant: Variant) -> GLiTConfig:
    return GLiTConfig(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=24, variant=variant)


def choices(locality: Locality) -> GLiTSpace:
    return GLiTSpace(blocks=3, locality=locality, kernel_size=(3, 5), held_kernel_size=3, window=(4, 8), held_window=4)


def arch(variant: Variant) -> Arch:
    return with_heads([0, 1, 3], choices(variant.locality))


def network(variant: Variant) -> GLiT:
    torch.manual_seed(0)
    return build_in(vit(variant), arch(variant), init_std=0.2).eval()


@every_kind
def test_a_network_trains_compiled_whole(variant: Variant) -> None:
    variant = replace(variant, local_dropout=0.0, ffn_dropout=0.0, attention_dropout=0.0)  # drawn in another order
    own, eager = network(variant).train(), network(variant).train()
    logits, expected = torch.compile(own, fullgraph=True, backend="aot_eager")(IMAGES), eager(IMAGES)
    torch.testing.assert_close(logits, expected)
    logits.sum().backward()
    expected.sum().backward()
    for ours, theirs in zip(own.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.compiler.reset()


@pytest.mark.parametrize("sharing", ["separate", "entangled"])
def test_an_extracted_network_compiles_whole(sharing: str) -> None:
    own = arch(OFFICIAL)
    supernet = make_supernet(table2(choices("conv1d")), vit(OFFICIAL), sharing=sharing).eval()  # type: ignore[arg-type]
    compiled = torch.compile(supernet.extract(own), fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(IMAGES), supernet(IMAGES, own))
    torch.compiler.reset()


@torch.no_grad()
@every_kind
def test_bfloat16_computes_what_float32_does_within_its_precision(variant: Variant) -> None:
    exact = network(variant)
    logits = exact(IMAGES)
    halved = network(variant).bfloat16()(IMAGES.bfloat16())
    assert halved.dtype == torch.bfloat16
    assert (halved.float() - logits).abs().max() < 0.05 * logits.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        cast: Tensor = exact(IMAGES)
    assert (cast.float() - logits).abs().max() < 0.05 * logits.abs().max()


@pytest.mark.parametrize("kind", ["official", "conv2d", "window"])
def test_onnx_with_a_batch_of_any_size(kind: str) -> None:
    check = check_onnx(network(KINDS[kind]), IMAGES)
    if check.passed is None:
        pytest.skip(check.detail)
    assert check.passed, str(check)
