"""Counting one network: products, parameters, elements written, and the most memory that is live at once."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers.config import set_fused_attn
from timm.models import create_model
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry

from nasx.measure import Call, count_activations, count_macs, count_params, count_peak_memory
from nasx.measure.count import macs_by_module


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224"])
def test_timms_tiny_vit_has_its_known_size(name: str, fused: bool) -> None:
    set_fused_attn(fused)
    try:
        model = create_model(name)
    finally:
        set_fused_attn(True)
    assert count_params(model) == 5_717_416
    assert count_macs(model, torch.zeros(1, 3, 224, 224)) == 1_253_683_200


def test_products_and_convolutions_by_hand() -> None:
    assert count_macs(nn.Linear(7, 5), torch.zeros(1, 7)) == 7 * 5
    assert count_macs(nn.Conv1d(6, 6, 17, padding="same", groups=6), torch.zeros(1, 6, 11)) == 17 * 6 * 11
    assert count_macs(nn.Conv2d(3, 8, 4, stride=4), torch.zeros(1, 3, 16, 16)) == 3 * 8 * 16 * 16
    assert count_macs(nn.Sequential(nn.LayerNorm(4), nn.GELU()), torch.zeros(1, 4)) == 0


class Product(nn.Module):
    """A product of tensors that are no parameters."""

    def __init__(self, product: Callable[..., Tensor]) -> None:
        super().__init__()
        self.product = product

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.product(*tensors)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_products_that_torchs_counter_leaves_out_are_counted(device: str) -> None:
    def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
        return [torch.zeros(shape, device=device) for shape in shapes]

    bilinear = nn.Bilinear(3, 4, 5, device=device)
    assert count_macs(bilinear, *tensors((2, 3), (2, 4))) == 2 * 5 * 3 * 4
    assert count_macs(bilinear, *tensors((2, 7, 3), (2, 7, 4))) == 2 * 7 * 5 * 3 * 4
    assert count_macs(Product(torch.matmul), *tensors((3, 4), (4,))) == 3 * 4
    assert count_macs(Product(torch.addmv), *tensors((3,), (3, 4), (4,))) == 3 * 4
    assert count_macs(Product(torch.matmul), *tensors((4,), (4,))) == 4
    assert count_macs(Product(torch.vdot), *tensors((4,), (4,))) == 4
    assert count_macs(Product(torch.addbmm), *tensors((2, 5), (3, 2, 4), (3, 4, 5))) == 3 * 2 * 4 * 5
    assert count_macs(Product(torch.conv_tbc), *tensors((9, 2, 3), (5, 3, 4), (4,))) == (9 - 4) * 2 * 5 * 3 * 4


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support is in beta state")
def test_sparse_matrices_have_the_products_of_what_they_store() -> None:
    dense, x = torch.eye(8, 6), torch.ones(6, 4)  # six ones, in three blocks of two rows and columns
    kinds = {"coo": 6, "csr": 6, "csc": 6, "bsr": 3 * 4}
    sparse = dense.to_sparse(), dense.to_sparse_csr(), dense.to_sparse_csc(), dense.to_sparse_bsr((2, 2))
    for (kind, stored), matrix in zip(kinds.items(), sparse, strict=True):
        products = [lambda m, x: m @ x, torch.sparse.mm, lambda m, x: torch.sparse.addmm(torch.zeros(8, 4), m, x)]
        assert [count_macs(Product(product), matrix, x) for product in products] == 3 * [stored * 4], kind
        assert count_macs(Product(torch.mv), matrix, x[:, 0]) == stored, kind
        assert count_macs(Product(F.linear), x.T, matrix) == stored * 4, kind
    assert count_macs(Product(torch.sparse.mm), sparse[0], sparse[0].T) == 0
    assert count_macs(Product(torch.mm), dense, x) == count_macs(Product(torch.addmm), x[:1], dense, x) == 8 * 6 * 4


def test_products_of_integers_are_counted() -> None:
    first, second = torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)
    assert count_macs(Product(torch._int_mm), first, second) == 32 * 16 * 8
    assert count_macs(Product(torch._weight_int8pack_mm), torch.ones(4, 16), first, torch.ones(32)) == 4 * 16 * 32


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused_with_what_to_give() -> None:
    nested = torch.nested.nested_tensor([torch.ones(3, 6), torch.ones(5, 6)], layout=torch.jagged)
    with pytest.raises(ValueError, match="takes no nested tensors; count with a padded input"):
        count_macs(nn.Linear(6, 4), nested)


def test_an_operator_that_is_not_known_counts_nothing_until_it_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    distances, points = Product(torch.cdist), (torch.zeros(5, 3), torch.zeros(6, 3))
    assert count_macs(distances, *points) == 0
    # what register_flop_formula does, for this test alone
    monkeypatch.setitem(flop_registry, torch.ops.aten._cdist_forward, lambda *_, **__: 2 * 5 * 6 * 3)
    assert count_macs(distances, *points) == 5 * 6 * 3
    monkeypatch.setitem(flop_registry, torch.ops.aten._cdist_forward, lambda *_, **__: 7)
    with pytest.raises(ValueError, match=r"7 flops of \w+ are no whole number of multiply-adds"):
        count_macs(distances, *points)


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_mode_and_statistics(training: bool) -> None:
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(nn.Linear(3, 3), norm).train(training)
    count_macs(model, torch.ones(1, 3))
    assert model.training is training
    assert norm.num_batches_tracked == 0
    assert all(p.grad is None for p in model.parameters())


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 4)
    assert count_params(nn.Sequential(layer, layer)) == 16


TOKENS, WIDTH, HIDDEN = 5, 16, 32


def attention_macs(tokens: int, width: int) -> int:
    return 4 * tokens * width**2 + 2 * tokens**2 * width


@pytest.mark.parametrize("mode", ["train", "eval", "no_grad"])
def test_torchs_own_encoder_layer_is_counted_despite_its_fast_path(mode: str) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, nhead=2, dim_feedforward=HIDDEN, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 3).train(mode == "train")
    by_hand = attention_macs(TOKENS, WIDTH) + 2 * TOKENS * WIDTH * HIDDEN
    with torch.set_grad_enabled(mode != "no_grad"):
        for device in ("cpu", "meta"):
            x = torch.zeros(1, TOKENS, WIDTH, device=device)
            assert count_macs(layer.to(device), x) == by_hand
            assert count_macs(encoder.to(device), x) == 3 * by_hand
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_recurrent_layers_are_counted_as_plain_products(device: str) -> None:
    x = torch.zeros(2, 7, 6, device=device)
    lstm = nn.LSTM(6, 8, batch_first=True, device=device)
    assert count_macs(lstm, x) == 2 * 7 * 4 * 8 * (6 + 8)
    gru = nn.GRU(6, 8, num_layers=2, bidirectional=True, batch_first=True, device=device)
    assert count_macs(gru, x) == 2 * 7 * 2 * 3 * 8 * ((6 + 8) + (16 + 8))
    assert torch.backends.mkldnn.enabled


def test_fused_attention_is_counted_on_cpus() -> None:
    class Attention(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v)

    q, k, v = torch.zeros(2, 3, 4, 8), torch.zeros(2, 3, 6, 8), torch.zeros(2, 3, 6, 10)
    assert count_macs(Attention(), q, k, v) == 2 * 3 * 4 * 6 * (8 + 10)


class Small(nn.Module):
    """Two layers and attention whose tensors can be counted by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)
        self.norm = nn.LayerNorm(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.norm(self.drop(F.scaled_dot_product_attention(q, k, v).relu()))


def test_activations_are_what_weighted_modules_and_attentions_products_write() -> None:
    qkv, scores, out, normed = 2 * 4 * 24, 2 * 4 * 4, 2 * 4 * 8, 2 * 4 * 8
    assert count_activations(Small(), torch.zeros(2, 4, 8)) == qkv + scores + out + normed
    assert count_activations(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()), torch.zeros(1, 3, 6, 6)) == 5 * 4 * 4
    twice = nn.Linear(4, 4)
    assert count_activations(nn.Sequential(twice, twice), torch.zeros(3, 4)) == 2 * 3 * 4
    assert count_activations(twice, torch.zeros(3, 4)) == 3 * 4, "a network may be one layer"


