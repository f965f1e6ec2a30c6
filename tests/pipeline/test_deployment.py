"""Exported networks of every recipe: read back by nasx, timm, ONNX Runtime and torch alone; their cards' code runs."""

import errno
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import timm
import timm.data
import torch
from PIL import Image
from torch import Tensor, nn

import nasx
from nasx import Arch
from nasx.data import BrokenImageError, Files, PhotoSet, decode, eval_batches
from nasx.nn import ImageConfig
from nasx.pipeline.classifier import Classifier
from nasx.pipeline.errors import ExportFailed
from nasx.pipeline.export_formats import write_onnx, write_pt2, write_safetensors
from nasx.pipeline.exported import ExportedModel, from_file, open_model
from nasx.pipeline.model_card import MARK
from nasx.pipeline.onnx_files import add_preprocessing
from nasx.pipeline.preprocessing import Preprocessing
from nasx.pipeline.recipe import open_recipe, recipe_module, recipe_names
from nasx.pipeline.weight_files import load_weights
from nasx.run import write_bytes
from nasx.verify import export_onnx
from recipes.autoformer.model import AutoFormerConfig
from recipes.autoformer.space import uniform
from recipes.glit.model import GLiTConfig
from recipes.glit.space import GLiTSpace, with_heads
from recipes.localvit.model import LocalViTConfig
from recipes.localvit.space import variant

TIMM: Any = timm  # whose own types are incomplete
CLASSES = ("black cat", "dog", "<b>\u00e9t\u00e9</b>", "zebra")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {"image_size": 96, "patch_size": 32, "num_classes": len(CLASSES)}

NETWORKS: dict[str, tuple[ImageConfig, Arch]] = {
    "glit": (GLiTConfig(**SIZES, embed_dim=24), with_heads([0, 2], GLiTSpace(blocks=2))),  # type: ignore[arg-type]
    "autoformer": (AutoFormerConfig(**SIZES, head_dim=8), uniform(24, 2, 3, 2)),  # type: ignore[arg-type]
    "localvit": (LocalViTConfig(**SIZES, embed_dim=24), variant(3, blocks=2, reduction=4)),
}


class Exports(NamedTuple):
    root: Path
    models: dict[str, ExportedModel]

    def folders(self) -> Iterator[tuple[str, str, Path]]:
        for recipe in self.models:
            for kind in ("safetensors", "onnx", "onnx-images", "pt2"):
                if (folder := self.root / recipe / kind).exists():
                    yield recipe, kind, folder


def exported(recipe: str) -> ExportedModel:
    vit, arch = NETWORKS[recipe]
    torch.manual_seed(0)
    network = open_recipe(recipe).build(vit, arch).eval()
    with torch.no_grad():
        for parameter in network.parameters():  # so that images and classes differ
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return ExportedModel(
        recipe=recipe,
        network=network,
        arch=arch,
        vit=asdict(vit),
        classes=CLASSES,
        mean=MEAN,
        std=STD,
        accuracies={"test": 0.75},
        origin="Not trained.",
    )


def test_whole_numbers_in_a_networks_state_are_read_back(tmp_path: Path) -> None:
    recipe, model = open_recipe("localvit"), exported("localvit")

    def counting(*arguments: Any) -> nn.Module:
        network = recipe.build(*arguments)
        network.register_buffer("places", torch.zeros(3, dtype=torch.int64))
        return network

    model.network.register_buffer("places", torch.tensor([2, 0, 1]))
    write_safetensors(model, tmp_path)
    network = from_file(replace(recipe, build=counting), tmp_path / "model.safetensors").network
    assert network.state_dict()["places"].tolist() == [2, 0, 1]
    assert not network.training
    with pytest.raises(ValueError, match="the weights do not fit: 'places' is unexpected"):
        from_file(recipe, tmp_path / "model.safetensors")


