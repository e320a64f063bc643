"""What reaches CUDA's driver, with a stand-in for it where there is no GPU."""

from __future__ import annotations

import ctypes
import threading
from functools import lru_cache
from typing import Any

import pytest
import torch

from elas_lightning.ops.hopper import driver
from elas_lightning.ops.hopper.driver import TensorMap, group_map, launch, row_map
from elas_lightning.ops.hopper.ffn import fused_source


class Driver:
    """CUDA's driver as far as it is called: it notes what it is told and answers as told."""

    def __init__(self) -> None:
        self.maps: list[tuple[Any, ...]] = []
        self.launches: list[tuple[Any, ...]] = []
        self.answer = 0

    def cuTensorMapEncodeTiled(self, address: Any, kind: int, rank: int, data: Any, *arrays: Any) -> int:
        assert address.value % 64 == 0
        sizes, strides, box, ones, *options = arrays
        self.maps.append((kind, [list(a) for a in (sizes, strides, box, ones)], options))
        return self.answer

    def cuLaunchKernel(self, function: Any, *rest: Any) -> int:
        *grid, shared, stream, arguments, _extra = rest
        words = [ctypes.c_uint64.from_address(address).value for address in arguments]
        self.launches.append((grid, shared, stream.value, list(arguments), words))
        return self.answer

    def cuGetErrorString(self, code: int, text: Any) -> int:
        text._obj.value = b"invalid argument"
        return 0


@pytest.fixture(autouse=True)
def cuda(monkeypatch: pytest.MonkeyPatch) -> Driver:
    stand_in = Driver()
    monkeypatch.setattr(driver, "_cuda", lambda: stand_in)
    monkeypatch.setattr(driver, "_map", lru_cache(driver._map.__wrapped__))
    monkeypatch.setattr(driver, "_function", lambda source, device, shared: ctypes.c_void_p(1))
    monkeypatch.setattr(driver, "_entered", driver._Entered())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 7, raising=False)
    return stand_in


def test_maps_say_where_boxes_of_rows_and_of_groups_lie(cuda: Driver) -> None:
    matrix = torch.empty(48, 24, dtype=torch.float16)
    row_map(matrix, 128)
    group_map(matrix, 64)
    (kind, (sizes, strides, box, ones), options), (_, groups, _) = cuda.maps
    assert (kind, sizes, strides, box, ones) == (6, [24, 48], [48], [64, 128], [1, 1])
    assert options == [0, 3, 2, 0]
    assert groups[:3] == [[24, 2, 4, 2, 3], [48, 4 * 48, 2 * 48, 16 * 48], [64, 2, 4, 2, 4]]


def test_a_map_is_made_once_and_the_oldest_forgotten(cuda: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_map", lru_cache(maxsize=2)(driver._map.__wrapped__))
    matrices = [torch.empty(16, 64, dtype=torch.bfloat16) for _ in range(3)]
    first = row_map(matrices[0], 128)
    assert row_map(matrices[0], 128) is first
    row_map(matrices[1], 128)
    row_map(matrices[2], 128)
    assert len(cuda.maps) == 3
    row_map(matrices[0], 128)
    assert len(cuda.maps) == 4
    assert cuda.maps[0][0] == 9


def test_a_launch_hands_over_addresses(cuda: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    known, tensor = TensorMap(), torch.empty(4)
    launch(fused_source(128, False), 6, 384, 1000, torch.device("cuda", 0), known, tensor, 17)
    ((grid, shared, stream, addresses, words),) = cuda.launches
    assert grid == [6, 1, 1, 384, 1, 1]
    assert (shared, stream) == (1000, 7)
    assert addresses[0] == known.address
    assert words[1:] == [tensor.data_ptr(), 17]


def test_a_launch_happens_in_the_context_of_its_device(cuda: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    current = [0]

    class Entered:
        def __init__(self, device: torch.device) -> None:
            self.index = device.index

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *_: object) -> None:
            current.pop()

    launched: list[int] = []
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[-1])
    monkeypatch.setattr(torch.cuda, "device", Entered)
    monkeypatch.setattr(driver, "_function", lambda source, device, shared: launched.append(device))
    for index in (0, 1):
        launch(fused_source(128, False), 6, 384, 1000, torch.device("cuda", index), 1)
    assert (launched, len(cuda.launches), current) == ([0, 1], 2, [0])


def test_each_thread_enters_the_context_once(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int] = []
    monkeypatch.setattr(torch, "zeros", lambda *size, device: entered.append(threading.get_ident()))

    def twice() -> None:
        for _ in range(2):
            launch(fused_source(128, False), 6, 384, 1000, torch.device("cuda", 0), 1)

    twice()
    thread = threading.Thread(target=twice)
    thread.start()
    thread.join()
    assert len(entered) == len(set(entered)) == 2


def test_a_refusal_of_the_driver_says_what_and_why(cuda: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)
    cuda.answer = 1
    with pytest.raises(RuntimeError, match=r"refuses the launch of fused\.cu: invalid argument \(1\)"):
        launch(fused_source(128, False), 6, 384, 1000, torch.device("cuda", 0), 1)
    with pytest.raises(RuntimeError, match=r"refuses a tensor map of \(16, 64\)"):
        row_map(torch.empty(16, 64, dtype=torch.float16), 128)
