"""The supernet against its extracted networks, and what a training step may touch."""

import itertools
from typing import Literal

import pytest
import torch
from torch import Tensor

from nasx import Arch, Space
from nasx.nn import Switch
from nasx.train import nesterov_sgd, train_supernet
from recipes.glit.model import Frame
from recipes.glit.space import Axes, details_space, heads_space, same_heads, table2
from recipes.glit.supernet import GLiTSupernet

AXES = Axes(blocks=3, kernel_size=(3, 5, 9), held_kernel_size=5)
FRAME = Frame(image_size=8, patch_size=2, in_channels=1, num_classes=10, embed_dim=24)
SPACE = table2(AXES)
SHARINGS: tuple[Literal["separate", "entangled"], ...] = ("separate", "entangled")


def make(sharing: Literal["separate", "entangled"], **settings: float) -> GLiTSupernet:
    torch.manual_seed(0)
    return GLiTSupernet(SPACE, FRAME, sharing=sharing, init_std=0.2, **settings).double()


@pytest.mark.parametrize("sharing", SHARINGS)
@pytest.mark.parametrize("training", [False, True])
def test_extracted_network_equals_the_slice(sharing: Literal["separate", "entangled"], training: bool) -> None:
    supernet = make(sharing)
    for seed in range(15):
        arch = SPACE.sample(seed)
        images = torch.randn(4, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        supernet.train(training)
        network = supernet.extract(arch)
        assert network.training == training
        torch.testing.assert_close(network(images), supernet(images, arch), rtol=0, atol=1e-12)
        if training:  # both updated the same BatchNorm statistics
            again = supernet.eval().extract(arch)
            torch.testing.assert_close(network.eval()(images), again(images), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sharing", SHARINGS)
def test_extracted_network_is_plain_torch_with_memory_of_its_own(sharing: Literal["separate", "entangled"]) -> None:
    supernet = make(sharing)
    network = supernet.extract(SPACE.sample(1))
    assert not any("elastic" in type(m).__module__ or "Switch" in type(m).__name__ for m in network.modules())
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in supernet.state_dict().items())


def _batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(8, 1, 8, 8, dtype=torch.float64, generator=generator),
            torch.randint(10, (8,), generator=generator),
        )
        for _ in range(steps)
    ]


def test_unsampled_candidates_are_untouched_with_separate_weights() -> None:
    supernet = make("separate")
    first, second = same_heads(3, AXES), same_heads(0, AXES)
    optimizer = nesterov_sgd(supernet, lr=0.1, weight_decay=1e-2)
    paths = itertools.cycle([first, second])
    # one step of each fills the momentum of both, so that momentum could move what a later step does not sample
    list(train_supernet(supernet, _batches(2), lambda step: (next(paths),), optimizer))
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    list(train_supernet(supernet, _batches(1), lambda step: (first,), optimizer))
    after = supernet.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert not any(".local." in name for name in changed)
    used = {f"parts.{part}.{name}" for part, name in (("attention", "on_3,1"), ("ffn", "on_4"))}
    assert all(any(part in name for part in used) for name in changed if ".parts." in name)


def test_unsampled_slices_get_zero_gradient_with_entangled_weights() -> None:
    supernet = make("entangled")
    arch = Arch({**same_heads(1, AXES), "block.0.mlp_ratio": 2})
    ((images, labels),) = _batches(1)
    torch.nn.functional.cross_entropy(supernet(images, arch), labels).backward()  # type: ignore[no-untyped-call]
    gradient = supernet.get_parameter("blocks.0.parts.ffn.fc1.weight").grad
    assert gradient is not None
    assert gradient[: 2 * 24].abs().sum() > 0
    assert gradient[2 * 24 :].abs().sum() == 0
    kernel = supernet.get_parameter("blocks.0.parts.local.depthwise.weight").grad
    assert kernel is not None
    assert kernel[..., 2:7].abs().sum() > 0
    assert kernel[..., :2].abs().sum() == kernel[..., 7:].abs().sum() == 0


def test_a_stage_holds_only_what_its_space_reaches() -> None:
    assert _candidates(heads_space(AXES)) == {
        *(("attention", (g, 1)) for g in (1, 2, 3)),
        *(("local", (g, 5, 4)) for g in (0, 1, 2)),
        ("ffn", 4),
    }
    assert len(_candidates(SPACE)) == 39
    assert len(_candidates(details_space(same_heads(0, AXES), AXES))) == 9 + 1


def _candidates(space: Space) -> set[tuple[str, object]]:
    parts = GLiTSupernet(space, FRAME).get_submodule("blocks.0.parts")
    switches = {name: module for name, module in parts.named_children() if isinstance(module, Switch)}
    return {(name, key) for name, switch in switches.items() for key in switch}


def test_unknown_sharing_is_refused() -> None:
    with pytest.raises(ValueError, match="separate"):
        GLiTSupernet(SPACE, FRAME, sharing="both")  # type: ignore[arg-type]
