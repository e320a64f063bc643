"""The hardware's packed form: what the library made, the definition code by code, and the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from elas_lightning.ops import pack_24, unpack_24
from elas_lightning.ops.hardware_layout import from_hardware, packed_shape, split, to_hardware

# What cuSPARSELt 0.8.0 made on an H200 of a 128 x 128 bfloat16 matrix, by ``torch._cslt_compress`` of PyTorch
# 2.11.0+cu130: ``dense``, integers from 1 to 99 in two random places of each four, and ``compressed``, its words.
RECORDED = Path(__file__).with_name("cusparselt_0_8_0_h200.npz")


def test_it_is_what_the_library_makes() -> None:
    with np.load(RECORDED) as recorded:
        dense, compressed = (torch.from_numpy(recorded[name]) for name in ("dense", "compressed"))
    packed = to_hardware(*pack_24(dense.bfloat16()))
    assert packed.shape == compressed.shape
    assert torch.equal(packed.view(torch.int16), compressed)
    values, meta = from_hardware(compressed.view(torch.bfloat16))
    assert torch.equal(unpack_24(values, meta), dense.bfloat16())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_code_stands_where_the_definition_says(dtype: torch.dtype) -> None:
    rows, features = 256, 384
    values, meta = pack_24(torch.randn(rows, features).to(dtype))
    packed = to_hardware(values, meta)
    assert packed.shape == packed_shape(rows, features) == (256, 216)
    stored_values, words = split(packed)
    assert torch.equal(stored_values, values)
    words_list, meta_list = words.tolist(), meta.tolist()
    for row in range(rows):
        for group in range(features // 4):
            word = features // 4 * 16 * (row // 64) + 128 * (group // 8)
            word += 32 * (row // 16 % 4) + 4 * (row % 8) + group % 4
            nibble = 2 * (group // 4 % 2) + row // 8 % 2
            code = meta_list[row][group // 2] >> 4 * (group % 2) & 0xF
            assert words_list[word] >> 4 * nibble & 0xF == code


@pytest.mark.parametrize("shape", [(128, 128), (128, 512), (640, 256)])
def test_round_trip(shape: tuple[int, int]) -> None:
    values, meta = pack_24(torch.randn(shape).bfloat16())
    back_values, back_meta = from_hardware(to_hardware(values, meta))
    assert torch.equal(back_values, values)
    assert torch.equal(back_meta, meta)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((64, 128), torch.float16), ((128, 64), torch.float16), ((128, 128), torch.float32)]
)
def test_refuses_what_has_no_such_form(shape: tuple[int, int], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"needs 16-bit values .* multiple of 128 and d_ff of 128"):
        to_hardware(*pack_24(torch.zeros(shape, dtype=dtype)))
