"""Reading the published supernet, against the source's rule written out."""

import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nasx import Arch
from recipes.autoformer.official import infer_supernet, load_supernet
from recipes.autoformer.space import TINY, AutoFormerSpace

SHAPES = Path(__file__).parents[4] / "shared/spec/checkpoints/autoformer_tiny_supernet_official.json"


def _published_shapes() -> dict[str, tuple[int, ...]]:
    if not SHAPES.exists():
        pytest.skip("the names and shapes of the published supernet are not here")
    return {name: tuple(shape) for name, shape in json.loads(SHAPES.read_text()).items()}


def _shapes(dim: int = 20, heads: int = 3, hidden: int = 40, depth: int = 4) -> dict[str, tuple[int, ...]]:
    """A supernet of the published form: 4 x 4 patches of 2 x 2 pixels, heads of 8, offsets up to 2, 10 classes."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed": (1, 17, dim),
        "cls_token": (1, 1, dim),
        "patch_embed_super.proj.weight": (dim, 3, 2, 2),
        "patch_embed_super.proj.bias": (dim,),
    }
    for i in range(depth):
        block = {
            "attn.qkv": (3 * 8 * heads, dim),
            "attn.proj": (dim, 8 * heads),
            "fc1": (hidden, dim),
            "fc2": (dim, hidden),
        }
        for layer, shape in block.items():
            shapes |= {f"blocks.{i}.{layer}.weight": shape, f"blocks.{i}.{layer}.bias": shape[:1]}
        for table, axis in product("kv", "vh"):
            shapes[f"blocks.{i}.attn.rel_pos_embed_{table}.embeddings_table_{axis}"] = (6, 8)
        for norm, kind in product(("attn", "ffn"), ("weight", "bias")):
            shapes[f"blocks.{i}.{norm}_layer_norm.{kind}"] = (dim,)
    return shapes | {"norm.weight": (dim,), "norm.bias": (dim,), "head.weight": (10, dim), "head.bias": (10,)}


def _random(shapes: Mapping[str, tuple[int, ...]], std: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {name: std * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {name: tensor + 1 if "norm.weight" in name else tensor for name, tensor in state.items()}


def _reference(state: Mapping[str, Tensor], images: Tensor, arch: Arch) -> Tensor:
    """The source's network: every layer a slice, relative positions as one vector per pair of tokens."""
    dim, depth = int(arch["embed_dim"]), int(arch["block.count"])
    head_dim = state["blocks.0.attn.rel_pos_embed_k.embeddings_table_v"].shape[1]

    def linear(x: Tensor, name: str, size: int) -> Tensor:
        return F.linear(x, state[f"{name}.weight"][:size, : x.shape[-1]], state[f"{name}.bias"][:size])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (dim,), state[f"{name}.weight"][:dim], state[f"{name}.bias"][:dim], 1e-5)

    patch = state["patch_embed_super.proj.weight"][:dim]
    x = F.conv2d(images, patch, state["patch_embed_super.proj.bias"][:dim], stride=patch.shape[-1])
    side = x.shape[-1]
    x = torch.cat([state["cls_token"][..., :dim].expand(len(images), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + state["pos_embed"][..., :dim]
    tokens = x.shape[1]

    def vectors(name: str) -> Tensor:
        tables = [state[f"{name}.embeddings_table_{axis}"] for axis in "vh"]
        reach = tables[0].shape[0] // 2 - 1
        places = torch.arange(side * side)
        result = torch.zeros(tokens, tokens, head_dim)
        for table, place in zip(tables, (places // side, places % side), strict=True):
            rows = torch.zeros(tokens, tokens, dtype=torch.long)
            rows[1:, 1:] = (place[None, :] - place[:, None]).clamp(-reach, reach) + reach + 1
            result = result + table[rows]
        return result

    for i in range(depth):
        block, heads = f"blocks.{i}", int(arch[f"block.{i}.num_heads"])
        width = heads * head_dim
        weight = state[f"{block}.attn.qkv.weight"][:, :dim]
        weight = torch.cat([weight[first : 3 * width : 3] for first in range(3)])
        qkv = F.linear(norm(x, f"{block}.attn_layer_norm"), weight, state[f"{block}.attn.qkv.bias"][: 3 * width])
        q, k, v = qkv.reshape(len(images), tokens, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
        on_keys, on_values = vectors(f"{block}.attn.rel_pos_embed_k"), vectors(f"{block}.attn.rel_pos_embed_v")
        logits = (q @ k.transpose(-2, -1) + torch.einsum("bhid,ijd->bhij", q, on_keys)) * head_dim**-0.5
        attention = logits.softmax(dim=-1)
        out = attention @ v + torch.einsum("bhij,ijd->bhid", attention, on_values)
        x = x + linear(out.transpose(1, 2).reshape(len(images), tokens, width), f"{block}.attn.proj", dim)
        hidden = int(dim * float(arch[f"block.{i}.mlp_ratio"]))
        inside = F.gelu(linear(norm(x, f"{block}.ffn_layer_norm"), f"{block}.fc1", hidden))
        x = x + linear(inside, f"{block}.fc2", dim)
    return F.linear(norm(x, "norm")[:, 1:].mean(dim=1), state["head.weight"][:, :dim], state["head.bias"])


@torch.no_grad()
def test_the_published_supernet_s_networks_equal_the_source_s() -> None:
    state = _random(_published_shapes(), std=0.1)
    supernet = load_supernet(state).eval()
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    for seed in range(3):
        arch = TINY.sample(seed)
        wanted = _reference(state, images, arch)
        torch.testing.assert_close(supernet(images, arch), wanted, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(supernet.extract(arch).eval()(images), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_supernets_of_any_size_equal_the_source_s() -> None:
    choices = AutoFormerSpace(embed_dim=(12, 16, 20), depth=(2, 3, 4), num_heads=(1, 2, 3), mlp_ratio=(1, 1.5, 2))
    state = _random(_shapes(), std=0.3)
    supernet = load_supernet(state).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for seed in range(20):
        arch = choices.space().sample(seed)
        torch.testing.assert_close(supernet(images, arch), _reference(state, images, arch), rtol=1e-4, atol=1e-4)


def test_sizes_are_read_from_the_tensors() -> None:
    vit, largest = infer_supernet(_random(_shapes(dim=49, heads=2, hidden=1, depth=3), std=0.1))
    assert [largest[name] for name in ("embed_dim", "block.count", "block.2.num_heads")] == [49, 3, 2]
    assert (vit.image_size, vit.patch_size, vit.num_classes, vit.head_dim, vit.max_offset) == (8, 2, 10, 8, 2)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("norm.weight", None, r"'norm\.weight' of shape \(20,\) is missing"),
        ("cls_token", None, r"'cls_token' of shape \(1, 1, 20\) is missing"),
        ("blocks.1.fc1.weight", None, r"'blocks\.1\.fc1\.weight' is missing"),
        ("blocks.2.attn.qkv.bias", (71,), r"'blocks\.2\.attn\.qkv\.bias' has the shape \(71,\), not \(72,\)"),
        (
            "blocks.2.attn.qkv.weight",
            (71, 20),
            r"'blocks\.2\.attn\.qkv\.weight' .*\(71, 20\), but it has 3 times 8",
        ),
        ("head.weight", (10, 24), r"'head\.weight' has the shape \(10, 24\), not \(10, 20\)"),
        ("pos_embed", (1, 16, 20), "'pos_embed' .* a class token and a square of patches"),
        ("cls_token", (20,), r"'cls_token' has the shape \(20,\), not \(1, 1, 20\)"),
        ("blocks.0.attn.rel_pos_embed_k.embeddings_table_v", (7, 8), "even number of rows"),
        ("patch_embed_super.proj.weight", (20, 3, 2, 3), "patches are square"),
        ("blocks.3.gamma", (20,), r"'blocks\.3\.gamma' of shape \(20,\) has no place"),
        ("blocks.5.fc1.weight", (40, 20), r"'blocks\.5\.fc1\.weight' of shape \(40, 20\) has no place"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_shape(name: str, shape: tuple[int, ...] | None, message: str) -> None:
    state = _random(_shapes(), std=0.1)
    if shape is None:
        del state[name]
    else:
        state[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        load_supernet(state)


def test_a_published_file_holds_its_weights_under_model() -> None:
    state = _random(_shapes(), std=0.1)
    plain, wrapped = load_supernet(state), load_supernet({"model": state, "epoch": 3})
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in wrapped.state_dict().items())


@pytest.mark.parametrize("state", [{}, [1], None, {"norm.weight": 3}])
def test_what_is_no_state_dict_is_refused(state: object) -> None:
    with pytest.raises(ValueError, match="a state dict maps names to tensors"):
        load_supernet(state)  # type: ignore[arg-type]


def test_numbers_that_are_not_finite_or_not_floating_are_refused_by_name() -> None:
    state = _random(_shapes(), std=0.1)
    state["blocks.1.fc1.bias"][3] = float("nan")
    with pytest.raises(ValueError, match=r"'blocks\.1\.fc1\.bias' holds NaN or infinity in 1 of 40 numbers"):
        load_supernet(state)
    state["blocks.1.fc1.bias"] = torch.zeros(40, dtype=torch.int8)
    with pytest.raises(ValueError, match=r"'blocks\.1\.fc1\.bias' holds torch\.int8"):
        load_supernet(state)
