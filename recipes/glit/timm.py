"""Importing this module lets `timm.create_model("glit_tiny_patch16_224")` build GLiT-Tiny, with fresh weights."""

from collections.abc import Sequence
from typing import Any, Literal

import timm.data
import timm.models
from torch import Tensor, nn

from .model import GLIT_TINY, Frame, GLiT

__all__ = ["TimmGLiT", "glit_tiny_patch16_224"]

Pool = Literal["token", "avg", ""]


class TimmGLiT(GLiT):
    """GLiT-Tiny with the methods that timm's models have; the weights' names are those of `build(GLIT_TINY)`.

    `global_pool` is what the head reads: the class token, the mean of the patches' tokens, or all tokens ("").
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] = 224,
        global_pool: Pool = "token",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        height, width = img_size if isinstance(img_size, tuple) else (img_size, img_size)
        if height != width:
            raise ValueError(f"images are square, but got an img_size of {img_size}")
        frame = Frame(image_size=height, in_channels=in_chans, num_classes=num_classes or 1)
        parts = GLIT_TINY.parts("block")
        super().__init__(frame, parts, drop_path=drop_path_rate)
        self.num_features = self.head_hidden_size = self.embed_dim = frame.embed_dim
        self.head_drop = nn.Dropout(drop_rate)
        self.feature_info = [
            {"module": f"blocks.{i}", "num_chs": frame.embed_dim, "reduction": frame.patch_size}
            for i in range(len(parts))
        ]
        self.num_classes = num_classes
        self._pool_by(global_pool)
        if not num_classes:
            self.head = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the normalised tokens (B, N, D), class token first."""
        x = self.embed(images)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward_head(self, tokens: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of tokens, or what the head reads."""
        if self.global_pool:
            tokens = tokens[:, 0] if self.global_pool == "token" else tokens[:, 1:].mean(dim=1)
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
        self.head = head.to(self.pos_embed.device, self.pos_embed.dtype)

    def _pool_by(self, global_pool: Pool) -> None:
        if global_pool not in ("token", "avg", ""):
            raise ValueError(f"global_pool is 'token', 'avg' or '', but got {global_pool!r}")
        self.global_pool = global_pool

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
        maps = [tokens[:, 1:] for tokens in outputs]
        if output_fmt == "NCHW":
            grid = self.frame.grid
            maps = [tokens.transpose(1, 2).reshape(-1, self.num_features, grid, grid) for tokens in maps]
        classes = [tokens[:, :1] for tokens in outputs]
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

    def _taken(self, indices: int | Sequence[int] | None) -> list[int]:
        """Return the numbers of blocks that are meant: the last ones, all, or those given, from the end if negative."""
        depth = len(self.blocks)
        if indices is None or isinstance(indices, int):
            indices = range(-(depth if indices is None else indices), 0)
        if not indices or not all(-depth <= i < depth for i in indices):
            raise ValueError(f"indices of blocks lie in {-depth}..{depth - 1}, but got {list(indices)}")
        return [i % depth for i in indices]

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay spares."""
        return {"cls_token", "pos_embed"}


default_cfgs = timm.models.generate_default_cfgs(
    {
        "glit_tiny_patch16_224": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": None,
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "fixed_input_size": True,
            "mean": timm.data.IMAGENET_DEFAULT_MEAN,
            "std": timm.data.IMAGENET_DEFAULT_STD,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "paper_name": "GLiT: Neural Architecture Search for Global and Local Image Transformer",
        }
    }
)


@timm.models.register_model
def glit_tiny_patch16_224(pretrained: bool = False, **settings: Any) -> nn.Module:
    """Return GLiT-Tiny; settings are those of `TimmGLiT`, and timm's own, such as `features_only`."""
    if pretrained:
        raise ValueError("no weights are published with timm; load GLiT's checkpoint with recipes.glit.official")
    return timm.models.build_model_with_cfg(
        TimmGLiT,
        "glit_tiny_patch16_224",
        pretrained,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **settings,
    )
