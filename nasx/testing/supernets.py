"""What every supernet promises."""

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nasx.arch import Arch
from nasx.measure import Call
from nasx.nn.supernet import SupernetLike
from nasx.space import Space
from nasx.testing.subjects import some_archs
from nasx.verify import check_slice


class SupernetContract(ABC):
    """What every supernet promises: slices are networks of their own, and one path's training touches no other.

    Small supernets do: fewer than ten million weights. They are tested in float64 on the CPU, their weights moved a
    little, so that nothing hides behind an initial zero or one.
    """

    space: Space
    samples: int = 4

    @abstractmethod
    def make_supernet(self) -> SupernetLike:
        """Return a fresh supernet of the space, a torch module."""

    @abstractmethod
    def make_inputs(self) -> Any:
        """Return a batch of two or more different samples.

        A tensor (B, ...), a tuple of positional inputs, or a dict of keyword inputs; the supernet is called as
        `supernet(x, arch)`, or as `supernet(*inputs, arch=arch)` and `supernet(arch=arch, **inputs)`.
        """

    def test_extract_equals_slice(self) -> None:
        """An extracted network computes what the supernet does, in evaluation mode."""
        self._check_slices(training=False)

    def test_extract_equals_slice_in_training(self) -> None:
        """And in training mode, from the same random state, with the same statistics left behind."""
        self._check_slices(training=True)

    def test_extract_has_memory_of_its_own(self) -> None:
        """Training an extracted network does not change the supernet, nor the other way round."""
        inputs = self._inputs()
        for arch in some_archs(self.space, self.samples):
            supernet = self._supernet().eval()
            assert not supernet.extract(arch).training, "the extracted network has not the supernet's mode"
            network = supernet.train().extract(arch)
            assert network.training, "the extracted network has not the supernet's mode"
            before = _copied(supernet)
            _step(network, partial(_outputs_of, network, inputs))
            _move(network)
            changed = _changed(before, supernet)
            assert not changed, f"training the extracted network changed the supernet's {', '.join(changed)}"
            before = _copied(network)
            _move(supernet)
            changed = _changed(before, network)
            assert not changed, f"training the supernet changed the extracted network's {', '.join(changed)}"

    def test_a_training_step_changes_only_what_the_path_uses(self) -> None:
        """Weights and statistics that the path's extracted network does not hold stay as they are."""
        inputs = self._inputs()
        for arch in some_archs(self.space, self.samples):
            supernet = self._supernet().train()
            used, before = _used(supernet, arch), _copied(supernet)
            _step(supernet, partial(_outputs_of, supernet, inputs, arch))
            after = _copied(supernet)
            moved = {name: after[name] != before[name] for name in used}
            assert any(bool(where.any()) for where in moved.values()), "a step of SGD changed nothing at all"
            leaks = [name for name, where in moved.items() if bool((where & ~used[name]).any())]
            assert not leaks, f"a step of {dict(arch)} changed {', '.join(leaks)} where that network holds nothing"

    def test_which_weights_have_gradients_depends_on_the_architecture_alone(self) -> None:
        """As distributed training needs it: neither the data nor earlier paths matter."""
        supernet, inputs = self._supernet().train(), self._inputs()
        archs = some_archs(self.space, self.samples)
        first = {arch: set(_gradients(supernet, partial(_outputs_of, supernet, inputs, arch))) for arch in archs}
        other = inputs.changed(_other_samples)
        for arch in reversed(archs):
            again = set(_gradients(supernet, partial(_outputs_of, supernet, other, arch)))
            differ = sorted(again ^ first[arch])
            assert not differ, f"whether {', '.join(differ)} have gradients depends on more than the architecture"

    def test_forward_keeps_nothing_of_the_architecture(self) -> None:
        """A pass assigns no attribute of any module."""
        supernet, inputs = self._supernet().eval(), self._inputs()
        for arch in some_archs(self.space, self.samples):
            before = _attributes(supernet)
            with torch.no_grad():
                _outputs_of(supernet, inputs, arch)
            after = _attributes(supernet)
            changed = sorted(name for name in before.keys() | after.keys() if not _same(before, after, name))
            assert not changed, f"forward assigns {', '.join(changed)}; pass what depends on the architecture along"

    def test_two_threads_run_two_architectures(self) -> None:
        """Passes that interleave give what each gives alone."""
        supernet, inputs = self._supernet().eval(), self._inputs()
        archs = some_archs(self.space, 2)
        with torch.no_grad():
            alone = [_outputs_of(supernet, inputs, arch) for arch in archs]
        together = threading.Barrier(len(archs))

        def meet(*_: object) -> None:
            with suppress(threading.BrokenBarrierError):  # the other thread is done, or waits for this one's lock
                together.wait(5)

        def run(arch: Arch) -> list[list[Tensor]]:
            with torch.no_grad():
                outputs = [_outputs_of(supernet, inputs, arch) for _ in range(3)]
            together.abort()
            return outputs

        for module in supernet.modules():  # no thread runs a layer before the other comes to one
            module.register_forward_pre_hook(meet)
        with ThreadPoolExecutor(len(archs)) as pool:
            found = list(pool.map(run, archs))
        for arch, expected, outputs in zip(archs, alone, found, strict=True):
            for output in outputs:
                same = all(map(torch.equal, output, expected))
                assert same, f"another thread's pass changes the outputs of {dict(arch)}"

    def _check_slices(self, *, training: bool) -> None:
        supernet, inputs = self._supernet(), self._inputs()
        for arch in some_archs(self.space, self.samples):
            check = check_slice(supernet, arch, inputs, training=training)
            assert check.passed, f"{check}: {dict(arch)}"

    def _supernet(self) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            supernet = self.make_supernet()
            assert isinstance(supernet, nn.Module), f"a supernet is a torch module, but got {type(supernet).__name__}"
            supernet.to("cpu", torch.float64)  # first: a copy that passes through float32 then shows
            with torch.no_grad():
                for parameter in supernet.parameters():
                    parameter.add_(torch.randn_like(parameter), alpha=0.02)
                for name, buffer in supernet.named_buffers():  # of BatchNorm layers, or of a store of their tensors
                    match name.partition("@")[0].rpartition(".")[2]:
                        case "running_mean":
                            buffer.add_(torch.randn_like(buffer), alpha=0.1)
                        case "running_var":
                            buffer.add_(torch.rand_like(buffer))
        return supernet

    def _inputs(self) -> Call:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            given = self.make_inputs()
        call = Call((), given) if isinstance(given, Mapping) else Call.of(given)
        for tensor in call.tensors:
            assert len(tensor) > 1, f"`make_inputs` needs two or more samples, but gave {len(tensor)}"
        return call.changed(_in_float64)


