"""Tests of a GPU are skipped, with a reason, where there is none."""

import pytest
import torch


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked `gpu` on a machine without a CUDA device."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("this machine has no usable CUDA device")
