"""Teachers from folders: networks of any recipe and size, given images as they were trained on them."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from nasx.pipeline import Problem, Refused, Task, plan, run
from nasx.pipeline.export_formats import write_safetensors
from nasx.pipeline.exported import ExportedModel
from nasx.pipeline.image_sources import ImageSource, load_images
from nasx.pipeline.recipe import open_recipe
from nasx.pipeline.teachers import open_teacher
from recipes.glit.model import GLiTConfig
from recipes.glit.space import GLiTSpace, with_heads
from tests.pipeline.searches import SPACE, Sentences, Tagger, padded, tag_accuracy, tag_loss
from tests.pipeline.test_run import MACHINE, changed
from tests.pipeline.test_run import problem as vectors_problem
from tests.pipeline.test_run import task as own_task

DIGITS = tuple(map(str, range(10)))
MEAN, STD = (0.5,), (0.25,)


def problem(recipe: str = "glit") -> Any:
    found = open_recipe(recipe)
    config = found.presets["digits"]
    return found.problem(config, load_images(ImageSource(config.data, config.seed)))


def exported(**sizes: Any) -> ExportedModel:
    """Return a network that is wider and shallower than those of the digits preset, normalised otherwise."""
    vit = GLiTConfig(
        **{"image_size": 8, "patch_size": 2, "in_channels": 1, "num_classes": 10, "embed_dim": 48, **sizes}
    )
    arch = with_heads([3, 0], GLiTSpace(blocks=2))
    torch.manual_seed(0)
    network = open_recipe("glit").build(vit, arch).eval()
    return ExportedModel(
        recipe="glit",
        network=network,
        arch=arch,
        vit=asdict(vit),
        classes=DIGITS,
        mean=MEAN,
        std=STD,
        accuracies={"test": 0.9},
        origin="Not trained.",
    )


@pytest.mark.parametrize("recipe", ["glit", "localvit"])
def test_an_exported_network_of_another_size_sees_images_as_it_was_trained_on_them(recipe: str, tmp_path: Path) -> None:
    model, own = exported(), problem(recipe)
    write_safetensors(model, tmp_path / "teacher")
    teacher = open_teacher(str(tmp_path / "teacher"), own)
    pixels = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def normalised(mean: Any, std: Any) -> Tensor:
        return (pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)

    with torch.no_grad():
        torch.testing.assert_close(teacher(normalised(*own.task.statistics)), model.network(normalised(MEAN, STD)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": (*DIGITS[:9], "ten")}, "the network was trained for other classes: 'ten' where the data have '9'"),
        ({"vit": {"num_classes": 4}, "classes": DIGITS[:4]}, "tells 4 classes apart, but the data have 10"),
        ({"vit": {"image_size": 16}}, "takes images of 1 channels and 16 pixels, but those of this run have 1 and 8"),
    ],
    ids=["names", "number", "size"],
)
def test_a_teacher_of_other_images_or_classes_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = exported(**changes.pop("vit", {}))
    write_safetensors(replace(model, **changes), tmp_path / "teacher")
    with pytest.raises(ValueError, match=message):
        open_teacher(str(tmp_path / "teacher"), problem())


def test_weights_that_say_no_recipe_are_of_the_own_builder(tmp_path: Path) -> None:
    own = problem()
    arch = own.space.sample(0)
    (tmp_path / "arch.json").write_text(arch.to_json())
    network = own.make(arch)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    images = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(open_teacher(str(tmp_path), own)(images), network.eval()(images))
    wider = exported().network
    save_file(wider.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"do not fit: .*'\S+' and \d+ more have other shapes \(\(") as raised:
        open_teacher(str(tmp_path), own)
    assert len(str(raised.value)) < 500
    save_file({"x": torch.zeros(1), "y": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"'\S+' and \d+ more are missing; 'x' and 1 more are unexpected$"):
        open_teacher(str(tmp_path), own)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        (lambda: nn.Linear(4, 5), r"retrain\.teacher: the teacher must return as many classes .* \(2, 5\)"),
        (lambda: nn.Linear(6, 3), r"retrain\.teacher cannot be called with this task's inputs: .*shapes"),
    ],
    ids=["classes", "inputs"],
)
def test_a_teacher_that_cannot_teach_is_refused_before_anything_is_trained(
    teacher: Any, message: str, tmp_path: Path
) -> None:
    own = vectors_problem(teacher={"retrain": teacher()})
    with pytest.raises(Refused, match=message):
        run(own, tmp_path, machine=MACHINE)
    assert not (tmp_path / "supernet").exists()
    with pytest.raises(ValueError, match=message):
        plan(own, machine=MACHINE, timing=False)


def test_a_plan_times_the_teacher_too() -> None:
    own = vectors_problem(teacher={section: nn.Linear(4, 3) for section in ("supernet", "retrain")})
    plan(own, machine=MACHINE, timing=False)
    seen: list[str] = []
    for section in ("supernet", "retrain"):
        teacher = own.teacher_of(getattr(own.config, section))
        assert teacher is not None
        teacher.register_forward_hook(lambda *_, section=section: seen.append(section))
    plan(own, machine=MACHINE)
    assert min(map(seen.count, ("supernet", "retrain"))) > 3


def test_a_teacher_of_a_loss_of_ones_own_is_refused_also_where_two_samples_have_as_many_positions_as_classes() -> None:
    first = [{"tokens": tokens, "labels": tokens % 3} for tokens in (torch.arange(3), torch.arange(2))]
    later = Sentences(20, 0)
    val = [*first, *(later[index] for index in range(len(later)))]
    task = Task(Sentences(100, 1), val, loss=tag_loss, metric=tag_accuracy, collate_fn=padded)
    own: Problem[Any] = Problem(SPACE, Tagger, task, teacher=Tagger(SPACE[0]))
    with pytest.raises(ValueError, match=r"supernet\.teacher: it is unknown what a teacher's outputs mean to tag_loss"):
        plan(own, machine=MACHINE, timing=False)


def test_a_sandwich_with_a_loss_of_ones_own_is_refused(tmp_path: Path) -> None:
    config = changed(supernet={"paths": "sandwich"})
    task = Task(own_task().train, loss=lambda outputs, targets: F.cross_entropy(outputs, targets))
    with pytest.raises(Refused, match=r"supernet\.paths=sandwich .* but not with <lambda>; choose other"):
        run(vectors_problem(config, task=task), tmp_path, machine=MACHINE)
