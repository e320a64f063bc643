"""From a binary to a launch, by CUDA's driver, through ctypes: modules, tensor maps and launches."""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache

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
        """Make room."""
        self._room = ctypes.create_string_buffer(128 + 64)
        self.address = (ctypes.addressof(self._room) + 63) & ~63


class _Maps:
    """Tensor maps by what they say; the one that was used longest ago makes room for a new one."""

    def __init__(self) -> None:
        self.known: OrderedDict[tuple[object, ...], TensorMap] = OrderedDict()

    def get(
        self, tensor: Tensor, sizes: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
    ) -> TensorMap:
        key = (tensor.data_ptr(), tensor.dtype, sizes, strides, box)
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = _encode(tensor, sizes, strides, box)
            if len(self.known) > _MAPS:
                self.known.popitem(last=False)
        else:
            self.known.move_to_end(key)
        return found


_maps = _Maps()
_entered = threading.local()


def row_map(matrix: Tensor, rows: int) -> TensorMap:
    """Boxes of so many rows and 64 columns of a matrix whose rows are whole multiples of 16 bytes; zeros outside."""
    return _maps.get(matrix, (matrix.shape[1], matrix.shape[0]), (2 * matrix.stride(0),), (64, rows))


def group_map(matrix: Tensor, rows: int) -> TensorMap:
    """The same of features as rows, sixteen by sixteen in the order 0 1 4 5 8 9 12 13 2 3 6 7 10 11 14 15.

    Thread q of four has columns 2 q and 2 q + 1 of each eight of a product, so that with this order it has the four
    members of group q of each sixteen features.
    """
    width = 2 * matrix.stride(0)
    sizes = (matrix.shape[1], 2, 4, 2, matrix.shape[0] // 16)
    return _maps.get(matrix, sizes, (width, 4 * width, 2 * width, 16 * width), (64, 2, 4, 2, rows // 16))


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
    # launches are small and many: the context is changed only where it is another's
    with nullcontext() if device.index == torch.cuda.current_device() else torch.cuda.device(device):
        _enter(device)
        function = _function(source, torch.cuda.current_device(), shared_bytes)
        held: list[ctypes.c_void_p | ctypes.c_int] = []
        addresses = []
        for argument in arguments:
            if isinstance(argument, TensorMap):
                addresses.append(argument.address)
                continue
            held.append(
                ctypes.c_void_p(argument.data_ptr())
                if isinstance(argument, Tensor)
                else ctypes.c_int(argument)
            )
            addresses.append(ctypes.addressof(held[-1]))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        _check(
            _cuda().cuLaunchKernel(
                function, programs, 1, 1, threads, 1, 1, shared_bytes, stream,
                (ctypes.c_void_p * len(addresses))(*addresses), None,
            ),
            f"the launch of {source.name}.cu",
        )  # fmt: skip


def _enter(device: torch.device) -> None:
    """Make the device's context that of this thread: autograd's threads have none until PyTorch launches something."""
    entered = _entered.__dict__.setdefault("devices", set())
    if device not in entered:
        torch.zeros(1, device=device)
        entered.add(device)


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


def _encode(tensor: Tensor, sizes: Sequence[int], strides: Sequence[int], box: Sequence[int]) -> TensorMap:
    rank, found = len(sizes), TensorMap()
    _check(
        _cuda().cuTensorMapEncodeTiled(
            ctypes.c_void_p(found.address),
            _DATA_TYPES[tensor.dtype],
            rank,
            ctypes.c_void_p(tensor.data_ptr()),
            (ctypes.c_uint64 * rank)(*sizes),
            (ctypes.c_uint64 * (rank - 1))(*strides),
            (ctypes.c_uint32 * rank)(*box),
            (ctypes.c_uint32 * rank)(*[1] * rank),
            0,
            _SWIZZLE_128_BYTES,
            _PROMOTE_128_BYTES,
            0,
        ),
        f"a tensor map of {tuple(tensor.shape)}",
    )
    return found


def _check(code: int, what: str) -> None:
    if code:
        text = ctypes.c_char_p()
        _cuda().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA refuses {what}: {(text.value or b'unknown error').decode()} ({code})")
