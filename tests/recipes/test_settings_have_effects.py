"""Every field of every recipe's settings changes what a run computes, and is refused by name where it cannot.

A field is given a second value, and what a run would compute with it is compared: the stages themselves are run on
networks of a few thousand parameters, for a step or two.
"""

import hashlib
import importlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from nasx.arch import split
from nasx.cli import BadInput, apply_settings, field_names
from nasx.latency import Latency, MeasuredOn
from nasx.pipeline import networks
from nasx.pipeline.commands import CommandLine, note_unused
from nasx.pipeline.estimate import Estimator, estimates
from nasx.pipeline.fingerprint import fingerprint
from nasx.pipeline.image_sources import ImageSource, load_images
from nasx.pipeline.machine import Machine
from nasx.pipeline.problem import Problem
from nasx.pipeline.runner import run_stages
from nasx.pipeline.vit import ViTProblem
from nasx.train import ALONE
from tests.pipeline.problems import context_of

pytestmark = pytest.mark.filterwarnings("ignore:the class folders are numbers")

RECIPES = ("glit", "autoformer", "localvit")
MACHINE = Machine(device="cpu", processes=1)

BASE = [
    *("data.source=folder", "data.val_images=12", "data.leaks=allow", "seed=0"),
    *("supernet.epochs=0.7", "supernet.batch_size=16", "supernet.warmup_epochs=0"),
    *("search.population=3", "search.generations=2", "search.parents=2", "search.top_k=2"),
    *("search.recalibration_batches=1", "search.recalibration_batch_size=16"),
    *("retrain.epochs=0.7", "retrain.batch_size=16", "retrain.warmup_epochs=0"),
]
OWN = {
    "glit": [
        *("model.embed_dim=12", "space.blocks=2", "space.global_heads=[0,2]", "space.kernel_size=[3,5]"),
        *("space.expansion=[1,2]", "space.held_expansion=2", "space.qkv_ratio=[1,2]", "space.mlp_ratio=[2,4]"),
        *("method=spos", "budget.heads_at_most=null"),
        *("budget.details_at_least=null", "budget.details_at_most=null"),
    ],
    "autoformer": [
        *("space.embed_dim=[8,16]", "space.depth=[1,2]", "space.num_heads=[1,2]", "space.mlp_ratio=[2,3]"),
        *("budget.at_least=null", "budget.at_most=null", "finetune.epochs=0.4"),
    ],
    "localvit": [
        *("model.embed_dim=8", "model.num_heads=2", "space.blocks=2", "space.reduction=[2,4]", "space.mlp_ratio=[2,3]"),
        *("budget.at_least=null", "budget.at_most=null"),
    ],
}

TRAININGS: dict[
    str, tuple[str, Sequence[str]]
] = {  # of the supernet and of single networks: the second value, and what the field needs beside it
    "epochs": ("2", ()),
    "batch_size": ("8", ()),
    "lr": ("0.5", ()),
    "final_lr": ("1e-3", ()),
    "warmup_lr": ("1e-4", ("warmup_epochs=0.3",)),
    "warmup_epochs": ("0.3", ()),
    "schedule": ("epoch", ("epochs=2",)),
    "weight_decay": ("0.9", ()),
    "drop_path": ("0.6", ()),
    "label_smoothing": ("0.4", ()),
    "clip_norm": ("1e-3", ()),
    "mixup": ("0.7", ()),
    "cutmix": ("0.7", ()),
    "mix_group": ("4", ("mixup=0.7",)),
    "repeats": ("2", ()),
    "batch_norm_group": ("4", ()),
    "teacher": ("TEACHER", ()),
    "distillation": ("hard", ("teacher=TEACHER",)),
    "distillation_weight": ("0.9", ("teacher=TEACHER",)),
    "distillation_temperature": ("5", ("teacher=TEACHER",)),
    "augment.pad_crop": ("2", ()),
    "augment.flip": ("true", ()),
    "augment.erase": ("0.9", ()),
    "augment.rotate": ("90", ()),
    "augment.zoom": ("0.5", ()),
    "augment.resized_crop": ("[0.1,0.5]", ()),
    "augment.auto_augment": ("rand-m9-mstd0.5-inc1", ()),
    "augment.color_jitter": ("0.8", ()),
}


def of_training(section: str) -> dict[str, tuple[str, Sequence[str]]]:
    return {
        f"{section}.{field}": (value, [f"{section}.{need}" for need in needs])
        for field, (value, needs) in TRAININGS.items()
    }


