"""Counting what one network computes and holds, as a whole and by module."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from nasx._modules import copied
from nasx.arch import Arch
from nasx.train.modes import evaluating

_WHOLE = "Global"  # torch's flop counter gives totals under this name
_FORMULAS: Mapping[Any, Callable[..., int]] = {  # flops of products that torch's counter leaves out, from shapes
    torch.ops.aten._trilinear: lambda first, weight, *_, **__: 2 * first[0] * math.prod(weight),  # nn.Bilinear
    torch.ops.aten.addmv: lambda bias, matrix, *_, **__: 2 * math.prod(matrix),
    torch.ops.aten.dot: lambda vector, *_, **__: 2 * math.prod(vector),
    torch.ops.aten.vdot: lambda vector, *_, **__: 2 * math.prod(vector),
    torch.ops.aten.addbmm: lambda bias, first, second, *_, **__: 2 * math.prod(first) * second[2],
    torch.ops.aten.conv_tbc: lambda x, weight, *_, out_shape, **__: 2 * math.prod(out_shape[:2]) * math.prod(weight),
    torch.ops.aten._int_mm: lambda first, second, *_, **__: 2 * math.prod(first) * second[1],
    torch.ops.aten._weight_int8pack_mm: lambda x, weight, *_, **__: 2 * math.prod(x) * weight[0],
}
_OF_SPARSE = {  # products that take sparse matrices, and at which place the first factor is
    torch.ops.aten.mm: 0,
    torch.ops.aten.mv: 0,
    torch.ops.aten.addmm: 1,
    torch.ops.aten._sparse_addmm: 1,
}
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)  # attention's, as plain products


@dataclass(frozen=True)
class Call:
    """The arguments of one forward pass."""

    args: tuple[Any, ...] = ()
    """Positional arguments, in order."""

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments by name."""

    @classmethod
    def of(cls, example: "Tensor | tuple[Any, ...] | Call | Any") -> "Call":
        """Return the call that an example stands for: a tuple is positional arguments, anything else the only one."""
        if isinstance(example, Call):
            return example
        return cls(example) if isinstance(example, tuple) else cls((example,))

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, those in nested tuples, lists and dicts too, in order."""
        return _tensors((self.args, dict(self.kwargs)))

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Call":
        """Return the same call with another tensor for every tensor."""
        args, kwargs = tree_map_only(Tensor, change, (self.args, dict(self.kwargs)))
        return Call(args, kwargs)

    def to(self, device: str) -> "Call":
        """Return the same call with every tensor on a device."""
        return self.changed(lambda tensor: tensor.to(device))

    def __call__(self, network: nn.Module, arch: Arch | None = None) -> Any:
        """Return what a network gives for the arguments, or a supernet under an architecture."""
        if arch is None:
            try:
                return network(*self.args, **self.kwargs)
            except Exception as error:
                if len(self.args) == 1 and isinstance(self.args[0], Mapping) and not self.kwargs:
                    error.add_note("the example is one argument, a mapping; for keywords write Call((), example)")
                raise
        if len(self.args) == 1:
            return network(*self.args, arch, **self.kwargs)
        return network(*self.args, arch=arch, **self.kwargs)


def count_macs(network: nn.Module, *inputs: Any, **kwargs: Any) -> int:
    """Return the multiply-adds of `network(*inputs, **kwargs)`, as torch's flop counter finds them (two flops each).

    Convolutions, linear, bilinear and recurrent layers, products of matrices and vectors and the two attention products
    count; norms, activations, biases, softmax and products of elements do not. A bilinear layer has one for each weight
    and sample. A sparse matrix times a dense one has those of its stored elements. Operators that the counter does not
    know count nothing, such as products of two sparse matrices or with a sparse result, layers of
    `torch.ao.quantization`, distances, Fourier transforms, solvers and custom operators;
    `torch.utils.flop_counter.register_flop_formula` makes one known. Give inputs with a batch of one for the MACs of
    one sample, and padded ones instead of nested tensors, which the counter does not take. Modes are restored.
    """
    return macs_by_module(network, Call(inputs, kwargs))[""]


def count_params(network: nn.Module) -> int:
    """Return the number of a network's parameters, shared ones once."""
    return params_by_module(network)[""]


def count_activations(network: nn.Module, *inputs: Any, **kwargs: Any) -> int:
    """Return the elements that `network(*inputs, **kwargs)` writes.

    Counted are the outputs of modules with weights and of attention's two products. Norms are modules with weights;
    activation functions, sums and softmax are not counted.
    """
    return activations_by_module(network, Call(inputs, kwargs))[""]


@torch.no_grad()
def count_peak_memory(network: nn.Module, *inputs: Any, **kwargs: Any) -> int:
    """Return the most bytes that are live at once in `network(*inputs, **kwargs)` without gradients.

    Parameters and inputs are included. A copy of the network runs on `meta`, where only shapes are computed, and in its
    own place where it cannot. Attention counts as plain products, which fused kernels need less memory than.
    """
    call = Call(inputs, kwargs)
    try:
        return _peak_memory(on_meta(network), call.to("meta"))
    except (NotImplementedError, RuntimeError, TypeError):  # the forward pass asks for values
        return _peak_memory(network, call)


