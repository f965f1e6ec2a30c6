"""Network families of many kinds, each a space and a plain builder: what supernets and counted costs must serve."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn

from nasx import Arch, Space, one_of, repeat
from nasx.cells import cell_space
from nasx.nn import Cell, centred, stacked


@dataclass(frozen=True)
class Family:
    """A space, its builder, and one batch of inputs for it."""

    name: str
    space: Space
    make: Callable[[Arch], nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    supernet: dict[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    additive: bool = True

    def __str__(self) -> str:
        return self.name


def images(channels: int, size: int, batch: int = 3) -> Tensor:
    """Return a batch of noise."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


def words(vocabulary: int, length: int = 7, batch: int = 3) -> Tensor:
    """Return a batch of token numbers."""
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(0))


# A convolutional network of torchvision's blocks


class ResNet(nn.Module):
    """torchvision's basic blocks, by width and depth of two stages."""

    def __init__(self, arch: Arch) -> None:
        from torchvision.models.resnet import BasicBlock, conv1x1

        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        width = 8
        stages: list[nn.Module] = []
        for stage in arch.parts("stage"):
            out, blocks = int(stage["width"]), []
            for i in range(int(stage["depth"])):
                shortcut = nn.Sequential(conv1x1(width, out, 2), nn.BatchNorm2d(out)) if i == 0 else None
                blocks.append(BasicBlock(width, out, stride=2 if i == 0 else 1, downsample=shortcut))
                width = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.head(x.mean(dim=(2, 3)))


class MobileNet(nn.Module):
    """torchvision's inverted residuals, by expansion, kernel and squeeze-and-excitation of every block."""

    def __init__(self, arch: Arch) -> None:
        from torchvision.models.mobilenetv3 import InvertedResidual, InvertedResidualConfig

        super().__init__()
        width = int(arch["width"])
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            InvertedResidual(
                InvertedResidualConfig(
                    width,
                    int(part["kernel_size"]),
                    width * int(part["expansion"]),
                    width,
                    bool(part["se"]),
                    "HS",
                    1,
                    1,
                    1.0,
                ),
                nn.BatchNorm2d,
            )
            for part in arch.parts("block")
        )
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=(2, 3)))


# Cells

GRAPH = nx.DiGraph([(i, j) for j in range(4) for i in range(j)])


def convolution(kernel_size: int) -> nn.Module:
    """Return NAS-Bench-201's convolution."""
    return nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, kernel_size, padding="same", bias=False), nn.BatchNorm2d(4))


OPERATIONS: dict[str, Callable[[], nn.Module] | None] = {
    "none": None,
    "skip_connect": nn.Identity,
    "nor_conv_1x1": partial(convolution, 1),
    "nor_conv_3x3": partial(convolution, 3),
    "avg_pool_3x3": partial(nn.AvgPool2d, 3, stride=1, padding=1, count_include_pad=False),
}


class CellNetwork(nn.Module):
    """Two cells of one architecture."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.cells = nn.ModuleList(Cell(GRAPH, OPERATIONS, arch) for _ in range(2))
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        return self.head(x.mean(dim=(2, 3)))


# Transformers


def timm_vit(arch: Arch) -> nn.Module:
    """Return timm's vision transformer."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=16,
        patch_size=8,
        num_classes=5,
        embed_dim=int(arch["embed_dim"]),
        depth=int(arch["depth"]),
        num_heads=2,
        mlp_ratio=float(arch["mlp_ratio"]),
        proj_drop_rate=0.1,
        drop_path_rate=0.1,
    )


def bert(arch: Arch) -> nn.Module:
    """Return a classifier of texts."""
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=30,
            hidden_size=int(arch["width"]),
            num_hidden_layers=int(arch["layer.count"]),
            num_attention_heads=2,
            intermediate_size=int(arch["hidden"]),
            max_position_embeddings=16,
            num_labels=3,
            attn_implementation="eager" if arch["width"] == 0 else "sdpa",
        )
    )


def gpt2(arch: Arch) -> nn.Module:
    """Return a language model whose output layer is its embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=30,
            n_positions=16,
            n_embd=int(arch["width"]),
            n_layer=int(arch["depth"]),
            n_head=2,
            n_inner=int(arch["hidden"]),
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def llama(arch: Arch) -> nn.Module:
    """Return a language model with rotary positions and grouped queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=30,
            hidden_size=16,
            intermediate_size=int(arch["hidden"]),
            num_hidden_layers=int(arch["depth"]),
            num_attention_heads=int(arch["heads"]),
            num_key_value_heads=2,
            head_dim=4,
            max_position_embeddings=16,
            pad_token_id=0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


# Other kinds of modules