COMMON: dict[str, tuple[str, Sequence[str]]] = {
    "preset": ("other", ()),
    "seed": ("1", ()),
    "threads": ("2", ()),
    "precision": ("bfloat16", ()),
    "data.source": ("digits", ("data.val_images=null",)),
    "data.image_size": ("16", ()),
    "data.channels": ("1", ()),
    "data.class_order": ("number", ()),
    "data.image_column": ("picture", ("data.source=hf",)),
    "data.label_column": ("kind", ("data.source=hf",)),
    "data.val_images": ("14", ()),
    "data.val_fraction": ("0.4", ("data.val_images=null",)),
    "data.mean": ("[0.1,0.2,0.3]", ("data.std=[1,1,1]", "data.mean=[0,0,0]")),
    "data.std": ("[1,2,3]", ("data.mean=[0,0,0]", "data.std=[1,1,1]")),
    "data.leaks": ("drop", ()),
    **of_training("supernet"),
    "supernet.paths": ("architectures", ()),
    "supernet.strata": ("2", ("supernet.paths=stratified",)),
    "supernet.from_run": ("EARLIER", ()),
    "supernet.optimizer": ("sgd", ()),
    "supernet.decay": ("matrices", ("supernet.optimizer=sgd", "supernet.weight_decay=0.9")),
    "search.method": ("random", ()),
    "search.population": ("4", ()),
    "search.generations": ("3", ()),
    "search.parents": ("1", ("search.population=8", "search.generations=4", "search.parents=6")),
    "search.mutation_probability": ("1.0", ("search.population=8", "search.generations=4")),
    "search.top_k": ("1", ()),
    "search.recalibration_batches": ("2", ()),
    "search.recalibration_batch_size": ("8", ()),
    "search.recalibration_augment": ('{"rotate": 90}', ()),
    "search.eval_batch_size": ("5", ()),
    "search.racing_error": (
        "0",
        ("data.source=digits", "data.val_images=null", "data.val_fraction=0.7", "search.population=6"),
    ),
    "trust.n": ("5", ()),
    "trust.seeds": ("2", ("trust.n=5",)),
    **of_training("retrain"),
    "retrain.method": ("halving", ("retrain.start=4",)),
    "retrain.start": ("6", ("retrain.method=halving",)),
    "retrain.ema": ("0.5", ()),
    "retrain.keep": ("raw", ("retrain.ema=0.5", "retrain.keep=ema")),
    "retrain.refit": ("true", ()),
    "retrain.compile": ("true", ()),
    "finetune.epochs": ("1", ()),
    "finetune.lr": ("0.5", ("finetune.epochs=1",)),
    "finetune.final_lr": ("1e-5", ("finetune.epochs=1",)),
    "finetune.warmup_epochs": ("0.3", ("finetune.epochs=1",)),
    "model.patch_size": ("4", ()),
    "model.init_std": ("0.9", ()),
    "space.mlp_ratio": ("[4]", ()),
    "budget.macs_at_most": ("70%", ()),
    "budget.params_at_most": ("70%", ()),
    "budget.latency": ("TABLE", ("budget.latency_at_most=1e9", "budget.latency=SLOWER")),
    "budget.latency_at_most": ("70%", ("budget.latency=TABLE", "budget.latency_at_most=1e9")),
}
SANDWICH = ("supernet.paths=sandwich", "supernet.optimizer=sgd")
"""Several paths a step, and an optimizer that the size of gradients matters to."""

