"""Proofs that what is searched, exported and counted is one network: supernet = extract = export, formula = count.

Networks are compared in float64 on the CPU, on copies: nothing that is handed in changes. An `extract` that builds a
network as its user does, in torch's default precision, builds it in float64 here; one that insists on another precision
is converted, and compared as exactly as that allows. A network that does not compute in float64 is compared in float32.
"""

import copy
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from nasx.arch import Arch
from nasx.cost import Cost
from nasx.measure import count_macs, count_params
from nasx.nn.supernet import Subnet, Supernet, SupernetLike

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_TOLERANCES = {torch.float64: 0.0, torch.float32: 1e-4}
"""Relative differences that computing in a precision explains."""


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
    inputs: Tensor,
    *,
    macs: Cost | None = None,
    params: Cost | None = None,
    build: Callable[[Arch], nn.Module] | None = None,
    onnx: bool = False,
    seed: int = 0,
) -> Verification:
    """Run every check that there is something for: slices always, costs, reloading and ONNX where asked for.

    `inputs` is a batch (B, ...) of at least two samples; `build(arch)` is a network of its own weights, into which
    the exported ones are loaded.
    """
    dtype = _usable_dtype(supernet, inputs, arch)
    network, _ = _extract(_exact(supernet, dtype), arch, dtype)
    checks = [_check_slice(supernet, arch, inputs, dtype, training=training, seed=seed) for training in (False, True)]
    if build is not None:
        checks.append(check_reload(network, build(arch), inputs))
    if macs is not None:
        checks.append(check_cost("MACs", macs(arch), count_macs(network, _cast(inputs[:1], dtype))))
    if params is not None:
        checks.append(check_cost("parameters", params(arch), count_params(network)))
    if onnx:
        checks.append(check_onnx(network, inputs))
    return Verification(arch, tuple(checks))


def check_slice(
    supernet: SupernetLike,
    arch: Arch,
    inputs: Tensor,
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
    dtype = _usable_dtype(supernet, inputs, arch)
    return _check_slice(supernet, arch, inputs, dtype, training=training, seed=seed, tolerance=tolerance)


def _check_slice(
    supernet: SupernetLike,
    arch: Arch,
    inputs: Tensor,
    dtype: torch.dtype,
    *,
    training: bool,
    seed: int,
    tolerance: float = 1e-10,
) -> Check:
    name = f"supernet slice = extracted network ({'training' if training else 'evaluation'} mode)"
    whole = _exact(supernet, dtype).train(training)
    network, precision = _extract(whole, arch, dtype)
    tolerance = max(tolerance, precision)
    expected = _seeded(lambda: whole(_cast(inputs, dtype), arch), seed)
    check = _compared(name, expected, _seeded(lambda: network(_cast(inputs, dtype)), seed), tolerance)
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
    inputs: Tensor,
    *,
    training: bool = False,
    seed: int = 0,
    tolerance: float = 1e-10,
) -> str:
    """Return which module's outputs differ first between a supernet's slice and the extracted network, in words.

    Modules are compared by name, so only those count that have one name in both and run as often in both; the first
    is that which finishes first, inner modules before those that hold them.
    """
    dtype = _usable_dtype(supernet, inputs, arch)
    whole = _exact(supernet, dtype).train(training)
    network, precision = _extract(whole, arch, dtype)
    tolerance = max(tolerance, precision)
    if isinstance(whole, Supernet):  # whose modules are those of the network that it runs
        subnet = Subnet(whole, arch)
        sliced = _outputs(subnet.network, lambda: subnet(_cast(inputs, dtype)), seed)
    else:
        sliced = _outputs(whole, lambda: whole(_cast(inputs, dtype), arch), seed)
    own = _outputs(network, lambda: network(_cast(inputs, dtype)), seed)
    calls = [Counter(name for name, _ in outputs) for outputs in (sliced, own)]
    shared = [key for key in own if calls[0][key[0]] == calls[1][key[0]]]
    agreeing = ""
    for key in shared:
        if not _compared("", sliced[key], own[key], tolerance).passed:
            return f"the first module that differs is {key[0]!r}{agreeing and f', after {agreeing!r} agrees'}"
        agreeing = key[0]
    return f"none of the {len(shared)} modules that have one name in both differs, so the difference arises outside"


