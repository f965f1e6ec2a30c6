"""GLiT's commands beside the search: what they write, that it computes the same, and what they refuse."""

import errno
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import nasx
from nasx import Arch
from nasx.__main__ import main as nasx_main
from nasx.data import Dataset, load_digits
from nasx.measure import count_macs, count_params
from nasx.nn import Supernet
from nasx.pipeline.exported import from_file
from nasx.pipeline.run_report import report_of
from nasx.verify import Check
from recipes.glit.__main__ import main
from recipes.glit.model import GLIT_TINY, build
from recipes.glit.problem import RECIPE
from recipes.glit.space import GLiTSpace, with_heads
from recipes.glit.timm_problem import build_timm

SMALL = ("--set", "model.embed_dim=12")
SHORT = [
    *("--set", "supernet.epochs=0.5", "--set", "supernet.warmup_epochs=0", "--set", "retrain.epochs=0.3"),
    *("--set", "retrain.warmup_epochs=0", "--set", "search.population=3", "--set", "search.generations=2"),
    *("--set", "search.parents=2", "--set", "search.recalibration_batches=1", *SMALL, "--set", "search.top_k=1"),
    *("--set", "budget.heads_at_most=1e9", "--set", "budget.details_at_least=1", "--set", "budget.details_at_most=1e9"),
]
ONCE = [*("--set", "retrain.epochs=0.3", "--set", "retrain.warmup_epochs=0"), *SMALL]


@pytest.fixture(autouse=True)
def _in_a_directory_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run on the digits."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert main(["run", "--run-dir", str(directory), *SHORT]) == 0
    return directory


@pytest.fixture
def arch_file(tmp_path: Path) -> Path:
    """Return a file with a network of the digits' space."""
    choices = GLiTSpace(blocks=4, kernel_size=(3, 5, 9), held_kernel_size=5)
    (tmp_path / "own.json").write_text(with_heads([0, 1, 2, 3], choices).to_json())
    return tmp_path / "own.json"


def json_of(arguments: list[str], capsys: pytest.CaptureFixture[str], status: int = 0) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == status
    return json.loads(capsys.readouterr().out)


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    status, captured = main(arguments), capsys.readouterr()
    assert (status, captured.out) == (2, "")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 500
    return captured.err


