"""The energy meter on a stand-in for NVIDIA's library."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elas_lightning.training.energy import EnergyMeter


class StandIn:
    """pynvml's four names; the counter goes up by 1500 mJ a reading."""

    class NVMLError(Exception):
        pass

    def __init__(self, fails_at: str | None = None) -> None:
        self.fails_at = fails_at
        self.millijoules = 7000

    def _maybe_fail(self, name: str) -> None:
        if name == self.fails_at:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlInit(self) -> None:
        self._maybe_fail("init")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self._maybe_fail("handle")
        return f"handle of {uuid}"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self._maybe_fail("counter")
        assert handle == "handle of GPU-1234"
        self.millijoules += 1500
        return self.millijoules


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))


def test_joules_between_readings() -> None:
    library = StandIn()
    meter = EnergyMeter(torch.device("cuda"), library)
    assert meter.read() == 1.5
    library.millijoules += 10_000
    assert meter.read() == 11.5


@pytest.mark.parametrize("fails_at", ["init", "handle", "counter"])
def test_without_a_counter_there_is_no_energy(fails_at: str, caplog: Any) -> None:
    with caplog.at_level("INFO"):
        assert EnergyMeter(torch.device("cuda"), StandIn(fails_at)).read() is None
    assert "Driver Not Loaded" in caplog.text


def test_without_the_library_there_is_no_energy(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with caplog.at_level("INFO"):
        assert EnergyMeter(torch.device("cuda")).read() is None
    assert "elas-lightning[gpu]" in caplog.text


def test_a_processor_has_no_counter() -> None:
    assert EnergyMeter(torch.device("cpu"), StandIn()).read() is None
