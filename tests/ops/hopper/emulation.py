"""The CUDA kernels themselves on a CPU: compiled by g++ for the machine of ``emulation.hpp``, and launched through the
package's own driver, whose library is stood in for."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import Tensor

from elas_lightning.ops import backend as backends
from elas_lightning.ops.hopper import compiler, driver, ffn, steps
from elas_lightning.ops.hopper.compiler import Source

_COMPILER = shutil.which("g++")
_MACHINE = Path(__file__).with_suffix(".hpp")
# Whether copies, and whether products, happen only when somebody has to wait for them.
EXTREMES = ((False, True), (True, False))
# Bytes beside a result, and what each of them is there and in it before it is written: NaN in all formats.
_BESIDE, _NOBODY = 4096, 0xFF


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
        late: One of ``EXTREMES``.
        ran: The names of the kernels launched, in order.
        made: The bytes of their results, with ``_BESIDE`` on both sides.
    """

    def __init__(self) -> None:
        self.late = EXTREMES[0]
        self.ran: list[str] = []
        self.made: list[Tensor] = []

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

    def cuLaunchKernel(self, source: Source, *rest: Any) -> int:
        programs, _, _, threads, _, _, shared_bytes, _stream, arguments, _extra = rest
        assert programs % ffn.CLUSTER == 0
        assert shared_bytes <= 227 * 2**10
        self.ran.append(source.name)
        kernel = _compiled("\n".join((source.defines(), _MACHINE.read_text(), source.body(), _ENTRY)))
        fault = kernel.launch(programs, threads, shared_bytes, arguments, *self.late).decode()
        assert not fault, f"{source.name}.cu: {fault}"
        beside = torch.stack([side for room in self.made for side in (room[:_BESIDE], room[-_BESIDE:])])
        assert bool((beside == _NOBODY).all()), f"{source.name}.cu: it writes beside a result"
        return 0

    def new_empty(self, like: Tensor, *shape: Any, **options: Any) -> Tensor:
        """``Tensor.new_empty`` with something on both sides that nobody should write."""
        if type(like) is not Tensor:  # one without numbers
            return _new_empty(like, *shape, **options)
        wanted = _new_empty(like, *shape, **options)
        if not wanted.numel():
            return wanted
        room = torch.full((wanted.nbytes + 2 * _BESIDE,), _NOBODY, dtype=torch.uint8)
        self.made.append(room)
        # a tensor whose memory begins with itself, as a new one's does
        inside = (ctypes.c_char * wanted.nbytes).from_address(room.data_ptr() + _BESIDE)
        inside.room = room  # kept as long as the tensor
        return torch.frombuffer(inside, dtype=wanted.dtype).view(wanted.shape)


_new_empty = Tensor.new_empty
_ENTRY = 'extern "C" void kernel_of_a_thread() { call_kernel(kernel); }'


@cache
def _compiled(text: str) -> ctypes.CDLL:
    stem = _folder() / sha256(text.encode()).hexdigest()
    source, library = stem.with_suffix(".cpp"), stem.with_suffix(".so")
    source.write_text(text)
    command = (str(_COMPILER), "-std=c++17", "-O1", "-march=native", "-w", "-Wno-psabi", "-shared", "-fPIC")
    subprocess.run([*command, f"-I{compiler.FOLDER}", str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.launch.restype = ctypes.c_char_p
    return loaded


@cache
def _folder() -> Path:
    return Path(mkdtemp())


def install(monkeypatch: pytest.MonkeyPatch, clusters: int = 3) -> Emulator:
    """Let backend ``hopper`` run CPU tensors, on a device that has room for so many clusters at once.

    Three are few enough that programs which stay take more than one tile.
    """
    if _COMPILER is None:
        pytest.skip("needs g++, or a GPU of compute capability 9.0")
    emulator = Emulator()
    monkeypatch.setattr(backends, "_runs", lambda name, device: "named")
    monkeypatch.setattr(driver, "_cuda", lambda: emulator)
    monkeypatch.setattr(driver, "_map", lru_cache(driver._map.__wrapped__))
    monkeypatch.setattr(driver, "_entered", driver._Entered())
    monkeypatch.setattr(driver, "_function", lambda source, device, shared: source)
    monkeypatch.setattr(Tensor, "new_empty", lambda *given, **options: emulator.new_empty(*given, **options))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: None)  # the index of a CPU
    # torch without CUDA does not have it at all
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: 0, raising=False)
    monkeypatch.setattr(ffn, "_clusters", lambda device: clusters)
    for trial in (steps._try_forward, steps._try_backward, steps._try_kept):
        trial.cache_clear()
    return emulator
