"""Proofs that what is searched, exported and counted is one network: supernet = extract = export, formula = count.

Networks are compared in float64 on the CPU, on copies: nothing that is handed in changes. An `extract` that builds a
network as its user does, in torch's default precision, builds it in float64 here; one that insists on another precision
is converted, and compared as exactly as that allows. A network that does not compute in float64 is compared in float32,
and one that casts to several precisions inside in those that it has.

`inputs` is a batch of at least two samples: a tensor (B, ...), a tuple of positional arguments, or a `Call` of
`nasx.measure` with keyword arguments, too. Arguments and outputs are tensors, numbers, strings, and tuples, lists and
dicts of them; anything else is a TypeError. ONNX is checked for networks of one tensor in and one out.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from nasx._modules import copied
from nasx._onnx import check_installed, missing
from nasx.arch import Arch
from nasx.cost import Cost
from nasx.measure import Call, count_macs, count_params
from nasx.nn.bound import placed
from nasx.nn.skeleton import default_dtype
from nasx.nn.supernet import Subnet, Supernet, SupernetLike

_TOLERANCES = {torch.float64: 0.0, torch.float32: 1e-4, None: 1e-4}
"""Relative differences that computing in a precision explains; None stands for a network's own, at least float32."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison: whether it held (None: it was skipped), the largest absolute difference, and what to know."""

    name: str
    passed: bool | None
    difference: float | None = None
    detail: str = ""

    def __str__(self) -> str:
        word = {True: "ok", False: "FAILED", None: "skipped"}[self.passed]
        difference = "" if self.difference is None else f", largest difference {self.difference:.3g}"
        return f"{self.name}: {word}{difference}{self.detail and f'; {self.detail}'}"


