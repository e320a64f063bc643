"""The one place where a backend is chosen, and where a backend that cannot run is refused."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch

from elas_lightning.errors import UserError
from elas_lightning.ops.measured import Case, bucket, device_name, measurements, nearest

Backend = Literal["auto", "reference", "triton", "hopper", "cusparselt", "cusparselt_compress"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
# What the kernels are compiled for in the tests; below it the hardware has no bfloat16 and no 2:4 product.
_OLDEST_CAPABILITY = (8, 0)
_OTHERWISE = "choose reference (any device), triton (CUDA) or auto"


@dataclass(frozen=True)
class BackendChoice:
    """What was asked for, what runs, and why; plain strings, so that a result file can hold it.

    ``storage`` is what the choice is for: the one asked for, or without gradients, when nothing is kept for
    backward, the one whose path is fastest. None where no case was given.
    """

    requested: str
    chosen: str
    why: str
    storage: str | None = None


def resolve_backend(
    requested: str, device: torch.device, case: Case | None = None, storage: str = "dense"
) -> BackendChoice:
    """Decide which backend runs on a device.

    Args:
        requested: ``auto`` or a backend's name.
        device: Where the tensors lie.
        case: The FFN that it is for. Without one ``auto`` stays with plain PyTorch.
        storage: What that FFN keeps for backward, see ``lowrank_ffn``.

    Returns:
        The choice. The caller logs it: this function writes nothing. ``auto`` is decided once in a process for each
        case (tokens to the next power of two).

    Raises:
        UserError: ``requested`` is unknown, or names a backend that cannot run on ``device``.
    """
    kept = None if case is None else storage
    if requested == "reference":
        return BackendChoice(requested, "reference", "named", kept)
    if requested == "auto":
        if not _is_measured(device):
            why = f"no other backend has been measured to be faster on {device.type}"
            return BackendChoice(requested, "reference", why, kept)
        if case is None:
            why = f"an FFN takes what is measured to be fastest for its shape on {device_name(device)}"
            return BackendChoice(requested, "reference", why, kept)
        # tokens may be symbolic under torch.compile, and the comparisons of bucket make them a number; the sizes of
        # parameters never are
        sizes = case.rank, case.features, bucket(case.tokens)
        chosen, kept, why = _choose(
            str(device), storage, *sizes, case.dtype, case.sparsity, case.direction, case.compiled
        )
        return BackendChoice(requested, chosen, why, kept)
    if requested in BACKENDS:
        return BackendChoice(requested, requested, _runs(requested, device), kept)
    raise UserError(f"backend {requested!r} is unknown: {_OTHERWISE}, or hopper or cusparselt (CUDA, fp16 and bf16)")


def check_sparse_product_dtype(x: torch.Tensor, backend: str) -> None:
    """Refuse, by a UserError, an operand that the sparse tensor cores of a backend do not multiply as it is."""
    if x.dtype not in (torch.float16, torch.bfloat16):
        raise UserError(
            f"backend {backend!r} computes float16 and bfloat16, not {x.dtype}: choose triton or reference, "
            "or a 16-bit precision"
        )


def check_kernel_dtype(x: torch.Tensor) -> None:
    """Refuse, by a UserError, what Triton's kernels do not compute."""
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise UserError(f"backend 'triton' computes float16, bfloat16 and float32, not {x.dtype}: choose reference")


@torch.compiler.assume_constant_result
def _is_measured(device: torch.device) -> bool:
    return any(measurements(device_name(device)))


@torch.compiler.assume_constant_result
def _choose(*known: Any) -> tuple[str, str, str]:
    """What ``_fastest`` says; a compiler asks once and keeps the answer, as the cache does elsewhere."""
    return _fastest(*known)


@lru_cache(maxsize=1024)
def _fastest(device: str, storage: str, *fields: Any) -> tuple[str, str, str]:
    """Backend, storage and reason for a case of these fields, in plain types."""
    place, case = torch.device(device), Case(*fields)
    name = device_name(place)
    found = nearest(name, case)
    if found is None:
        return "reference", storage, f"nothing is measured near {case} on {name}"
    missing = []
    for path, seconds in found.seconds.items():
        backend, kept = path.split()
        if case.direction == "training" and kept != storage:
            continue
        try:
            _runs(backend, place)
        except UserError:
            missing.append(path)
            continue
        plain = found.seconds.get(f"reference {storage}")
        ratio = f", {plain / seconds:.2f} times as fast as reference {storage}" if plain else ""
        absent = f"; {', '.join(missing)} would be faster but cannot run here" if missing else ""
        return backend, kept, f"{path}: fastest for {found.case} on {name}{ratio} ({found.file}){absent}"
    return "reference", storage, f"no path that keeps {storage} is measured for {found.case} on {name}"


@torch.compiler.assume_constant_result
def _runs(backend: str, device: torch.device) -> str:
    """Why a backend runs on ``device``, or a refusal; a compiler cannot look into what it asks."""
    if backend == "reference":
        return "named"
    cannot = f"backend {backend!r} cannot run here: "
    otherwise = "; choose reference or auto" if backend == "triton" else f"; {_OTHERWISE}"
    if not _has_triton():
        raise UserError(f"{cannot}triton is not installed (pip install 'elas-lightning[gpu]'){otherwise}")
    if os.environ.get("TRITON_INTERPRET") == "1" and backend == "triton":
        return "named; Triton's interpreter computes it, to check and not to be fast"
    if device.type != "cuda":
        raise UserError(f"{cannot}it needs a CUDA device, this is {device.type}{otherwise}")
    capability = _capability(device)
    found = ".".join(map(str, capability))
    if backend == "hopper":
        from elas_lightning.ops.hopper.compiler import library

        if capability != (9, 0):
            raise UserError(f"{cannot}it needs compute capability 9.0, this device has {found}{otherwise}")
        if library() is None:
            raise UserError(f"{cannot}NVRTC is not installed (pip install nvidia-cuda-nvrtc){otherwise}")
        return "named"
    if capability < _OLDEST_CAPABILITY:
        raise UserError(f"{cannot}it needs compute capability 8.0, this device has {found}{otherwise}")
    if backend.startswith("cusparselt") and not torch.backends.cusparselt.is_available():
        raise UserError(f"{cannot}this torch ({torch.__version__}) is built without cuSPARSELt{otherwise}")
    return "named"


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    """Asked at every call of an FFN, too; PyTorch looks the device up each time."""
    return torch.cuda.get_device_capability(device)


@cache
def _has_triton() -> bool:
    """Asked at every call of an FFN; to look for what is not imported yet takes longer than to launch a kernel."""
    return find_spec("triton") is not None
