"""Losses: how they are called, and which targets fit them."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nasx._names import callable_name
from nasx.train.batch import move

Loss = Callable[[Any, Any], Tensor]
"""Takes the outputs of a network and the targets of a batch, returns one number, the mean over the samples."""

_OF_MODULE: Mapping[type[nn.Module], Loss] = {
    nn.CrossEntropyLoss: F.cross_entropy,
    nn.BCEWithLogitsLoss: F.binary_cross_entropy_with_logits,
    nn.MSELoss: F.mse_loss,
    nn.L1Loss: F.l1_loss,
    nn.SmoothL1Loss: F.smooth_l1_loss,
    nn.HuberLoss: F.huber_loss,
}


def logits_of(outputs: Any) -> Tensor:
    """Return the tensor of a network's outputs: the outputs themselves, or their `logits` (Hugging Face)."""
    if isinstance(outputs, Tensor):
        return outputs
    found = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
    if not isinstance(found, Tensor):
        raise ValueError(
            f"torch's losses and the metrics by name need a tensor or outputs with `logits`, but the network returns "
            f"{type(outputs).__name__}; pass a loss and a metric that take it"
        )
    return found


def compute_loss(loss: Loss, outputs: Any, targets: Any) -> Tensor:
    """Return a loss; torch's own losses, partial ones too, get the logits of outputs that are not a tensor."""
    return loss(logits_of(outputs) if _is_torchs(loss) else outputs, targets)


def takes_outputs(loss: Loss) -> bool:
    """Return whether a loss is one of torch's whose targets are shaped as outputs: regression, and several labels."""
    return _function(loss) not in (None, F.cross_entropy)


def _takes_floats(loss: Loss) -> bool:
    """Return whether a loss, or its gradient, refuses whole numbers as targets."""
    return _function(loss) in (F.binary_cross_entropy_with_logits, F.huber_loss)


def _takes_same_type(loss: Loss) -> bool:
    """Return whether the gradient of a loss refuses targets of another type than the outputs'."""
    return _function(loss) is F.huber_loss


def is_cross_entropy(loss: Loss) -> bool:
    """Return whether a loss is torch's cross-entropy, with any arguments."""
    return _function(loss) is F.cross_entropy


def for_outputs(loss: Loss) -> Loss:
    """Return a loss for targets that `targets_like` makes: torch's cross-entropy as it is for probabilities.

    That is without label smoothing and without a class that is ignored; any other loss is unchanged.
    """
    return partial(F.cross_entropy, weight=_class_weights(loss)) if is_cross_entropy(loss) else loss


def labelled(loss: Loss, targets: Any) -> Tensor | None:
    """Return which positions of class numbers a cross-entropy looks at: all but its `ignore_index`.

    None for other losses and other targets, which count as a whole.
    """
    if not is_cross_entropy(loss) or not isinstance(targets, Tensor) or targets.is_floating_point():
        return None
    return targets != _ignored(loss)


def label_weight(loss: Loss, targets: Tensor, counted: Tensor) -> Tensor:
    """Return by how much a cross-entropy's mean over a batch counts beside that of others, float64.

    That is the number of labelled positions (`counted`), or the sum of their classes' weights. Unknown classes, which
    `check_targets` refuses, count as known ones.
    """
    weights = _class_weights(loss)
    if weights is None:
        return counted.sum().double()
    classes = targets.where(counted, 0).long().clamp(0, len(weights) - 1)
    return (weights.to(targets.device)[classes] * counted).sum().double()


def targets_like(loss: Loss, outputs: Any, targets: Any = None) -> Any:
    """Return outputs as targets of a loss: probabilities for a classification loss, values for a regression loss.

    Where `targets`, those of the same batch, have positions that a cross-entropy ignores, these teach nothing and the
    others as much as they would alone. A ValueError says that a loss is none of torch's whose targets have the form of
    outputs.
    """
    if is_cross_entropy(loss):
        found = logits_of(outputs).detach().float().softmax(dim=1)
        counted = labelled(loss, targets)
        if counted is None:
            return found
        return found * (counted * (counted.numel() / counted.sum().clamp(min=1))).unsqueeze(1)
    if _function(loss) is F.binary_cross_entropy_with_logits:
        return logits_of(outputs).detach().float().sigmoid()
    if takes_outputs(loss):
        return logits_of(outputs).detach()
    raise ValueError(
        f"in-place distillation makes targets of one path's outputs, which it can for torch's cross-entropy and "
        f"regression losses, but not for {name_of(loss)}; set distill=False"
    )