class Recurrent(nn.Module):
    """An LSTM by hidden width."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 6)
        self.lstm = nn.LSTM(6, int(arch["hidden"]), batch_first=True)
        self.head = nn.Linear(int(arch["hidden"]), 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.lstm(self.embed(x))[0][:, -1])


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        width = int(arch["width"])
        self.embed = nn.Embedding(30, width)
        self.mix = nn.Sequential(
            nn.Linear(width, int(arch["hidden"])), nn.GELU(), nn.Linear(int(arch["hidden"]), width)
        )
        self.head = nn.Linear(width, 30, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of every position."""
        return self.head(self.mix(self.embed(x)))


class Frozen(nn.Module):
    """A network whose first layer is not trained."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.first = nn.Linear(6, int(arch["width"]))
        self.first.requires_grad_(False)
        self.last = nn.Linear(int(arch["width"]), 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        return self.last(self.first(x).relu())


class OfDict(nn.Module):
    """A network that takes a mapping and returns one."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, int(arch["width"])), nn.Linear(4, int(arch["width"]))
        self.head = nn.Linear(int(arch["width"]), 5)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return logits and features."""
        features = self.a(inputs["a"]).relu() + self.b(inputs["b"]).relu()
        return {"logits": self.head(features), "features": features}


class Relative(nn.Module):
    """Attention with a computed index of relative positions, by window."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.window = int(arch["window"])
        self.table = nn.Parameter(torch.randn(2 * self.window - 1, 2))
        places = torch.arange(self.window)
        self.register_buffer("index", places[:, None] - places[None, :] + self.window - 1)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        x = x[:, : self.window]
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        bias = self.table[self.get_buffer("index")].permute(2, 0, 1)
        x = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.expand(len(x), -1, -1, -1))
        return self.proj(x.transpose(1, 2).flatten(2).mean(dim=1))


def noise(*shape: int) -> Tensor:
    """Return normal noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


HALVES = {"*.qkv": stacked(3)}

FAMILIES = [
    Family(
        "resnet",
        Space(stage=repeat(Space(width=one_of(4, 8, 12), depth=one_of(1, 2)), 2)),
        ResNet,
        (images(3, 8),),
        parts={"stage": "stages"},
        additive=False,  # a stage reads the width of the one before it
    ),
    Family(
        "mobilenet",
        Space(
            width=one_of(8, 16),
            block=repeat(
                Space(kernel_size=one_of(3, 5), expansion=one_of(2, 3), se=one_of(False, True)), one_of(1, 2, 3)
            ),
        ),
        MobileNet,
        (images(3, 8),),
        supernet={
            "layout": {"*.block.1.0.weight": centred},
            "separate": {"blocks.*": "se"},  # squeeze-and-excitation moves the number of the last layer
        },
    ),
    Family("cells", cell_space(GRAPH, OPERATIONS), CellNetwork, (images(3, 8),), additive=False),
    Family(
        "timm vit",
        Space(embed_dim=one_of(8, 16), depth=one_of(1, 2, 3), mlp_ratio=one_of(1.5, 2.0, 4.0)),
        timm_vit,
        (images(3, 16),),
        supernet={"layout": HALVES},
    ),
    Family(
        "bert",
        Space(width=one_of(8, 16), hidden=one_of(12, 24), layer=repeat(Space(kind="bert"), one_of(1, 2, 3))),
        bert,
        (words(30),),
        {"attention_mask": torch.tensor([[1] * 7, [1] * 5 + [0] * 2, [1] * 7])},
        parts={"layer": "bert.encoder.layer"},
    ),
    Family(
        "gpt2",
        Space(width=one_of(8, 16), hidden=one_of(12, 24), depth=one_of(1, 2)),
        gpt2,
        (words(30),),
        supernet={"layout": {"*.c_attn.weight": stacked(3, dim=1), "*.c_attn.bias": stacked(3)}},
    ),
    Family(
        "llama",
        Space(heads=one_of(2, 4), hidden=one_of(12, 24), depth=one_of(1, 2)),
        llama,
        (words(30),),
    ),
    Family(
        "lstm",
        Space(hidden=one_of(4, 6, 8)),
        Recurrent,
        (words(30),),
        supernet={"layout": {"lstm": stacked(4)}},
    ),
    Family("tied", Space(width=one_of(4, 8), hidden=one_of(6, 12)), Tied, (words(30),)),
    Family("frozen", Space(width=one_of(4, 8)), Frozen, (noise(3, 6),)),
    Family("dict", Space(width=one_of(4, 8)), OfDict, ({"a": noise(3, 6), "b": noise(3, 4)},)),
    Family(
        "relative",
        Space(window=one_of(3, 5)),
        Relative,
        (noise(3, 5, 8),),
        supernet={"layout": {"table": {0: centred}}},
    ),
]
