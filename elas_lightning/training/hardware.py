"""What ran it: device, versions, peak arithmetic, peak memory."""

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from elas_lightning.ops.measured import device_name

# Dense (not 2:4) matrix-multiply peak in FLOP/s by device name, from the vendor's data sheets. A device that
# is not listed has no model FLOPs utilisation: a guess would look like a measurement. Nor has a part of one (MIG), or
# another card of nearly the same name.
_BF16_PEAKS = {
    "GH200": 989e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
_OTHER_CARDS = r"(?! ?(?:Ti|D|Laptop|Max-Q|SUPER)\b)(?!.*\bMIG\b)"
_REPORTED_PACKAGES = ("elas-lightning", "torch", "lightning", "torchmetrics", "datasets", "optuna", "triton")


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Peak FLOP/s of ``device`` for half-precision matrix multiplication, ``None`` where it is not known.

    Args:
        device: Where the model runs.
        precision: Lightning's precision name; only 16-bit ones have a listed peak.
    """
    if device.type != "cuda" or "16" not in precision:
        return None
    name = torch.cuda.get_device_name(device)
    found = (peak for key, peak in _BF16_PEAKS.items() if re.search(rf"\b{key}\b{_OTHER_CARDS}", name))
    return next(found, None)


def hardware_name(device: torch.device) -> str:
    """One line for reports: the GPU's name, or the processor's with the threads torch uses."""
    name = device_name(device)
    if device.type == "cuda":
        return f"{name} ({torch.cuda.device_count()} visible)"
    return f"{name}, {torch.get_num_threads()} threads"


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result, without those that are absent."""
    found = {}
    for name in _REPORTED_PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    # with the build, such as +cu130 or +cpu, which the installed package does not always say
    return {**found, "torch": str(torch.__version__)}


def describe_environment(device: torch.device, command: str) -> dict[str, Any]:
    """The ``environment`` part of a result file."""
    return {
        "hardware": hardware_name(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": package_versions(),
        "command": command,
    }


class PeakMemory:
    """Peak memory since ``start``: allocated bytes on a GPU, resident bytes of the process on Linux.

    The two are not comparable with each other: the second includes the interpreter and its libraries.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def start(self) -> None:
        """Begin a new measurement."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        reset = Path("/proc/self/clear_refs")
        if reset.exists():
            # 5 resets the kernel's high-water mark of this process (proc(5)), so that a run inside a sweep
            # does not report the peak of the runs before it
            reset.write_text("5")

    def read(self) -> int | None:
        """Peak bytes, ``None`` where the system does not tell."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        status = Path("/proc/self/status")
        match = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.exists() else None
        return int(match.group(1)) * 1024 if match else None


def device_kind() -> str:
    """``gpu`` or ``cpu``: which of a sweep's machine defaults applies."""
    return "gpu" if torch.cuda.is_available() else "cpu"
