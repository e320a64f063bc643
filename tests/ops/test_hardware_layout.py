"""The hardware's packed form: its definition word by word, CUTLASS's tiles, and the way back."""

from __future__ import annotations

import pytest
import torch
from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

from elas_lightning.ops import pack_24, sparsify_24
from elas_lightning.ops.hardware_layout import from_hardware, packed_shape, split, to_hardware


def codes_of(meta: torch.Tensor, row: int, feature: int) -> int:
    """The 16 bits of the four groups that begin at a feature, a multiple of 16."""
    low, high = meta[row, feature // 8 : feature // 8 + 2].tolist()
    return low | high << 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_word_stands_where_the_definition_says(dtype: torch.dtype) -> None:
    rows, features = 256, 384
    values, meta = pack_24(torch.randn(rows, features).to(dtype))
    packed = to_hardware(values, meta)
    assert packed.shape == packed_shape(rows, features) == (256, 216)
    stored_values, words = split(packed)
    assert torch.equal(stored_values, values)
    for row in range(0, rows, 3):
        for feature in range(0, features, 16):
            block = (feature // 64) * (rows // 128) + row // 128
            tile = feature % 64 // 32 * 4 + row % 128 // 32
            r, half = row % 32, feature % 32 // 16
            place = 512 * block + 64 * tile + 8 * (r % 8) + 4 * (r // 16) + 2 * half + r // 8 % 2
            assert words[place].item() & 0xFFFF == codes_of(meta, row, feature)


@pytest.mark.parametrize("tile", [(0, 0), (1, 1), (3, 0), (5, 3)])
def test_a_tile_is_that_of_cutlass(tile: tuple[int, int]) -> None:
    # no zeros among the kept: where there are, the two choose different codes for the same matrix
    x = torch.rand(256, 128).half() + 0.5
    rows, columns = slice(32 * tile[0], 32 * tile[0] + 32), slice(32 * tile[1], 32 * tile[1] + 32)
    _, theirs = sparse_semi_structured_from_dense_cutlass(sparsify_24(x[rows, columns].contiguous()))
    _, words = split(to_hardware(*pack_24(x)))
    place = 512 * (tile[1] // 2 * 2 + tile[0] // 4) + 64 * (tile[1] % 2 * 4 + tile[0] % 4)
    assert torch.equal(words[place : place + 64], theirs.flatten())


@pytest.mark.parametrize("shape", [(128, 128), (128, 512), (640, 256)])
def test_round_trip(shape: tuple[int, int]) -> None:
    values, meta = pack_24(torch.randn(shape).bfloat16())
    back_values, back_meta = from_hardware(to_hardware(values, meta))
    assert torch.equal(back_values, values)
    assert torch.equal(back_meta, meta)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((64, 128), torch.float16), ((128, 64), torch.float16), ((128, 128), torch.float32)],
)
def test_refuses_what_has_no_such_form(shape: tuple[int, int], dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"needs 16-bit values .* multiple of 128 and d_ff of 128"):
        to_hardware(*pack_24(torch.zeros(shape, dtype=dtype)))