def check_reload(network: nn.Module, fresh: nn.Module, inputs: Tensor, *, tolerance: float = 1e-10) -> Check:
    """Check that a network whose weights go through safetensors into a freshly built one computes the same."""
    name = "reloaded export = extracted network"
    dtype = _usable_dtype(network, inputs)
    tolerance = max(tolerance, _TOLERANCES[dtype])
    network = _exact(network, dtype).eval()
    weights = {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in network.state_dict().items()}
    fresh = _exact(fresh, dtype).eval()
    try:
        fresh.load_state_dict(load(save(weights)))
    except RuntimeError as error:  # what torch calls names and shapes that do not fit
        return Check(name, False, detail=" ".join(str(error).split()))
    with torch.no_grad():
        return _compared(name, network(_cast(inputs, dtype)), fresh(_cast(inputs, dtype)), tolerance)


def check_cost(unit: str, formula: float, counted: int) -> Check:
    """Check that a cost's formula gives what is counted."""
    detail = "" if formula == counted else f"the formula says {formula:,}, counted are {counted:,}"
    return Check(f"{unit}: formula = count", formula == counted, float(abs(formula - counted)), detail)


def check_onnx(network: nn.Module, inputs: Tensor, *, tolerance: float = 1e-4) -> Check:
    """Check that a network exported to ONNX with a dynamic batch computes the same in onnxruntime, at two batch sizes.

    This comparison is in float32, as not every operator of onnxruntime knows float64. Skipped without the packages of
    the extra `onnx`. `inputs` needs a batch of at least two, as torch fixes a batch of one.
    """
    name = "ONNX export = extracted network"
    missing = [package for package in _ONNX_PACKAGES if find_spec(package) is None]
    if missing:
        return Check(name, None, detail=f"{', '.join(missing)} not installed; pip install 'nasx[onnx]'")
    network = copy.deepcopy(network).to("cpu", torch.float32).eval()
    inputs = inputs.detach().cpu()
    inputs = inputs.float() if inputs.is_floating_point() else inputs
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
    if missing := [package for package in _ONNX_PACKAGES if find_spec(package) is None]:
        raise ImportError(f"ONNX needs {', '.join(missing)}: pip install 'nasx[onnx]'")
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


def _usable_dtype(module: Any, inputs: Tensor, *more: Arch) -> torch.dtype:
    """Return the precision that a module computes in: float64, or float32 where a layer of its insists on that."""
    exact = _exact(module, torch.float64).eval()
    try:
        _seeded(lambda: exact(_cast(inputs, torch.float64), *more), 0)
    except RuntimeError as error:
        if not re.search(r"dtype|scalar type|[Dd]ouble", str(error)):
            raise
        return torch.float32
    return torch.float64


def _exact(module: Any, dtype: torch.dtype) -> Any:
    """Return a copy of a precision on the CPU."""
    if not isinstance(module, nn.Module):
        raise TypeError(f"networks and supernets are verified as torch modules, but got {type(module).__name__}")
    return copy.deepcopy(module).to("cpu", dtype)


def _extract(supernet: Any, arch: Arch, dtype: torch.dtype) -> tuple[nn.Module, float]:
    """Return the extracted network in a precision, and the tolerance that this and the one that it came in allow."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]):  # building a network draws weights
            network = supernet.extract(arch)
    finally:
        torch.set_default_dtype(default)
    if not isinstance(network, nn.Module):
        raise TypeError(f"`extract` must return a torch module, but got {type(network).__name__}")
    lower = {t.dtype for t in network.state_dict().values() if t.is_floating_point()} - {torch.float64, dtype}
    tolerance = max((10 * torch.finfo(other).eps for other in lower), default=0.0)
    return network.to("cpu", dtype), max(tolerance, _TOLERANCES[dtype])


def _cast(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    inputs = inputs.detach().cpu()
    return inputs.to(dtype) if inputs.is_floating_point() else inputs.clone()


def _compared(name: str, expected: Tensor, found: Tensor, tolerance: float) -> Check:
    if expected.shape != found.shape:
        return Check(name, False, detail=f"shapes {tuple(expected.shape)} and {tuple(found.shape)}")
    if not expected.numel():
        return Check(name, True, 0.0)
    if not (expected.isfinite().all() and found.isfinite().all()):
        return Check(name, False, detail="values are not finite")
    difference = float((expected.double() - found.double()).abs().max())
    return Check(name, difference <= tolerance * max(1.0, float(expected.abs().max())), difference)


def _seeded(run: Callable[[], Any], seed: int) -> Any:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        return run()


def _outputs(module: nn.Module, run: Callable[[], object], seed: int) -> dict[tuple[str, int], Tensor]:
    """Return the output of every call of every submodule by (name, number of the call), in order of completion."""
    found: dict[tuple[str, int], Tensor] = {}
    times: dict[str, int] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                found[name, times.get(name, 0)] = output.detach().clone()
                times[name] = times.get(name, 0) + 1

        return hook

    for name, inner in module.named_modules():
        if name:
            inner.register_forward_hook(record(name))
    _seeded(run, seed)
    return found
