"""Weight-entangled layers: a slice run in place is the layer extracted, and nothing outside the slice is touched."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nasx.nn import (
    ElasticAttention,
    ElasticBatchNorm1d,
    ElasticBatchNorm2d,
    ElasticConv2d,
    ElasticDepthwiseConv1d,
    ElasticDepthwiseConv2d,
    ElasticFeedForward,
    ElasticLayerNorm,
    ElasticLinear,
)

few = settings(max_examples=12, deadline=None, derandomize=True)


@dataclass(frozen=True, slots=True)
class Case:
    """An elastic layer, an input, how to run a slice of it, how to extract that slice and which entries it uses."""

    layer: nn.Module
    x: Tensor
    run: Callable[[Tensor], Tensor]
    extract: Callable[[], nn.Module]
    used: dict[str, tuple[slice | Tensor, ...]]  # an index into every parameter


def randomised(layer: nn.Module) -> nn.Module:
    """Give every parameter and running statistic its own random values."""
    with torch.no_grad():
        for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.is_floating_point():
                tensor.normal_()
            if "running_var" in name:
                tensor.abs_().add_(0.1)
    return layer.double()


def sizes(*largest: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*(st.integers(1, size) for size in largest))


def linear_case(out_features: int, in_features: int, bias: bool) -> Case:
    layer = ElasticLinear(9, 7, bias=bias)
    randomised(layer)
    used: dict[str, tuple[slice | Tensor, ...]] = {"weight": (slice(out_features), slice(in_features))}
    if bias:
        used["bias"] = (slice(out_features),)
    return Case(
        layer,
        torch.randn(2, 3, in_features, dtype=torch.float64),
        lambda x: layer(x, out_features),
        lambda: layer.extract(out_features, in_features),
        used,
    )


def layer_norm_case(dim: int, bias: bool) -> Case:
    layer = ElasticLayerNorm(8, eps=1e-3, bias=bias)
    randomised(layer)
    x = torch.randn(2, 3, dim, dtype=torch.float64)
    used: dict[str, tuple[slice | Tensor, ...]] = {"weight": (slice(dim),)} | ({"bias": (slice(dim),)} if bias else {})
    return Case(layer, x, layer, lambda: layer.extract(dim), used)


def conv_case(out_channels: int, in_channels: int, bias: bool, padding_mode: str) -> Case:
    layer = ElasticConv2d(4, 6, (3, 2), stride=2, padding=1, bias=bias, padding_mode=padding_mode)
    randomised(layer)
    used: dict[str, tuple[slice | Tensor, ...]] = {"weight": (slice(out_channels), slice(in_channels))}
    if bias:
        used["bias"] = (slice(out_channels),)
    return Case(
        layer,
        torch.randn(2, in_channels, 5, 6, dtype=torch.float64),
        lambda x: layer(x, out_channels),
        lambda: layer.extract(out_channels, in_channels),
        used,
    )


def conv1d_case(channels: int, kernel_size: int, bias: bool) -> Case:
    layer = ElasticDepthwiseConv1d(6, 7, bias=bias)
    randomised(layer)
    edge = (7 - kernel_size) // 2
    used: dict[str, tuple[slice | Tensor, ...]] = {"weight": (slice(channels), slice(None), slice(edge, 7 - edge))}
    if bias:
        used["bias"] = (slice(channels),)
    return Case(
        layer,
        torch.randn(2, channels, 9, dtype=torch.float64),
        lambda x: layer(x, kernel_size),
        lambda: layer.extract(channels, kernel_size),
        used,
    )


def conv2d_case(channels: int, kernel_size: int, bias: bool) -> Case:
    layer = ElasticDepthwiseConv2d(6, 5, bias=bias)
    randomised(layer)
    centre = slice((5 - kernel_size) // 2, (5 + kernel_size) // 2)
    used: dict[str, tuple[slice | Tensor, ...]] = {"weight": (slice(channels), slice(None), centre, centre)}
    if bias:
        used["bias"] = (slice(channels),)
    return Case(
        layer,
        torch.randn(2, channels, 5, 6, dtype=torch.float64),
        lambda x: layer(x, kernel_size),
        lambda: layer.extract(channels, kernel_size),
        used,
    )


def attention_case(dim: int, heads: int, head_dim: int, out_dim: int, bias: bool) -> Case:
    layer = ElasticAttention(8, max_inner=24, max_out=6, qkv_bias=bias, dropout=0.3)
    randomised(layer)
    inner = heads * head_dim
    thirds = torch.cat([torch.arange(inner) + 24 * third for third in range(3)])
    used: dict[str, tuple[slice | Tensor, ...]] = {
        "qkv.weight": (thirds, slice(dim)),
        "proj.weight": (slice(out_dim), slice(inner)),
        "proj.bias": (slice(out_dim),),
    }
    if bias:
        used["qkv.bias"] = (thirds,)
    return Case(
        layer,
        torch.randn(2, 5, dim, dtype=torch.float64),
        lambda x: layer(x, heads=heads, inner=inner, out_dim=out_dim),
        lambda: layer.extract(dim, heads=heads, inner=inner, out_dim=out_dim),
        used,
    )


def feed_forward_case(dim: int, hidden: int) -> Case:
    layer = ElasticFeedForward(6, 16, activation=nn.PReLU, dropout=0.3)
    randomised(layer)
    return Case(
        layer,
        torch.randn(2, 5, dim, dtype=torch.float64),
        lambda x: layer(x, hidden=hidden),
        lambda: layer.extract(dim, hidden=hidden),
        {
            "fc1.weight": (slice(hidden), slice(dim)),
            "fc1.bias": (slice(hidden),),
            "fc2.weight": (slice(dim), slice(hidden)),
            "fc2.bias": (slice(dim),),
            "act.weight": (slice(None),),
        },
    )


def batch_norm_case(channels: int, images: bool, momentum: float | None) -> Case:
    layer: ElasticBatchNorm1d | ElasticBatchNorm2d
    layer = ElasticBatchNorm2d(6, momentum=momentum) if images else ElasticBatchNorm1d(6, momentum=momentum)
    randomised(layer)
    x = torch.randn(3, channels, 4, *([5] if images else []), dtype=torch.float64)
    used = (slice(channels),)
    return Case(layer, x, layer, lambda: layer.extract(channels), {"weight": used, "bias": used})


odd = st.sampled_from([1, 3, 5])
cases = st.one_of(
    st.builds(linear_case, st.integers(1, 7), st.integers(1, 9), st.booleans()),
    st.builds(layer_norm_case, st.integers(1, 8), st.booleans()),
    st.builds(conv_case, st.integers(1, 6), st.integers(1, 4), st.booleans(), st.sampled_from(["zeros", "circular"])),
    st.builds(conv1d_case, st.integers(1, 6), st.sampled_from([1, 3, 5, 7]), st.booleans()),
    st.builds(conv2d_case, st.integers(1, 6), odd, st.booleans()),
    st.builds(
        attention_case,
        st.integers(1, 8),
        st.integers(1, 4),
        st.integers(1, 6),
        st.integers(1, 6),
        st.booleans(),
    ),
    st.builds(feed_forward_case, st.integers(1, 6), st.integers(1, 16)),
    st.builds(batch_norm_case, st.integers(1, 6), st.booleans(), st.sampled_from([0.1, None])),
)
many = settings(max_examples=80, deadline=None, derandomize=True)


@many
@given(cases, st.booleans())
def test_a_slice_run_in_place_is_the_extracted_layer(case: Case, training: bool) -> None:
    case.layer.train(training)
    plain = case.extract()
    assert all(module.training is training for module in plain.modules())
    assert all(type(module).__module__.startswith(("torch.nn", "nasx.nn.layers")) for module in plain.modules())
    for _ in range(2):  # twice, as the running statistics move
        torch.manual_seed(3)
        ours = case.run(case.x)
        torch.manual_seed(3)
        torch.testing.assert_close(plain(case.x), ours, rtol=1e-12, atol=1e-12)


@many
@given(cases)
def test_only_the_slice_has_gradients(case: Case) -> None:
    case.layer.train()
    torch.autograd.backward(case.run(case.x).square().sum())
    assert case.used.keys() == dict(case.layer.named_parameters()).keys()
    for name, parameter in case.layer.named_parameters():
        assert parameter.grad is not None
        outside = torch.ones_like(parameter, dtype=torch.bool)
        outside[case.used[name]] = False
        assert not parameter.grad[outside].any(), name
        assert parameter.grad[~outside].isfinite().all()


@many
@given(cases)
def test_extracted_memory_is_its_own_and_draws_no_random_numbers(case: Case) -> None:
    before, random_state = copy.deepcopy(case.layer.state_dict()), torch.get_rng_state()
    plain = case.extract()
    assert torch.equal(torch.get_rng_state(), random_state)
    with torch.no_grad():
        for tensor in plain.state_dict().values():
            assert tensor.is_contiguous()
            assert not tensor.is_meta
            tensor.zero_().add_(77)
    for name, tensor in case.layer.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@few
@given(cases, st.sampled_from([torch.no_grad, torch.inference_mode]), st.booleans())
def test_extracted_weights_are_trained_where_the_whole_ones_are(
    case: Case, context: Callable[[], torch.no_grad], trained: bool
) -> None:
    case.layer.requires_grad_(trained)
    with context():
        plain = case.extract()
    assert [p.requires_grad for p in plain.parameters()] == [trained] * len(case.used)
    if trained:
        torch.autograd.backward(plain(case.x).sum())


def torch_pairs() -> Iterator[tuple[nn.Module, nn.Module, Tensor]]:
    tokens = torch.randn(2, 5, 6, dtype=torch.float64)
    yield ElasticLinear(6, 4), nn.Linear(6, 4), tokens
    yield ElasticLinear(6, 4, bias=False), nn.Linear(6, 4, bias=False), tokens
    yield ElasticLayerNorm(6), nn.LayerNorm(6), tokens
    yield ElasticLayerNorm(6, 0.1, bias=False), nn.LayerNorm(6, 0.1, bias=False), tokens
    yield ElasticLayerNorm(6, elementwise_affine=False), nn.LayerNorm(6, elementwise_affine=False), tokens
    conv: dict[str, Any] = {"kernel_size": 2, "stride": 2, "padding": 1, "dilation": 2}
    conv |= {"bias": False, "padding_mode": "reflect"}
    yield ElasticConv2d(2, 3, **conv), nn.Conv2d(2, 3, **conv), tokens[None]
    yield ElasticDepthwiseConv1d(5, 3), nn.Conv1d(5, 5, 3, padding=1, groups=5), tokens
    yield ElasticDepthwiseConv2d(2, 3), nn.Conv2d(2, 2, 3, padding=1, groups=2), tokens[None]
    for momentum in (0.1, None):
        for stats in (True, False):
            rest = (1e-3, momentum, stats, stats)  # eps, momentum, affine, track_running_stats
            yield ElasticBatchNorm1d(5, *rest), nn.BatchNorm1d(5, *rest), tokens
            yield ElasticBatchNorm1d(6, *rest), nn.BatchNorm1d(6, *rest), tokens[0]
            yield ElasticBatchNorm2d(2, *rest), nn.BatchNorm2d(2, *rest), tokens[None]


@pytest.mark.parametrize("training", [True, False])
def test_the_largest_size_is_torchs_layer(training: bool) -> None:
    for elastic, plain, x in torch_pairs():
        assert isinstance(elastic, type(plain))
        randomised(elastic).train(training)
        plain.double().train(training).load_state_dict(elastic.state_dict())
        for _ in range(3):
            torch.testing.assert_close(elastic(x), plain(x), rtol=1e-12, atol=1e-12)
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(elastic.state_dict()[name], tensor, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_a_plain_layer_made_elastic_computes_the_same_with_its_own_parameters(training: bool) -> None:
    for elastic, plain, x in torch_pairs():
        randomised(plain).train(training)
        made = type(elastic).of(plain)  # type: ignore[attr-defined]
        assert type(made) is type(elastic)
        assert made.training is training
        assert made.state_dict().keys() == plain.state_dict().keys()
        assert all(p is q for p, q in zip(made.parameters(), plain.parameters(), strict=True))
        expected = copy.deepcopy(plain)(x)
        torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_timms_attention_and_feed_forward_made_elastic_compute_the_same(bias: bool) -> None:
    timm = pytest.importorskip("timm")
    block = timm.models.vision_transformer.Block(12, 3, mlp_ratio=2, qkv_bias=bias, proj_bias=bias)
    randomised(block).train()
    attention = ElasticAttention.of(block.attn.qkv, block.attn.proj)
    feed_forward = ElasticFeedForward.of(block.mlp.fc1, block.mlp.fc2, activation=block.mlp.act)
    norm = ElasticLayerNorm.of(block.norm1)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    parts: list[tuple[nn.Module, nn.Module, Callable[[Tensor], Tensor], nn.Module]] = [
        (attention, block.attn, lambda x: attention(x, heads=3), attention.extract(12, heads=3)),
        (feed_forward, block.mlp, lambda x: feed_forward(x, hidden=24), feed_forward.extract(12, hidden=24)),
        (norm, block.norm1, norm, norm.extract(12)),
    ]
    for made, whole, run, plain in parts:
        assert made.training
        assert made.state_dict().keys() == whole.state_dict().keys() == plain.state_dict().keys()
        assert {id(p) for p in made.parameters()} == {id(p) for p in whole.parameters()}
        torch.testing.assert_close(run(x), whole(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(plain(x), whole(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ElasticLayerNorm.of(nn.LayerNorm((2, 3))), r"over one dimension, but got \(2, 3\)"),
        (lambda: ElasticConv2d.of(nn.Conv2d(4, 4, 3, groups=2)), "one group, but got 2"),
        (lambda: ElasticDepthwiseConv2d.of(nn.Conv2d(4, 4, 3, padding=1)), "a group per channel"),
        (lambda: ElasticDepthwiseConv2d.of(nn.Conv2d(4, 4, 3, groups=4)), "zero padding"),
        (lambda: ElasticDepthwiseConv2d.of(nn.Conv2d(4, 4, (3, 5), padding="same", groups=4)), "square kernel"),
        (lambda: ElasticDepthwiseConv1d.of(nn.Conv1d(4, 4, 3, stride=2, padding=1, groups=4)), "stride and dilation 1"),
        (lambda: ElasticDepthwiseConv1d.of(nn.Conv1d(4, 4, 4, padding=2, groups=4)), "must be odd"),
        (lambda: ElasticAttention.of(nn.Linear(4, 8), nn.Linear(4, 4)), "8 rows and 4 inputs"),
        (lambda: ElasticFeedForward.of(nn.Linear(4, 8), nn.Linear(8, 2), activation=nn.GELU()), "back to its inputs"),
        (
            lambda: ElasticLinear.of(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
            "ElasticLinear holds bias, weight, but this ParametrizedLinear holds .*; pass .* what Linear does",
        ),
    ],
)
def test_plain_layers_that_no_elastic_one_equals_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@few
@given(st.integers(1, 5), st.sampled_from([0.1, 0.5, None]), st.booleans())
def test_batch_norm_updates_the_statistics_of_its_slice_alone(
    channels: int, momentum: float | None, images: bool
) -> None:
    case = batch_norm_case(channels, images, momentum)
    case.layer.train()
    before, plain = copy.deepcopy(case.layer.state_dict()), case.extract()
    for _ in range(3):
        x = torch.randn_like(case.x)
        case.run(x)
        plain(x)
    after, alone = case.layer.state_dict(), plain.state_dict()
    assert after["num_batches_tracked"] == alone["num_batches_tracked"] == 3
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(after[name][:channels], alone[name], rtol=1e-12, atol=1e-12)
        assert not torch.equal(after[name][:channels], before[name][:channels])
        assert torch.equal(after[name][channels:], before[name][channels:])


def test_cumulative_batch_norm_is_the_mean_over_batches() -> None:
    norm = ElasticBatchNorm1d(4, momentum=None).double()
    batches = torch.randn(5, 8, 3, dtype=torch.float64)
    for batch in batches:
        norm(batch)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm.running_mean[:3], batches.mean(dim=(0, 1)))
    torch.testing.assert_close(norm.running_var[:3], batches.var(dim=1).mean(dim=0))


def test_smaller_kernels_lie_in_the_centre_of_the_largest() -> None:
    x, image = torch.randn(2, 3, 9, dtype=torch.float64), torch.randn(2, 3, 6, 7, dtype=torch.float64)
    conv, conv2d = ElasticDepthwiseConv1d(4, 7).double(), ElasticDepthwiseConv2d(4, 5).double()
    assert conv.bias is not None
    assert conv2d.bias is not None
    expected = F.conv1d(x, conv.weight[:3, :, 2:5], conv.bias[:3], padding=1, groups=3)
    torch.testing.assert_close(conv(x, 3), expected)
    expected = F.conv2d(image, conv2d.weight[:3, :, 1:4, 1:4], conv2d.bias[:3], padding=1, groups=3)
    torch.testing.assert_close(conv2d(image, 3), expected)


def test_an_explicit_attention_scale_holds_at_every_size() -> None:
    given_scale, default = (ElasticAttention(8, max_inner=16, scale=scale).double() for scale in (4**-0.5, None))
    default.load_state_dict(given_scale.state_dict())
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(given_scale(x, heads=2, inner=8), default(x, heads=2, inner=8))  # heads of width 4
    assert not torch.allclose(given_scale(x, heads=2, inner=16), default(x, heads=2, inner=16))
    plain = given_scale.extract(8, heads=2, inner=16)
    torch.testing.assert_close(plain(x), given_scale(x, heads=2, inner=16))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ElasticLinear(4, 4)(torch.ones(1, 4), 5), "out_features must be from 1 to 4, but got 5"),
        (lambda: ElasticLinear(4, 4)(torch.ones(1, 4), 0), "out_features must be from 1 to 4, but got 0"),
        (lambda: ElasticLinear(4, 4)(torch.ones(1, 5)), "in_features must be from 1 to 4, but got 5"),
        (lambda: ElasticLinear(4, 4).extract(2, 5), "in_features must be from 1 to 4, but got 5"),
        (lambda: ElasticLayerNorm(4)(torch.ones(1, 5)), "channels must be from 1 to 4, but got 5"),
        (lambda: ElasticBatchNorm1d(4)(torch.ones(2, 5)), "channels must be from 1 to 4, but got 5"),
        (lambda: ElasticDepthwiseConv1d(4, 5).extract(4, 7), "kernel_size must be from 1 to 5, but got 7"),
        (lambda: ElasticDepthwiseConv1d(4, 5)(torch.ones(1, 4, 9), 4), "must be odd.*but got 4; take 5"),
        (lambda: ElasticDepthwiseConv2d(4, 4), "must be odd.*but got 4; take 5"),
        (lambda: ElasticAttention(8, max_inner=8)(torch.ones(1, 2, 8), heads=3), "3 heads for 8"),
        (lambda: ElasticAttention(8, max_inner=8).extract(8, heads=1, inner=9), "inner width must be .* but got 9"),
        (lambda: ElasticFeedForward(4, 8)(torch.ones(1, 4), hidden=9), "out_features must be from 1 to 8, but got 9"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_elastic_layers_compile_whole(dtype: torch.dtype) -> None:
    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = ElasticLayerNorm(8)
            self.attention = ElasticAttention(8, max_inner=16)
            self.conv = ElasticDepthwiseConv1d(8, 5)
            self.batch_norm = ElasticBatchNorm1d(8)
            self.ffn = ElasticFeedForward(8, 16)

        def forward(self, x: Tensor, heads: int, kernel_size: int) -> Tensor:
            x = self.attention(self.norm(x), heads=heads)
            x = self.batch_norm(self.conv(x.transpose(1, 2), kernel_size)).transpose(1, 2)
            return self.ffn(x, hidden=12)

    plain = Mixer().to(dtype)
    compiled = copy.deepcopy(plain)
    run = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    x = torch.randn(3, 7, 6, dtype=dtype)
    for heads, kernel_size in ((2, 3), (3, 5)):
        torch.testing.assert_close(run(x, heads, kernel_size), plain(x, heads, kernel_size))
    assert plain.batch_norm.running_mean is not None
    assert compiled.batch_norm.running_mean is not None
    torch.testing.assert_close(compiled.batch_norm.running_mean, plain.batch_norm.running_mean)
    torch._dynamo.reset()