@dataclass(frozen=True, slots=True)
class Verification:
    """All checks of one architecture."""

    arch: Arch
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed; skipped ones do not count."""
        return all(check.passed is not False for check in self.checks)

    def __str__(self) -> str:
        return "\n".join(map(str, self.checks))


def verify(
    supernet: SupernetLike,
    arch: Arch,
    inputs: Any,
    *,
    macs: Cost | None = None,
    params: Cost | None = None,
    build: Callable[[Arch], nn.Module] | None = None,
    onnx: bool = False,
    seed: int = 0,
) -> Verification:
    """Run every check that there is something for: slices always, costs, reloading and ONNX where asked for.

    `build(arch)` is a network of its own weights, into which the exported ones are loaded. MACs are counted for the
    first sample: of every tensor in `inputs` that has as many rows as the first one.
    """
    call = _call(inputs)
    if onnx:
        _only_tensor(inputs)
    whole, dtype = _usable(supernet, call, arch)
    network, _ = _extract(whole, arch, dtype)
    checks = [_check_slice(supernet, whole, arch, call, dtype, training=mode, seed=seed) for mode in (False, True)]
    if build is not None:
        checks.append(check_reload(network, build(arch), call))
    if macs is not None:
        one = _first_sample(_cast(call, dtype))
        checks.append(check_cost("MACs", macs(arch), count_macs(network, *one.args, **one.kwargs)))
    if params is not None:
        checks.append(check_cost("parameters", params(arch), count_params(network)))
    if onnx:
        checks.append(check_onnx(network, inputs))
    return Verification(arch, tuple(checks))


def check_slice(
    supernet: SupernetLike,
    arch: Arch,
    inputs: Any,
    *,
    training: bool = False,
    seed: int = 0,
    tolerance: float = 1e-10,
) -> Check:
    """Check that a supernet's outputs under an architecture are those of the extracted network.

    In training mode both start from the same random state, and the buffers that they leave, such as BatchNorm
    statistics, are compared as well. Where outputs differ, the detail names the first module that does (as
    `first_difference` finds it). `tolerance` is relative to the largest output, or to 1; it is at least what the
    precision allows that the network computes or is extracted in, where that is not float64.
    """
    call = _call(inputs)
    whole, dtype = _usable(supernet, call, arch)
    return _check_slice(supernet, whole, arch, call, dtype, training=training, seed=seed, tolerance=tolerance)


def _check_slice(
    supernet: SupernetLike,
    whole: Any,
    arch: Arch,
    inputs: Call,
    dtype: torch.dtype | None,
    *,
    training: bool,
    seed: int,
    tolerance: float = 1e-10,
) -> Check:
    """Compare `whole`, a copy of the supernet in the precision, whose buffers training mode moves."""
    name = f"supernet slice = extracted network ({'training' if training else 'evaluation'} mode)"
    network, precision = _extract(whole.train(training), arch, dtype)
    tolerance = max(tolerance, precision)
    expected = _seeded(lambda: _cast(inputs, dtype)(whole, arch), seed)
    check = _compared(name, expected, _seeded(lambda: _cast(inputs, dtype)(network), seed), tolerance)
    if not check.passed:
        where = first_difference(supernet, arch, inputs, training=training, seed=seed, tolerance=tolerance)
        return Check(name, False, check.difference, f"{check.detail}; {where}" if check.detail else where)
    own, sliced = network.state_dict(), _extract(whole, arch, dtype)[0].state_dict()
    for key, tensor in own.items():
        left = _compared(name, sliced[key], tensor, tolerance)
        if not left.passed:
            return Check(name, False, left.difference, f"outputs agree, but {key!r} differs after the pass")
    return check


def first_difference(
    supernet: SupernetLike,
    arch: Arch,
    inputs: Any,
    *,
    training: bool = False,
    seed: int = 0,
    tolerance: float = 1e-10,
) -> str:
    """Return which module's outputs differ first between a supernet's slice and the extracted network, in words.

    Modules are compared by name, so only those count that have one name in both and run as often in both; the first
    is that which finishes first, inner modules before those that hold them.
    """
    call = _call(inputs)
    whole, dtype = _usable(supernet, call, arch)
    network, precision = _extract(whole.train(training), arch, dtype)
    tolerance = max(tolerance, precision)
    if isinstance(whole, Supernet):  # whose modules are those of the network that it runs
        subnet = Subnet(whole, arch)
        sliced = _outputs(subnet.network, lambda: _cast(call, dtype)(subnet), seed)
    else:
        sliced = _outputs(whole, lambda: _cast(call, dtype)(whole, arch), seed)
    own = _outputs(network, lambda: _cast(call, dtype)(network), seed)
    calls = [Counter(name for name, _ in outputs) for outputs in (sliced, own)]
    shared = [key for key in own if calls[0][key[0]] == calls[1][key[0]]]
    agreeing = ""
    for key in shared:
        if not _compared("", sliced[key], own[key], tolerance).passed:
            return f"the first module that differs is {key[0]!r}{agreeing and f', after {agreeing!r} agrees'}"
        agreeing = key[0]
    return f"none of the {len(shared)} modules that have one name in both differs, so the difference arises outside"


def check_reload(network: nn.Module, fresh: nn.Module, inputs: Any, *, tolerance: float = 1e-10) -> Check:
    """Check that a network whose weights go through safetensors into a freshly built one computes the same."""
    name = "reloaded export = extracted network"
    call = _call(inputs)
    network, dtype = _usable(network, call)
    tolerance = max(tolerance, _TOLERANCES[dtype])
    weights = {key: _storable(tensor) for key, tensor in network.state_dict().items()}
    fresh = _exact(fresh, dtype).eval()
    try:
        fresh.load_state_dict(load(save(weights)))
    except RuntimeError as error:  # what torch calls names and shapes that do not fit
        return Check(name, False, detail=" ".join(str(error).split()))
    with torch.no_grad():
        return _compared(name, _cast(call, dtype)(network), _cast(call, dtype)(fresh), tolerance)


def _storable(tensor: Tensor) -> Tensor:
    tensor = tensor.to(torch.complex64) if tensor.is_complex() else tensor  # the only complex numbers of safetensors
    return tensor.clone(memory_format=torch.contiguous_format)


def check_cost(unit: str, formula: float, counted: int) -> Check:
    """Check that a cost's formula gives what is counted."""
    detail = "" if formula == counted else f"the formula says {formula:,}, counted are {counted:,}"
    return Check(f"{unit}: formula = count", formula == counted, float(abs(formula - counted)), detail)


