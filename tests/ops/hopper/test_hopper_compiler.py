"""Every kernel that may be launched compiles for Hopper, without a GPU: NVRTC is all it takes."""

from __future__ import annotations

import ctypes
import re

import pytest

from elas_lightning.errors import UserError
from elas_lightning.ops.hopper import compiler, ffn
from elas_lightning.ops.hopper.compiler import Source, compile_source

needs_nvrtc = pytest.mark.skipif(
    compiler.library() is None, reason="needs NVRTC: pip install nvidia-cuda-nvrtc, or a PyTorch with CUDA"
)
SOURCES = [
    *(ffn.fused_source(rank, half) for rank in (128, 256) for half in (False, True)),
    *(ffn.hidden_source(rank, keeps, False) for rank in (128, 256, 384, 512, 513) for keeps in (False, True)),
    ffn.hidden_source(512, True, True),
    *(ffn.multiply_source(width, half) for width in (128, 256) for half in (False, True)),
    *(ffn.backward_source(rank, masked, False) for rank in (128, 256, 512) for masked in (False, True)),
    ffn.backward_source(256, True, True),
    *(ffn.kept_backward_source(rank, masked, False) for rank in (128, 256, 384, 512, 513) for masked in (False, True)),
]


def _title(source: Source) -> str:
    constants = "-".join(f"{name}{value}" for name, value in source.constants)
    return f"{source.name}-{constants}-{'fp16' if source.half else 'bf16'}"


@needs_nvrtc
@pytest.mark.parametrize("source", SOURCES, ids=_title)
def test_compiles_without_spills_and_without_waits_of_the_compilers_own(source: Source) -> None:
    binary, log = compile_source(source)
    assert binary[:4] == b"\x7fELF"
    assert re.search("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", log), log
    # ptxas says so where it lets matrix instructions wait for each other
    assert "serialized" not in log
    # the pool of 384 threads; each warp group takes what it needs of it
    assert re.search(r"Used 168 registers", log), log


def test_registers_of_the_warp_groups_fit_the_pool() -> None:
    text = (compiler.FOLDER / "ring.cuh").read_text()
    few, many = (int(n) for n in re.search(r"FEW = (\d+), MANY = (\d+)", text).groups())  # type: ignore[union-attr]
    assert few + 2 * many <= 3 * 168
    fused = (compiler.FOLDER / "fused.cu").read_text()
    assert re.findall(r"_registers<R == 128 \? \w+ : (\d+)>", fused) == ["24", "240"]
    assert 24 + 2 * 240 <= 3 * 168


def test_no_shared_memory_beyond_what_a_program_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ffn._ROOM + ffn._BESIDE <= 227 * 2**10


def test_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "library", lambda: None)
    with pytest.raises(UserError, match="NVRTC is not installed"):
        compile_source(SOURCES[0])


@needs_nvrtc
def test_says_what_does_not_compile() -> None:
    with pytest.raises(UserError, match=r"does not compile fused\.cu \(fused\.cu\(\d+\): error"):
        compile_source(Source("fused", (), dense=(128,), sparse=(128,)))


def test_no_library_is_none_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ctypes.CDLL:
        raise OSError(name)

    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    monkeypatch.setattr(ctypes, "CDLL", absent)
    compiler.library.cache_clear()
    try:
        assert compiler.library() is None
    finally:
        compiler.library.cache_clear()