class Queries(nn.Module):
    """Views of weights that modules take as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.table = nn.Parameter(torch.zeros(1, 4, 8)), nn.Embedding(6, 8)
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm(self.table.weight.unsqueeze(0))
        outputs: Tensor = self.attention(self.queries.expand(len(x), -1, -1), x, x)[0]
        return outputs


def test_modules_may_take_views_of_weights() -> None:
    network, x = Queries(), torch.zeros(2, 6, 8)
    macs = macs_by_module(network, Call((x,)))
    assert macs[""] == macs["attention"] == count_macs(network, x) == 2 * (2 * (4 + 6) * 8 * 8 + 2 * 4 * 6 * 8)
    products, outputs = 2 * (2 * 4 * 6 + 4 * 8), 2 * (4 * 8 + 4 * 6)  # and the mean of the heads' weights
    assert count_activations(network, x) == 6 * 8 + products + outputs


def test_gradients_may_be_part_of_the_forward_pass() -> None:
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                x = x.requires_grad_()
                return torch.autograd.grad(self.energy(x).sum(), x)[0]

    assert macs_by_module(Force(), Call((torch.zeros(2, 3),))) == {"": 80, "energy": 40, "energy.0": 30, "energy.2": 10}


def test_arguments_and_modes_are_the_callers() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)
            self.seen: list[bool] = []

        def forward(self, inputs: dict[str, Tensor], *, times: int) -> Tensor:
            self.seen.append(self.training)
            return sum((self.layer(inputs["x"]) for _ in range(times)), torch.zeros(()))

    network = Scaled()
    inputs = {"x": torch.zeros(3, 4)}
    assert count_macs(network, inputs, times=5) == 5 * 3 * 4 * 2
    assert count_activations(network, inputs, times=5) == 5 * 3 * 2
    assert Call.of(Call((inputs,), {"times": 1}))(network).shape == (3, 2)
    assert Call.of((inputs,)).args == Call.of(inputs).args == (inputs,)
    assert network.training
    assert network.seen == [False, False, True]


class Steps(nn.Module):
    """A forward pass with a peak in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(10, 1000, bias=False), nn.Linear(1000, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(x).relu())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_peak_memory_is_weights_inputs_and_what_is_live_at_once(dtype: torch.dtype) -> None:
    bytes_each = torch.tensor([], dtype=dtype).element_size()
    weights, inputs, wide, out = 2 * 10 * 1000, 7 * 10, 7 * 1000, 7 * 10
    network, x = Steps().to(dtype), torch.zeros(7, 10, dtype=dtype)
    # relu reads one wide tensor and writes another; when the output is made, one of them is left
    assert count_peak_memory(network, x) == bytes_each * (weights + inputs + 2 * wide)
    assert count_peak_memory(network, x[:0]) == bytes_each * weights
    assert count_peak_memory(nn.Sequential(network.wide, network.narrow), x) == bytes_each * (
        weights + inputs + wide + out
    )


