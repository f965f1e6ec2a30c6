"""What ranks of a group exchange, by a backend's own calls, in a process that torchrun has started alone.

A group of one rank sends nothing in `nasx.train`, so this calls what larger ones use: it fails with an error, or prints
one line.
"""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F

from nasx.train import ALONE, Group, adamw, pick_device, seeded, sync_batch_norm, train
from nasx.train.distributed import average_over, data_parallel
from nasx.train.whole_batch import Rows, WholeBatch


def main(name: str) -> None:
    """Compare batches over ranks with the plain ones, on a device."""
    device = pick_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(0)
    x, means, variances = torch.randn(8, 6, 5, device=device), torch.zeros(2, 6), torch.ones(2, 6)
    found = []
    for number, function in enumerate((F.batch_norm, sync_batch_norm)):
        mean, var = means[number].to(device), variances[number].to(device)
        found.append((function(x, mean, var, None, None, True), mean, var))
    for ours, plain in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)

    network = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3)).to(device)
    labels = torch.arange(8, device=device) % 3
    expected = F.cross_entropy(network(x[:, 0]), labels)
    two = Group(0, 2, device)  # which is wrapped as a rank of two is
    wrapped = data_parallel(two, network)
    with WholeBatch(Rows(0, 8, 8)):
        loss = F.cross_entropy(wrapped(x[:, 0]), labels)
        loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    tensors = [p.grad for p in network.parameters() if p.grad is not None]
    sums = [tensor.clone() for tensor in tensors]
    average_over(two, tensors)  # of one rank's, halved
    for tensor, whole in zip(tensors, sums, strict=True):
        torch.testing.assert_close(tensor, whole / 2)

    optimizer = adamw(network, lr=1e-3, weight_decay=0.0)
    steps = train(network, seeded([(x[:, 0], labels)] * 3, 0), optimizer, group=ALONE).run()
    assert len(steps) == 3
    dist.destroy_process_group()
    print(f"{device.type}: a backend of torch.distributed works")


if __name__ == "__main__":
    main(sys.argv[1])