FIELDS: Mapping[str, Mapping[str, tuple[str, Sequence[str]]]] = {
    "glit": {
        "supernet.reduction": ("sum", (*SANDWICH, "space.global_heads=[2]")),
        "budget.cost": ("paper_macs", ()),
        "budget.heads_at_most": ("95%", ("method=hierarchical",)),
        "budget.details_at_least": ("30%", ()),
        "budget.details_at_most": ("70%", ()),
        "method": ("hierarchical", ()),
        "model.embed_dim": ("24", ()),
        "model.num_heads": ("6", ()),
        "model.sharing": ("separate", ("model.sharing=entangled",)),
        "model.variant": ("paper", ()),
        "space.blocks": ("3", ()),
        "space.locality": ("conv2d", ()),
        "space.global_heads": ("[0,1]", ()),
        "space.kernel_size": ("[5,9]", ()),
        "space.expansion": ("[2,4]", ()),
        "space.window": ("[2,4]", ("space.locality=window", "space.held_window=4", "space.window=[2,4,8]")),
        "space.qkv_ratio": ("[1]", ()),
        "space.held_kernel_size": ("3", ("method=hierarchical",)),
        "space.held_expansion": ("1", ("method=hierarchical",)),
        "space.held_window": (
            "2",
            ("method=hierarchical", "space.locality=window", "space.held_window=4", "space.window=[2,4,8]"),
        ),
        "space.held_qkv_ratio": ("2", ()),
        "space.held_mlp_ratio": ("2", ()),
    },
    "autoformer": {
        "supernet.reduction": ("sum", SANDWICH),
        "supernet.drop_path": ("0.6", ("space.depth=[2]",)),  # the first block drops nothing
        "budget.cost": ("macs", ()),
        "budget.at_least": ("30%", ()),
        "budget.at_most": ("70%", ()),
        "model.supernet_dim": ("24", ()),
        "model.head_dim": ("4", ()),
        "model.max_offset": ("1", ()),
        "model.relative_positions": ("false", ()),
        "space.embed_dim": ("[8,24]", ()),
        "space.depth": ("[2]", ()),
        "space.num_heads": ("[1,4]", ()),
    },
    "localvit": {
        "supernet.reduction": ("sum", (*SANDWICH, "space.depthwise=[true]", 'space.channel_attention=["none"]')),
        "budget.cost": ("params", ()),
        "budget.at_least": ("30%", ()),
        "budget.at_most": ("70%", ()),
        "model.embed_dim": ("16", ()),
        "model.num_heads": ("4", ()),
        "space.blocks": ("1", ()),
        "space.depthwise": ("[true]", ()),
        "space.kernel_size": ("[3]", ()),
        "space.activation": ('["relu6"]', ()),
        "space.channel_attention": ('["se"]', ()),
        "space.reduction": ("[2]", ()),
        "space.gate": ('["sigmoid"]', ()),
    },
}
UNUSED: Mapping[str, Sequence[str]] = {  # fields that nothing gives an effect to in a recipe
    "glit": (),
    "autoformer": (  # whose networks have no BatchNorm
        *("supernet.batch_norm_group", "retrain.batch_norm_group", "search.recalibration_batches"),
        *("search.recalibration_batch_size", "search.recalibration_augment"),
        "retrain.refit",  # which would lose the supernet's weights
    ),
    "localvit": (),
}
MORE_WORK = ("search.recalibration_batches", "search.recalibration_batch_size", "search.recalibration_augment")
"""Fields of recalibration, of which the images are counted and drawn though there is nothing to recalibrate."""

NOT_ALONE = {"glit": ("space.window", "space.held_window"), "autoformer": ("retrain.refit",)}
"""Fields whose second value fits only beside another one's, or never, and is refused by name."""

STAGES = {  # the kinds of stages that depend on a section
    "data": (),
    "budget": (),
    "search": ("supernet", "search"),
    "retrain": ("retrain",),
    "precision": ("retrain",),
    "trust": (),
    "finetune": ("supernet", "search", "inherit", "finetune"),
}


def config_of(recipe: str, settings: Sequence[str] = ()) -> Any:
    digits = importlib.import_module(f"recipes.{recipe}.config").PRESETS["digits"]
    return apply_settings(digits, [*BASE, *OWN[recipe], *settings])


def problem_of(recipe: str, config: Any, data: Path) -> ViTProblem[Any]:
    path = {"digits": None, "hf": data / "table"}.get(config.data.source, data)
    task = load_images(ImageSource(config.data, config.seed, path, MACHINE))
    found: ViTProblem[Any] = importlib.import_module(f"recipes.{recipe}.problem").RECIPE.problem(config, task)
    return found


def computed(recipe: str, config: Any, data: Path, section: str) -> str:
    """Return the digest of what a run computes, its stages run as far as they can depend on a section."""
    problem = problem_of(recipe, config, data)
    task: Any = problem.task
    found = estimates(Estimator(problem, MACHINE, timing=False))
    line = CommandLine(f"recipes.{recipe}", "", presets=("digits",))
    whole = [
        line.run_name(problem.config, None),
        fingerprint(problem),
        task.record(),
        task.dataset.classes,
        next(iter(task.eval_batches("val", 4))),
        next(iter(task.recalibration_batches(problem.config, seed=0).steps(0, 1))),
        [baseline.arch.to_json() for baseline in problem.baselines.values()],
        [(estimate.name, estimate.images, estimate.detail) for estimate in found],
        worked(problem, {e.name: e.result for e in found}, STAGES.get(section, ("supernet",))),
    ]
    return hashlib.sha256(json.dumps(whole, default=plain, sort_keys=True).encode()).hexdigest()


