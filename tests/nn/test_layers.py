"""Plain parts: attention against torch's own, stochastic depth's expectation, compilation and export."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nasx.measure import count_params
from nasx.nn import Attention, DropPath, FeedForward, attend, drop_path

few = settings(max_examples=15)


def reference_attention(attention: Attention, x: Tensor, heads: int, scale: float) -> Tensor:
    packed = F.linear(x, attention.qkv.weight, attention.qkv.bias)
    q, k, v = packed.reshape(*x.shape[:2], 3, heads, -1).unbind(2)
    weights = (torch.einsum("bqhd,bkhd->bhqk", q, k) * scale).softmax(-1)
    return attention.proj(torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2))


@few
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 5), st.integers(1, 7), st.sampled_from([None, 0.3]))
def test_attention_is_its_definition(dim: int, heads: int, head_dim: int, out_dim: int, scale: float | None) -> None:
    attention = Attention(dim, heads, inner=heads * head_dim, out_dim=out_dim, scale=scale).double()
    x = torch.randn(2, 5, dim, dtype=torch.float64)
    expected = reference_attention(attention, x, heads, head_dim**-0.5 if scale is None else scale)
    torch.testing.assert_close(attention(x), expected, rtol=1e-10, atol=1e-12)


def test_attention_of_default_widths_is_torchs() -> None:
    attention = Attention(12, 3).double()
    torchs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    torchs.load_state_dict(
        {
            "in_proj_weight": attention.qkv.weight,
            "in_proj_bias": attention.qkv.bias,
            "out_proj.weight": attention.proj.weight,
            "out_proj.bias": attention.proj.bias,
        }
    )
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(attention(x), torchs(x, x, x, need_weights=False)[0])


def test_attention_counts_the_parameters_of_deit_tiny() -> None:
    # 192 * 576 + 576 for q, k and v, 192 * 192 + 192 for the projection
    assert count_params(Attention(192, 3)) == 148_224
    # GLiT-Tiny's widest: 64 * 3 channels with d_k = 384 (table 2)
    assert count_params(Attention(192, 3, inner=384)) == 192 * 1152 + 1152 + 384 * 192 + 192
    assert count_params(Attention(64, 1, inner=32, out_dim=16, qkv_bias=False)) == 64 * 96 + 32 * 16 + 16


def test_values_may_have_another_width_than_queries_that_the_heads_share_too() -> None:
    q, k, v = torch.randn(2, 5, 6), torch.randn(2, 7, 6), torch.randn(2, 7, 15)
    heads = zip(q.chunk(3, -1), k.chunk(3, -1), v.chunk(3, -1), strict=True)
    expected = torch.cat([F.scaled_dot_product_attention(*head) for head in heads], -1)
    torch.testing.assert_close(attend(q, k, v, 3), expected)
    with pytest.raises(ValueError, match="heads share the inner width equally, but got 3 heads for 16"):
        attend(q, k, torch.randn(2, 7, 16), 3)


def test_attention_dropout_acts_in_training_alone() -> None:
    attention = Attention(8, 2, dropout=0.5).double()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    assert not torch.equal(attention(x), attention(x))
    attention.eval()
    assert torch.equal(attention(x), attention(x))


@pytest.mark.parametrize(("heads", "inner"), [(3, 8), (0, 8), (4, 2)])
def test_heads_that_do_not_divide_the_inner_width_are_refused(heads: int, inner: int) -> None:
    with pytest.raises(ValueError, match=f"got {heads} heads for {inner}"):
        Attention(8, heads, inner=inner)


def test_feed_forward_is_two_linears_around_its_activation() -> None:
    ffn = FeedForward(6, 10, activation=nn.SiLU).double()
    x = torch.randn(2, 3, 6, dtype=torch.float64)
    inside = F.silu(x @ ffn.fc1.weight.T + ffn.fc1.bias)
    torch.testing.assert_close(ffn(x), inside @ ffn.fc2.weight.T + ffn.fc2.bias)
    assert list(FeedForward(6, 10).state_dict()) == ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]


@pytest.mark.parametrize("shape", [(4000,), (4000, 2), (4000, 3, 2)])
def test_drop_path_drops_whole_samples_and_keeps_the_mean(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    per_sample = drop_path(torch.ones(shape, dtype=torch.float64), 0.25, training=True).reshape(4000, -1)
    assert torch.equal(per_sample, per_sample[:, :1].expand_as(per_sample))
    dropped = per_sample[:, 0] == 0
    torch.testing.assert_close(per_sample[~dropped], torch.full_like(per_sample[~dropped], 4 / 3))
    assert abs(int(dropped.sum()) - 1000) < 5 * (4000 * 0.25 * 0.75) ** 0.5  # five standard deviations


def test_drop_path_without_a_rate_or_training_is_the_identity_and_draws_nothing() -> None:
    x, state = torch.randn(3, 4), torch.get_rng_state()
    assert DropPath()(x) is x
    assert DropPath(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), state)


def test_drop_path_gradients_follow_the_kept_samples() -> None:
    torch.manual_seed(0)
    x = torch.ones(16, 3, requires_grad=True)
    y = DropPath(0.5)(x)
    torch.autograd.backward(y.sum())
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert 0 < int((y[:, 0] == 0).sum()) < 16


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_drop_path_refuses_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(ValueError, match="0 <= rate < 1"):
        DropPath(rate)
    with pytest.raises(ValueError, match="0 <= rate < 1"):
        drop_path(torch.ones(2, 2), rate, training=False)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(8, 2, inner=12, dropout=0.1)
        self.ffn = FeedForward(8, 16, dropout=0.1)
        self.drop_path = DropPath(0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attention(x))
        return x + self.drop_path(self.ffn(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_plain_parts_compile_whole_for_any_batch(dtype: torch.dtype, training: bool) -> None:
    block = Block().to(dtype).train(training)
    run = torch.compile(block, backend="aot_eager", fullgraph=True, dynamic=True)
    for batch in (2, 5):
        x = torch.randn(batch, 7, 8, dtype=dtype)
        y = run(x)
        assert y.shape == x.shape
        assert y.dtype == dtype
        if not training:
            torch.testing.assert_close(y, block(x))
    torch._dynamo.reset()


def test_plain_parts_export_to_onnx_for_any_batch(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    block, path = Block().eval(), tmp_path / "block.onnx"
    shapes = {"x": {0: torch.export.Dim("batch")}}
    torch.onnx.export(block, (torch.randn(2, 7, 8),), path, dynamo=True, dynamic_shapes=shapes, verbose=False)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = torch.randn(batch, 7, 8)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), block(x).detach(), rtol=1e-4, atol=1e-5)