def test_quantised_weights_are_refused() -> None:
    network = nn.Linear(2, 3)
    weights = {"weight": torch.ones(3, 2, dtype=torch.int8), "bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"do not fit: 'weight' holds torch\.int8 .*; are they quantised\?"):
        load_weights(network, weights)


def test_a_network_is_counted_wherever_it_lies() -> None:
    model = exported("glit")
    on_cpu = model.counts()
    model.network.to("meta")
    assert model.counts() == on_cpu


def photo(directory: Path, width: int = 150, height: int = 211, channels: int = 3) -> Path:
    """Return a file with an image of soft shapes and hard edges."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [(np.sin(rows / (5 + i)) + np.cos(columns / (9 - i))) * 60 + 128 for i in range(channels)]
    pixels = np.stack(planes, axis=-1).astype(np.uint8)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = 255
    path = directory / "image.png"
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(path)
    return path


def evaluated(model: ExportedModel, path: Path) -> Tensor:
    """Return the logits of an image file as an evaluation of a run computes them."""
    size, channels = model.vit["image_size"], model.vit["in_channels"]
    photos = PhotoSet(Files([path]), np.zeros(1, np.int64), size, in_memory=False, channels=channels)
    ((images, _),) = eval_batches(photos, 1, model.mean, model.std)
    with torch.no_grad():
        return model.network(images)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Return the folders of every recipe's network in every format."""
    root = tmp_path_factory.mktemp("exports")
    models = {recipe: exported(recipe) for recipe in NETWORKS}
    for recipe, model in models.items():
        write_safetensors(model, root / recipe / "safetensors")
        write_onnx(model, root / recipe / "onnx")
        write_pt2(model, root / recipe / "pt2")
    write_onnx(models["localvit"], root / "localvit" / "onnx-images", preprocess=True)
    return Exports(root, models)


every_recipe = pytest.mark.parametrize("recipe", list(NETWORKS))


def test_every_recipe_is_tested_here() -> None:
    assert sorted(NETWORKS) == recipe_names()


@every_recipe
def test_a_folder_is_loaded_with_classes_and_preprocessing(recipe: str, exports: Exports, tmp_path: Path) -> None:
    network = nasx.load(exports.root / recipe / "safetensors")
    path, model = photo(tmp_path), exports.models[recipe]
    expected = evaluated(model, path)
    with torch.no_grad():
        assert torch.equal(network(network.preprocess(path)[None]), expected)
    assert network.classes == CLASSES
    assert network.arch == model.arch
    assert not network.training
    ranked = network.predict(path)
    assert ranked == network.predict(str(path)) == network.predict(Image.open(path))
    assert ranked == network.predict(np.asarray(Image.open(path)))
    probabilities = expected.softmax(1)[0]
    assert [name for name, _ in ranked] == [CLASSES[i] for i in probabilities.argsort(descending=True)]
    assert sum(probability for _, probability in ranked) == pytest.approx(1)
    assert dict(ranked)["dog"] == pytest.approx(float(probabilities[1]))


@every_recipe
def test_timm_builds_and_fills_the_network_from_the_folder(recipe: str, exports: Exports, tmp_path: Path) -> None:
    recipe_module(recipe, "timm")
    model, folder = exports.models[recipe], exports.root / recipe / "safetensors"
    network = TIMM.create_model(f"local-dir:{folder}", pretrained=True).eval()
    path = photo(tmp_path)
    data = TIMM.data.resolve_data_config({}, model=network)
    assert [tuple(data[name]) for name in ("mean", "std", "input_size")] == [MEAN, STD, (3, 96, 96)]
    prepared = TIMM.data.create_transform(**data)(Image.open(path))
    torch.testing.assert_close(prepared, model.preprocessing(path))
    with torch.no_grad():
        torch.testing.assert_close(network(prepared[None]), evaluated(model, path))
    assert list(network.pretrained_cfg["label_names"]) == list(CLASSES)
    other = TIMM.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7)  # a new head on the same weights
    assert other(prepared[None]).shape == (1, 7)
    assert torch.equal(other.state_dict()["blocks.0.norm1.weight"], network.state_dict()["blocks.0.norm1.weight"])


@every_recipe
def test_config_json_is_what_timm_writes(recipe: str, exports: Exports, tmp_path: Path) -> None:
    recipe_module(recipe, "timm")
    folder = exports.root / recipe / "safetensors"
    network = TIMM.create_model(f"local-dir:{folder}", pretrained=True)
    labels = {"label_names": list(CLASSES)}
    TIMM.models.save_for_hf(network, str(tmp_path), model_config=labels, safe_serialization=True)
    own, theirs = (json.loads((place / "config.json").read_text()) for place in (folder, tmp_path))
    for name in ("architecture", "num_classes", "num_features", "label_names"):
        assert own[name] == theirs[name], name
    assert own["model_args"] == {name: theirs["model_args"][name] for name in ("arch", "vit")}
    for name, value in own["pretrained_cfg"].items():
        assert theirs["pretrained_cfg"][name] == value, name
    again = TIMM.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert all(map(torch.equal, again.state_dict().values(), network.state_dict().values()))


