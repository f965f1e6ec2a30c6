"""Presets: which settings of the paper they hold, and that variant and locality reach networks, spaces and costs."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from nasx import Arch
from nasx.cli import BadInput, apply_settings
from nasx.data import load_digits
from nasx.pipeline.config import Data
from nasx.pipeline.image_sources import FolderFacts, folder_facts
from nasx.verify import verify
from recipes.glit.__main__ import LINE, main, parse
from recipes.glit.config import PRESETS, Config, fit
from recipes.glit.cost import Macs, PaperMacs, Params, paper_macs
from recipes.glit.model import DEIT_TINY, GLIT_TINY, TINY_VIT, GLiTConfig, build, build_in
from recipes.glit.space import BASE, SMALL, TINY, TINY_CONV2D, TINY_WINDOW, GLiTSpace, same_heads, table2
from recipes.glit.supernet import supernet as make_supernet
from recipes.glit.variant import OFFICIAL, PAPER
from tests.data.folders import write_images
from tests.data.packed import write_shards, write_table

ROOT = Path(__file__).parents[3]
CLASSES = 1000

SHORT = [  # twelve blocks and all stages of the paper, of few steps, candidates and pixels
    *("--set", "data.image_size=80", "--set", "data.val_images=40", "--set", "threads=1"),
    *("--set", "supernet.batch_size=8", "--set", "supernet.epochs=0.01", "--set", "supernet.batch_norm_group=8"),
    *("--set", "retrain.batch_norm_group=8", "--set", "retrain.mix_group=8", "--set", "retrain.warmup_epochs=0"),
    *("--set", "search.population=2", "--set", "search.generations=2", "--set", "search.parents=2"),
    *("--set", "search.recalibration_batches=1", "--set", "search.recalibration_batch_size=8"),
    *("--set", "search.top_k=1", "--set", "retrain.batch_size=8", "--set", "retrain.epochs=0.01"),
    *("--set", "budget.heads_at_most=160e6", "--set", "budget.details_at_most=150e6"),
]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of ImageNet's shape: 1000 classes, JPEGs of many sizes, of which few are square."""
    root, digits, rng = tmp_path_factory.mktemp("photographs"), load_digits(seed=0).train, np.random.default_rng(0)
    pixels = digits.load(range(len(digits)))[:, 0].numpy()
    for number in range(CLASSES):
        name = f"n{number:08}"
        for split, images in (("train", 2), ("val", 1)):
            (root / split / name).mkdir(parents=True)
            for i in range(images):
                image = Image.fromarray(pixels[rng.integers(len(pixels))])
                size = [int(side) for side in rng.integers(40, 260, size=2)]
                image.resize(size).convert("RGB").save(root / split / name / f"{name}_{i}.JPEG", quality=80)
    return root


def test_a_configuration_without_variant_or_locality_means_the_released_code() -> None:
    plain = Config(preset="plain")
    assert (plain.choices(), plain.vit()) == (GLiTSpace(), GLiTConfig())
    assert plain.variant() == OFFICIAL