def check_onnx(network: nn.Module, inputs: Tensor, *, tolerance: float = 1e-4) -> Check:
    """Check that a network exported to ONNX with a dynamic batch computes the same in onnxruntime, at two batch sizes.

    This comparison is in float32, as not every operator of onnxruntime knows float64. Skipped for networks that do not
    compute in that, and without the packages of the extra `onnx`. `inputs` needs a batch of at least two, as torch
    fixes a batch of one. Networks of several inputs or outputs are a TypeError.
    """
    _only_tensor(inputs)
    name = "ONNX export = extracted network"
    if absent := missing():
        return Check(name, None, detail=f"{', '.join(absent)} not installed; pip install 'nasx[onnx]'")
    network = copied(network).to("cpu", torch.float32).eval()
    inputs = inputs.detach().cpu()
    inputs = inputs.float() if inputs.is_floating_point() else inputs
    try:
        with torch.no_grad():
            outputs = network(inputs)
    except RuntimeError as error:
        if not _is_of_precision(error):
            raise
        return Check(name, None, detail=f"the network does not compute in float32, in which ONNX is compared: {error}")
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"ONNX is checked for networks that return one tensor, but this one returns a {type(outputs).__name__}; "
            "leave `onnx` out, or return the tensor to deploy"
        )
    try:
        content = export_onnx(network, inputs)
    except torch.onnx.OnnxExporterError as error:
        return Check(name, False, detail=f"no export with a dynamic batch: {error.__cause__ or error}".strip())
    return compare_onnx(content, network, inputs, tolerance=tolerance)


def export_onnx(network: nn.Module, inputs: Tensor) -> bytes:
    """Return a network as an ONNX file with a batch of any size, its input "images" or "inputs" and output "logits".

    `inputs` is a batch of at least two, as torch fixes a batch of one. Raises ImportError without the packages of the
    extra `onnx`, and torch's OnnxExporterError for a network that fixes its batch in another way.
    """
    check_installed("ONNX")
    _only_tensor(inputs)
    if len(inputs) < 2:
        raise ValueError(f"an export with a dynamic batch needs a batch of at least 2, but got {len(inputs)}")
    program = torch.onnx.export(
        network,
        (inputs,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        input_names=["images" if inputs.ndim == 4 else "inputs"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def compare_onnx(content: bytes, network: nn.Module, inputs: Tensor, *, tolerance: float = 1e-4) -> Check:
    """Check that an ONNX file computes in onnxruntime what a network on the CPU does, for one input and for more."""
    import onnxruntime

    name = "ONNX export = extracted network"
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    worst = Check(name, True, 0.0)
    for batch in (inputs[:1], torch.cat([inputs.flip(0), inputs[:1]])):
        with torch.no_grad():
            expected = network(batch)
        found = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: batch.numpy()})[0])
        check = _compared(name, expected, found, tolerance)
        if not check.passed:
            return Check(name, False, check.difference, f"batch of {len(batch)}{check.detail and f'; {check.detail}'}")
        worst = max(worst, check, key=lambda c: c.difference or 0.0)
    return worst


def _usable(module: Any, inputs: Call, arch: Arch | None = None) -> tuple[Any, torch.dtype | None]:
    """Return a copy in evaluation mode and its precision: float64, else float32, else its own, which is None."""
    for dtype in (torch.float64, torch.float32, None):
        exact = _exact(module, dtype).eval()
        try:
            outputs = _seeded(lambda: _cast(inputs, dtype)(exact, arch), 0)  # noqa: B023  # called at once
        except RuntimeError as error:
            if dtype is None or not _is_of_precision(error):
                raise
            continue
        break
    if not any(isinstance(value, Tensor) for value in _leaves(outputs, "outputs").values()):
        raise TypeError(f"`outputs` must hold a tensor to compare, but got {outputs!r}")
    return exact, dtype


def _is_of_precision(error: RuntimeError) -> bool:
    return re.search(r"dtype|scalar type|[Dd]ouble", str(error)) is not None


def _call(inputs: Any) -> Call:
    call = Call.of(inputs)
    if not any(isinstance(value, Tensor) for value in _leaves([call.args, dict(call.kwargs)], "inputs").values()):
        raise TypeError(f"`inputs` must hold a tensor, but got {inputs!r}")
    return call


def _only_tensor(inputs: object) -> None:
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"ONNX is checked for networks of one tensor, but `inputs` is a {type(inputs).__name__}; leave `onnx` out, "
            "or give the tensor"
        )


def _first_sample(inputs: Call) -> Call:
    batch = inputs.tensors[0].shape[:1]
    return inputs.changed(lambda tensor: tensor[:1] if batch and tensor.shape[:1] == batch else tensor)


def _leaves(values: Any, name: str) -> dict[str, Any]:
    """Return what stands in nested tuples, lists and dicts, by place; a TypeError names what cannot be compared."""
    leaves = {keystr(place): value for place, value in tree_flatten_with_path(values)[0]}
    for value in leaves.values():
        if not isinstance(value, Tensor | bool | int | float | complex | str | torch.dtype | torch.Size | None):
            raise TypeError(
                f"`{name}` must be tensors, numbers and strings, or tuples, lists and dicts of them, but got a "
                f"{type(value).__module__}.{type(value).__qualname__}; convert it to tensors"
            )
    return leaves