def test_timm_crops_as_nasx_does_at_every_size() -> None:
    for size in range(8, 400):
        preprocessing = Preprocessing(image_size=size, channels=3, mean=MEAN, std=STD)
        resize = TIMM.data.create_transform(
            (3, size, size), crop_pct=preprocessing.crop_pct, interpolation="bicubic"
        ).transforms[0]
        side = resize.size[0] if isinstance(resize.size, tuple) else resize.size
        assert side == preprocessing.resized_side, size


def test_onnx_describes_the_network(exports: Exports) -> None:
    for recipe, kind, folder in exports.folders():
        if not kind.startswith("onnx"):
            continue
        path = folder / "model.onnx"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        described = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
        assert described["classes"] == list(CLASSES)
        assert (described["mean"], described["std"]) == (list(MEAN), list(STD))
        assert (described["image_size"], described["channels"]) == (96, 3)
        assert (described["recipe"], Arch(described["arch"])) == (recipe, exports.models[recipe].arch)
        assert described["preprocessing_in_graph"] == (kind == "onnx-images")


@pytest.mark.parametrize(
    ("image_size", "channels", "width", "height"),
    [
        (96, 3, 150, 211),
        (96, 3, 333, 100),
        (96, 3, 60, 41),
        (96, 1, 109, 112),
        (32, 1, 32, 32),
        (32, 3, 99, 35),
        (32, 3, 35, 99),
    ],
)
def test_the_graph_prepares_images_as_pillow_does(
    image_size: int, channels: int, width: int, height: int, tmp_path: Path
) -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.0

    mean, std = MEAN[:channels], STD[:channels]
    preprocessing = Preprocessing(image_size=image_size, channels=channels, mean=mean, std=std)
    content = export_onnx(Shifted().eval(), torch.zeros(2, channels, image_size, image_size))
    session = onnxruntime.InferenceSession(
        add_preprocessing(content, preprocessing), providers=["CPUExecutionProvider"]
    )
    path = photo(tmp_path, width, height, channels)
    pixels = np.asarray(Image.open(path)).reshape(1, height, width, channels)
    found = torch.from_numpy(session.run(None, {"images": np.repeat(pixels, 2, 0)})[0])
    expected = preprocessing(path)
    assert torch.equal(found[0], found[1])
    levels = (found[0] - expected).abs() * torch.tensor(std).view(-1, 1, 1) * 255
    tall = height > 2 * width  # where Pillow may resize the height first
    assert float(levels.max()) < (16 if tall else 2.01)
    assert float((levels > 0.5).float().mean()) < (0.05 if tall else 0.002)


_CARDS = """
import json, os, re, sys

for name in sys.argv[1:]:
    os.chdir(name)
    with open("README.md") as file:
        blocks = re.findall(r"```python\\n(.*?)```", file.read(), re.DOTALL)
    names = {"__name__": "__main__"}
    sys.stdout, printed = open(os.devnull, "w"), sys.stdout
    for block in blocks:
        exec(block, names)
    sys.stdout = printed
    print(json.dumps([name, len(blocks), names["logits"].tolist()]))
"""


def test_the_code_of_every_card_runs_as_printed(exports: Exports, tmp_path: Path) -> None:
    source = photo(tmp_path)
    folders = [str(folder) for _, _, folder in exports.folders()]
    for folder in folders:
        Image.open(source).save(Path(folder) / "image.jpg", quality=95)
    lines = subprocess.run(
        [sys.executable, "-W", "error", "-c", _CARDS, *folders], capture_output=True, text=True, check=False
    )
    assert lines.returncode == 0, lines.stderr[-2000:]
    found = {
        name: (blocks, torch.tensor(logits)) for name, blocks, logits in map(json.loads, lines.stdout.splitlines())
    }
    assert len(found) == len(folders) == 10
    for recipe, kind, exported in exports.folders():
        blocks, logits = found[str(exported)]
        assert blocks == {"safetensors": 3, "onnx": 2, "onnx-images": 1, "pt2": 2}[kind]
        expected = evaluated(exports.models[recipe], exported / "image.jpg")
        exact = kind != "onnx-images"  # whose resized pixels may differ by two levels of 255
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 if exact else 0.02)


