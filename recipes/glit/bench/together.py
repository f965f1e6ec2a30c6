"""Training many of the benchmark's networks at once on a GPU, which one of them leaves almost idle.

Networks that differ in their seeds alone are computed as one; several of these are trained side by side on the same
batches, each a CUDA graph on a stream of its own, so that the CPU starts a whole step with one call.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import vmap

from nasx.data import Images, eval_batches
from nasx.train import StackedNetworks, adamw, cosine_schedule, stacked_batches

from .training import Job, Parts, batches_of, load_parts, make, write_result

AT_ONCE = 16
"""Architectures that are trained side by side."""

SCORED_AT_ONCE = 2500
"""Images in a batch that is not trained on."""


def groups(jobs: Sequence[Job], at_once: int = AT_ONCE) -> Iterator[list[list[Job]]]:
    """Yield what is trained together: lists of architectures, each a list of its jobs, of the same seeds."""
    by_arch: dict[object, list[Job]] = defaultdict(list)
    for job in jobs:
        by_arch[job.arch].append(job)
    by_seeds: dict[tuple[int, ...], list[list[Job]]] = defaultdict(list)
    for own in by_arch.values():
        by_seeds[tuple(job.seed for job in own)].append(own)
    for alike in by_seeds.values():
        for first in range(0, len(alike), at_once):
            yield alike[first : first + at_once]


def train_group(group: Sequence[Sequence[Job]]) -> None:
    """Train architectures side by side, each once for each seed, and write their results as `train_job` does.

    On a CPU they are trained in turns. Raises ArithmeticError, and writes nothing, where a loss was not finite.
    """
    first = group[0][0]
    settings, parts, device = first.settings, load_parts(first.data, first.settings), torch.device(first.device)
    sources = [batches_of(job.settings, parts, job.seed, device) for job in group[0]]
    total = settings.epochs * sources[0].steps_per_epoch
    lrs = _learning_rates(first, total)
    checks = {round(total * (number + 1) / settings.checks) for number in range(settings.checks)}
    started = time.monotonic()
    with ExitStack() as opened, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        shared = _Shared(parts, settings.batch_size, settings.image_size, len(sources), total, device)
        stacks = [opened.enter_context(closing(_Stack(jobs, shared))) for jobs in group]
        curves: list[list[Tensor]] = [[] for _ in stacks]
        for step, (images, labels) in enumerate(stacked_batches(*(source.steps(0, total) for source in sources))):
            shared.wait_for(stacks)
            shared.fill(step, lrs[step], images, labels)
            for stack in stacks:
                stack.launch(stack.train)
            if step + 1 in checks:
                for stack, curve in zip(stacks, curves, strict=True):
                    stack.launch(stack.look)
                    shared.wait_for([stack])
                    curve.append(stack.hits["val"].float().mean(1))
        for stack in stacks:  # the test images, once
            stack.launch(partial(stack.score, "test"))
        shared.wait_for(stacks)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    seconds = (time.monotonic() - started) / sum(len(jobs) for jobs in group)
    for jobs, stack, curve in zip(group, stacks, curves, strict=True):
        losses = stack.losses.cpu()
        if not bool(losses.isfinite().all()):
            raise ArithmeticError(f"a loss of {jobs[0].arch} was not finite")
        for number, job in enumerate(jobs):
            own = [round(float(check[number]), 4) for check in curve]
            hits = {name: right[number].cpu().numpy() for name, right in stack.hits.items()}
            write_result(job, losses[:, number].tolist(), own, seconds, hits)


def _learning_rates(job: Job, total: int) -> list[float]:
    """Return those that `train_job` has."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=job.settings.lr)
    schedule = cosine_schedule(optimizer, steps=total, warmup_steps=round(job.settings.warmup_share * total))
    factor = schedule.lr_lambdas[0]
    return [job.settings.lr * float(factor(step)) for step in range(total)]


