"""Network families of many kinds, each a space and a plain builder: what supernets and counted costs must serve."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import networkx as nx
import torch
from torch import Tensor, nn

import recipes.autoformer.cost
import recipes.autoformer.model
import recipes.autoformer.space
import recipes.autoformer.supernet
import recipes.glit.cost
import recipes.glit.model
import recipes.glit.space
import recipes.glit.supernet
import recipes.localvit.cost
import recipes.localvit.model
import recipes.localvit.space
import recipes.localvit.supernet
from nasx import Arch, Space, one_of, repeat
from nasx.cells import cell_space
from nasx.cost import AdditiveCost
from nasx.nn import Cell, Supernet, centred, stacked
from recipes.glit.variant import OFFICIAL, PAPER, Locality, Variant


@dataclass(frozen=True)
class Family:
    """A space, its builder, and one batch of inputs for it."""

    name: str
    space: Space
    make: Callable[[Arch], nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    supernet: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `Supernet`."""
    parts: Mapping[str, str] = field(default_factory=dict)
    additive: bool = True
    """Whether costs add up over repeated parts."""
    formulas: Mapping[str, AdditiveCost] = field(default_factory=dict)
    """A recipe's own costs, by kind; its tests compare them with counts."""
    derive: Callable[[], Supernet] | None = None
    """A recipe's own function that returns the supernet."""

    def __str__(self) -> str:
        return self.name

    def make_supernet(self) -> Supernet:
        """Return the supernet with fresh weights."""
        if self.derive is not None:
            return self.derive()
        return Supernet(self.make, self.space, parts=self.parts or None, **self.supernet)

    def archs(self, count: int) -> Sequence[Arch]:
        """Return some architectures, all of them where there are no more."""
        return self.space.sample(0, count) if self.space.size > count else list(self.space)


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
            num_labels=3,  # type: ignore[call-arg]  # of all configurations
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


# The recipes, small

Sharing = Literal["separate", "entangled"]
SHARINGS: tuple[Sharing, ...] = ("separate", "entangled")
SMALL_IMAGES: dict[str, Any] = {"image_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 10}
FEW: dict[str, Any] = {"blocks": 2, "expansion": (1, 4), "qkv_ratio": (0.5, 1.0), "mlp_ratio": (2, 4)}
LOCALITIES: dict[Locality, recipes.glit.space.GLiTSpace] = {
    "conv1d": recipes.glit.space.GLiTSpace(kernel_size=(3, 9), held_kernel_size=9, **FEW),
    "conv2d": recipes.glit.space.GLiTSpace(locality="conv2d", kernel_size=(1, 5), held_kernel_size=5, **FEW),
    "window": recipes.glit.space.GLiTSpace(locality="window", window=(2, 8), held_window=8, **FEW),
}
VARIANTS = {
    "official": OFFICIAL,
    "paper": PAPER,
    "full input": Variant(submodule_input="full"),
    "joint projection": Variant(projection="joint"),
    "norm after every convolution": Variant(local_norm="every"),
}


def glit(name: str, space: Space, variant: Variant, sharing: Sharing) -> Family:
    """Return a small space of GLiT."""
    vit = recipes.glit.model.GLiTConfig(embed_dim=24, variant=variant, **SMALL_IMAGES)
    settings: dict[str, Any] = {"drop_path": 0.3, "init_std": 0.2}
    return Family(
        f"glit, {name}, {sharing}",
        space,
        partial(recipes.glit.model.build_in, vit, **settings),
        (images(1, 8),),
        formulas={"macs": recipes.glit.cost.Macs(vit), "params": recipes.glit.cost.Params(vit)},
        derive=partial(recipes.glit.supernet.supernet, space, vit, sharing=sharing, **settings),
    )


def glit_families() -> list[Family]:
    """Return all variants, localities, sharings and stages."""
    table2 = {locality: recipes.glit.space.table2(choices) for locality, choices in LOCALITIES.items()}
    found = [
        glit(f"{name}, {locality}", table2[locality], replace(variant, locality=locality), sharing)
        for name, variant in VARIANTS.items()
        for locality in LOCALITIES
        for sharing in SHARINGS
        if name in ("official", "paper") or locality == "conv1d"
    ]
    choices = LOCALITIES["conv1d"]
    mixed = recipes.glit.space.with_heads([1, 0], choices)
    stages = {
        "reduced": recipes.glit.space.reduced(choices),
        "stage one": recipes.glit.space.heads_space(choices),
        "stage two": recipes.glit.space.details_space(mixed, choices),
    }
    return found + [glit(name, space, OFFICIAL, sharing) for name, space in stages.items() for sharing in SHARINGS]


def autoformer(qkv_bias: recipes.autoformer.supernet.QkvBias) -> Family:
    """Return a small space of AutoFormer."""
    space = recipes.autoformer.space.AutoFormerSpace(
        embed_dim=(12, 16, 20), depth=(2, 3, 4), num_heads=(1, 2, 3), mlp_ratio=(1, 1.5, 2)
    ).space()
    vit = recipes.autoformer.model.AutoFormerConfig(head_dim=8, max_offset=2, **SMALL_IMAGES)
    settings: dict[str, Any] = {"drop_path": 0.3, "init_std": 0.2}
    return Family(
        f"autoformer, {qkv_bias}",
        space,
        partial(recipes.autoformer.model.AutoFormer, vit, rates_over=4, **settings),
        (images(1, 8),),
        formulas={"macs": recipes.autoformer.cost.Macs(vit), "params": recipes.autoformer.cost.Params(vit)},
        derive=partial(recipes.autoformer.supernet.supernet, space, vit, qkv_bias=qkv_bias, **settings),
    )


def localvit() -> Family:
    """Return a small space of LocalViT."""
    space = recipes.localvit.space.locality(
        recipes.localvit.space.LocalViTSpace(blocks=2, mlp_ratio=(2, 4), kernel_size=(3, 5), reduction=(2, 8))
    )
    vit = recipes.localvit.model.LocalViTConfig(embed_dim=8, num_heads=2, **SMALL_IMAGES)
    settings: dict[str, Any] = {"drop_path": 0.3, "init_std": 0.2}
    return Family(
        "localvit",
        space,
        partial(recipes.localvit.model.LocalViT, vit, **settings),
        (images(1, 8),),
        formulas={"macs": recipes.localvit.cost.Macs(vit), "params": recipes.localvit.cost.Params(vit)},
        derive=partial(recipes.localvit.supernet.supernet, space, vit, **settings),
    )


RECIPES = [*glit_families(), autoformer("thirds"), autoformer("packed"), localvit()]

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
        supernet={"layout": {"*.qkv": stacked(3, stacked(2)), "*.attn.proj.weight": {1: stacked(2)}}},
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
        supernet={"layout": {"*.q_proj.weight": stacked(2), "*.o_proj.weight": {1: stacked(2)}}},  # two groups
    ),
    Family(
        "resnet, a copy per width",
        Space(stage=repeat(Space(width=one_of(4, 8, 12), depth=one_of(1, 2)), 2)),
        ResNet,
        (images(3, 8),),
        supernet={"separate": {"stages": "width"}},
        parts={"stage": "stages"},
        additive=False,
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

BY_NAME = {family.name: family for family in [*FAMILIES, *RECIPES]}