_WITH_TORCH_ALONE = """
import json, sys
sys.modules["nasx"] = sys.modules["recipes"] = sys.modules["timm"] = None
import torch
for name in sys.argv[1:]:
    described = {"nasx.json": ""}
    network = torch.export.load(f"{name}/model.pt2", extra_files=described).module()
    with torch.no_grad():
        logits = [network(torch.full((batch, 3, 96, 96), 0.5)).tolist() for batch in (1, 3)]
    print(json.dumps([logits, json.loads(described["nasx.json"])]))
"""


def test_pt2_is_read_by_torch_alone(exports: Exports) -> None:
    folders = [str(exports.root / recipe / "pt2") for recipe in NETWORKS]
    done = subprocess.run([sys.executable, "-c", _WITH_TORCH_ALONE, *folders], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for recipe, line in zip(NETWORKS, done.stdout.splitlines(), strict=True):
        logits, described = json.loads(line)
        with torch.no_grad():
            expected = exports.models[recipe].network(torch.full((3, 3, 96, 96), 0.5))
        torch.testing.assert_close(torch.tensor(logits[1]), expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.tensor(logits[0]), expected[:1], rtol=0, atol=1e-4)
        assert described["classes"] == list(CLASSES)
        assert described["arch"] == dict(exports.models[recipe].arch)


def test_many_files_are_predicted_in_batches_and_broken_ones_are_named(tmp_path: Path) -> None:
    network = Classifier(exported("glit"))
    for i in range(7):
        photo(tmp_path, 100 + i, 130 - 7 * i).rename(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    paths = [*(tmp_path / f"{i}.png" for i in range(7)), tmp_path / "missing.png"]
    found = list(network.predict_files(paths, batch_size=3))
    assert [prediction.path for prediction in found] == paths
    assert [prediction.path.stem for prediction in found if prediction.fault] == ["3", "missing"]
    for prediction in found:
        if not prediction.fault:
            expected = network.predict(prediction.path)
            assert [name for name, _ in prediction.classes] == [name for name, _ in expected]
            assert prediction.classes[0][1] == pytest.approx(expected[0][1], abs=1e-5)
    with pytest.raises(BrokenImageError, match="no known image format"):
        network.predict(paths[3])
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        next(network.predict_files(paths, batch_size=0))
    for image, rule in ((np.zeros((4, 4)), "float64"), (3, "path, a PIL image or a uint8 array, but got int")):
        with pytest.raises(ValueError, match=rule):
            network.predict(image)


def test_exports_do_not_overwrite_what_they_did_not_write(tmp_path: Path) -> None:
    model = exported("localvit")
    for name in ("classes.json", "config.json", "README.md", "model.safetensors"):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        (folder / name).write_text("mine")
        with pytest.raises(FileExistsError, match=f"holds {name}"):
            write_safetensors(model, folder)
        assert [path.read_text() for path in folder.iterdir()] == ["mine"]
    with pytest.raises(FileExistsError, match="not written by `export`"):
        write_safetensors(model, tmp_path / "README", force=True)
    assert (tmp_path / "README" / "README.md").read_text() == "mine"
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    with pytest.raises(FileExistsError, match="is a run directory"):
        write_pt2(model, run, force=True)
    write_safetensors(model, tmp_path / "twice")
    before = {path.name: path.read_bytes() for path in (tmp_path / "twice").iterdir()}
    assert MARK in before["README.md"].decode()
    write_safetensors(model, tmp_path / "twice", force=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "twice").iterdir()} == before


class Uneven(nn.Module):
    """Computes something else when it is traced: what a faulty converter would make of a network."""

    def forward(self, x: Tensor) -> Tensor:
        scale = 2.0 if torch.compiler.is_compiling() else 1.0
        return x.mean((2, 3)) * scale


class Untraceable(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) * (2.0 if float(x.sum()) > 0 else 1.0)


@pytest.mark.filterwarnings("ignore")  # of the exporter, about networks like these
@pytest.mark.parametrize("write", [write_onnx, write_pt2])
@pytest.mark.parametrize(
    ("network", "why"), [(Uneven(), "its logits differ by"), (Untraceable(), "cannot export this network")]
)
def test_a_network_that_cannot_be_exported_leaves_what_was_there(
    write: Callable[..., object], network: nn.Module, why: str, tmp_path: Path
) -> None:
    model = replace(exported("localvit"), network=network)
    with pytest.raises(ExportFailed, match=why) as raised:
        write(model, tmp_path / "new")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "new").exists()
    old = tmp_path / "old"
    old.mkdir()
    for name in ("model.onnx", "model.pt2", "README.md"):
        (old / name).write_text(MARK)
    with pytest.raises(ExportFailed):
        write(model, old, force=True)
    assert [path.read_text() for path in old.iterdir()] == [MARK] * 3