class _Shared:
    """What the networks of a group read: a batch for each seed, the learning rate, and images to be scored on."""

    def __init__(self, parts: Parts, batch: int, size: int, seeds: int, total: int, device: torch.device) -> None:
        self.device, self.total = device, total
        self.images = torch.zeros(seeds, batch, 3, size, size, device=device)
        self.labels = torch.zeros(seeds, batch, dtype=torch.long, device=device)
        self.lr = torch.zeros((), device=device)
        self.step = torch.zeros(1, dtype=torch.long, device=device)
        self.scored = {name: self._scored(images, parts) for name, images in (("val", parts.val), ("test", parts.test))}

    def fill(self, step: int, lr: float, images: Tensor, labels: Tensor) -> None:
        """Write one step's numbers where the networks read them."""
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.lr.fill_(lr)
        self.step.fill_(step)

    def _scored(self, images: Images, parts: Parts) -> list[tuple[Tensor, Tensor]]:
        batches = eval_batches(images, SCORED_AT_ONCE, parts.mean, parts.std)
        return [(some.to(self.device), labels.to(self.device)) for some, labels in batches]

    def wait_for(self, stacks: "Sequence[_Stack]") -> None:
        """Let what follows on the main stream wait until networks have done what they were given."""
        for stack in stacks:
            if stack.stream is not None:
                torch.cuda.current_stream(self.device).wait_stream(stack.stream)


class _Stack:
    """The networks of one architecture, one for each seed, and a step of their training as one call."""

    def __init__(self, jobs: Sequence[Job], shared: _Shared) -> None:
        self.shared, settings = shared, jobs[0].settings
        self.networks = StackedNetworks([make(job) for job in jobs]).to(shared.device).train()
        self.optimizer = adamw(self.networks, lr=settings.lr, weight_decay=settings.weight_decay)
        for group in self.optimizer.param_groups:
            group["lr"] = shared.lr
        self.clip_norm = settings.clip_norm
        self.loss = vmap(partial(F.cross_entropy, label_smoothing=settings.label_smoothing))
        self.losses = torch.zeros(shared.total, len(jobs), device=shared.device)
        self.hits = {
            name: torch.zeros(len(jobs), sum(map(len, labels)), dtype=torch.bool, device=shared.device)
            for name, labels in ((name, [own for _, own in batches]) for name, batches in shared.scored.items())
        }
        on_cuda = shared.device.type == "cuda"
        self.stream = torch.cuda.Stream(shared.device) if on_cuda else None  # type: ignore[no-untyped-call]
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self.train, self.look = self._captured(self._step), self._captured(partial(self.score, "val"))

    def close(self) -> None:
        """Give the memory of its CUDA graphs back, 0.4 GiB; what was measured stays, and nothing can be launched."""
        del self.train, self.look  # which hold this object itself on a CPU
        for graph in self._graphs:
            graph.reset()

    def launch(self, work: Callable[[], None]) -> None:
        """Start work once the main stream has done what it was given."""
        if self.stream is None:
            work()
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.shared.device))
        with torch.cuda.stream(self.stream):
            work()

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        each = self.loss(self.networks(self.shared.images), self.shared.labels)
        each.sum().backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            gradients = [p.grad for p in self.networks.parameters() if p.grad is not None]
            factor = (self.clip_norm / (self.networks.norms(gradients) + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, [factor.view(-1, *(1,) * (g.ndim - 1)) for g in gradients])
            self.losses.index_copy_(0, self.shared.step, each.detach()[None])
        self.optimizer.step()

    @torch.no_grad()
    def score(self, part: str) -> None:
        """Write what the networks get right of the images of a part."""
        self.networks.eval()
        done = 0
        for images, labels in self.shared.scored[part]:
            outputs = self.networks(images.expand(len(self.hits[part]), *images.shape))
            self.hits[part][:, done : done + len(labels)] = outputs.argmax(-1) == labels
            done += len(labels)
        self.networks.train()

    def _captured(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return work as a CUDA graph, with networks and optimizer as they were; on a CPU the work itself."""
        if self.stream is None:
            return work
        device = self.shared.device
        before = {name: tensor.clone() for name, tensor in self.networks.state_dict().items()}
        self.stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self.stream):
            for _ in range(3):  # which libraries need to choose their kernels and take their memory
                work()
        torch.cuda.synchronize(device)
        self.optimizer.zero_grad(set_to_none=True)
        for group in self.optimizer.param_groups:
            group["capturable"] = True
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(self.stream):  # torch.cuda.graph collects garbage first, which takes longer than this
            graph.capture_begin()
            work()
            graph.capture_end()
        self._graphs.append(graph)
        with torch.no_grad():
            for name, tensor in self.networks.state_dict().items():
                tensor.copy_(before[name])
            for state in self.optimizer.state.values():
                for tensor in state.values():
                    tensor.zero_()
        torch.cuda.synchronize(device)
        return graph.replay
