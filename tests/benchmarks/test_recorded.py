"""`elas bench --tune --from RECORD`: what `auto` chooses from is made of records that lie in this repository."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from elas_lightning.cli import main
from elas_lightning.ops import backend, measured, resolve_backend
from elas_lightning.ops.hopper import compiler
from elas_lightning.ops.measured import Case

H200 = Path(__file__).parents[2] / "benchmarks" / "results" / "h200"
SHIPPED = Path(measured.__file__).with_name("measurements") / "h200.json"
FFN, LONG = H200 / "ffn.json", H200 / "ffn_131072.json"
R60, R1B = (128, 2064), (512, 8192)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No record of the user's own, nothing remembered."""
    monkeypatch.setenv("ELAS_MEASUREMENTS", str(tmp_path / "own"))
    _forget()
    yield
    _forget()


def _forget() -> None:
    measured.measurements.cache_clear()
    backend._fastest.cache_clear()


@pytest.fixture
def convert(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, in this process."""
    monkeypatch.setattr(sys, "argv", ["elas"])
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(*arguments: object) -> int:
        return main(["bench", "--tune", "--from", *map(str, arguments)])

    return run


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """The record at 16,384 tokens with other entries at the top, and each row's mode as asked."""

    def write(mode: str | None = None, **entries: Any) -> Path:
        record = json.loads(FFN.read_text()) | entries
        for case in record["cases"] if mode else ():
            for row in case["measured"]:
                row["mode"] = mode
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(record))
        return path

    return write


def test_the_shipped_file_is_what_the_records_say(convert: Callable[..., int], tmp_path: Path) -> None:
    out = tmp_path / "h200.json"
    assert convert(FFN, LONG, "--out", out) == 0
    made, shipped = json.loads(out.read_text()), json.loads(SHIPPED.read_text())
    assert made.pop("command") != shipped.pop("command")  # of other paths
    assert made == shipped
    assert made["device"] == "NVIDIA H200"
    assert [source["file"] for source in made["sources"]] == ["ffn.json", "ffn_131072.json"]
    # five shapes, eager and compiled, and three compiled: each dense and 2:4, forward and training
    assert len(made["cases"]) == 4 * (5 * 2 + 3)


def test_seconds_are_those_of_the_contender_and_no_graph_s(convert: Callable[..., int], tmp_path: Path) -> None:
    assert convert(FFN) == 0
    (path,) = (tmp_path / "own").glob("*.json")
    assert path.name == "nvidia_h200.json"  # where auto reads it on such a card
    cases = json.loads(path.read_text())["cases"]
    recorded = json.loads(FFN.read_text())["cases"][0]["measured"]

    def seconds(contender: str, mode: str) -> float:
        (row,) = (r for r in recorded if (r["kind"], r["contender"], r["mode"]) == ("forward", contender, mode))
        return row["seconds"]["median"]  # type: ignore[no-any-return]

    for by_compiler, mode in ((False, "eager"), (True, "compiled")):
        own = {
            c["sparsity"]: c["seconds"]
            for c in cases
            if (c["d_ff"], c["direction"], c["compiled"]) == (2064, "forward", by_compiler)
        }
        assert own[None] == {
            "reference dense": seconds("low-rank ReLU²", mode),
            "triton recompute": seconds("low-rank ReLU², triton, recompute", mode),
        }
        assert own["2:4"] == {
            f"{name} {storage}": seconds(f"ELAS, {name}, {storage}", mode)
            for name, storage in (
                ("reference", "dense"),
                ("triton", "recompute"),
                ("hopper", "recompute"),
                ("cusparselt", "recompute"),
            )
        }


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A pretended H200, as far as the choice asks."""
    pytest.importorskip("triton", reason="a GPU's backends need Triton: pip install 'elas-lightning[gpu]'")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    monkeypatch.setattr(compiler, "library", lambda: "libnvrtc.so")
    return torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("sizes", "tokens", "sparsity", "direction", "by_compiler", "storage", "chosen"),
    [
        (R60, 131072, "2:4", "forward", True, "dense", ("hopper", "recompute")),
        (R1B, 131072, "2:4", "forward", True, "dense", ("hopper", "recompute")),
        (R1B, 16384, "2:4", "forward", False, "dense", ("hopper", "recompute")),
        # bound by launches there, which a compiler saves
        (R60, 16384, "2:4", "forward", True, "dense", ("reference", "dense")),
        (R60, 16384, "2:4", "forward", False, "dense", ("hopper", "recompute")),
        # what training keeps is the user's to say
        (R1B, 131072, "2:4", "training", True, "dense", ("reference", "dense")),
        (R1B, 131072, "2:4", "training", True, "recompute", ("hopper", "recompute")),
        (R60, 131072, None, "forward", True, "dense", ("triton", "recompute")),
        (R60, 16384, None, "forward", True, "dense", ("reference", "dense")),
    ],
)
def test_auto_on_an_h200(
    sizes: tuple[int, int],
    tokens: int,
    sparsity: str | None,
    direction: Any,
    by_compiler: bool,
    storage: str,
    chosen: tuple[str, str],
    h200: torch.device,
) -> None:
    case = Case(*sizes, tokens, "bfloat16", sparsity, direction, by_compiler)
    choice = resolve_backend("auto", h200, case, storage)
    assert (choice.chosen, choice.storage) == chosen
    assert str(SHIPPED) in choice.why


def test_what_cannot_run_is_passed_over_and_named(h200: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "library", lambda: None)
    case = Case(*R60, 131072, "bfloat16", "2:4", "forward", True)
    choice = resolve_backend("auto", h200, case)
    assert (choice.chosen, choice.storage) == ("triton", "recompute")
    assert "hopper recompute would be faster but cannot run here" in choice.why


def test_another_card_does_not_take_the_h200_s_word(h200: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    assert resolve_backend("auto", h200, Case(*R60, 131072, "bfloat16", "2:4", "forward")).chosen == "reference"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"benchmark": "prefill"}, "is of benchmark 'prefill': name a record of `elas bench ffn`"),
        ({"device_type": "cpu"}, "is not of a GPU: measure there"),
        ({"mode": "compiled, graph"}, "has no two paths of one case, eager or compiled"),
        ({"cases": []}, "has no two paths of one case, eager or compiled"),
        ({"cases": [{"shape": "60m"}]}, "is not of this version (KeyError('measured')): measure again"),
        ({"cases": [{"shape": "2m", "measured": []}]}, "is not of this version (KeyError('2m'))"),
        ({"cases": 3}, "is not of this version"),
    ],
)
def test_what_says_nothing_is_refused(
    change: dict[str, Any],
    said: str,
    changed: Callable[..., Path],
    convert: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.json"
    assert convert(changed(**change), "--out", out) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_two_devices_and_twice_the_same_case_are_refused(
    changed: Callable[..., Path], convert: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(FFN, changed(device="NVIDIA H100")) == 2
    assert "records of NVIDIA H100 and NVIDIA H200: convert those of one device" in capsys.readouterr().err
    assert convert(FFN, changed()) == 2
    assert "has a case that another record has, too (rank 128, tokens 16384" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", None])
def test_what_is_no_record_is_refused(
    content: str | None, tmp_path: Path, convert: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.json"
    if content:
        path.write_text(content)
    assert convert(path) == 2
    assert f"--from {path}" in capsys.readouterr().err


def test_from_measures_nothing(convert: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        convert(FFN, "--shape", "1b", "--rounds", "3")
    assert end.value.code == 2
    assert "--from measures nothing: leave out --shape and --rounds" in capsys.readouterr().err