def _exact(module: Any, dtype: torch.dtype | None) -> Any:
    """Return a copy of a precision, or of its own, on the CPU."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"networks and supernets are verified as torch modules, but got {type(module).__name__}")
    return _converted(copied(module), dtype)


def _extract(supernet: Any, arch: Arch, dtype: torch.dtype | None) -> tuple[nn.Module, float]:
    """Return the extracted network in a precision, and the tolerance that this and the one that it came in allow."""
    with default_dtype(dtype or torch.get_default_dtype()), torch.random.fork_rng(devices=[]):  # building draws weights
        network = supernet.extract(arch)
    if not isinstance(network, nn.Module):
        raise TypeError(f"`extract` must return a torch module, but got {type(network).__name__}")
    lower = {t.dtype for t in network.state_dict().values() if t.is_floating_point()} - {torch.float64, dtype}
    tolerance = max((10 * torch.finfo(other).eps for other in lower), default=0.0)
    return _converted(network, dtype), max(tolerance, _TOLERANCES[dtype])


def _cast(inputs: Call, dtype: torch.dtype | None) -> Call:
    convert = _in(dtype)
    return inputs.changed(lambda tensor: convert(tensor.detach()).clone())


def _converted(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    converted: nn.Module = module._apply(_in(dtype))  # type: ignore[no-untyped-call]
    return converted


def _in(dtype: torch.dtype | None) -> Callable[[Tensor], Tensor]:
    """Return what moves a tensor to the CPU and converts it."""
    return partial(placed, where=(torch.device("cpu"), dtype))


def _compared(name: str, expected: Any, found: Any, tolerance: float) -> Check:
    """Compare tensors, or nested tuples, lists and dicts of them; the detail says where the first difference is."""
    own, other = _leaves(expected, "outputs"), _leaves(found, "outputs")
    if own.keys() != other.keys():
        return Check(name, False, detail=f"outputs are {_spelled(own)} and {_spelled(other)}")
    worst = Check(name, True, 0.0)
    for place, value in own.items():
        check = _compared_values(name, value, other[place], tolerance)
        if not check.passed:
            where = f"outputs{place} differ" if place else ""
            return Check(name, False, check.difference, ": ".join(filter(None, (where, check.detail))))
        worst = max(worst, check, key=lambda c: c.difference or 0.0)
    return worst


def _spelled(leaves: Mapping[str, Any]) -> str:
    return ", ".join(place or "one value" for place in leaves) or "nothing"


def _compared_values(name: str, expected: Any, found: Any, tolerance: float) -> Check:
    if not (isinstance(expected, Tensor) and isinstance(found, Tensor)):
        same = type(expected) is type(found) and expected == found
        return Check(name, same, 0.0 if same else None, "" if same else f"values {expected!r} and {found!r}")
    if expected.shape != found.shape:
        return Check(name, False, detail=f"shapes {tuple(expected.shape)} and {tuple(found.shape)}")
    if not expected.numel():
        return Check(name, True, 0.0)
    finite = expected.isfinite() & found.isfinite()
    if not finite.any() or not torch.equal(expected[~finite], found[~finite]):  # equal infinities mask logits
        return Check(name, False, detail="values are not finite")
    wide = torch.complex128 if expected.is_complex() or found.is_complex() else torch.float64
    difference = float((expected[finite].to(wide) - found[finite].to(wide)).abs().max())
    return Check(name, difference <= tolerance * max(1.0, float(expected[finite].to(wide).abs().max())), difference)


def _seeded(run: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return run()


def _outputs(module: nn.Module, run: Callable[[], object], seed: int) -> dict[tuple[str, int], Any]:
    """Return the output of every call of every submodule by (name, number of the call), in order of completion."""
    found: dict[tuple[str, int], Any] = {}
    times: dict[str, int] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            values = [value for value in tree_leaves(output) if isinstance(value, Tensor)]
            if values:
                found[name, times.get(name, 0)] = [value.detach().clone() for value in values]
                times[name] = times.get(name, 0) + 1

        return hook

    for name, inner in module.named_modules():
        if name:
            inner.register_forward_hook(record(name))
    _seeded(run, seed)
    return found
