"""Published weights: what they compute, and what does not fit."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nasx.measure import count_params
from recipes.localvit.model import LOCALVIT_TINY_ACT1, LOCALVIT_TINY_ACT3
from recipes.localvit.official import infer_localvit, load_localvit
from recipes.localvit.space import variant

CHECKPOINTS = Path(__file__).parents[4] / "shared" / "spec" / "checkpoints"
State = dict[str, Tensor]


def shapes_on_file(name: str) -> dict[str, list[int]]:
    path = CHECKPOINTS / name
    if not path.exists():
        pytest.skip(f"{path.name}, the published names and shapes, is not beside this checkout")
    shapes: dict[str, list[int]] = json.loads(path.read_text())
    return shapes


def small_shapes(attention: str, width: int = 96, ratio: int = 2, kernel_size: int = 3) -> dict[str, list[int]]:
    """Published names for a small network of two blocks."""
    hidden = ratio * width
    shapes = {
        "cls_token": [1, 1, width],
        "pos_embed": [1, 17, width],
        "patch_embed.proj.weight": [width, 3, 4, 4],
        "patch_embed.proj.bias": [width],
        "norm.weight": [width],
        "norm.bias": [width],
        "head.weight": [7, width],
        "head.bias": [7],
    }
    se = {"fc.0.weight": [8, hidden], "fc.0.bias": [8], "fc.2.weight": [hidden, 8], "fc.2.bias": [hidden]}
    inside: dict[str, dict[str, list[int]]] = {"none": {}, "se": se, "eca": {"conv.weight": [1, 1, 5]}}
    last = 6 if attention == "none" else 7
    for i in range(2):
        block, conv = f"blocks.{i}", f"blocks.{i}.conv.conv"
        for name, rows in (("qkv", 3 * width), ("proj", width)):
            shapes |= {f"{block}.attn.{name}.weight": [rows, width], f"{block}.attn.{name}.bias": [rows]}
        shapes |= {f"{block}.norm1.weight": [width], f"{block}.norm1.bias": [width]}
        shapes |= {f"{conv}.0.weight": [hidden, width, 1, 1], f"{conv}.3.weight": [hidden, 1, kernel_size, kernel_size]}
        shapes |= {f"{conv}.6.{name}": shape for name, shape in inside[attention].items()}
        shapes |= {f"{conv}.{last}.weight": [width, hidden, 1, 1]}
        for at, channels in ((1, hidden), (4, hidden), (last + 1, width)):
            shapes |= {f"{conv}.{at}.{n}": [channels] for n in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{conv}.{at}.num_batches_tracked"] = []
    return shapes


def random_weights(shapes: dict[str, list[int]]) -> State:
    """Random weights, of a size at which every part matters to the logits."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape, generator=generator)
        if name.endswith("running_var"):
            drawn = drawn.abs() + 0.5
        elif name.endswith("num_batches_tracked"):
            drawn = torch.tensor(7)
        elif len(shape) == 1 and name.endswith("weight"):
            drawn = 1 + 0.2 * drawn
        elif len(shape) > 1 and name.endswith("weight"):
            drawn = drawn * drawn[0].numel() ** -0.5
        state[name] = drawn
    return state


def images(count: int = 2, size: int = 224) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def h_sigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6) / 6


