import pytest
import torch
from torch import nn

from nasx.train import autocast, device_of, pick_device, use_threads


def test_threads_come_back_even_after_an_error() -> None:
    before = torch.get_num_threads()

    def fail() -> None:
        with use_threads(before + 1):
            raise KeyError(torch.get_num_threads())

    with pytest.raises(KeyError, match=str(before + 1)):
        fail()
    assert torch.get_num_threads() == before


def test_the_cpu_computes_in_full_precision() -> None:
    with autocast(torch.device("cpu")):
        assert nn.Linear(2, 2)(torch.zeros(1, 2)).dtype == torch.float32


def test_a_modules_device_is_that_of_its_parameters() -> None:
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")


def test_an_unknown_device_is_a_clear_error() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="tpu9"):
        pick_device("tpu9")
