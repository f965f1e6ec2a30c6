"""The supernet protocol with both ways to hold candidates behind one argument."""

from functools import partial
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from nasx import Arch
from nasx.nn import Attention, ElasticAttention, ElasticFeedForward, FeedForward, Subnet, Supernet, Switch

ARCHS = [Arch({"heads": heads, "mlp_ratio": ratio}) for heads in (1, 2, 4) for ratio in (0.5, 2)]


class Tiny(nn.Module):
    """One attention and one feed-forward, held either way."""

    def __init__(self, sharing: Literal["separate", "entangled"]) -> None:
        super().__init__()
        self.separate = sharing == "separate"
        self.attention: Switch | ElasticAttention
        self.ffn: Switch | ElasticFeedForward
        if self.separate:
            self.attention = Switch({heads: Attention(8, heads) for heads in (1, 2, 4)})
            self.ffn = Switch({ratio: FeedForward(8, int(8 * ratio), dropout=0.2) for ratio in (0.5, 2)})
        else:
            self.attention = ElasticAttention(8, max_inner=8)
            self.ffn = ElasticFeedForward(8, 16, dropout=0.2)

    def forward(self, x: Tensor, arch: Arch) -> Tensor:
        heads, ratio = int(arch["heads"]), float(arch["mlp_ratio"])
        attend = partial(self.attention, key=heads) if self.separate else partial(self.attention, heads=heads)
        feed = partial(self.ffn, key=ratio) if self.separate else partial(self.ffn, hidden=int(8 * ratio))
        return feed(attend(x))

    def extract(self, arch: Arch) -> nn.Module:
        heads, ratio = int(arch["heads"]), float(arch["mlp_ratio"])
        attention, ffn = self.attention, self.ffn
        parts = (
            attention.extract(heads) if isinstance(attention, Switch) else attention.extract(8, heads=heads),
            ffn.extract(ratio) if isinstance(ffn, Switch) else ffn.extract(8, hidden=int(8 * ratio)),
        )
        return nn.Sequential(*parts).train(self.training)


@pytest.mark.parametrize("sharing", ["separate", "entangled"])
@pytest.mark.parametrize("training", [True, False])
def test_an_extracted_network_is_the_supernets_path(sharing: Literal["separate", "entangled"], training: bool) -> None:
    module = Tiny(sharing).double().train(training)
    supernet: Supernet = module
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    for arch in ARCHS:
        plain, subnet = supernet.extract(arch), Subnet(module, arch)
        found = []
        for run in (plain, subnet, partial(supernet, arch=arch)):
            torch.manual_seed(0)
            found.append(run(x))
        torch.testing.assert_close(found[0], found[2], rtol=1e-12, atol=1e-12)
        assert torch.equal(found[1], found[2])
        assert not any(isinstance(m, Switch | ElasticAttention | ElasticFeedForward) for m in plain.modules())


def test_a_subnet_shares_weights_and_mode_with_its_supernet() -> None:
    supernet = Tiny("entangled").eval()
    subnet = Subnet(supernet, ARCHS[0])
    subnet.train()
    assert supernet.training
    assert {id(p) for p in subnet.parameters()} == {id(p) for p in supernet.parameters()}
