"""Energy that a GPU has drawn, from the counter of NVIDIA's management library (NVML)."""

import logging
from importlib import import_module
from typing import Any

import torch

logger = logging.getLogger(__name__)


class EnergyMeter:
    """Joules between two readings of one GPU's counter; None where there is none.

    The counter (Volta and later) is the whole board's, whoever uses it, and is updated some ten times a second: short
    windows are coarse, but a sum over windows that follow each other is not.

    Args:
        device: Where the model runs.
        nvml: The module ``pynvml`` of the package nvidia-ml-py; None imports it where it is installed.
    """

    def __init__(self, device: torch.device, nvml: Any = None) -> None:
        self._nvml: Any = None
        self._last: int | None = None
        if device.type != "cuda":
            return
        if nvml is None:
            try:
                nvml = import_module("pynvml")
            except ImportError:
                logger.info("energy is not measured: install elas-lightning[gpu] for nvidia-ml-py")
                return
        try:
            nvml.nvmlInit()
            # by identity: NVML counts all boards of the machine, torch those that CUDA_VISIBLE_DEVICES leaves
            uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
            self._handle = nvml.nvmlDeviceGetHandleByUUID(uuid)
            self._last = nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except nvml.NVMLError as error:
            logger.info("energy is not measured: %s", error)
            return
        self._nvml = nvml

    def read(self) -> float | None:
        """Joules since the last reading, or since the meter was made."""
        if self._nvml is None or self._last is None:
            return None
        now = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)  # in thousandths
        joules = (now - self._last) / 1000
        self._last = now
        return joules
