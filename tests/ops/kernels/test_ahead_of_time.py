"""Every configuration that can be launched compiles for three generations of GPUs, without one being here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("compile_all.py")
# shared memory that one program may have, from the CUDA programming guide's table of compute capabilities
SHARED_BYTES = {80: 163 * 2**10, 90: 227 * 2**10, 100: 227 * 2**10}
TENSOR_CORES = {80: "mma.sync", 90: "wgmma", 100: "tcgen05.mma"}


# bf16 is what training uses; the others differ from it in the width and the type of what is loaded. Capability 8.0
# takes as long as the two others together.
CASES = [
    pytest.param(90, ("bf16",), id="90 bf16"),
    pytest.param(100, ("bf16",), id="100 bf16"),
    pytest.param(80, ("bf16", "fp16", "fp32"), id="80", marks=pytest.mark.slow),
    pytest.param(90, ("fp16", "fp32"), id="90 fp16 fp32", marks=pytest.mark.slow),
    pytest.param(100, ("fp16", "fp32"), id="100 fp16 fp32", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("capability", "dtypes"), CASES)
def test_compiles_without_spills_and_within_shared_memory(
    capability: int, dtypes: tuple[str, ...], tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(capability), str(SHARED_BYTES[capability]), *dtypes],
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_CACHE_DIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"].split()[0] for row in rows} >= {"sparsify", "pack_kernel", "fused", "hidden", "decode"}
    halves = {name for name in dtypes if name != "fp32"}
    for step in ("hidden", "unpack"):
        assert {row["kernel"] for row in rows} >= {f"{step} hardware {name}" for name in halves}
    for row in rows:
        assert row["stack_bytes"] == 0, row
        assert row["shared_bytes"] <= SHARED_BYTES[capability], row
        half_precision_product = row["kernel"].startswith(("fused", "hidden")) and "fp32" not in row["kernel"]
        if half_precision_product:
            assert row["instruction"] == TENSOR_CORES[capability], row
        # taking groups apart moves nothing: all that is exchanged is what the fused kernel stores at its end
        if capability == 90 and row["kernel"].startswith("fused") and half_precision_product:
            assert row["exchanges"] <= (1 if row["options"]["SPARSE"] else 2), row
