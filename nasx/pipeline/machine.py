"""What belongs to the machine and not to the run."""

import os

import torch
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Machine(BaseSettings):
    """Settings from the environment, NASX_DEVICE and so on; none changes a result on the CPU."""

    model_config = SettingsConfigDict(env_prefix="NASX_", frozen=True)

    device: str = Field("auto", description="a torch device; auto: CUDA where there is one")
    processes: int = Field(0, ge=0, description="networks trained side by side; 0: one per core on CPU, else 1")
    deterministic: bool = Field(False, description="the same bits each time on CUDA too, more slowly (--deterministic)")
    workers: int = Field(0, ge=0, description="processes that read image files ahead, beside each training")
    image_memory_gib: float = Field(
        4.0,
        ge=0,
        allow_inf_nan=False,
        description="of the decoded images of each part (training, validation, test) that a process keeps, at most",
    )

    def processes_for(self, device: torch.device) -> int:
        """Return how many networks to train side by side on a device."""
        return self.processes or ((os.cpu_count() or 1) if device.type == "cpu" else 1)
