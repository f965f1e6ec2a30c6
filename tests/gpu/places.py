"""Where the tests of a GPU run: on CUDA as `pytest -m gpu`, and most of them on a CPU too, which proves the tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nasx.cli import apply_settings
from nasx.pipeline.context import Context
from nasx.pipeline.image_sources import ImageSource, load_images
from nasx.pipeline.machine import Machine
from nasx.pipeline.progress import silent
from nasx.pipeline.recipe import Recipe
from nasx.pipeline.vit import ViTProblem
from nasx.run import Journal, StageContext, StopFlag
from nasx.train import ALONE
from recipes.autoformer.problem import RECIPE as AUTOFORMER
from recipes.glit.problem import RECIPE as GLIT
from recipes.localvit.problem import RECIPE as LOCALVIT

ROOT = Path(__file__).parents[2]
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
EVERYWHERE = pytest.mark.parametrize("device", ["cpu", CUDA])
RECIPES = {recipe.name: recipe for recipe in (GLIT, AUTOFORMER, LOCALVIT)}

SHORT = [
    *("supernet.epochs=0.5", "supernet.warmup_epochs=0", "retrain.epochs=0.5", "retrain.warmup_epochs=0"),
    *("search.population=4", "search.generations=2", "search.top_k=1"),
]
"""Settings that make a run on the digits end within seconds."""
FURTHER = {"autoformer": ["finetune.epochs=0.2"]}


def short_problem(name: str, settings: Sequence[str] = ()) -> ViTProblem[Any]:
    """Return a recipe's search on the digits, cut short."""
    recipe: Recipe = RECIPES[name]
    config = apply_settings(recipe.presets["digits"], [*SHORT, *FURTHER.get(name, []), *settings])
    return recipe.problem(config, load_images(ImageSource(config.data, config.seed)))


def on(device: str, **more: Any) -> Machine:
    """Return the settings of a machine whose networks are trained one after the other."""
    return Machine(device=device, processes=1, **more)


def context_on(device: str, problem: ViTProblem[Any], root: Path, name: str) -> Context:
    """Return what a stage's work is handed, outside of any run directory."""
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    place = StageContext(name, {}, directory, root, Journal(directory / "journal.jsonl"), StopFlag())
    return Context(problem, on(device), ALONE, silent, place)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the distance of two tensors over the length of the second."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
