"""What the machine of ``emulation.hpp`` finds: mistakes that a GPU punishes with a hang, or now and then."""

from __future__ import annotations

import pytest
import torch
from emulation import EXTREMES, Emulator, install
from ffn_inputs import error, inputs

from elas_lightning.ops.hopper import ffn
from elas_lightning.ops.hopper.compiler import FOLDER, Source

COPIES_AT_ONCE, COPIES_LATE = EXTREMES


@pytest.fixture(autouse=True)
def emulator(monkeypatch: pytest.MonkeyPatch) -> Emulator:
    return install(monkeypatch)


def _mistake(monkeypatch: pytest.MonkeyPatch, right: str, wrong: str) -> None:
    """Let ``hidden.cu`` be compiled with a mistake, wherever the line stands that has it."""
    body, shared = Source.body, (FOLDER / "resident.cuh").read_text()

    def mistaken(source: Source) -> str:
        text = body(source).replace('#include "resident.cuh"', shared)
        assert text.count(right) == 1
        return text.replace(right, wrong)

    monkeypatch.setattr(Source, "body", mistaken)


def _run() -> float:
    """So many tiles that every slot is used again; how far what is kept is from what it should be."""
    z, up, *_ = inputs((300, 384, 1040, 8), torch.float16, torch.device("cpu"))
    kept = z.new_empty(300, 1040)
    ffn.hidden(z, up, kept)
    return error(kept, torch.nn.functional.linear(z, up).relu())


@pytest.mark.parametrize("late", [(False, False), (True, True), *EXTREMES])
def test_what_is_right_is_right_whenever_it_happens(late: tuple[bool, bool], emulator: Emulator) -> None:
    emulator.late = late
    assert _run() < 1e-3


@pytest.mark.parametrize(
    ("right", "wrong", "late", "said"),
    [
        # a slot given back while it is read
        ("if (!first) ring.release", "ring.release", COPIES_AT_ONCE, "nobody goes on"),
        ("bar_wait(empty + 8 * at, phase ^ 1);", "", COPIES_AT_ONCE, "one arrival too many"),
        # one read before it is filled
        ("ring.await();", "", COPIES_LATE, "one arrival too many"),
        # never given back; half the warp groups asked
        ("if (!first) ring.release(thread);", "", COPIES_AT_ONCE, "threads wait for a barrier"),
        ("8 * s, 2 * CLUSTER)", "8 * s, 2)", COPIES_LATE, "one arrival too many"),
        # products read too soon, and without what orders them after the registers' last use
        ("    wait<1>();\n    if", "    if", COPIES_AT_ONCE, "accumulators are read before they are complete"),
        ("    fence();\n", "", COPIES_AT_ONCE, "a product without a fence before it"),
        # copies that bring more or less than was said
        ("z_full, STAY)", "z_full, STAY + 128)", COPIES_AT_ONCE, "wait for a barrier"),
        ("z_full, STAY)", "z_full, STAY - BOX)", COPIES_AT_ONCE, "16384 bytes nobody expected at the barrier"),
        # and that nobody waits for: the tokens' own, which come in any order
        ("bar_wait(z_full, 0);", "", COPIES_LATE, "copies nobody has waited for"),
        # places
        ("slots_beside(STAY, 12)", "14", COPIES_AT_ONCE, "outside the .* bytes of shared memory"),
        ("(raw) + 1023) & ~1023u", "(raw) + 127) & ~127u", COPIES_AT_ONCE, "the swizzle repeats every"),
        ("row + 8 < tokens && at", "row + 8 <= tokens && at", COPIES_LATE, "it writes beside a result"),
        # lanes that do not come
        ("| __shfl_xor_sync(~0u, mine, 2)", "| (odd ? 0 : __shfl_xor_sync(~0u, mine, 2))", COPIES_LATE, "the lanes of"),
    ],
)
def test_a_mistake_is_told(
    right: str, wrong: str, late: tuple[bool, bool], said: str, emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    _mistake(monkeypatch, right, wrong)
    emulator.late = late
    with pytest.raises(AssertionError, match=rf"^hidden\.cu: .*{said}"):
        _run()


def test_a_place_that_is_another_programs_shows_in_what_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    _mistake(monkeypatch, "ring.slot() + rank * (BOX / 2)", "ring.slot() + rank * (BOX / 4)")
    assert not _run() < 1e-3  # what nobody wrote is NaN