def worked(problem: Problem[Any], stand_ins: Mapping[str, Any], kinds: Sequence[str]) -> list[Any]:
    """Return what the stages of some kinds leave: results, weights, learning rates, batch sizes of scores, threads."""
    results = dict(stand_ins)
    found: list[Any] = []
    threads, sizes, compiled = set[int](), list[int](), list[str]()
    eval_batches = problem.task.eval_batches

    def noted(*arguments: Any, **options: Any) -> Any:
        batches = list(eval_batches(*arguments, **options))
        sizes.extend(len(batch[1]) for batch in batches)
        return batches

    def compiles(network: torch.nn.Module, **options: Any) -> AbstractContextManager[None]:
        compiled.append(type(network).__name__)  # which takes a minute
        return nullcontext()

    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(problem.task, "eval_batches", noted)
        patch.setattr(networks, "compiled_blocks", compiles)
        patch.setattr(os, "fsync", lambda file: None)  # nothing here outlives the test
        for stage in problem.stages():
            if stage.kind in kinds and stage.name != "baselines":
                inputs = {name: results[name] for name in stage.inputs}
                context = context_of(
                    problem,
                    Path(folder),
                    stage.name,
                    inputs,
                    progress=lambda *counts: threads.add(torch.get_num_threads()),
                )
                results[stage.name] = json.loads(json.dumps(stage.work(context)))
                found.append(results[stage.name])
        weights = sorted(Path(folder).rglob("*.safetensors"))
        found += [[path.name, sorted(load_file(path).items())] for path in weights]
        for table in sorted(Path(folder).rglob("*metrics.csv")):  # beside which stand speed and memory
            found += [line.split(",")[:3] for line in table.read_text().splitlines()]
    return [found, sorted(threads), sizes, compiled]