def test_peak_memory_frees_what_is_no_longer_used_and_counts_what_is_shared_once() -> None:
    chain = nn.Sequential(*[nn.Linear(100, 100, bias=False) for _ in range(20)])
    assert count_peak_memory(chain, torch.zeros(5, 100)) == 4 * (20 * 100 * 100 + 3 * 5 * 100)
    layer = nn.Linear(100, 100, bias=False)
    same = nn.Sequential(*[layer] * 20)
    assert count_peak_memory(same, torch.zeros(5, 100)) == 4 * (100 * 100 + 3 * 5 * 100)
    views = nn.Sequential(nn.Flatten(), nn.Unflatten(1, (10, 10)), nn.Flatten())
    assert count_peak_memory(views, torch.zeros(5, 100)) == 4 * 5 * 100


def test_tied_weights_and_buffers_are_counted_once_each() -> None:
    embedding, head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
    head.weight = embedding.weight
    tied = nn.Sequential(embedding, head)
    tied.register_buffer("table", torch.zeros(1000))
    out = 3 * 8 + 3 * 50
    assert count_peak_memory(tied, torch.zeros(3, dtype=torch.int64)) == 4 * (50 * 8 + 1000 + out) + 8 * 3


def test_networks_that_look_at_values_are_measured_where_they_are() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if bool(x.sum() >= 0) else x

    x = torch.zeros(3, 4)
    assert count_macs(Looks(), x) == 3 * 4 * 4
    assert count_peak_memory(Looks(), x) >= 4 * (16 + 12 + 12)

    class Converts(Looks):
        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + float(x.numpy().sum())

    assert count_peak_memory(Converts(), x) >= 4 * (16 + 12 + 12)
