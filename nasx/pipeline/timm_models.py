"""Vision transformers of recipes as models of timm: built by `timm.create_model`, read from a folder of Hugging Face's.

A recipe's module `timm` derives a class from `TimmViT` and its own network, and registers it under a name. Weights have
the names that they have in the recipe's own network.
"""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Literal, TypeVar

import timm.data
import timm.models
from torch import Tensor, nn

from nasx.arch import Arch
from nasx.nn import ImageConfig
from nasx.pipeline.recipe import Recipe

Pool = Literal["token", "avg", ""]
POOLS = ("token", "avg", "")


class TimmViT(nn.Module):
    """The methods that timm's models have, for a network of `embed`, `blocks`, `norm` and `head`.

    `embed` maps images (B, C, H, W) to tokens (B, N, D), the class token first where there is one. `adopt` makes such a
    network an instance of the derived class; its weights and their names stay.
    """

    embed: Any
    blocks: Any
    norm: Any
    head: Any
    default_pool: ClassVar[Pool] = "token"
    """What the head reads: the class token, the mean of the patches' tokens, or all tokens ("")."""

    def adopt(self, *, num_classes: int, global_pool: Pool | None = None, drop_rate: float = 0.0) -> None:
        """Set what timm's models know of themselves; `num_classes` of 0 takes the head away."""
        self.num_prefix_tokens = int(getattr(self, "cls_token", self) is not None)
        self.embed_dim = self.num_features = self.head_hidden_size = self.head.in_features
        self.head_drop = nn.Dropout(drop_rate)
        proj = next(module for module in self.modules() if isinstance(module, nn.Conv2d))
        reduction = proj.stride[0]
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": self.embed_dim, "reduction": reduction}
            for i in range(len(self.blocks))
        ]
        self._pool_by(self._own_pool if global_pool is None else global_pool)
        self.num_classes = num_classes
        if not num_classes:
            self.head = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the normalised tokens (B, N, D), the class token first where there is one."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of tokens, or what the head reads."""
        if self.global_pool:
            patches = tokens[:, self.num_prefix_tokens :]
            tokens = tokens[:, 0] if self.global_pool == "token" else patches.mean(dim=1)
        tokens = self.head_drop(tokens)
        return tokens if pre_logits else self.head(tokens)

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: Pool | None = None) -> None:
        """Replace the head by a fresh one, or by none where there are 0 classes."""
        if global_pool is not None:
            self._pool_by(global_pool)
        self.num_classes = num_classes
        if not num_classes:
            self.head = nn.Identity()
            return
        head = nn.Linear(self.num_features, num_classes)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        like = next(self.parameters())
        self.head = head.to(like.device, like.dtype)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the normalised tokens and, of the blocks at some indices, the outputs as maps (B, D, H, W).

        An int takes the last ones, None all. `output_fmt="NLC"` gives tokens; the class token comes beside them where
        `return_prefix_tokens`. `norm` normalises them, `stop_early` leaves out later blocks, and `intermediates_only`
        the tokens.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(f"output_fmt is 'NCHW' or 'NLC', but got {output_fmt!r}")
        taken = self._taken(indices)
        x = self.embed(x)
        outputs = []
        for i, block in enumerate(self.blocks):
            if stop_early and i > max(taken):
                break
            x = block(x)
            if i in taken:
                outputs.append(self.norm(x) if norm else x)
        prefix = self.num_prefix_tokens
        maps = [tokens[:, prefix:] for tokens in outputs]
        if output_fmt == "NCHW":
            grid = math.isqrt(maps[0].shape[1])
            maps = [tokens.transpose(1, 2).reshape(-1, self.num_features, grid, grid) for tokens in maps]
        classes = [tokens[:, :prefix] for tokens in outputs]
        found = list(zip(maps, classes, strict=True)) if return_prefix_tokens else maps
        return found if intermediates_only else (self.norm(x), found)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the blocks after the last that is taken, as well as norm and head, and return what is taken."""
        taken = self._taken(indices)
        self.blocks = self.blocks[: max(taken) + 1]
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay spares: class token and positions."""
        return {name for name, _ in self.named_parameters() if name.endswith(("cls_token", "pos_embed"))}

    @property
    def _own_pool(self) -> Pool:
        return self.default_pool if self.num_prefix_tokens else "avg"

    def _pool_by(self, global_pool: Pool) -> None:
        if global_pool not in POOLS:
            raise ValueError(f"global_pool is 'token', 'avg' or '', but got {global_pool!r}")
        if global_pool == "token" and not self.num_prefix_tokens:
            raise ValueError("this network has no class token; choose global_pool='avg'")
        self.global_pool = global_pool

    def _taken(self, indices: int | Sequence[int] | None) -> list[int]:
        """Return the numbers of blocks that are meant: the last ones, all, or those given, from the end if negative."""
        depth = len(self.blocks)
        if indices is None or isinstance(indices, int):
            indices = range(-(depth if indices is None else indices), 0)
        if not indices or not all(-depth <= i < depth for i in indices):
            raise ValueError(f"indices of blocks lie in {-depth}..{depth - 1}, but got {list(indices)}")
        return [i % depth for i in indices]