def folder(root: Path, *, classes: int, size: int, per_class: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(classes):
            (root / split / f"class{label}").mkdir(parents=True)
            for i in range(per_class):
                pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / f"class{label}" / f"{i}.png")
    return root


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("glit-tiny", 7_264_456, 1_472_873_280),
        ("deit-tiny", 5_717_416, 1_253_683_200),
        ("deit-small", 22_050_664, 4_598_882_304),
        ("deit-base", 86_567_656, 17_563_828_224),
    ],
)
def test_known_networks_are_described_in_their_own_size(
    name: str, params: int, macs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "picture.svg"
    described = json_of(["describe", "--arch", name, "--picture", str(picture)], capsys)
    assert (described["params"], described["macs"], len(described["blocks"])) == (params, macs, 12)
    assert (described["variant"], described["locality"]) == ("official", "conv1d")
    assert picture.read_text().count('id="block-') == 12


def test_describe_follows_preset_and_settings(arch_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["describe", "--arch", str(arch_file), "--preset", "digits"]
    official = json_of(arguments, capsys)
    paper = json_of([*arguments, "--set", "model.variant=paper"], capsys)
    assert (official["variant"], paper["variant"]) == ("official", "paper")
    assert paper["params"] > official["params"]
    assert main([*arguments, "--set", "model.variant=paper"]) == 0
    assert "variant paper\nlocality conv1d" in capsys.readouterr().out


def test_one_network_is_trained_alone_once(arch_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "alone"
    command = ["train", "--arch", str(arch_file), "--preset", "digits", "--run-dir", str(directory), *ONCE]
    summary = json_of(command, capsys)
    assert "method" not in summary, "nothing was searched or drawn"
    assert "random" not in report_of(directory).title
    trained = summary["networks"]["trained"]
    arch = Arch.from_json(arch_file.read_text())
    assert Arch(trained["arch"]) == arch == Arch.from_json((directory / "arch.json").read_text())
    network = build(arch, 10, 8, patch_size=2, in_channels=1, embed_dim=12)
    network.load_state_dict(load_file(directory / "model.safetensors"))
    assert trained["params"] == count_params(network)
    assert 0 <= trained["val_accuracy"] <= 1
    before = (directory / "model.safetensors").stat().st_mtime_ns
    assert json_of(command, capsys) == summary
    assert (directory / "model.safetensors").stat().st_mtime_ns == before
    assert json_of(["evaluate", str(directory)], capsys)["test_accuracy"] == trained["test_accuracy"]
    assert "glit-tiny" in refused([*command[:2], "glit-tin", *command[3:]], capsys)
    other = [*command[:2], "timm:resnet18", *command[3:]]
    assert "was started with another arch" in refused_words(other, capsys)


def refused_words(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    return capsys.readouterr().err


def test_a_full_disk_ends_a_run_that_goes_on_and_damaged_weights_end_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(data: Dataset) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    # images of a seed that no other test has loaded, and opened, in this process
    command = ["train", "--arch", "timm:mobilenetv3_small_050", "--seed", "11", "--run-dir", str(tmp_path), *ONCE]
    with monkeypatch.context() as patched:
        patched.setattr(Dataset, "open_test", full)
        assert main(command) == 75
    assert "make room, and the same command continues" in " ".join(capsys.readouterr().err.split())
    weights = tmp_path / "network" / "retrain" / "0.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert "not those that were written" in refused(command, capsys)
    weights.unlink()
    assert "missing" in refused(command, capsys)
    weights.write_bytes(content)
    assert "trained" in json_of(command, capsys)["networks"]


def test_a_network_of_timm_is_trained_tested_and_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "timm"
    command = ["train", "--arch", "timm:mobilenetv3_small_050", "--preset", "digits", "--run-dir", str(directory)]
    summary = json_of([*command, *ONCE], capsys)
    assert summary["networks"]["trained"]["arch"] == {"timm": "mobilenetv3_small_050"}
    exported = json_of(["export", str(directory), "--out", str(tmp_path / "out")], capsys)
    assert exported["params"] == summary["networks"]["trained"]["params"]
    again = json_of(["evaluate", str(tmp_path / "out")], capsys)
    assert again["test_accuracy"] == summary["networks"]["trained"]["test_accuracy"]
    assert "timm" in refused(["verify", str(directory)], capsys)
    (directory / "report.html").unlink()
    json_of(["report", str(directory)], capsys)
    assert "mobilenetv3_small_050" in (directory / "report.html").read_text()
    assert "'resnet18'" in refused([*command[:2], "timm:resnet17", *command[3:]], capsys)


@pytest.mark.parametrize(
    ("name", "params", "macs"),  # table 3, with MACs as torch counts them
    [
        ("resnet18", 11.7, 1.8),
        ("resnet50", 25.6, 4.1),
        ("resnext50_32x4d", 25.0, 4.2),
        ("resnext101_64x4d", 83.5, 15.5),
        ("vit_base_patch16_224", 86.6, 17.6),
    ],
)
def test_networks_of_timm_have_the_sizes_of_table_3(name: str, params: float, macs: float) -> None:
    with torch.device("meta"):
        network = build_timm(name, num_classes=1000, image_size=224, drop_path=0.1)
        counted = count_macs(network, torch.zeros(1, 3, 224, 224))
    assert round(count_params(network) / 1e6, 1) == params
    assert counted / 1e9 == pytest.approx(macs, abs=0.06)


def test_evaluations_of_one_network_agree(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = json.loads((run / "summary.json").read_text())["networks"]["searched"]["test_accuracy"]
    assert json_of(["evaluate", str(run)], capsys)["test_accuracy"] == expected
    assert main(["export", str(run), "--format", "safetensors", "--out", str(tmp_path / "out")]) == 0
    for source in ([str(tmp_path / "out")], ["--weights", str(tmp_path / "out" / "model.safetensors")]):
        assert json_of(["evaluate", *source], capsys)["test_accuracy"] == expected
    bare = ["--weights", str(run / "model.safetensors"), "--arch", str(run / "arch.json"), "--preset", "digits"]
    assert json_of(["evaluate", *bare, *SMALL], capsys)["test_accuracy"] == expected
    # a run's architecture brings its settings, such as where its images come from
    of_run = ["--weights", str(run / "model.safetensors"), "--arch", str(run)]
    assert json_of(["evaluate", *of_run], capsys)["test_accuracy"] == expected


def test_an_evaluation_has_the_precision_of_the_settings(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = load_file(run / "model.safetensors")
    biases = torch.zeros(10)
    biases[1:3] = torch.tensor([1000.0, 1001.0])  # equal in bfloat16
    save_file(
        {**state, "head.weight": 0 * state["head.weight"], "head.bias": biases}, tmp_path / "constant.safetensors"
    )
    constant = ["evaluate", "--weights", str(tmp_path / "constant.safetensors"), "--arch", str(run)]
    for precision, answer in (("float32", 2), ("bfloat16", 1)):
        found = json_of([*constant, "--set", f"precision={precision}"], capsys)["test_accuracy"]
        assert found == pytest.approx(np.mean(load_digits(seed=0).open_test().labels == answer))


def test_an_export_is_complete_and_the_same_each_time(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        json_of(["export", str(run), "--out", str(tmp_path / name)], capsys)
    files = [{p.name: p.read_bytes() for p in sorted((tmp_path / name).iterdir())} for name in ("a", "b")]
    assert files[0] == files[1]
    assert set(files[0]) == {"README.md", "arch.json", "classes.json", "config.json", "model.safetensors"}
    assert all(str(tmp_path).encode() not in content for content in files[0].values())
    assert json.loads(files[0]["classes.json"]) == [str(digit) for digit in range(10)]
    with safe_open(tmp_path / "a" / "model.safetensors", framework="pt") as file:
        ((_, text),) = file.metadata().items()
    assert text == json.dumps(json.loads(text), sort_keys=True)
    card = files[0]["README.md"].decode()
    summary = json.loads((run / "summary.json").read_text())
    assert f"mean {summary['normalisation']['mean'][0]:.4g}" in card
    assert f"{summary['networks']['searched']['params']:,}" in card
    again = from_file(RECIPE, tmp_path / "a" / "model.safetensors")
    assert dict(again.arch) == summary["networks"]["searched"]["arch"]
    state = load_file(run / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.network.state_dict().items())


def test_onnx_computes_what_the_network_computes(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_of(["export", str(run), "--format", "onnx", "--out", str(tmp_path)], capsys)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    assert "model.safetensors already" not in refused(["export", str(run), "--out", str(tmp_path)], capsys)
    json_of(["export", str(run), "--out", str(tmp_path), "--force"], capsys)
    network = from_file(RECIPE, tmp_path / "model.safetensors").network
    for batch in (1, 5):
        images = torch.randn(batch, 1, 8, 8)
        with torch.no_grad():
            expected = network(images)
        torch.testing.assert_close(torch.from_numpy(session.run(None, {"images": images.numpy()})[0]), expected)


def test_image_files_are_predicted(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits, images = load_digits(seed=0), tmp_path / "images"
    (images / "deeper").mkdir(parents=True)
    for i, pixels in enumerate(digits.open_test().load(range(11)).numpy()[:, 0]):
        Image.fromarray(pixels).save(images / ("deeper" if i % 2 else "") / f"{i:02}.png")
    (images / "broken.png").write_bytes(b"no image")
    command = ["predict", str(run), str(images), "--top", "2", "--batch-size", "4"]
    found = json_of(command, capsys)
    assert found["classes"] == list(digits.classes)
    assert [(Path(file["file"]).name, file["fault"]) for file in found["broken"]] == [
        ("broken.png", "the content has no known image format")
    ]
    network = nasx.load(run)
    assert len(found["images"]) == 11
    for image in found["images"]:
        for predicted, (name, probability) in zip(image["predictions"], network.predict(image["file"]), strict=False):
            assert predicted == {"class": name, "probability": pytest.approx(probability, abs=1e-5)}
    assert nasx_main(command) == 0, "the command finds out itself which recipe it is"
    out, errors = capsys.readouterr()
    assert len(out.splitlines()) == 11
    assert "left out" in errors
    assert "none of the files" in refused_words(["predict", str(run), str(images / "broken.png")], capsys)
    assert "--top is at least 1" in refused(["predict", str(run), str(images), "--top", "0"], capsys)
    assert "holds no image" in refused(["predict", str(run), str(run / "details")], capsys)
    remove = ["export", str(run), "--preprocess", "--out", str(tmp_path / "out")]
    assert "remove --preprocess" in refused(remove, capsys)
    for words in (["status", str(run)], ["report", str(run)]):
        assert nasx_main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)


def test_each_image_has_one_line_and_refused_ones_no_other(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "two\nlines\x1b.png", "png")
    Image.new("L", (12, 12)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert main(["predict", str(run), str(tmp_path)]) == 0
    out, errors = capsys.readouterr()
    assert not shown
    assert out.count("\n") == 1
    assert r"two\nlines\x1b.png" in out
    assert "large.png: it has more than the 100 pixels" in errors


def test_the_installed_command_knows_a_run_of_a_checkout(run: Path, tmp_path: Path) -> None:
    before = (run / "model.safetensors").stat().st_mtime_ns
    words = ["-m", "nasx", "glit", "run", "--run-dir", str(run), *SHORT, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(nasx.__file__).parents[1])}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]
    assert json.loads(done.stdout) == json.loads((run / "summary.json").read_text())
    assert (run / "model.safetensors").stat().st_mtime_ns == before


def test_published_weights_become_this_recipe_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    source = timm.create_model("deit_tiny_patch16_224", pretrained=False, num_classes=7, img_size=32).eval()
    torch.save({"model": source.state_dict()}, tmp_path / "deit.pth")
    imported = json_of(["import-official", str(tmp_path / "deit.pth"), "--out", str(tmp_path / "deit")], capsys)
    assert imported["params"] == count_params(source)
    found = from_file(RECIPE, tmp_path / "deit" / "model.safetensors")
    with torch.no_grad():
        images = torch.randn(2, 3, 32, 32)
        torch.testing.assert_close(found.network(images), source(images))
    assert "published" in (tmp_path / "deit" / "README.md").read_text()

    changed = ["--out", str(tmp_path / "other"), "--classes", "5", "--image-size", "48"]
    json_of(["import-official", str(tmp_path / "deit.pth"), *changed], capsys)
    other = from_file(RECIPE, tmp_path / "other" / "model.safetensors")
    assert other.network(torch.zeros(1, 3, 48, 48)).shape == (1, 5)
    assert "not trained" in (tmp_path / "other" / "README.md").read_text()

    data = str(folder(tmp_path / "data", classes=7, size=40))
    evaluated = json_of(["evaluate", str(tmp_path / "deit"), "--data", data], capsys)
    assert evaluated["images"] == 21
    assert "5 classes" in refused(["evaluate", str(tmp_path / "other"), "--data", data], capsys)
    weights = ["--weights", str(tmp_path / "deit.pth"), "--arch", "deit-tiny", "--set", "data.image_size=32"]
    settings = ["--set", "data.val_images=7", "--data", data]
    bare = json_of(["evaluate", *weights, *settings], capsys)
    assert bare == evaluated
    few = str(folder(tmp_path / "few", classes=2, size=40))
    assert "7 classes" in refused(["evaluate", *weights, "--set", "data.val_images=2", "--data", few], capsys)


def test_glit_s_published_names_are_imported_as_glit_tiny(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = Path(__file__).parents[4] / "shared/spec/checkpoints/glit_tiny_official.json"
    if not shapes.exists():
        pytest.skip("the names and shapes of the published checkpoint are not here")
    state = {name: torch.full(shape, 0.01) for name, shape in json.loads(shapes.read_text()).items()}
    torch.save({"model": state, "epoch": 299}, tmp_path / "glit.pth")
    imported = json_of(["import-official", str(tmp_path / "glit.pth"), "--out", str(tmp_path / "glit")], capsys)
    assert Arch(imported["arch"]) == GLIT_TINY
    assert (imported["params"], imported["macs"]) == (7_264_456, 1_472_873_280)


def test_a_run_and_networks_of_presets_are_verified(
    run: Path, arch_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof = json_of(["verify", str(run)], capsys)
    assert proof["passed"]
    assert proof["weights"] == "weights of the supernet details/supernet"
    assert all(check["passed"] for check in proof["checks"])
    assert len(proof["checks"]) == 7
    own = json_of(["verify", "--arch", str(arch_file), "--preset", "digits", *SMALL, "--onnx"], capsys)
    assert own["passed"]
    assert len(own["checks"]) == 6


def test_verification_names_the_layer_that_differs(
    arch_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(Supernet):
        def extract(self, arch: Arch) -> nn.Module:
            network = super().extract(arch)
            with torch.no_grad():
                next(p for name, p in network.named_parameters() if name == "blocks.2.norm2.bias").add_(1)
            return network

    monkeypatch.setattr("recipes.glit.supernet.Supernet", Wrong)
    proof = json_of(["verify", "--arch", str(arch_file), "--preset", "digits", *SMALL], capsys, status=1)
    assert not proof["passed"]
    assert "'blocks.2.norm2'" in next(c["detail"] for c in proof["checks"] if not c["passed"])


def test_weights_of_another_run_are_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(run, changed)
    state = load_file(changed / "model.safetensors")
    bare = ["--weights", str(changed / "model.safetensors"), "--arch", str(run / "arch.json"), "--preset", "digits"]
    save_file({**state, "head.weight": state["head.weight"][:9].clone()}, changed / "model.safetensors")
    assert "the weights are of 9 classes, but 10 are expected" in refused(["evaluate", *bare, *SMALL], capsys)
    del state["norm.weight"]
    save_file(state, changed / "model.safetensors")
    assert "'norm.weight'" in refused(["evaluate", *bare, *SMALL], capsys)
    changed_run, out = str(changed), str(tmp_path / "out")
    for command in (["evaluate", changed_run], ["export", changed_run, "--out", out], ["verify", changed_run]):
        assert "are not those that were written" in refused(command, capsys)


def test_an_export_that_computes_something_else_is_one_message_and_no_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(content: bytes, network: Any, images: Any, *, tolerance: float) -> Check:
        return Check("ONNX export = extracted network", False, 0.5)

    monkeypatch.setattr("nasx.pipeline.export_formats.compare_onnx", differs)
    capsys.readouterr()
    assert main(["export", str(run), "--format", "onnx", "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert "its logits differ by 0.5; nothing was written; choose another --format" in captured.err
    assert not (tmp_path / "out").exists()


def test_bad_input(run: Path, arch_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = str(arch_file)
    (tmp_path / "text").write_text("no weights")
    cases = [
        (["describe", "--arch", "deit-base", "--preset", "glit-tiny"], "--preset glit-base"),
        (["describe", "--arch", "glit-tiny", "--classes", "0"], "at least one class"),
        (["describe", "--arch", "glit-tiny", "--set", "data.image_size=8"], "write data.image_size=16"),
        (["describe", "--arch", "glit-tiny", "--set", "model.embed_dim=200"], "write model.embed_dim=201"),
        (["describe", "--arch", own, "--preset", "digit"], "'digits'"),
        (["run", "--preset", "foldr"], "did you mean 'folder'?"),
        (["run", "--set", "supernet.epochs=1e300"], "supernet.epochs: Input should be less than or equal to 1000000"),
        (["run", "--set", "retrain.epochs=1e7"], "retrain.epochs: Input should be less than or equal to 1000000"),
        (["train", "--arch", own, "--method", "spos"], "remove --method"),
        (["train", "--arch", "glit-tiny", "--preset", "digits"], "--preset glit-tiny"),
        (["train", "--arch", "glit-tiny", "--preset", "glit-tiny"], "--data DIR"),
        (["evaluate"], "nothing is named; name a run directory or an exported network, or --weights"),
        (["evaluate", str(run), "--weights", own], "is named and --weights too; remove one of them"),
        (["evaluate", str(run), "--mean", "0.5"], "--mean is given without --std; give both, or neither"),
        (["evaluate", str(run), "--arch", own], "remove --arch"),
        (["evaluate", str(run), "--data", str(tmp_path)], "neither test/ nor val/"),
        (["evaluate", str(tmp_path)], "neither a run directory nor"),
        (["evaluate", "--weights", str(run / "model.safetensors")], "name it with --arch"),
        (["verify"], "nothing is named; name a run directory, or --arch"),
        (["verify", "--arch", "timm:resnet18"], "timm:resnet18 is no network of the space"),
        (["describe", "--arch", "timm:resnet18"], "timm:resnet18 is no network of the space"),
        (["plan", "--no-timing", "--time-limit", "1"], "--no-timing leaves out; remove one of them"),
        (["run", "--set", "retrain.augment.pad_crop=8"], "retrain.augment.pad_crop must be less than data.image_size"),
        (["run", "--set", "supernet.paths=fair"], "pin it or write supernet.paths=uniform"),
        (["run", "--set", "data.val_fraction=0.999"], "hold out 1427 at most, by data.val_images or data.val_fraction"),
        (["run", "--run-dir", f"{own}/run"], f"the run directory {own}/run cannot be made"),
        (["export", str(run), "--out", own], f"{own}: file exists; choose another path"),
        (["import-official", f"{own}.pt", "--out", str(tmp_path / "out")], "no such file or directory; choose another"),
        (["verify", str(tmp_path)], "no run directory"),
        (["export", str(tmp_path / "nothing"), "--out", str(tmp_path / "out")], f"there is no {tmp_path / 'nothing'}"),
        (["import-official", str(tmp_path / "text"), "--out", str(tmp_path / "out")], "neither a safetensors file nor"),
        (["import-official", str(run / "model.safetensors"), "--out", str(tmp_path / "out")], "--heads"),
        (["report", str(tmp_path)], "no run directory"),
    ]
    for arguments, words in cases:
        assert words in refused(arguments, capsys), arguments
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("command", "option", "ending", "other"),
    [
        (["report", "RUN"], "--output", ".html", "page.txt"),
        (["latency", "--preset", "digits"], "--out", ".json", "table.html"),
        (["heatmaps", "RUN"], "--out", ".svg", "maps.json"),
        (["describe", "--arch", "RUN"], "--picture", ".png", "picture.json"),
    ],
)
def test_no_command_writes_over_a_run_or_under_a_misleading_name(
    command: list[str],
    option: str,
    ending: str,
    other: str,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("nasx.latency.measure_latency", None)  # whose work would be lost
    words = [str(run) if word == "RUN" else word for word in command]
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (tmp_path / "linked").symlink_to(run / "evaluation")
    for inside in (run / f"own{ending}", run / "evaluation" / f"own{ending}", tmp_path / "linked" / f"own{ending}"):
        assert "is a run directory, whose files must stay; choose another" in refused(
            [*words, option, str(inside)], capsys
        )
    assert f"must end in {'.svg or .png' if ending in ('.svg', '.png') else ending}" in refused(
        [*words, option, str(run / "summary.txt")], capsys
    )
    assert f"but got {tmp_path / other}" in refused([*words, option, str(tmp_path / other)], capsys)
    assert "there is no folder" in refused([*words, option, str(tmp_path / "no" / f"own{ending}")], capsys)
    (tmp_path / f"folder{ending}").mkdir()
    assert "is a folder" in refused([*words, option, str(tmp_path / f"folder{ending}")], capsys)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_s_own_report_is_written_again_and_a_comparison_is_not_put_in_its_place(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "copy")
    own = tmp_path / "copy" / "report.html"
    assert json_of(["report", "copy", "--output", str(own)], capsys) == {"report": str(own)}
    assert "whose files must stay" in refused(["report", "copy", str(run), "--output", str(own)], capsys)
    assert json_of(["report", "copy", "--output", "page.html"], capsys) == {"report": "page.html"}


def test_counts_below_1_are_refused_by_their_option(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = ["latency", "--preset", "digits", "--out", "table.json"]
    for option, command in (
        ("--batch-size", table),
        ("--rounds", table),
        ("--count", ["heatmaps", str(run), "--out", "maps.svg"]),
    ):
        for count in ("0", "-3"):
            assert f"{option}" in (error := refused([*command, option, count], capsys))
            assert "at least 1" in error
            assert f"but got {count}" in error


@pytest.mark.parametrize("mean", ["nan", "inf,0,0", "0.5,-inf,0", "", "1,x"])
def test_statistics_that_are_no_finite_numbers_are_refused(
    mean: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--mean", "--std"):
        with pytest.raises(SystemExit, match="2"):
            main(["evaluate", str(run), f"{option}={mean}"])
        assert f"argument {option}: finite numbers" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["evaluate", str(run), "--std=0.5,0"])
    assert "numbers above 0" in capsys.readouterr().err


def test_what_is_offered_can_be_taken(capsys: pytest.CaptureFixture[str]) -> None:
    for command, offered in (("train", True), ("evaluate", True), ("describe", False), ("verify", False)):
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert ("timm:NAME" in capsys.readouterr().out) is offered


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--devices", "0"], "(--devices) must be at least 1, but got 0"),
        (["--time-limit", "0"], "(--time-limit) must be hours above 0, but got 0"),
        (["--preset", "cifar10"], "data.source=folder reads images from a folder; give --data DIR"),
        (
            ["--preset", "digits", "--data", "."],
            "a preset for image folders: --preset folder or --preset cifar10",
        ),
    ],
)
def test_a_plan_that_cannot_be_made_prints_no_settings(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err


def test_a_plan_on_a_device_that_is_not_there_prints_no_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NASX_DEVICE", "abacus")
    assert main(["plan"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "there is no device 'abacus'" in captured.err


def test_remarks_about_images_come_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = folder(tmp_path / "images", classes=11, size=8, per_class=6)
    for part in ("train", "test"):
        for label in range(11):
            (root / part / f"class{label}").rename(root / part / str(label))
    assert main(["plan", "--no-timing", "--data", str(root)]) == 0
    err = capsys.readouterr().err
    assert err.count("the class folders are numbers") == 1
    assert "DataWarning" not in err


def test_fewer_heat_maps_than_asked_for_are_said(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert main(["heatmaps", str(run), "--count", "50", "--out", "maps.svg"]) == 0
    assert "10 of 50 images are drawn, one of each class" in caplog.text


def test_a_latency_table_bounds_networks_of_its_sizes_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--set", "space.global_heads=[3]", "--set", "space.mlp_ratio=[4]", "--set", "space.qkv_ratio=[1]"]
    latency = ["latency", "--preset", "digits", "--rounds", "1", "--out", "table.json", *few]
    json_of(latency, capsys)
    assert "choose another --out, or add --force" in refused(latency, capsys)
    json_of([*latency, "--force"], capsys)
    bound = ["--set", "budget.latency=table.json", "--set", "budget.latency_at_most=100%"]
    plan = ["plan", "--no-timing", "--method", "random", *few, *bound]
    plan += [word for name in ("details_at_least", "details_at_most") for word in ("--set", f"budget.{name}=null")]
    assert "table.json" in json_of(plan, capsys)["config"]["budget"]["latency"]
    assert main([*plan, "--set", "model.embed_dim=72"]) == 2
    error = capsys.readouterr().err
    assert "measured on networks with embed_dim=36, but these have embed_dim=72; measure these networks" in error


def test_a_plan_refuses_the_teachers_that_a_run_would(capsys: pytest.CaptureFixture[str]) -> None:
    for section in ("supernet", "retrain"):
        for teacher, rule in (("timm:foo", "names no weights"), ("nowhere", "a teacher is timm:NAME=WEIGHTS")):
            for command in ("plan", "run"):
                assert main([command, "--set", f"{section}.teacher={teacher}"]) == 2
                error = capsys.readouterr().err
                assert f"{section}.teacher: " in error
                assert rule in error