def _in_float64(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu()
    return tensor.double() if tensor.is_floating_point() else tensor


def _other_samples(tensor: Tensor) -> Tensor:
    other = tensor.roll(1, 0).clone()
    other[0] = other[1]
    return other


def _outputs_of(module: nn.Module, inputs: Call, arch: Arch | None = None) -> list[Tensor]:
    """Return the tensors that a network, or a supernet under an architecture, returns for inputs."""
    outputs = inputs(module, arch)
    found = [value for value in tree_leaves(outputs) if isinstance(value, Tensor)]
    assert found, f"the outputs of {type(module).__name__} hold no tensor, but are {type(outputs).__name__}"
    return found


_FIRST = 1 << 20  # numbers from here on are no weight by chance, and float32 holds those to 2**24


def _used(supernet: Any, arch: Arch) -> dict[str, Tensor]:
    """Return which elements of a supernet's parameters and statistics an extracted network holds copies of.

    Every element is given a number of its own, and the numbers are looked for in the extracted network.
    """
    numbered = copy.deepcopy(supernet)
    own = _state(numbered)
    starts = np.cumsum([0, *(tensor.numel() for tensor in own.values())]) + _FIRST
    assert starts[-1] < 1 << 24, f"{starts[-1] - _FIRST:,} weights are too many to number; give a smaller supernet"
    for tensor, start in zip(own.values(), starts, strict=False):
        tensor.copy_(torch.arange(start, start + tensor.numel()).view_as(tensor))
    found = torch.cat([tensor.flatten() for tensor in _state(numbered.extract(arch)).values()]).round().long()
    marks = torch.zeros(int(starts[-1]), dtype=torch.bool)
    marks[found[(found >= _FIRST) & (found < starts[-1])]] = True
    return {
        name: marks[start : start + tensor.numel()].view_as(tensor)
        for (name, tensor), start in zip(own.items(), starts, strict=False)
    }


def _state(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and statistics that are real numbers, those of one memory once."""
    seen: dict[int, str] = {}
    tensors = {name: tensor for name, tensor in module.state_dict().items() if tensor.is_floating_point()}
    return {name: tensor for name, tensor in tensors.items() if seen.setdefault(tensor.data_ptr(), name) == name}


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _changed(before: Mapping[str, Tensor], module: nn.Module) -> list[str]:
    return [name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])]


def _move(module: nn.Module) -> None:
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(1)


def _gradients(module: nn.Module, run: Callable[[], list[Tensor]]) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    loss = torch.stack([output.square().mean() for output in run() if output.is_floating_point()]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def _step(module: nn.Module, run: Callable[[], list[Tensor]]) -> None:
    """Take a step of SGD."""
    gradients = _gradients(module, run)
    assert gradients, "no weight has a gradient"
    with torch.no_grad():
        for name, gradient in gradients.items():
            module.get_parameter(name).sub_(gradient, alpha=0.1)


def _attributes(module: nn.Module) -> dict[str, object]:
    """Return every attribute of every module that is no parameter, buffer or module."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, inner in module.named_modules()
        for key, value in vars(inner).items()
        if key not in ("_parameters", "_buffers", "_modules")
    }


def _same(before: Mapping[str, object], after: Mapping[str, object], name: str) -> bool:
    if name not in before or name not in after:
        return False
    first, second = before[name], after[name]
    return first is second or (type(first) is type(second) and not isinstance(first, Tensor) and first == second)
