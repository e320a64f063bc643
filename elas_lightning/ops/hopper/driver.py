"""From a binary to a launch, by CUDA's driver, through ctypes: modules, tensor maps and launches."""

from __future__ import annotations

import ctypes
import threading
from functools import cache, lru_cache

import torch
from torch import Tensor

from elas_lightning.ops.hopper.compiler import Source, compile_source

# Of the driver's enumerations (cuda.h).
_MAX_DYNAMIC_SHARED_BYTES = 8
_DATA_TYPES = {torch.float16: 6, torch.bfloat16: 9}
_SWIZZLE_128_BYTES = 3
_PROMOTE_128_BYTES = 2
# How many tensor maps are kept; one is 128 bytes, and a step's tensors come back to the same places.
_MAPS = 4096


class TensorMap:
    """What a bulk copy knows of a tensor in memory: 128 bytes, aligned as the driver wants them."""

    def __init__(self) -> None:
        self._room = ctypes.create_string_buffer(128 + 64)
        self.address = (ctypes.addressof(self._room) + 63) & ~63


class _Entered(threading.local):
    """The devices whose context this thread has."""

    def __init__(self) -> None:
        self.devices: set[torch.device] = set()


def row_map(matrix: Tensor, rows: int) -> TensorMap:
    """Boxes of so many rows and 64 columns of a contiguous matrix, its rows whole multiples of 16 bytes; zeros outside.

    The driver takes an address that 16 divides.
    """
    return _map(matrix.data_ptr(), matrix.dtype, matrix.shape, rows, False)


def group_map(matrix: Tensor, rows: int) -> TensorMap:
    """The same of features as rows, sixteen by sixteen in the order 0 1 4 5 8 9 12 13 2 3 6 7 10 11 14 15.

    Thread q of four has columns 2 q and 2 q + 1 of each eight of a product, so that with this order it has the four
    members of group q of each sixteen features.
    """
    return _map(matrix.data_ptr(), matrix.dtype, matrix.shape, rows, True)


def launch(
    source: Source,
    programs: int,
    threads: int,
    shared_bytes: int,
    device: torch.device,
    *arguments: TensorMap | Tensor | int,
) -> None:
    """Run a kernel on the current stream of a device; integers are 32 bits wide.

    Raises:
        UserError: It cannot be compiled.
        RuntimeError: The driver refuses the launch.
    """
    index = torch.cuda.current_device()
    # launches are small and many: the context is changed only where it is another's
    if device.index != index:
        with torch.cuda.device(device):
            launch(source, programs, threads, shared_bytes, device, *arguments)
        return
    _enter(device)
    # where each argument lies; what is no tensor map lies in words of 8 bytes, of which an integer is the lower half
    count = len(arguments)
    words, addresses = (ctypes.c_uint64 * count)(), (ctypes.c_void_p * count)()
    first = ctypes.addressof(words)
    for place, argument in enumerate(arguments):
        if isinstance(argument, TensorMap):
            addresses[place] = argument.address
        else:
            words[place] = argument.data_ptr() if isinstance(argument, Tensor) else argument
            addresses[place] = first + 8 * place
    # the number alone, as torch's own generated code asks for it: torch.cuda makes an object of it each time
    stream = ctypes.c_void_p(torch._C._cuda_getCurrentRawStream(index))
    code = _cuda().cuLaunchKernel(
        _function(source, index, shared_bytes), programs, 1, 1, threads, 1, 1, shared_bytes, stream, addresses, None
    )
    if code:
        _check(code, f"the launch of {source.name}.cu")


def _enter(device: torch.device) -> None:
    """Make the device's context that of this thread: autograd's threads have none until PyTorch launches something."""
    if device not in _entered.devices:
        torch.zeros(1, device=device)
        _entered.devices.add(device)


@cache
def _cuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


@cache
def _function(source: Source, device: int, shared_bytes: int) -> ctypes.c_void_p:
    """The kernel in the device's context; compiled once in a process."""
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    _check(_cuda().cuModuleLoadData(ctypes.byref(module), _binary(source)), "loading a kernel")
    _check(_cuda().cuModuleGetFunction(ctypes.byref(function), module, b"kernel"), "finding a kernel")
    _check(
        _cuda().cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED_BYTES, shared_bytes),
        f"{shared_bytes} bytes of shared memory",
    )
    return function


@cache
def _binary(source: Source) -> bytes:
    return compile_source(source)[0]


@lru_cache(maxsize=_MAPS)
def _map(address: int, dtype: torch.dtype, shape: tuple[int, int], rows: int, grouped: bool) -> TensorMap:
    """The map of a matrix as ``row_map`` has it or ``group_map``."""
    height, width = shape
    line = 2 * width  # not the tensor's stride, which says nothing where it is a single row
    sizes: tuple[int, ...] = (width, height)
    strides: tuple[int, ...] = (line,)
    box: tuple[int, ...] = (64, rows)
    if grouped:
        sizes, strides = (width, 2, 4, 2, height // 16), (line, 4 * line, 2 * line, 16 * line)
        box = (64, 2, 4, 2, rows // 16)
    rank, found = len(sizes), TensorMap()
    _check(
        _cuda().cuTensorMapEncodeTiled(
            ctypes.c_void_p(found.address),
            _DATA_TYPES[dtype],
            rank,
            ctypes.c_void_p(address),
            (ctypes.c_uint64 * rank)(*sizes),
            (ctypes.c_uint64 * (rank - 1))(*strides),
            (ctypes.c_uint32 * rank)(*box),
            (ctypes.c_uint32 * rank)(*[1] * rank),
            0,
            _SWIZZLE_128_BYTES,
            _PROMOTE_128_BYTES,
            0,
        ),
        f"a tensor map of {tuple(shape)}",
    )
    return found


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _cuda().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA refuses {what}: {(text.value or b'unknown error').decode()} ({code})")


_entered = _Entered()
