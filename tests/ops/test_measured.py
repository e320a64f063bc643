"""``auto`` takes what was measured to be fastest for the shape on this very device, says so, and invents nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from elas_lightning.errors import UserError
from elas_lightning.ops import backend, lowrank_ffn, measured, resolve_backend
from elas_lightning.ops.measured import Case, bucket, device_name, nearest, user_folder

CPU = torch.device("cpu")
CASE = Case(8, 32, 64, "float32", "2:4", "forward")
SECONDS = {"reference dense": 2e-3, "reference recompute": 1e-3, "triton recompute": 5e-4}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("ELAS_MEASUREMENTS", str(tmp_path))
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    yield tmp_path
    _forget()


def _forget() -> None:
    measured.measurements.cache_clear()
    backend._fastest.cache_clear()


@pytest.fixture
def record(folder: Path) -> Callable[..., Path]:
    """Writes a record of cases, given as a case and its seconds."""

    def write(*cases: tuple[Case, dict[str, float]], device: str | None = None, name: str = "a.json") -> Path:
        rows = []
        for case, seconds in cases:
            fields = {key: value for key, value in vars(case).items() if key != "features"}
            rows.append({**fields, "d_ff": case.features, "seconds": seconds})
        path = folder / name
        path.write_text(json.dumps({"device": device or device_name(CPU), "cases": rows}))
        _forget()
        return path

    return write


def test_without_gradients_the_fastest_that_can_run_whatever_it_keeps(record: Callable[..., Path]) -> None:
    path = record((CASE, SECONDS))
    choice = resolve_backend("auto", CPU, CASE, "dense")
    assert (choice.chosen, choice.storage) == ("reference", "recompute")
    for part in ("2.00 times as fast as reference dense", str(path), str(CASE), device_name(CPU)):
        assert part in choice.why
    assert "triton recompute would be faster but cannot run here" in choice.why


def test_what_training_keeps_is_not_auto_s_to_change(record: Callable[..., Path]) -> None:
    training = replace(CASE, direction="training")
    record((training, SECONDS))
    for kept in ("dense", "recompute"):
        choice = resolve_backend("auto", CPU, training, kept)
        assert (choice.chosen, choice.storage) == ("reference", kept)
    choice = resolve_backend("auto", CPU, training, "packed")
    assert (choice.chosen, choice.storage) == ("reference", "packed")
    assert "no path that keeps packed is measured" in choice.why


def test_a_kernel_that_can_run_is_taken(record: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="needs Triton: pip install 'elas-lightning[gpu]'")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    record((CASE, SECONDS))
    choice = resolve_backend("auto", CPU, CASE, "dense")
    assert (choice.chosen, choice.storage) == ("triton", "recompute")
    assert "4.00 times as fast" in choice.why


@pytest.mark.parametrize(
    "other",
    [
        {"tokens": 1024},
        {"rank": 40},
        {"features": 4},
        {"dtype": "bfloat16"},
        {"sparsity": None},
        {"direction": "training"},
        {"compiled": True},
    ],
)
def test_what_is_not_near_says_nothing(other: dict[str, Any], record: Callable[..., Path]) -> None:
    record((CASE, SECONDS))
    choice = resolve_backend("auto", CPU, replace(CASE, **other), "dense")
    assert (choice.chosen, choice.storage) == ("reference", "dense")
    assert "nothing is measured near" in choice.why


def test_another_device_says_nothing(record: Callable[..., Path]) -> None:
    record((CASE, SECONDS), device="NVIDIA H200")
    why = resolve_backend("auto", CPU, CASE).why
    assert why == "no other backend has been measured to be faster on cpu"


def test_the_nearest_of_several(record: Callable[..., Path]) -> None:
    record((replace(CASE, tokens=32), {"reference dense": 1.0}), (replace(CASE, tokens=256), SECONDS))
    found = nearest(device_name(CPU), replace(CASE, tokens=128))
    assert found is not None
    assert found.case.tokens == 256
    assert CASE.distance(replace(CASE, rank=16, features=16)) == 2
    assert CASE.distance(replace(CASE, dtype="float16")) == math.inf


def test_the_user_s_record_comes_before_the_shipped_one(
    record: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "ops" / "measurements"
    shipped.mkdir(parents=True)
    record((CASE, {"reference packed": 1.0}), name="own.json").rename(shipped / "shipped.json")
    monkeypatch.setattr(measured, "__file__", str(shipped.parent / "measured.py"))
    _forget()
    assert resolve_backend("auto", CPU, CASE).storage == "packed"
    record((CASE, SECONDS))
    assert resolve_backend("auto", CPU, CASE).storage == "recompute"
    # far from the user's own, the shipped one still counts
    record((replace(CASE, tokens=4096), SECONDS))
    assert resolve_backend("auto", CPU, CASE).storage == "packed"


def test_the_ffn_does_what_was_chosen(record: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    record((CASE, SECONDS))
    called: list[tuple[Any, ...]] = []
    plain = lowrank_ffn.__globals__["stored_ffn"]
    monkeypatch.setitem(lowrank_ffn.__globals__, "stored_ffn", lambda *a: called.append(a[3:]) or plain(*a))
    z, up, down = torch.randn(2, 25, 8), torch.randn(32, 8), torch.randn(32, 4)
    with torch.no_grad():
        out = lowrank_ffn(z, up, down)
    assert called == [(True, False, False, "reference")]
    torch.testing.assert_close(out, lowrank_ffn(z, up, down, backend="reference"))
    up.requires_grad_()
    lowrank_ffn(z, up, down).sum().backward()
    assert len(called) == 1


def test_what_was_packed_fastest_serves_a_width_that_cannot_be_packed(record: Callable[..., Path]) -> None:
    record((CASE, {"reference packed": 1e-4, "reference dense": 2e-3}))
    z, up, down = torch.randn(64, 8), torch.randn(36, 8), torch.randn(36, 5)
    assert resolve_backend("auto", CPU, replace(CASE, features=36), "dense").storage == "packed"
    expected = lowrank_ffn(z, up, down, backend="reference")
    torch.testing.assert_close(lowrank_ffn(z, up, down), expected)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiler_sees_one_graph_at_any_length(record: Callable[..., Path]) -> None:
    record((replace(CASE, compiled=True), SECONDS))
    call = torch.compile(lowrank_ffn, fullgraph=True, backend="eager", dynamic=True)
    up, down = (torch.nn.Parameter(torch.randn(32, width)) for width in (8, 4))
    with torch.no_grad():
        for tokens in (40, 50, 64, 100):
            z = torch.randn(2, tokens, 8)
            torch.testing.assert_close(call(z, up, down), lowrank_ffn(z, up, down, backend="reference"))


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"device": "DEVICE", "cases": [{"rank": 1}]}', '{"device": "DEVICE", "cases": 3}']
)
def test_what_is_no_record_is_refused_by_name(content: str, folder: Path) -> None:
    (folder / "bad.json").write_text(content.replace("DEVICE", device_name(CPU)))
    with pytest.raises(UserError, match=r"bad\.json is not a record .* make it anew with `elas bench --tune`"):
        resolve_backend("auto", CPU, CASE)


def test_shipped_records_are_records() -> None:
    for path in Path(measured.__file__).with_name("measurements").glob("*.json"):
        assert measured._read(path, json.loads(path.read_text())["device"]), path


def test_tokens_count_by_powers_of_two() -> None:
    assert [bucket(n) for n in (0, 1, 2, 3, 64, 65, 16384)] == [1, 1, 2, 4, 64, 128, 16384]


def test_where_records_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert user_folder() == tmp_path
    monkeypatch.delenv("ELAS_MEASUREMENTS")
    monkeypatch.setenv("ELAS_CACHE_DIR", str(tmp_path / "cache"))
    assert user_folder() == tmp_path / "cache" / "measurements"
    monkeypatch.delenv("ELAS_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_folder() == tmp_path / "xdg" / "elas-lightning" / "measurements"
