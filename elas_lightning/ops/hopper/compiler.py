"""From the sources in ``cuda/`` to a binary for compute capability 9.0: NVRTC, through ctypes. Needs no GPU."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch

from elas_lightning.errors import UserError

FOLDER = Path(__file__).with_name("cuda")
# "a": the instructions of this generation alone, among them those of warp groups.
ARCHITECTURE = "sm_90a"


@dataclass(frozen=True)
class Source:
    """A kernel and what is fixed when it is compiled.

    Attributes:
        name: File in ``cuda/`` without its suffix.
        constants: Names and values that the source asks for.
        dense: Widths of the dense products it uses.
        sparse: Widths of the sparse ones.
        half: Whether numbers are float16, or bfloat16.
    """

    name: str
    constants: tuple[tuple[str, int], ...]
    dense: tuple[int, ...] = ()
    sparse: tuple[int, ...] = ()
    half: bool = False

    def text(self) -> str:
        """All of it as one text; a width becomes a function, since its registers are named one by one."""
        parts = [self.defines(), (FOLDER / "instructions.cuh").read_text()]
        parts += [_dense(width) for width in self.dense]
        if self.sparse:
            parts.append(
                "template <int N> __device__ void sparse(float (&)[N / 2], const uint32_t (&)[4], uint64_t, uint32_t);"
            )
        parts += [_sparse(width) for width in self.sparse]
        return "\n".join([*parts, self.body()])

    def defines(self) -> str:
        """What is fixed, a line each."""
        constants = {"FP16": int(self.half), **dict(self.constants)}
        return "\n".join(f"#define {name} {value}" for name, value in constants.items())

    def body(self) -> str:
        """What is left of the text without instructions of the machine: the kernel and what it shares with others."""
        names = ("ring.cuh", "selection.cuh", f"{self.name}.cu")
        return "\n".join((FOLDER / name).read_text() for name in names)


def _registers(count: int, first: int = 0) -> str:
    return ", ".join(f"%{i}" for i in range(first, first + count))


def _accumulators(count: int) -> str:
    return ", ".join(f'"+f"(d[{i}])' for i in range(count))


def _dense(width: int) -> str:
    """``d = a bᵀ (+ d)``: 64 rows, ``width`` columns, 16 deep, both operands in shared memory."""
    n = width // 2
    return f"""
__device__ __forceinline__ void dense_{width}(float (&d)[{n}], uint64_t a, uint64_t b, int adds) {{
  asm volatile("{{\\n.reg .pred p;\\nsetp.ne.b32 p, %{n + 2}, 0;\\n"
      "wgmma.mma_async.sync.aligned.m64n{width}k16.f32." T16 "." T16 " {{{_registers(n)}}}, "
      "%{n}, %{n + 1}, p, 1, 1, 0, 0;\\n}}\\n" : {_accumulators(n)} : "l"(a), "l"(b), "r"(adds));
}}"""


def _sparse(width: int) -> str:
    """``d += a bᵀ``: 64 rows, ``width`` columns, 32 deep, two of four of ``a`` in registers with their codes ``e``."""
    n = width // 2
    return f"""
template <> __device__ __forceinline__ void sparse<{width}>(
    float (&d)[{n}], const uint32_t (&a)[4], uint64_t b, uint32_t e) {{
  asm volatile("wgmma.mma_async.sp.sync.aligned.m64n{width}k32.f32." T16 "." T16 " {{{_registers(n)}}}, "
      "{{{_registers(4, n)}}}, %{n + 4}, %{n + 5}, 0, 1, 1, 1, 0;" : {_accumulators(n)}
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(e));
}}"""


@cache
def library() -> ctypes.CDLL | None:
    """NVRTC as PyTorch brings it, or the wheel ``nvidia-cuda-nvrtc``; None where there is none."""
    major = (torch.version.cuda or "13").split(".")[0]
    if (spec := find_spec("nvidia")) is not None:
        for folder in spec.submodule_search_locations or []:
            # it opens its built-ins by name, which finds them only once they are open
            for path in sorted(Path(folder).glob(f"**/libnvrtc-builtins.so.{major}*")):
                ctypes.CDLL(str(path))
            for path in sorted(Path(folder).glob(f"**/libnvrtc.so.{major}")):
                return ctypes.CDLL(str(path))
    try:
        return ctypes.CDLL(f"libnvrtc.so.{major}")
    except OSError:
        return None


def compile_source(source: Source) -> tuple[bytes, str]:
    """The binary of a kernel, and what the compiler says of its registers.

    Raises:
        UserError: There is no NVRTC, or this one does not take the source.
    """
    nvrtc = library()
    if nvrtc is None:
        raise UserError("backend 'hopper' cannot run here: NVRTC is not installed (pip install nvidia-cuda-nvrtc)")
    headers = sorted(FOLDER.glob("*.cuh"))
    program = ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(headers))(*(path.read_bytes() for path in headers))
    names = (ctypes.c_char_p * len(headers))(*(path.name.encode() for path in headers))
    made = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.text().encode(), f"{source.name}.cu".encode(), len(headers), texts, names
    )
    options = [f"--gpu-architecture={ARCHITECTURE}".encode(), b"--std=c++17", b"--ptxas-options=-v"]
    failed = made or nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = _read(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
    if failed:
        raise UserError(
            f"backend 'hopper' cannot run here: NVRTC does not compile {source.name}.cu "
            f"({log.splitlines()[0] if log else f'error {failed}'}); choose triton or reference"
        )
    binary = _read(nvrtc, program, "CUBIN")
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return binary, log


def _read(nvrtc: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    nvrtc[f"nvrtcGet{what}Size"](program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    nvrtc[f"nvrtcGet{what}"](program, buffer)
    return buffer.raw