def check_scalar(value: object) -> None:
    """Raise ValueError where what a loss returned is not one floating-point number."""
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        what = f"shape {tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"the loss must return one number, the mean over the samples, but got {what}")


def check_mean(loss: Loss) -> None:
    """Raise ValueError for a loss of torch's that is a sum over the batch, which would weigh batches by their size."""
    if _is_torchs(loss) and _reduction(loss) == "sum":
        raise ValueError(
            f"the loss must be the mean over the samples, but {name_of(loss)} has reduction='sum'; write "
            "reduction='mean'"
        )


def check_targets(outputs: Any, targets: Any, loss: Loss = F.cross_entropy) -> None:
    """Raise ValueError where targets do not fit torch's own loss, with the shapes, types and classes met.

    `outputs` are what the network returned for the batch; call it with one batch before a training. Cross-entropy
    takes outputs (B, classes, ...) with at least two classes, and as targets either class numbers (B, ...), int64
    below the number of classes, or probabilities shaped as the outputs that sum to 1. Regression losses and the binary
    cross-entropy take targets shaped as the outputs; the latter and Huber's loss take floating-point ones. Losses that
    are not torch's are not checked.
    """
    if is_cross_entropy(loss):
        _check_classes(logits_of(outputs), targets, _ignored(loss))
    elif takes_outputs(loss):
        logits = logits_of(outputs)
        if not isinstance(targets, Tensor) or targets.shape != logits.shape:
            raise ValueError(
                f"{name_of(loss)} compares outputs with targets of the same shape, but got outputs "
                f"{tuple(logits.shape)} and targets {_described(targets)}; reshape one of them"
            )
        if _takes_floats(loss) and not targets.is_floating_point():
            raise ValueError(
                f"{name_of(loss)} takes floating-point targets, but got targets {_described(targets)}; convert them "
                "with `.float()`"
            )
        if _takes_same_type(loss) and targets.dtype == torch.float64 != logits.dtype:
            raise ValueError(
                f"{name_of(loss)} takes targets of the outputs' type, {_type_of(logits)}, but got targets "
                f"{_described(targets)}; convert them with `.float()`"
            )


def check_labels(loss: Loss, classes: int, targets: Any, names: Sequence[str]) -> None:
    """Raise ValueError where a sample has a class that a network with so many outputs lacks, by the sample's name.

    Losses other than cross-entropy, and targets that are no class numbers, are not checked.
    """
    if labelled(loss, targets) is None:
        return
    wrong = _unknown(targets, classes, _ignored(loss))
    if wrong.any():
        row = int(wrong.nonzero()[0, 0])
        raise ValueError(_unknown_class(classes, f"{names[row]} has {int(targets[row][wrong[row]].flatten()[0])}"))


def loss_of_labels(loss: Loss, outputs: Any, targets: Any) -> Tensor:
    """Return a loss that is 0 where a cross-entropy looks at no target of the batch, or at classes of weight 0 alone.

    Its mean over nothing would be no number. Nothing waits for the device, and other batches keep their bits.
    """
    counted = labelled(loss, targets)
    if counted is None:
        return compute_loss(loss, outputs, targets)
    weights = _class_weights(loss)
    some = counted.any() if weights is None else label_weight(loss, targets, counted) > 0
    any_class = 0 if weights is None else weights.argmax()
    return compute_loss(loss, outputs, targets.where(some, any_class)) * some


def _check_classes(logits: Tensor, targets: Any, ignored: int) -> None:
    shape = tuple(logits.shape)
    met = f"outputs of shape {shape} and targets {_described(targets)}"
    regression = "for regression pass a loss such as `loss=F.mse_loss`"
    if logits.ndim < 2 or shape[1] < 2:
        raise ValueError(
            f"cross-entropy needs outputs (batch, classes) with at least two classes, but got {met}; {regression}, "
            "for two classes let the network have two outputs"
        )
    classes = shape[1]
    if not isinstance(targets, Tensor):
        raise ValueError(f"cross-entropy needs a tensor of targets, but got {met}; pass `unpack` or `loss`")
    if targets.is_floating_point():
        if targets.shape != logits.shape:
            raise ValueError(
                f"cross-entropy takes class numbers (int64) or probabilities shaped as the outputs, but got {met}; "
                f"{regression}"
            )
        totals = targets.detach().double().sum(dim=1)
        if not bool(((totals - 1).abs() < 0.01).all()) or not bool((targets >= 0).all()):
            raise ValueError(
                f"probabilities must be at least 0 and sum to 1 over the {classes} classes, but got {met} with values "
                f"from {float(targets.min()):g} to {float(targets.max()):g} and sums from {float(totals.min()):g} to "
                f"{float(totals.max()):g}; {regression}, for several labels at once "
                "`loss=F.binary_cross_entropy_with_logits`"
            )
        return
    if targets.shape != logits.shape[:1] + logits.shape[2:]:
        last = "; pass a `loss` and a `metric` that move the classes, the last dimension, to the second"
        mend = last if targets.shape == logits.shape[:-1] else ""
        raise ValueError(f"cross-entropy takes one class number for each sample (and position), but got {met}{mend}")
    if targets.dtype != torch.int64:
        raise ValueError(f"class numbers must be int64, but got {met}; convert them with `.long()`")
    wrong = targets[_unknown(targets, classes, ignored)]
    if len(wrong):
        raise ValueError(_unknown_class(classes, f"got {int(wrong[0])}"))


