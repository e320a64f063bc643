"""Descriptions of the machine, and memory that is measured rather than remembered."""

import mmap
import sys

import pytest
import torch

from elas_lightning.training.hardware import PeakMemory, describe_environment, package_versions, peak_flops


def test_a_processor_has_no_listed_peak() -> None:
    assert peak_flops(torch.device("cpu"), "bf16-mixed") is None


def test_a_listed_gpu_has_its_half_precision_peak_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "NVIDIA H200")
    assert peak_flops(torch.device("cuda"), "bf16-mixed") == 989e12
    assert peak_flops(torch.device("cuda"), "32-true") is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
    ],
)
def test_a_card_has_the_peak_of_its_own_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    assert peak_flops(torch.device("cuda"), "bf16-mixed") == peak


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA Imaginary 1",
        "NVIDIA L40",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    ],
)
def test_an_unknown_gpu_has_none(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: name)
    assert peak_flops(torch.device("cuda"), "bf16-mixed") is None


def test_environment_names_hardware_versions_and_command() -> None:
    environment = describe_environment(torch.device("cpu"), "elas fit")
    assert environment["command"] == "elas fit"
    assert f"{torch.get_num_threads()} threads" in str(environment["hardware"])
    assert package_versions()["torch"] == torch.__version__


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc, on Linux only")
def test_peak_memory_starts_anew_for_each_run() -> None:
    memory = PeakMemory(torch.device("cpu"))
    memory.start()
    before = memory.read()
    # mapped from the system, not allocated: an allocator may hand out memory that is already resident
    with mmap.mmap(-1, 64 * 2**20) as block:
        block.write(b"\x01" * len(block))
        with_block = memory.read()
    memory.start()
    after = memory.read()
    assert before is not None
    assert with_block is not None
    assert after is not None
    assert with_block - before > 48 * 2**20
    assert with_block - after > 48 * 2**20
