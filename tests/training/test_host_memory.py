"""What the allocator keeps, counted in pages that the kernel had to hand out, in processes of their own."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from elas_lightning import configuration
from elas_lightning.configuration import ElasCLI, command_line

pytestmark = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")

# 20 times what a step does: two blocks of 12 MiB, touched page by page, and freed
_STEPS = """
import ctypes, resource
from elas_lightning.training.host_memory import keep_freed_memory
{call}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size = 12 * 2**20
def step():
    blocks = [libc.malloc(ctypes.c_size_t(size)) for _ in range(2)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _new_pages(call: str = "", **environment: str) -> int:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", _STEPS.format(call=call)],
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_blocks_that_a_step_frees_serve_the_next_one() -> None:
    assert _new_pages() > 200  # 122,271 of 4 KiB; 639 where the kernel hands out huge ones
    assert _new_pages("keep_freed_memory()") < 20


def test_thresholds_of_the_user_stay() -> None:
    assert _new_pages("keep_freed_memory()", MALLOC_MMAP_THRESHOLD_=str(2**20)) > 200


def test_a_trainer_on_a_cpu_asks_for_it(overlay: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(configuration, "keep_freed_memory", lambda: asked.append(True))
    ElasCLI(command_line([overlay], {"trainer.default_root_dir": str(tmp_path)}), run=False)
    assert asked == [True]
