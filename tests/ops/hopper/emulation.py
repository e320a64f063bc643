"""The CUDA kernels themselves on a CPU: compiled by g++ for the machine of ``emulation.hpp``, and launched through the
package's own driver, whose library is stood in for."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import threading
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elas_lightning.ops import backend as backends
from elas_lightning.ops.hopper import compiler, driver, ffn, steps
from elas_lightning.ops.hopper.compiler import Source

COMPILER = shutil.which("g++")


class _Map(ctypes.Structure):
    """``TensorMap`` of emulation.hpp."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("rank", ctypes.c_uint64),
        ("sizes", ctypes.c_uint64 * 5),
        ("strides", ctypes.c_uint64 * 4),
        ("box", ctypes.c_uint32 * 5),
    )


class Emulator:
    """CUDA's driver as far as it is called.

    Attributes:
        copies_late: Copies happen only when somebody has to wait for them, else at once.
        products_late: The same of matrix products.
        ran: How often each source was launched.
    """

    def __init__(self) -> None:
        self.copies_late, self.products_late = False, True
        self.ran: Counter[Source] = Counter()

    def cuTensorMapEncodeTiled(
        self, room: Any, kind: int, rank: int, data: Any, sizes: Any, strides: Any, box: Any, *_: Any
    ) -> int:
        assert room.value % 64 == 0
        # what the real one refuses
        assert data.value % 16 == 0
        assert all(stride % 16 == 0 for stride in strides)
        assert all(0 < extent <= 256 for extent in box)
        described = _Map(data.value, rank, tuple(sizes), tuple(strides), tuple(box))
        ctypes.memmove(room.value, ctypes.byref(described), ctypes.sizeof(described))
        return 0

    def cuLaunchKernel(self, function: tuple[Source, ctypes.CDLL], *rest: Any) -> int:
        source, library = function
        programs, _, _, threads, _, _, shared_bytes, _stream, arguments, _extra = rest
        assert programs % ffn.CLUSTER == 0
        assert shared_bytes <= 227 * 2**10
        self.ran[source] += 1
        fault = library.launch(
            programs, threads, shared_bytes, arguments, self.copies_late, self.products_late
        ).decode()
        assert not fault, f"{source.name}.cu: {fault}"
        return 0


@cache
def _compiled(source: Source, folder: Path) -> ctypes.CDLL:
    stem = folder / f"{source.name}-{abs(hash(source))}"
    text = [
        source.defines(),
        Path(__file__).with_suffix(".hpp").read_text(),
        source.body(),
        'extern "C" void kernel_of_a_thread() { call_kernel(kernel); }',
    ]
    stem.with_suffix(".cpp").write_text("\n".join(text))
    command = [
        str(COMPILER), "-std=c++20", "-O1", "-w", "-shared", "-fPIC", f"-I{compiler.FOLDER}",
        str(stem.with_suffix(".cpp")), "-o", str(stem.with_suffix(".so")),
    ]  # fmt: skip
    subprocess.run(command, check=True)
    library = ctypes.CDLL(str(stem.with_suffix(".so")))
    library.launch.restype = ctypes.c_char_p
    return library


@cache
def _folder() -> Path:
    return Path(mkdtemp())


def install(monkeypatch: pytest.MonkeyPatch, clusters: int = 66) -> Emulator:
    """Backend ``hopper`` runs, on CPU tensors, as if ``clusters`` pairs of programs ran at once."""
    emulator = Emulator()
    monkeypatch.setattr(backends, "_runs", lambda name, device: "named")
    monkeypatch.setattr(driver, "_cuda", lambda: emulator)
    monkeypatch.setattr(driver, "_maps", driver._Maps())
    monkeypatch.setattr(driver, "_entered", threading.local())
    monkeypatch.setattr(driver, "_enter", lambda device: None)
    monkeypatch.setattr(
        driver, "_function", lambda source, device, shared: (source, _compiled(source, _folder()))
    )
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # the index of a CPU's device
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(ffn, "_clusters", lambda device: clusters)
    for trial in (steps._try_forward, steps._try_backward, steps._try_kept):
        trial.cache_clear()
    return emulator