def published_network(w: State, images: Tensor, act: int, heads: int) -> Tensor:
    """The released network, straight from its weights."""
    patch = w["patch_embed.proj.weight"].shape[-1]
    x = F.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=patch)
    side, width = x.shape[-1], x.shape[1]
    x = torch.cat([w["cls_token"].repeat(len(images), 1, 1), x.flatten(2).mT], dim=1) + w["pos_embed"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def batch_norm(x: Tensor, name: str) -> Tensor:
        mean, var, weight, bias = (
            w[f"{name}.{kind}"][:, None, None] for kind in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    def attention(x: Tensor, name: str) -> Tensor:
        packed = x @ w[f"{name}.qkv.weight"].T + w[f"{name}.qkv.bias"]
        outputs, wide = [], width // heads
        for head in range(heads):
            q, k, v = (packed[..., part * width + head * wide :][..., :wide] for part in range(3))
            outputs.append(torch.softmax(q @ k.mT * wide**-0.5, dim=-1) @ v)
        return torch.cat(outputs, dim=-1) @ w[f"{name}.proj.weight"].T + w[f"{name}.proj.bias"]

    def activation(x: Tensor) -> Tensor:
        return x.clamp(0, 6) if act == 1 else x * h_sigmoid(x)

    def local(y: Tensor, name: str) -> Tensor:
        kernel = w[f"{name}.3.weight"]
        y = activation(batch_norm(F.conv2d(y, w[f"{name}.0.weight"]), f"{name}.1"))
        y = F.conv2d(y, kernel, padding=kernel.shape[-1] // 2, groups=len(kernel))
        y = activation(batch_norm(y, f"{name}.4"))
        last = 6 if act < 3 else 7
        mean = y.mean((2, 3))
        if act == 3:
            inside = (mean @ w[f"{name}.6.fc.0.weight"].T + w[f"{name}.6.fc.0.bias"]).clamp(min=0)
            y = y * h_sigmoid(inside @ w[f"{name}.6.fc.2.weight"].T + w[f"{name}.6.fc.2.bias"])[..., None, None]
        if act > 3:
            kernel = w[f"{name}.6.conv.weight"]
            logit = F.conv1d(mean[:, None], kernel, padding=kernel.shape[-1] // 2)[:, 0, :, None, None]
            y = y * (torch.sigmoid(logit) if act == 4 else h_sigmoid(logit))
        return batch_norm(F.conv2d(y, w[f"{name}.{last}.weight"]), f"{name}.{last + 1}")

    depth = len({name.split(".")[1] for name in w if name.startswith("blocks.")})
    for block in (f"blocks.{i}" for i in range(depth)):
        x = x + attention(norm(x, f"{block}.norm1"), f"{block}.attn")
        if f"{block}.mlp.fc1.weight" in w:
            h = F.gelu(norm(x, f"{block}.norm2") @ w[f"{block}.mlp.fc1.weight"].T + w[f"{block}.mlp.fc1.bias"])
            x = x + h @ w[f"{block}.mlp.fc2.weight"].T + w[f"{block}.mlp.fc2.bias"]
            continue
        y = x[:, 1:].mT.reshape(-1, width, side, side)
        y = y + local(y, f"{block}.conv.conv")
        x = torch.cat([x[:, :1], y.flatten(2).mT], dim=1)
    return norm(x, "norm")[:, 0] @ w["head.weight"].T + w["head.bias"]


@pytest.mark.parametrize(
    ("file", "act", "arch", "parameters"),
    [
        ("localvit_tiny_mlp4_act3_r192_official.json", 3, LOCALVIT_TINY_ACT3, 5_908_696),
        ("localvit_tiny_mlp6_act1_official.json", 1, LOCALVIT_TINY_ACT1, 7_655_080),
    ],
    ids=["act3", "act1"],
)
@torch.no_grad()
def test_released_networks_compute_what_they_computed(file: str, act: int, arch: object, parameters: int) -> None:
    weights = random_weights(shapes_on_file(file))
    vit, inferred = infer_localvit(weights)
    assert inferred == arch
    assert (vit.image_size, vit.patch_size, vit.embed_dim, vit.num_heads) == (224, 16, 192, 4)
    network = load_localvit({"model": weights, "epoch": 300})
    assert not network.training
    assert count_params(network) == parameters
    expected = published_network(weights, images(), act, heads=4)
    assert expected.std() > 0.1
    torch.testing.assert_close(network(images()), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("act", [1, 2, 3, 4, 5])
@torch.no_grad()
def test_every_variant_computes_what_it_should(act: int) -> None:
    weights = random_weights(small_shapes({1: "none", 2: "none", 3: "se"}.get(act, "eca")))
    network = load_localvit(weights, act=act, num_heads=2)
    expected = published_network(weights, images(size=16), act, heads=2)
    torch.testing.assert_close(network(images(size=16)), expected, rtol=0, atol=1e-4)
    _, arch = infer_localvit(weights, act=act, num_heads=2)
    assert arch == variant(act, blocks=2, mlp_ratio=2, reduction=24)


@pytest.mark.parametrize(("attention", "default", "other"), [("none", 1, 2), ("se", 3, 3), ("eca", 4, 5)])
def test_what_tensors_do_not_say_has_a_default_that_is_said(attention: str, default: int, other: int) -> None:
    weights = random_weights(small_shapes(attention))
    notes: list[str] = []

    def infer(act: int | None = None) -> object:
        return infer_localvit(weights, act=act, num_heads=2, note=notes.append)

    assert infer() == infer(default)
    assert (infer(other) == infer(default)) == (other == default)
    expected = [] if other == default else [f"assuming variant {default} (--act), of which the weights of {other} look"]
    assert len(notes) == len(expected)  # nothing is assumed where it is given
    assert all(sentence.startswith(start) for sentence, start in zip(notes, expected, strict=True))
    for act in {1, 2, 3, 4, 5} - {default, other}:
        with pytest.raises(ValueError, match=f"act {act} does not fit the weights: 'blocks.0.conv.conv' has"):
            load_localvit(weights, act=act, num_heads=2)
    with pytest.raises(ValueError, match="the variants are 1, 2, 3, 4, 5, but got 0"):
        load_localvit(weights, act=0)


def test_heads_of_published_sizes_are_assumed_and_of_others_asked_for() -> None:
    notes: list[str] = []
    tiny = random_weights(shapes_on_file("localvit_tiny_mlp4_act3_r192_official.json"))
    vit, _ = infer_localvit(tiny, note=notes.append)
    assert vit.num_heads == 4
    assert notes == [
        "assuming 4 heads, as tiny has them (192 channels, 12 blocks); give num_heads (--heads) where these weights "
        "have another number"
    ]
    assert infer_localvit(tiny, num_heads=3, note=notes.append)[0].num_heads == 3
    assert len(notes) == 1
    with pytest.raises(ValueError, match=r"how many heads share the 96 channels.* and 2 blocks; say it with num_heads"):
        load_localvit(random_weights(small_shapes("se")))


@torch.no_grad()
def test_sizes_heads_and_plain_blocks_are_read_off() -> None:
    shapes = small_shapes("se", width=60, ratio=3, kernel_size=5)
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith("blocks.1.conv.")}
    shapes |= {"blocks.1.norm2.weight": [60], "blocks.1.norm2.bias": [60]}
    shapes |= {"blocks.1.mlp.fc1.weight": [100, 60], "blocks.1.mlp.fc1.bias": [100]}
    shapes |= {"blocks.1.mlp.fc2.weight": [60, 100], "blocks.1.mlp.fc2.bias": [60]}
    weights = random_weights(shapes)
    with pytest.raises(ValueError, match=r"60 channels.*say it with num_heads \(--heads\)"):
        load_localvit(weights)
    _, arch = infer_localvit(weights, num_heads=3)
    assert dict(arch.at("block.0"))["kernel_size"] == 5
    assert arch["block.0.mlp_ratio"] == 3
    assert arch["block.1.depthwise"] is False
    network = load_localvit(weights, num_heads=3)
    expected = published_network(weights, images(size=16), 3, heads=3)
    torch.testing.assert_close(network(images(size=16)), expected, rtol=0, atol=1e-4)


def test_any_whole_hidden_width_is_read_off() -> None:
    for rows in (29, 57, 113, 203, 205):  # times 1/100 and back, these are cut to one less
        shapes = small_shapes("none", width=100)
        conv = "blocks.0.conv.conv"
        shapes |= {f"{conv}.0.weight": [rows, 100, 1, 1], f"{conv}.3.weight": [rows, 1, 3, 3]}
        shapes |= {f"{conv}.{at}.{n}": [rows] for at in (1, 4) for n in ("weight", "bias")}
        shapes |= {f"{conv}.{at}.running_{n}": [rows] for at in (1, 4) for n in ("mean", "var")}
        shapes |= {f"{conv}.6.weight": [100, rows, 1, 1]}
        load_localvit(random_weights(shapes), num_heads=4)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("blocks.0.conv.conv.7.weight", None, "'blocks.0.conv.conv.7.weight' of shape (96, 192, 1, 1) is missing"),
        ("blocks.1.conv.conv.8.bias", [5], "'blocks.1.conv.conv.8.bias' has the shape (5,), not (96,)"),
        ("blocks.1.conv.conv.6.fc.2.weight", None, "'blocks.1.conv.conv.6.fc.2.weight' of shape (192, 8) is missing"),
        ("blocks.0.conv.conv.0.weight", [192, 96], "it has 4 dimensions"),
        ("blocks.0.conv.conv.3.weight", [192, 1, 2, 2], "its kernel is odd"),
        ("blocks.0.conv.conv.3.weight", [192, 1, 3, 5], "has the shape (192, 1, 3, 5), not (192, 1, 5, 5)"),
        ("blocks.0.conv.conv.6.fc.0.weight", [300, 192], "it squeezes 192 channels by a whole factor"),
        ("blocks.0.conv.conv.6.fc.0.weight", [100, 192], "it squeezes 192 channels by a whole factor"),
        ("patch_embed.proj.weight", [96, 3, 4, 2], "patches are square"),
        ("blocks.0.norm2.weight", [96], "'blocks.0.norm2.weight' of shape (96,) has no place here"),
        ("blocks.7.norm1.weight", [96], "'blocks.7.norm1.weight' of shape (96,) has no place here"),
        ("pos_embed", [1, 16, 96], "a class token and a square of patches"),
        ("head.weight", None, "'head.weight' is missing"),
        ("patch_embed.proj.weight", None, "'patch_embed.proj.weight' is missing; is this another model"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name_and_shape(
    name: str, shape: list[int] | None, message: str
) -> None:
    weights = random_weights(small_shapes("se"))
    if shape is None:
        del weights[name]
    else:
        weights[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_localvit(weights, num_heads=2)


def test_eca_kernel_of_another_size_is_refused() -> None:
    weights = random_weights(small_shapes("eca"))
    weights["blocks.0.conv.conv.6.conv.weight"] = torch.zeros(1, 1, 3)
    with pytest.raises(ValueError, match=re.escape("6.conv.weight' has the shape (1, 1, 3), not (1, 1, 5)")):
        load_localvit(weights, num_heads=2)


@pytest.mark.parametrize("state", [{}, {"model": {}}, {"head.weight": 3}, [1]])
def test_what_is_no_state_dict_is_refused(state: object) -> None:
    with pytest.raises(ValueError, match="a state dict maps names to tensors"):
        load_localvit(state)  # type: ignore[arg-type]


def test_another_transformer_is_no_localvit() -> None:
    import timm

    deit = timm.create_model("deit_tiny_patch16_224", pretrained=False, num_classes=10).state_dict()
    with pytest.raises(ValueError, match="no block has LocalViT's feed-forward"):
        load_localvit(deit)
    assert load_localvit(deit, num_heads=3)(torch.zeros(1, 3, 224, 224)).shape == (1, 10)
    with pytest.raises(ValueError, match=r"must divide the width of 192 channels, but got 0"):
        load_localvit(deit, num_heads=0)
