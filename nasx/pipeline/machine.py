"""Settings of the machine, which belong to no run."""

import os
from collections.abc import Mapping

import torch
from pydantic import BaseModel, ConfigDict, Field

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
        given = {name.removeprefix(PREFIX): value for name, value in environment.items() if name.startswith(PREFIX)}
        return cls.model_validate({name.lower(): value for name, value in given.items()})

    def processes_for(self, device: torch.device) -> int:
        """Return how many networks to train side by side on a device."""
        return self.processes or ((os.cpu_count() or 1) if device.type == "cpu" else 1)