def _unknown(targets: Tensor, classes: int, ignored: int) -> Tensor:
    return ((targets < 0) | (targets >= classes)) & (targets != ignored)


def _unknown_class(classes: int, met: str) -> str:
    return (
        f"class numbers must be 0 to {classes - 1} for the network's {classes} outputs, but {met}; correct the label, "
        "or give the network as many outputs as there are classes"
    )


def check_trained(loss: Loss) -> None:
    """Refuse a loss with parameters that want gradients: a training changes the network's alone."""
    plain = _plain(loss)
    wanting = [n for n, p in plain.named_parameters() if p.requires_grad] if isinstance(plain, nn.Module) else []
    if wanting:
        raise ValueError(
            f"the loss {name_of(loss)} has the parameter {wanting[0]!r}, which would never be trained, because only "
            "networks are; make it a part of the network, or write loss.requires_grad_(False)"
        )


def check_depends(value: Tensor) -> None:
    """Refuse the value of a loss through which no gradient goes."""
    if not value.requires_grad:
        raise ValueError(
            "the loss depends on no weight that is trained; compute it without `detach`, `argmax`, `item` and "
            "torch.no_grad(), and freeze no more than a part of a network"
        )


def on_device(loss: Loss, device: torch.device) -> Loss:
    """Return a loss whose own tensors, such as the weights of classes, lie on a device; a copy where they did not."""
    if isinstance(loss, partial):
        return partial(on_device(loss.func, device), *move(loss.args, device), **move(loss.keywords, device))
    if isinstance(loss, nn.Module) and any(t.device != device for t in chain(loss.parameters(), loss.buffers())):
        return copy.deepcopy(loss).to(device)
    return loss


def _plain(loss: Loss) -> Any:
    while isinstance(loss, partial):
        loss = loss.func
    return loss


def _function(loss: Loss) -> Loss | None:
    """Return torch's function that a loss computes, also as a module of torch's with any arguments; None for others."""
    plain = _plain(loss)
    if isinstance(plain, nn.Module):  # of which a class of one's own may have another `forward`
        return next((of for kind, of in _OF_MODULE.items() if type(plain).forward is kind.forward), None)
    return plain if plain in _OF_MODULE.values() else None


def _is_torchs(loss: Loss) -> bool:
    plain = _plain(loss)
    if _function(plain) is not None:
        return True
    module = type(plain).__module__ if isinstance(plain, nn.Module) else getattr(plain, "__module__", "") or ""
    return module.startswith(("torch.nn", "torch._C"))


def _reduction(loss: Loss) -> Any:
    if isinstance(loss, partial):
        return loss.keywords.get("reduction", _reduction(loss.func))
    return getattr(loss, "reduction", "mean")


def _class_weights(loss: Loss) -> Tensor | None:
    if isinstance(loss, partial):
        return loss.keywords.get("weight", _class_weights(loss.func))
    return getattr(loss, "weight", None)


def _ignored(loss: Loss) -> int:
    if isinstance(loss, partial):
        return int(loss.keywords.get("ignore_index", _ignored(loss.func)))
    return int(getattr(loss, "ignore_index", -100))


def name_of(loss: Loss) -> str:
    """Return what messages call a loss."""
    return callable_name(loss)


def _described(targets: Any) -> str:
    if not isinstance(targets, Tensor):
        return f"of type {type(targets).__name__}"
    return f"of shape {tuple(targets.shape)} and type {_type_of(targets)}"


def _type_of(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