def test_an_export_on_a_disk_that_fails_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = exported("localvit")

    def full(path: Path, data: bytes) -> None:
        if path.name == "README.md":
            raise OSError(errno.ENOSPC, "no space", str(path))
        write_bytes(path, data)

    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine")
    monkeypatch.setattr("nasx.pipeline.export_formats.write_bytes", full)
    for folder, left in ((tmp_path / "new", None), (tmp_path / "own", ["notes.txt"])):
        with pytest.raises(OSError, match="no space"):
            write_safetensors(model, folder)
        assert (sorted(path.name for path in folder.iterdir()) if folder.exists() else None) == left


def test_what_is_no_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a run directory nor"):
        nasx.load(tmp_path)
    (tmp_path / "model.pt2").write_bytes(b"")
    with pytest.raises(ValueError, match="--format safetensors"):
        nasx.load(tmp_path)
    write_safetensors(exported("localvit"), tmp_path / "out")
    with pytest.raises(ValueError, match="recipe 'localvit'"):
        open_model(tmp_path / "out", open_recipe("glit"))
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"config": {"recipe": "mine", "config": {}, "split": {}}}))
    with pytest.raises(ValueError, match="is not finished"):
        nasx.load(run)


def test_the_library_alone_loads_no_torch() -> None:
    code = "import sys, nasx, nasx.__main__; nasx.load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_preprocessing_as_code_is_the_same_for_all_shapes(tmp_path: Path) -> None:
    for image_size, channels, width, height in (
        (96, 3, 150, 211),
        (96, 1, 301, 99),
        (32, 3, 33, 32),
        (224, 3, 57, 300),
    ):
        mean, std = MEAN[:channels], STD[:channels]
        preprocessing = Preprocessing(image_size=image_size, channels=channels, mean=mean, std=std)
        names: dict[str, Any] = {}
        exec(preprocessing.as_code(), names)
        path = photo(tmp_path, width, height, channels)
        found = names["preprocess"](path)
        assert found.dtype == np.float32
        torch.testing.assert_close(torch.from_numpy(found)[0], preprocessing(path))
        assert not re.search(r"\bnasx\b", preprocessing.as_code())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_preprocessing_as_code_reads_every_kind_of_image(mode: str, channels: int, tmp_path: Path) -> None:
    """Alpha is laid over white, a transparent colour too, and grey of 16 bits is divided."""
    path = tmp_path / "image.tif"
    with Image.open(photo(tmp_path, 40, 33, 3)) as opened:
        source = opened.convert("RGB")
    match mode:
        case "I;16":
            levels = np.random.default_rng(0).integers(0, 65536, (33, 40), dtype=np.uint16)
            image = Image.fromarray(levels)
        case "PA":  # a palette with a transparent colour
            path, image = tmp_path / "image.png", source.convert("P")
            image.save(path, transparency=image.getpixel((0, 0)))
        case "LA" | "RGBA":
            path, image = tmp_path / "image.png", source.convert(mode)
            image.putalpha(Image.linear_gradient("L").resize((40, 33)))
        case _:
            image = source.convert(mode)
    if mode != "PA":
        image.save(path)
    preprocessing = Preprocessing(image_size=32, channels=channels, mean=MEAN[:channels], std=STD[:channels])
    names: dict[str, Any] = {}
    exec(preprocessing.as_code(), names)
    assert np.array_equal(np.asarray(names["read"](path)), np.asarray(decode(path, 1 if channels == 1 else 3)))
    torch.testing.assert_close(torch.from_numpy(names["preprocess"](path))[0], preprocessing(path))