def plain(value: Any) -> Any:
    """Return tensors and arrays as digests of their bytes."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
    if isinstance(array, np.ndarray):
        return [list(array.shape), hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()]
    return str(value)


def write_images(root: Path) -> Path:
    """Write colour images of three classes, whose names have another order as numbers, and a copy in both parts."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", 20), ("test", 3)):
        for label, name in enumerate(("1", "2", "10")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(60 + 60 * label, 40, (16, 16, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (root / "train" / "1" / "copy.png").write_bytes((root / "test" / "1" / "0.png").read_bytes())
    return root


def write_columns(root: Path) -> None:
    """Write the images of a folder as a Hugging Face table too, with other images and labels in two more columns."""
    datasets = pytest.importorskip("datasets")
    parts = {}
    for part in ("train", "test"):
        paths = sorted((root / part).glob("*/*.png"))
        images = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        names = [path.parent.name for path in paths]
        columns = {
            "image": images,
            "picture": images[::-1],
            "label": [("1", "2", "10").index(name) for name in names],
            "kind": names,
        }
        kinds = {"image": datasets.Image(), "picture": datasets.Image()}
        table = datasets.Dataset.from_dict(columns)
        parts[part] = table.cast(datasets.Features({**table.features, **kinds}))
    datasets.disable_progress_bars()
    datasets.DatasetDict(parts).save_to_disk(str(root / "table"))


def write_table(problem: ViTProblem[Any], path: Path, more: int) -> None:
    """Write a table of latencies, of made-up microseconds."""
    table = Latency(MeasuredOn("none", 1, torch.__version__, "none"), {}, {})
    fixed, parts = {}, {}
    for arch in problem.space.sample(0, 4000):
        shared, own = split(arch)
        fixed[table.fixed_key(shared)] = 100
        for (name, index), choices in own.items():
            key = table.part_key(name, index, shared, choices)
            parts[key] = 10 + more + zlib.crc32(str(sorted(choices.items())).encode()) % 90
    Latency(table.measured_on, fixed, parts, sizes=problem.vit_settings).save(path)


def with_supernets_alone(problem: ViTProblem[Any]) -> ViTProblem[Any]:
    stages = [stage for stage in problem.stages() if stage.kind == "supernet"]
    return problem.with_stages(lambda _: stages)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_images(tmp_path_factory.mktemp("data"))
    write_columns(root)
    return root


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Mapping[str, Mapping[str, str]]:
    """Return for each recipe the files that settings name: a teacher, tables of latencies, and a run's supernet."""
    found = {}
    for recipe in RECIPES:
        folder = tmp_path_factory.mktemp(recipe)
        problem = problem_of(recipe, config_of(recipe), data)
        arch = problem.space.sample(0)
        (folder / "arch.json").write_text(arch.to_json())
        save_file(problem.make(arch).state_dict(), folder / "model.safetensors")
        write_table(problem, folder / "table.json", 0)
        write_table(problem, folder / "slower.json", 50)
        earlier = problem_of(recipe, config_of(recipe, ["supernet.lr=0.3"]), data)
        run_stages(with_supernets_alone(earlier), folder / "run", machine=MACHINE, group=ALONE)
        names = {
            "EARLIER": folder / "run",
            "TEACHER": folder,
            "TABLE": folder / "table.json",
            "SLOWER": folder / "slower.json",
        }
        found[recipe] = {word: str(path) for word, path in names.items()}
    return found


known: dict[tuple[str, str, tuple[str, ...]], str] = {}
"""Digests of what was computed before, because most fields are compared with the same."""


def digest(recipe: str, section: str, settings: Sequence[str], data: Path) -> str:
    key = recipe, section, tuple(settings)
    if key not in known:
        known[key] = computed(recipe, config_of(recipe, settings), data, section)
    return known[key]


def fields_of(recipe: str) -> dict[str, tuple[str, Sequence[str]]]:
    return {**COMMON, **FIELDS[recipe]}


BUILT = ("supernet.drop_path", "retrain.drop_path")
"""Fields of all recipes that each one's own builder reads; one code reads the others, which are tried in turn."""


def cases() -> Iterator[tuple[str, str]]:
    for number, field in enumerate(COMMON):
        recipes = [recipe for recipe in RECIPES if field not in UNUSED[recipe]]
        yield from ((recipe, field) for recipe in (recipes if field in BUILT else [recipes[number % len(recipes)]]))
    yield from ((recipe, field) for recipe in RECIPES for field in FIELDS[recipe] if field not in UNUSED[recipe])


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_field_is_tried(recipe: str) -> None:
    assert set(fields_of(recipe)) == set(field_names(config_of(recipe)))
    unused = set(config_of(recipe).unused())
    assert set(UNUSED[recipe]) <= unused
    needing = {field for field, (_, needs) in fields_of(recipe).items() if needs}
    assert unused <= needing | set(UNUSED[recipe]), "what has no effect here has one elsewhere"


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_same_settings_compute_the_same(recipe: str, data: Path) -> None:
    for section in ("retrain", "search"):
        again = computed(recipe, config_of(recipe), data, section)
        assert digest(recipe, section, [], data) == again


@pytest.mark.parametrize(("recipe", "field"), list(cases()))
def test_a_field_changes_what_is_computed(
    recipe: str, field: str, data: Path, files: Mapping[str, Mapping[str, str]]
) -> None:
    value, needs = fields_of(recipe)[field]
    section = field.partition(".")[0]
    for word, path in files[recipe].items():
        value, needs = value.replace(word, path), [need.replace(word, path) for need in needs]
    before = digest(recipe, section, needs, data)
    assert digest(recipe, section, [*needs, f"{field}={value}"], data) != before


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_field_without_an_effect_is_named_with_the_reason(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    unused = config_of(recipe).unused()
    note_unused([f"{field}={fields_of(recipe)[field][0]}" for field in unused], unused)
    notes = [f"note: {field} has no effect, because {why}" for field, why in unused.items()]
    assert capsys.readouterr().err.splitlines() == notes


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_field_that_is_refused_has_no_effect_indeed(recipe: str, data: Path) -> None:
    for field in config_of(recipe).unused():
        section = field.partition(".")[0]
        setting = f"{field}={fields_of(recipe)[field][0]}"
        if field in MORE_WORK:
            continue
        if field in NOT_ALONE.get(recipe, ()):
            with pytest.raises(BadInput, match=field):
                config_of(recipe, [setting])
            continue
        assert digest(recipe, section, [setting], data) == digest(recipe, section, [], data), field