def test_variant_and_locality_reach_frame_and_axes() -> None:
    plain = Config(preset="plain")
    assert apply_settings(plain, ["model.variant=paper"]).vit().variant == PAPER
    windows = apply_settings(plain, ["space.locality=window"])
    assert windows.choices() == TINY_WINDOW
    assert windows.vit().variant.locality == "window"
    grid = ["space.locality=conv2d", "space.kernel_size=[3,5,7]", "space.held_kernel_size=5"]
    assert apply_settings(plain, grid).choices() == TINY_CONV2D
    assert not apply_settings(plain, grid).vit().has_class_token


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["space.locality=conv2d"], r"space.kernel_size=\[3,5,7\]"),
        (["space.locality=conv3d"], "'conv2d'"),
        (["space.locality=window", "data.image_size=240"], "divide the 225 patches"),
        (["space.held_window=30"], "held_window"),
        (["model.variant=paperr"], "'paper'"),
    ],
)
def test_what_no_variant_or_locality_can_be_is_refused(settings: list[str], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        apply_settings(Config(preset="plain"), settings)


def test_presets_of_before_compute_as_before() -> None:
    for name in ("digits", "cifar10"):
        assert PRESETS[name].variant() == OFFICIAL


@pytest.mark.parametrize(
    ("name", "choices", "bound"),
    [("glit-tiny", TINY, 1.4e9), ("glit-small", SMALL, 4.4e9), ("glit-base", BASE, 17.0e9)],
)
def test_presets_hold_the_papers_settings(name: str, choices: GLiTSpace, bound: float) -> None:
    config = PRESETS[name]
    assert config.choices() == choices
    assert config.vit().embed_dim == 64 * choices.num_heads
    assert (config.data.image_size, config.model.patch_size, config.data.val_images) == (224, 16, 50_000)
    supernet, search, retrain = config.supernet, config.search, config.retrain
    assert (supernet.optimizer, supernet.lr, supernet.batch_size, supernet.epochs) == ("sgd", 0.2, 1024, 100)
    assert (supernet.weight_decay, supernet.label_smoothing) == (1e-4, 0.1)
    assert search.population * search.generations == 1000
    assert (search.top_k, search.recalibration_batches, search.recalibration_batch_size) == (5, 200, 128)
    assert (retrain.lr, retrain.batch_size, retrain.epochs, retrain.weight_decay) == (1e-3, 1024, 300, 0.05)
    assert (retrain.warmup_epochs, retrain.warmup_lr, retrain.final_lr) == (5, 1e-6, 1e-5)
    assert (retrain.drop_path, retrain.label_smoothing, retrain.mixup, retrain.cutmix) == (0.1, 0.1, 0.8, 1.0)
    assert (retrain.repeats, retrain.ema, retrain.clip_norm) == (3, 0.99996, 1.0)
    assert (retrain.augment.auto_augment, retrain.augment.erase) == ("rand-m9-mstd0.5-inc1", 0.25)
    budget = config.budget
    assert (budget.cost, budget.heads_at_most, budget.details_at_most) == ("paper_macs", bound, bound)
    cost = PaperMacs(config.vit())
    assert min(cost(arch) for arch in table2(choices).sample(0, 200)) < bound < cost(table2(choices)[0]) * 10


def test_the_published_network_lies_inside_its_preset() -> None:
    assert PRESETS["glit-tiny"].vit() == TINY_VIT
    budget = PRESETS["glit-tiny"].budget
    assert isinstance(budget.details_at_most, float)
    for arch in (GLIT_TINY, DEIT_TINY):
        assert paper_macs(arch) <= budget.details_at_most


def test_plan_prints_every_value_and_needs_images(photographs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--preset", "glit-tiny", "--no-timing"]) == 2
    assert "--data DIR" in capsys.readouterr().err
    command = ["plan", "--preset", "glit-tiny", "--data", str(photographs), "--no-timing"]
    assert main(command) == 2
    assert "50,000" in capsys.readouterr().err  # more are to be held out than there are
    assert main([*command, "--set", "data.val_images=500"]) == 0
    printed = capsys.readouterr().out
    for line in ("supernet.lr = 0.2", "retrain.ema = 0.99996", "budget.cost = paper_macs", "model.variant = official"):
        assert line in printed
    assert "1,253,683,200 MACs, 5,717,416 parameters" in printed  # DeiT-Tiny's, of 1000 classes


LOCALITIES = {  # table 6, each on a grid of patches that its windows divide or its longest kernel reaches across
    "conv1d": ["data.image_size=5"],
    "conv2d": ["data.image_size=4", "space.kernel_size=[3,5,7]", "space.held_kernel_size=5"],
    "window": ["data.image_size=14"],
}


@pytest.mark.parametrize("name", PRESETS)
def test_networks_of_every_preset_are_one_in_supernet_file_and_formula(name: str) -> None:
    preset = PRESETS[name]
    for seed, (variant, sharing, locality) in enumerate(
        product(("official", "paper"), ("separate", "entangled"), LOCALITIES)
    ):
        config = apply_settings(
            preset,
            [
                *(f"model.variant={variant}", f"model.sharing={sharing}", f"space.locality={locality}"),
                *("model.patch_size=1", f"model.embed_dim={4 * preset.model.num_heads}", "space.blocks=2"),
                *LOCALITIES[locality],
            ],
        )
        vit, space = config.vit(num_classes=3), table2(config.choices())
        torch.manual_seed(seed)
        images = torch.randn(2, 3, vit.image_size, vit.image_size)
        # copying all of the space's modules is slow
        around = space.pin(space.sample(seed).only("block.*.global_heads"))
        supernet = make_supernet(around, vit, sharing=config.model.sharing, init_std=0.2)
        for i, arch in enumerate(around.sample(seed, 3)):
            # three as ONNX, one for every locality
            onnx = i == 0 and (name, variant, sharing) == ("glit-tiny", "paper", "entangled")
            build = partial(build_in, vit, init_std=0.2)
            proof = verify(supernet, arch, images, macs=Macs(vit), params=Params(vit), build=build, onnx=onnx)
            assert proof.passed, f"{variant}, {sharing}, {locality}, {dict(arch)}: {proof}"
            assert len(proof.checks) == 5 + onnx


@pytest.mark.slow
def test_a_run_of_imagenets_shape_stops_and_goes_on(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    arguments = ["run", "--preset", "glit-tiny", "--data", str(photographs), "--run-dir", str(run), "--json", *SHORT]
    process = subprocess.Popen(
        [sys.executable, "-m", "recipes.glit", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    journal = run / "heads" / "search" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    assert main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert list(summary["stages"]) == [
        *(f"{level}/{kind}" for level in ("heads", "details") for kind in ("supernet", "search", "retrain")),
        *("baselines", "refit", "evaluation"),
    ]
    arch = Arch.from_json((run / "arch.json").read_text())
    assert paper_macs.configured(image_size=80)(arch) <= 150e6
    build(arch, CLASSES, 80).load_state_dict(load_file(run / "model.safetensors"))


def test_settings_of_a_folder_fine_tune_where_images_are_few() -> None:
    few, many = (fit(FolderFacts(train=images, classes=10, shorter_side=32)) for images in (4_000, 50_000))
    assert few.finetune.epochs == math.ceil(few.retrain.epochs / 10)
    assert few.finetune.lr == few.retrain.lr / 10
    assert many.finetune.epochs == 0
    assert not any(preset.finetune.epochs for preset in PRESETS.values()), "the papers' settings are theirs"


@pytest.mark.parametrize(("image_size", "patch_size"), [(16, 2), (96, 12), (100, 10), (224, 16), (256, 16), (384, 24)])
def test_settings_and_budgets_of_a_folder_fit_the_size_that_is_asked_for(
    tmp_path: Path, image_size: int, patch_size: int
) -> None:
    folder = write_images(tmp_path, {"train": 12, "test": 3}, ["ant", "bee"], size=(40, 36))
    config = LINE.config(parse(["plan", "--data", str(folder), "--set", f"data.image_size={image_size}"]))
    assert (config.data.image_size, config.model.patch_size) == (image_size, patch_size)
    deit = Macs(config.vit(num_classes=2))(same_heads(config.model.num_heads, config.choices()))
    assert config.budget.heads_at_most == round(1.2 * deit)


@pytest.mark.parametrize(("image_size", "near"), [(97, 96), (94, 88), (257, 252)])
def test_sizes_that_no_patches_fit_are_refused(image_size: int, near: int) -> None:
    """Patches of one pixel would cost a thousand times as much."""
    with pytest.raises(ValueError, match=f"write data.image_size={near}"):
        fit(FolderFacts(1000, 10, 100, image_size))
    assert fit(FolderFacts(1000, 10, 100, near)).data.image_size == near


def test_settings_fit_shards_and_tables_as_they_fit_folders(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "folder", {"train": 12, "test": 3}, ["ant", "bee"], size=(40, 36))
    shards, table = write_shards(folder, tmp_path / "shards"), write_table(folder, tmp_path / "table")
    facts = folder_facts(folder, Data())
    assert facts == FolderFacts(train=24, classes=2, shorter_side=36)
    assert folder_facts(shards, Data(source="shards")) == facts
    assert folder_facts(table, Data(source="hf")) == facts

    settings = ["--set", "data.source=hf"]
    config = LINE.config(parse(["plan", "--data", str(table), *settings]))
    assert config == apply_settings(fit(facts), ["data.source=hf"])
    with pytest.raises(BadInput, match=r"no column 'img', only image, label; name it with data\.image_column or"):
        LINE.config(parse(["plan", "--data", str(table), *settings, "--set", "data.image_column=img"]))
