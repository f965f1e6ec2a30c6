"""One of the processes that `benchmarks.loop.ranks` compares: trains, and prints the median milliseconds of a step."""

import json
import sys
import time
from statistics import median

import torch

from benchmarks.cases import bench_case, digits_case
from nasx.train import adamw, process_group, train


def main() -> None:
    """Train each network for as many steps as the argument says."""
    torch.set_num_threads(1)
    found = {}
    with process_group(torch.device("cpu"), timeout_seconds=120) as group:
        for case in (digits_case(), bench_case()):
            network = case.network()
            images, labels = case.images(case.batch // group.size)
            batches = [(images, labels)] * int(sys.argv[1])
            times = []
            begun = time.perf_counter()
            for _ in train(network, batches, adamw(network, lr=1e-4, weight_decay=0.05), clip_norm=1.0, group=group):
                times.append(time.perf_counter() - begun)
                begun = time.perf_counter()
            found[case.name] = 1e3 * median(times)
        if group.first:
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
