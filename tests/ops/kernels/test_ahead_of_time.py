"""Every configuration that can be launched compiles for three generations of GPUs, without one being here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_all.py")
# shared memory that one program may have, from the CUDA programming guide's table of compute capabilities
SHARED_BYTES = {80: 163 * 2**10, 90: 227 * 2**10, 100: 227 * 2**10}
TENSOR_CORES = {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}


@pytest.fixture(
    scope="module", params=[("bf16",), pytest.param(("fp16", "fp32"), marks=pytest.mark.slow)], ids=" ".join
)
def dtypes(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """bf16 is what training uses; the others differ from it in the width and the type of what is loaded."""
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def compilations(
    dtypes: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[int, subprocess.Popen[str]]]:
    """One process a capability, side by side."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    pipe = subprocess.PIPE
    running = {
        capability: subprocess.Popen(
            [sys.executable, str(SCRIPT), str(capability), str(shared), *dtypes],
            stdout=pipe,
            stderr=pipe,
            text=True,
            env=environment,
        )
        for capability, shared in SHARED_BYTES.items()
    }
    yield running
    for process in running.values():
        process.kill()
        process.communicate()


@pytest.mark.parametrize("capability", SHARED_BYTES)
def test_compiles_without_spills_and_within_shared_memory(
    capability: int, dtypes: tuple[str, ...], compilations: dict[int, subprocess.Popen[str]]
) -> None:
    output, errors = compilations[capability].communicate()
    assert compilations[capability].returncode == 0, errors
    rows = [json.loads(line) for line in output.splitlines()]
    assert {row["kernel"].split()[0] for row in rows} >= {
        "sparsify",
        "pack_kernel",
        "fused",
        "hidden",
        "decode",
    }
    halves = {name for name in dtypes if name != "fp32"}
    assert {row["kernel"] for row in rows} >= {f"hidden hardware {name}" for name in halves}
    for row in rows:
        assert row["stack_bytes"] == 0, row
        assert row["shared_bytes"] <= SHARED_BYTES[capability], row
        half_precision_product = row["kernel"].startswith(("fused", "hidden")) and "fp32" not in row["kernel"]
        if half_precision_product:
            assert row["instruction"] == TENSOR_CORES[capability], row