_Kind = TypeVar("_Kind", bound=type[TimmViT])


def registered(recipe: Recipe, name: str, default: tuple[Arch, ImageConfig], **cfg: Any) -> "Callable[[_Kind], _Kind]":
    """Return a decorator by which `timm.create_model(name)` builds a recipe's networks as instances of a class.

    `default` are the architecture and the ViT config where `arch` and `vit` are left out; `cfg` are settings that timm
    keeps for the name, such as `paper_name`.
    """

    def register(kind: _Kind) -> _Kind:
        def create(pretrained: bool = False, **settings: Any) -> nn.Module:
            return create_timm_model(kind, recipe, name, pretrained, default, settings)

        module = sys.modules[kind.__module__]  # where timm looks for the rest
        create.__name__, create.__qualname__, create.__module__ = name, name, kind.__module__
        create.__doc__ = f"Return a network of {recipe.title}; settings are timm's, `arch` and `vit`."
        vars(module)["default_cfgs"] = {**vars(module).get("default_cfgs", {}), **untrained_cfgs(name, **cfg)}
        vars(module)[name] = timm.models.register_model(create)
        return kind

    return register


def create_timm_model(
    kind: type[TimmViT],
    recipe: Recipe,
    name: str,
    pretrained: bool,
    default: tuple[Arch, ImageConfig],
    settings: Mapping[str, Any],
) -> nn.Module:
    """Return a network of a recipe as timm's function for `name` does, an instance of `kind`.

    `settings` are timm's: `num_classes`, `in_chans`, `img_size`, `drop_rate`, `drop_path_rate`, `global_pool`,
    `features_only` and so on; beside them `arch` and `vit`, as an exported `config.json` has them; `default` stands
    for those that are left out. A ValueError says that there are no weights to download, or that images are not square.
    """
    source = settings.get("pretrained_cfg") or {}
    if pretrained and not (isinstance(source, Mapping) and source.get("source")):
        raise ValueError(
            f"timm has no weights for {name}; load an exported folder with timm.create_model('local-dir:FOLDER', "
            "pretrained=True)"
        )

    def build(
        arch: Mapping[str, Any] = default[0],
        vit: Mapping[str, Any] | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | Sequence[int] = 224,
        global_pool: Pool | None = None,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> nn.Module:
        height, width = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        if height != width:
            raise ValueError(f"images are square, but got an img_size of {img_size}")
        sizes = {"image_size": height, "in_channels": in_chans, "num_classes": num_classes or 1}
        whole = recipe.vit({**asdict(default[1]), **(vit or {}), **sizes})
        network = recipe.build(whole, Arch(arch), drop_path=drop_path_rate)
        network.__class__ = kind  # its methods join the network's own; weights and their names stay
        assert isinstance(network, TimmViT)
        network.adopt(num_classes=num_classes, global_pool=global_pool, drop_rate=drop_rate)
        return network

    return timm.models.build_model_with_cfg(
        build, name, pretrained, feature_cfg={"out_indices": 3, "feature_cls": "getter"}, **settings
    )


def untrained_cfgs(name: str, **more: Any) -> Any:
    """Return the settings that timm keeps for a registered name: ImageNet's, without weights."""
    settings = {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": None,
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "fixed_input_size": True,
        "mean": timm.data.IMAGENET_DEFAULT_MEAN,
        "std": timm.data.IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return timm.models.generate_default_cfgs({name: settings | more})
