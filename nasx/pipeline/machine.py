"""Settings of the machine, which belong to no run."""

import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nasx.cli import validation_message
from nasx.train.device import device_name

PREFIX = "NASX_"


class Machine(BaseModel):
    """What a machine offers; nothing here changes a result on the CPU."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str = Field("auto", description="a torch device; auto: CUDA where there is one")
    processes: int = Field(0, ge=0, description="networks trained side by side; 0: one per core on CPU, else 1")
    deterministic: bool = Field(False, description="the same bits each time on CUDA too, more slowly (--deterministic)")
    workers: int = Field(0, ge=0, description="processes that read samples ahead, beside each training")
    image_memory_gib: float = Field(
        4.0,
        ge=0,
        allow_inf_nan=False,
        description="of the decoded images of each part (training, validation, test) that a process keeps, at most",
    )

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Machine":
        """Return the settings in the variables NASX_DEVICE, NASX_PROCESSES and so on; others keep their defaults.

        A ValueError names a variable that does not exist, or one whose value cannot be.
        """
        fields = {f"{PREFIX}{name.upper()}": name for name in cls.model_fields}
        given = {name: value for name, value in environment.items() if name.startswith(PREFIX)}
        unknown = sorted(set(given) - set(fields))
        if unknown:
            raise ValueError(f"there is no setting {unknown[0]} of the machine; there are {', '.join(fields)}")
        for variable, value in given.items():
            try:
                cls.model_validate({fields[variable]: value})
            except ValidationError as error:
                rule = validation_message(error).removeprefix(f"{fields[variable]}: ")
                raise ValueError(f"{variable}: {rule}") from error
        return cls.model_validate({fields[variable]: value for variable, value in given.items()})

    @property
    def image_bytes(self) -> int:
        """The decoded images that a process keeps of each part, in bytes, at most."""
        return int(self.image_memory_gib * 2**30)

    def processes_for(self, device: torch.device) -> int:
        """Return how many networks to train side by side on a device."""
        return self.processes or ((os.cpu_count() or 1) if device.type == "cpu" else 1)


def hardware(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Return what this machine is, as JSON values: processor, cores, memory, device, and the processes of a run."""
    found: dict[str, Any] = {
        "system": platform.platform(terse=True),
        "processor": device_name(torch.device("cpu")),
        "cores": os.cpu_count(),
    }
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    found["device"] = device.type if device.type == "cpu" else device_name(device)
    found["processes"] = processes
    return found


def memory_mib(device: torch.device) -> float:
    """Return the memory in use, in MiB: of the device where it is CUDA, else of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device) / 2**20
    statistics = Path("/proc/self/statm")
    if statistics.is_file():
        return int(statistics.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # the peak, in bytes, where there is no /proc
