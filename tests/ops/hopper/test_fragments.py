"""The packed form between the kernels: its definition lane by lane, and its inverse."""

from __future__ import annotations

import pytest
import torch

from elas_lightning.ops import pack_24
from elas_lightning.ops.hopper.fragments import empty_fragments, from_fragments, to_fragments


@pytest.mark.parametrize("shape", [(128, 64), (256, 192)])
def test_each_lane_has_what_the_instruction_takes_from_it(shape: tuple[int, int]) -> None:
    tokens, features = shape
    values, meta = pack_24(torch.randn(shape).half(), backend="reference")
    fragments, codes = to_fragments(values, meta)
    steps = features // 64
    lanes = fragments.view(tokens // 16, steps, 2, 32, 4, 2)
    pairs = codes.view(tokens // 16, steps, 16, 2)
    groups = values.view(tokens, features // 4, 2)
    nibble = torch.stack((meta & 0xF, meta >> 4), 2).view(tokens, features // 4).long()
    for warp, step, half, lane in [(0, 0, 0, 0), (7, 0, 1, 31), (3, steps - 1, 1, 14), (5, steps - 1, 0, 22)]:
        row, group = 16 * warp + lane // 4, 16 * step + 8 * half + lane % 4
        for register, (down, right) in enumerate([(0, 0), (8, 0), (0, 4), (8, 4)]):
            expected = groups[row + down, group + right]
            assert torch.equal(lanes[warp, step, half, lane, register], expected)
        word = int(pairs[warp, step, lane // 4 * 2 + lane % 2, half]) & 0xFFFFFFFF
        first = 16 * step + 8 * half + 4 * (lane % 2)
        for place in range(4):
            assert word >> 4 * place & 0xF == nibble[row, first + place]
            assert word >> 16 + 4 * place & 0xF == nibble[row + 8, first + place]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_there_and_back(dtype: torch.dtype) -> None:
    values, meta = pack_24(torch.randn(256, 320).to(dtype), backend="reference")
    fragments, codes = to_fragments(values, meta)
    room = empty_fragments(values, 200, 300)
    assert [(t.shape, t.dtype) for t in room] == [(t.shape, t.dtype) for t in (fragments, codes)]
    back, codes_back = from_fragments(fragments, codes, 300)
    assert torch.equal(back, values)
    assert torch.equal(codes_back, meta)


@pytest.mark.parametrize("shape", [(100, 64), (128, 72)])
def test_refuses_what_is_no_whole_block(shape: tuple[int, int]) -> None:
    packed = pack_24(torch.randn(shape).half(), backend="reference")
    with pytest.raises(ValueError, match=f"blocks of 128 tokens and 64 features, not {shape[0]} x {shape[1]}"):
        to_fragments(*packed)
