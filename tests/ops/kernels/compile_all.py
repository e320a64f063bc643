"""Compile every kernel configuration that can be launched, for one compute capability, without a GPU.

    python tests/ops/kernels/compile_all.py 90 232448 [bf16 …]

The second number is the shared memory, in bytes, that a program may have there; then come the dtypes, all if none is
named. Prints one JSON object a line:
kernel, options, registers, bytes of stack (spills live there) and of shared memory, the matrix instruction found, and
how often values change threads (as before a store). It runs as a process of its own, since a kernel is either compiled
or interpreted for the life of one.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"
# Set on purpose: its default is about to change, and it changes what is compiled.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from elas_lightning.ops.kernels import decode, ffn, hardware, packing, sparsify, tiles

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}

Case = tuple[Any, dict[str, str], dict[str, Any], tiles.Tiles | None]


def cases(shared_bytes: int, dtypes: list[str]) -> Iterator[tuple[str, Case]]:
    """Name, and kernel, types of its arguments, constants and tiles of everything the launchers may choose."""
    for dtype, name in NAMES.items():
        if dtypes and name not in dtypes:
            continue
        pointer, relu_and_mask = f"*{name}", list(itertools.product((False, True), repeat=2))
        block = {"BLOCK": sparsify.BLOCK}
        for relu2 in (False, True):
            types = {"x_ptr": pointer, "out_ptr": pointer, "entries": "i32"}
            yield f"sparsify {name}", (sparsify.sparsify_kernel, types, {"RELU2": relu2, **block}, None)
        for relu2, masked in relu_and_mask:
            types = {"x_ptr": pointer, "grad_ptr": pointer, "out_ptr": pointer, "entries": "i32"}
            constants = {"RELU2": relu2, "MASKED": masked, **block}
            yield f"sparsify backward {name}", (sparsify.sparsify_backward_kernel, types, constants, None)
        for kernel in (packing.pack_kernel, packing.unpack_kernel, packing.gather_kernel):
            types = {"x_ptr": pointer, "values_ptr": pointer, "meta_ptr": "*u8", "out_ptr": pointer}
            types = {key: value for key, value in types.items() if key in kernel.arg_names}
            yield f"{kernel.__name__} {name}", (kernel, {**types, "entries": "i32"}, block, None)
        yield from products(dtype, pointer, shared_bytes)


def products(dtype: torch.dtype, pointer: str, shared_bytes: int) -> Iterator[tuple[str, Case]]:
    """The matrix kernels of one dtype; ranks reach them as whole tiles."""
    name = NAMES[dtype]
    sizes = dict.fromkeys(("tokens", "groups", "rank", "out_rank", "all_rows", "all_groups", "stride"), "i32")
    largest = tiles.largest_fused_rank(dtype, shared_bytes)
    ranks = [2**power for power in range(4, 9) if 2**power <= largest]
    for sparse, rank in itertools.product((True, False), ranks):
        chosen = tiles.fused_tiles(dtype, rank)
        constants = {"SPARSE": sparse, "BR": rank, "BO": rank}
        yield f"fused {name}", product(ffn.fused_kernel, pointer, sizes, constants, chosen)
    for sparse, packed in ((True, True), (True, False), (False, False)):
        constants = {"SPARSE": sparse, "PACKED": packed}
        yield (f"hidden {name}", product(ffn.hidden_kernel, pointer, sizes, constants, tiles.hidden_tiles(dtype)))
    if dtype != torch.float32:  # cuSPARSELt's 2:4 form is for 16 bits
        chosen = tiles.hidden_tiles(dtype)
        yield f"hidden hardware {name}", product(hardware.hidden_hardware_kernel, pointer, sizes, {}, chosen)
        chosen = tiles.Tiles(
            hardware.UNPACK_TOKENS, hardware.UNPACK_GROUPS, depth=1, warps=hardware.UNPACK_WARPS, stages=1
        )
        yield f"unpack hardware {name}", product(hardware.unpack_hardware_kernel, pointer, sizes, {}, chosen)
    for sparse, by_rows in itertools.product((True, False), repeat=2):
        constants = {"SPARSE": sparse, "BY_ROWS": by_rows, "BO": tiles.decode_out(dtype)}
        chosen = tiles.decode_tiles(dtype)
        yield f"decode {name}", product(decode.decode_kernel, pointer, sizes, constants, chosen)
    for sparse, masked in ((True, True), (True, False), (False, False)):
        constants = {"SPARSE": sparse, "MASKED": masked}
        chosen = tiles.backward_tiles(dtype)
        yield (f"hidden backward {name}", product(ffn.hidden_backward_kernel, pointer, sizes, constants, chosen))


def product(kernel: Any, pointer: str, sizes: dict[str, str], constants: dict[str, Any], chosen: tiles.Tiles) -> Case:
    """A matrix kernel with its tiles among the constants."""
    names = kernel.arg_names
    types = {key: pointer for key in names if key.endswith("_ptr")}
    if constants.get("PACKED"):
        types["meta_ptr"] = "*u8"
    if "words_ptr" in names:
        types["words_ptr"] = "*i16"
    if kernel is decode.decode_kernel:
        types["out_ptr"] = "*fp32"
    blocks = {"BT": chosen.tokens, "BG": chosen.groups, "BK": chosen.depth, "UPCAST": False}
    types |= {key: value for key, value in sizes.items() if key in names}
    return kernel, types, {**constants, **{key: v for key, v in blocks.items() if key in names}}, chosen


def compile_one(case: Case, capability: int) -> dict[str, Any]:
    """Resources of one compiled kernel."""
    kernel, types, constants, chosen = case
    names = kernel.arg_names
    aligned = [key for key in types if key.endswith(("_ptr", "rank", "stride")) or key.startswith("all_")]
    source = ASTSource(
        fn=kernel,
        signature={key: types.get(key, "constexpr") for key in names},
        constexprs={(names.index(key),): value for key, value in constants.items()},
        attrs={(names.index(key),): [["tt.divisibility", 16]] for key in aligned},
    )
    options = {"num_warps": chosen.warps, "num_stages": chosen.stages} if chosen else {"num_warps": sparsify.WARPS}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.run([CUOBJDUMP, "-res-usage", cubin.name], capture_output=True, text=True, check=True)
    found = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout)}
    instructions = ("wgmma", "tcgen05.mma", "mma.sync")
    return {
        "registers": found["REG"],
        "stack_bytes": found["STACK"] + found["LOCAL"],
        "shared_bytes": compiled.metadata.shared,
        "instruction": next((i for i in instructions if i in compiled.asm["ptx"]), None),
        "exchanges": compiled.asm["ttgir"].count("ttg.convert_layout"),
    }


def main() -> None:
    """Compile for the capability on the command line."""
    capability, shared_bytes = int(sys.argv[1]), int(sys.argv[2])
    for name, case in cases(shared_bytes, sys.argv[3:]):
        shown = {key: value for key, value in case[2].items() if key.isupper()}
        print(json.dumps({"kernel": name, "options": shown, **compile_one(case, capability)}), flush=True)


if __name__ == "__main__":
    main()
