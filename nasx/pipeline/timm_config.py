"""The config.json that timm reads beside a network's weights, in the layout of the Hugging Face Hub."""

from typing import Any

from torch import nn

from nasx.pipeline.exported import ExportedModel


def timm_config(model: ExportedModel) -> dict[str, Any]:
    """Return the content of config.json: how timm builds a network, and how it prepares images for it.

    The network of a recipe is built by `nasx_<recipe>`, which `nasx.recipes.<recipe>.timm` registers with timm.
    """
    network: Any = model.network
    of_timm = "timm" in model.arch
    # the recipe takes sizes and classes from what timm passes on
    sizes = {"image_size", "in_channels", "num_classes"}
    vit = {name: value for name, value in model.vit.items() if name not in sizes}
    known: dict[str, Any] = dict(network.pretrained_cfg) if of_timm else {"fixed_input_size": True}
    size = model.vit["image_size"]
    preprocessing = model.preprocessing
    return {
        "architecture": str(model.arch["timm"]) if of_timm else f"nasx_{model.recipe}",
        "num_classes": model.num_classes,
        "num_features": network.num_features if of_timm else network.head.in_features,
        "label_names": list(model.class_names),
        **({} if of_timm else {"model_args": {"arch": dict(model.arch), "vit": vit}}),
        "pretrained_cfg": {
            "num_classes": model.num_classes,
            "input_size": [model.vit["in_channels"], size, size],
            "fixed_input_size": known["fixed_input_size"],
            "crop_pct": preprocessing.crop_pct,
            "crop_mode": "center",
            "interpolation": "bicubic",
            "mean": list(model.mean),
            "std": list(model.std),
            "first_conv": known["first_conv"] if of_timm else _first_convolution(network),
            "classifier": known["classifier"] if of_timm else "head",
            "custom_load": False,
        },
    }


def _first_convolution(network: nn.Module) -> str:
    return next(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