def on_meta(network: nn.Module) -> nn.Module:
    """Return a copy of a network whose tensors have shapes and no values; tied ones stay tied."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in network.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copied(network, memo)


def _peak_memory(network: nn.Module, call: Call) -> int:
    held = [*network.parameters(), *network.buffers(), *call.tensors]
    with _plain_forward(network), _PeakMemory(held) as peak:
        call(network)
    return peak.most


def macs_by_module(network: nn.Module, call: Call) -> Counter[str]:
    """Return the multiply-adds inside every module by its name, the whole network's under the empty name."""
    from torch.utils.flop_counter import FlopCounterMode  # here, because it loads Triton too, which takes a while

    formulas = {**_FORMULAS, **{operator: _matrix_product(place) for operator, place in _OF_SPARSE.items()}}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    counter.mod_tracker = _RunningModules(network)  # type: ignore[assignment]
    try:
        with torch.no_grad(), _plain_forward(network), counter:
            call(network)
    except (TypeError, RuntimeError) as error:
        if any(tensor.is_nested for tensor in call.tensors):
            raise ValueError("torch's flop counter takes no nested tensors; count with a padded input") from error
        raise
    found: Counter[str] = Counter()
    for name, of_operator in counter.get_flop_counts().items():
        flops = sum(of_operator.values())
        if flops % 2:
            raise ValueError(
                f"{flops} flops of {name} are no whole number of multiply-adds, which have 2 each; correct the formula "
                "that was registered for one of its operators"
            )
        found["" if name == _WHOLE else name] = int(flops // 2)
    found[""] += 0
    return found


def _matrix_product(place: int) -> Callable[..., int]:
    """Return the formula of a product of two matrices, or a matrix and a vector, of which one may be sparse."""

    def flops(*args: Any, **_: Any) -> int:
        first, second = args[place : place + 2]
        if _is_sparse(second):
            return 0 if _is_sparse(first) else 2 * _stored_elements(second) * int(first.shape[0])
        return 2 * _stored_elements(first) * math.prod(second.shape[1:])

    flops._get_raw = True  # type: ignore[attr-defined]  # as `register_flop_formula` marks those that take tensors
    return flops


def _is_sparse(tensor: Tensor) -> bool:
    return tensor.layout == torch.sparse_coo or tensor.layout in _COMPRESSED


def _stored_elements(matrix: Tensor) -> int:
    if matrix.layout == torch.sparse_coo:
        return matrix._values().numel()
    return matrix.values().numel() if matrix.layout in _COMPRESSED else matrix.numel()


def params_by_module(network: nn.Module) -> Counter[str]:
    """Return the parameters inside every module by its name; tied ones count where they come first."""
    found: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        segments = name.split(".")
        for end in range(len(segments)):
            found[".".join(segments[:end])] += parameter.numel()
    found[""] += 0
    return found


def activations_by_module(network: nn.Module, call: Call) -> Counter[str]:
    """Return the elements written inside every module by its name."""
    found: Counter[str] = Counter()

    def add(names: Iterable[str], outputs: Any) -> None:
        written = sum(tensor.numel() for tensor in _tensors(outputs))
        for name in {*names, ""}:
            found[name] += written

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        segments = name.split(".")
        holders = [".".join(segments[:end]) for end in range(1, len(segments) + 1)]
        return lambda module, inputs, outputs: add(holders, outputs)

    alone = not any(network.children())  # else its own weights, such as a class token, are no layer
    with ExitStack() as stack, torch.no_grad():
        for name, module in network.named_modules():
            if any(parameter is not None for parameter in module._parameters.values()) and (name or alone):
                stack.callback(module.register_forward_hook(hook(name)).remove)
        stack.enter_context(_plain_forward(network))
        running = stack.enter_context(_RunningModules(network))
        stack.enter_context(_Products(lambda outputs: add(running.parents - {_WHOLE}, outputs)))
        call(network)
    return found


class _RunningModules:
    """The names of the modules whose forward pass is running, `_WHOLE` among them.

    Torch's own `ModuleTracker` follows backward passes, too, and so fails for views of parameters that a module takes
    when no gradients are computed.
    """

    def __init__(self, network: nn.Module) -> None:
        self.parents = {_WHOLE}
        self._names = {module: name for name, module in network.named_modules() if name}
        self._hooks = ExitStack()

    def __enter__(self) -> Self:
        self._hooks.callback(register_module_forward_pre_hook(self._enters).remove)
        self._hooks.callback(register_module_forward_hook(self._leaves).remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.close()

    def _enters(self, module: nn.Module, inputs: Any) -> None:
        if module in self._names:
            self.parents.add(self._names[module])

    def _leaves(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if module in self._names:
            self.parents.discard(self._names[module])


def _tensors(nested: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(nested)[0] if isinstance(leaf, Tensor)]


@contextmanager
def _plain_forward(network: nn.Module) -> Iterator[None]:
    """Run in evaluation mode and without kernels that hide their products from counters."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with ExitStack() as stack:
            if any(isinstance(module, nn.RNNBase) for module in network.modules()):  # one operator in oneDNN, cuDNN
                stack.enter_context(_without_onednn())
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            stack.enter_context(evaluating(network))
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _without_onednn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # setting its flags warns of GPUs that are not there
        with torch.backends.mkldnn.flags(enabled=False):
            yield


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Reports the outputs of batched matrix products."""

    def __init__(self, report: Callable[[Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._report = report

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        if func.overloadpacket in _PRODUCTS:
            self._report(outputs)
        return outputs


class _PeakMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the bytes of the storages that are alive after every operation."""

    def __init__(self, held: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self._held = held  # as long as the pass lasts
        self._add(held)
        self.most = self._total()

    def _add(self, tensors: Sequence[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            self._live[reference.cdata] = reference, storage.nbytes()

    def _total(self) -> int:
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]
        return sum(size for _, size in self._live.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        self._add(_tensors(outputs))
        self.most = max(self.most, self._total())
        return outputs
