"""The benchmarks run with torch and this checkout, say what ran, what could not, and why; their records are drawn."""

from __future__ import annotations

import copy
import html
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elas_lightning.analysis.benchmark_records import measurements, side_by_side
from elas_lightning.analysis.benchmark_summary import lines, summary_table
from elas_lightning.analysis.benchmarks import verdict
from elas_lightning.cli import main
from elas_lightning.errors import UserError

FOLDER = Path(__file__).parents[2] / "benchmarks"
Script = Callable[..., None]
SIZES = {
    "ffn": "--tokens 24",
    "train_step": "--batch 2 --sequence 16 --vocabulary 50 --only ReLU² ELAS",
    "prefill": "--batch 2 --sequence 16 --vocabulary 50",
}
TWIN = "low-rank ReLU²"
H200 = ("ffn", "ffn_131072", "train_step", "prefill")


def line(name: str, record: Path) -> list[str]:
    """The command line of a benchmark that leaves a record."""
    options = ["--shape", "smoke", "--rounds", "2", "--device", "cpu", "--json", str(record), *shlex.split(SIZES[name])]
    return [str(FOLDER / f"{name}.py"), *options]


def python(*arguments: str, **environment: str) -> None:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=os.environ | environment)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One record of each benchmark, of this CPU, without Triton's interpreter."""
    folder = tmp_path_factory.mktemp("records")
    # one process for all of them, each as if it had been typed: to import torch takes longer than what they measure
    each = "sys.argv = line; sys.path[0] = os.path.dirname(line[0]); runpy.run_path(line[0], run_name='__main__')"
    lines = [line(name, folder / f"{name}.json") for name in SIZES]
    python("-c", f"import os, runpy, sys\nfor line in {lines}: {each}", TRITON_INTERPRET="0")
    return folder


def read(records: Path, name: str) -> dict[str, Any]:
    (case,) = json.loads((records / f"{name}.json").read_text())["cases"]
    return case  # type: ignore[no-any-return]


def test_every_kernel_path_is_checked_named_and_timed(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="the kernels need Triton: pip install 'elas-lightning[gpu]'")
    python(*line("ffn", tmp_path / "record.json"), TRITON_INTERPRET="1")
    case = read(tmp_path, "record")
    rows = case["contenders"]
    ran = {name for name, row in rows.items() if "absent" not in row}
    assert {f"ELAS, {b}, {s}" for b in ("reference", "triton") for s in ("dense", "packed", "recompute")} <= ran
    for name in ran:
        assert rows[name]["path"], name
        assert rows[name]["error"] < 1e-4, name
        assert {m["kind"] for m in case["measured"] if m["contender"] == name} == {"forward", "forward_backward"}
    kept = {name: rows[name]["kept_bytes"] for name in ran}
    assert kept["ELAS, reference, recompute"] < kept["ELAS, reference, packed"] < kept["ELAS, reference, dense"]
    assert kept["ELAS, triton, recompute"] == kept["ELAS, reference, recompute"]
    for name in ran:
        assert rows[name]["kept_against"] == {TWIN: kept[name] / kept[TWIN]}


@pytest.mark.parametrize("name", SIZES)
def test_what_cannot_run_is_absent_with_its_reason(records: Path, name: str) -> None:
    rows = read(records, name)["contenders"]
    assert "needs a CUDA device, this is cpu" in rows["ELAS, triton, dense"]["absent"]
    assert "absent" not in rows["ELAS, reference, dense"]


def test_the_twin_is_its_own_measure(records: Path) -> None:
    rows = {m["contender"]: m for m in read(records, "ffn")["measured"] if m["kind"] == "forward"}
    assert rows[TWIN]["speed_against"][TWIN] == {"median": 1.0, "p20": 1.0, "p80": 1.0}
    assert read(records, "train_step")["contenders"][TWIN]["speed_against"][TWIN]["median"] == 1.0


def test_a_cpu_does_the_work_itself_so_the_host_has_no_time_of_its_own(records: Path) -> None:
    assert {m["host_seconds"] for m in read(records, "ffn")["measured"]} == {None}
    assert {m["host_seconds"] for m in read(records, "prefill")["measured"]} == {None}
    assert read(records, "train_step")["contenders"][TWIN]["host_seconds"] is None


def test_energy_is_measured_where_it_is_asked_for(records: Path) -> None:
    assert all("joules" not in m for m in read(records, "ffn")["measured"])


def test_the_memory_of_a_step_is_that_of_its_tensors(records: Path) -> None:
    row = read(records, "train_step")["contenders"][TWIN]
    assert row["memory"]["weights"] == row["memory"]["gradients"] == 4 * row["parameters"]
    assert row["memory"]["optimizer"] == pytest.approx(8 * row["parameters"], rel=0.01)
    assert row["memory"]["activations"] > 0
    assert row["memory"]["peak"] is None


def test_the_report_draws_the_records(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--report", str(records), "--out", str(tmp_path)]) == 0
    page = (tmp_path / "report.html").read_text()
    for title in ("Feed-forward network, forward and backward", "Whole training step", "Prefill"):
        assert f"<h2>{title}</h2>" in page
    assert "times its speed" in page
    assert "needs a CUDA device" in page
    assert "Microseconds" not in page  # absolute times are a GPU's alone
    assert len(list((tmp_path / "plots").glob("*.svg"))) == 6  # five, and what they say together


def row(contender: str, mode: str, microseconds: float, host: float, ratio: float) -> dict[str, Any]:
    off = 0 if contender == TWIN else 0.01
    spread = {"median": ratio, "p20": ratio - off, "p80": ratio + off}
    return {
        "kind": "forward",
        "contender": contender,
        "mode": mode,
        "seconds": {"median": microseconds / 1e6, "p20": 1e-6, "p80": 1.0},
        "host_seconds": host / 1e6,
        "speed_against": {TWIN: spread},
        "share_of_matmul_peak": 0.5,
    }


@pytest.fixture
def gpu_record() -> dict[str, Any]:
    """A record as a GPU would leave it: invented figures, and a case bound by its launches."""
    elas = "ELAS, triton, recompute"
    measured = [
        row(TWIN, "compiled", 120, 115, 1.0),
        row(TWIN, "compiled, graph", 80, 9, 1.0),
        row(elas, "compiled", 125, 124, 0.96),
        row(elas, "compiled, graph", 40, 9, 2.0),
    ]
    known = {"kept_bytes": 2**20, "kept_bytes_compiled": 2**19, "kept_against": {TWIN: 0.5}}
    case = {
        "shape": "60m",
        "tokens": 4096,
        "contenders": {TWIN: known, elas: known | {"kept_against_compiled": {TWIN: 0.125}}},
        "absent": [
            {"contender": "ELAS, cusparselt, dense", "mode": "compiled, graph", "reason": "not captured: it waits"}
        ],
        "measured": measured,
    }
    return {
        "benchmark": "ffn",
        "command": "python ffn.py",
        "device": "a GPU",
        "device_type": "cuda",
        "versions": {"torch": "2"},
        "cases": [case],
    }


def test_the_report_tells_launches_from_work(gpu_record: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "ffn.json").write_text(json.dumps(gpu_record))
    assert main(["bench", "--report", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    page = html.unescape((tmp_path / "page" / "report.html").read_text())
    assert (
        "fastest way (ELAS, triton, recompute, compiled) is slower than its dense twin, 0.960 times its speed; "
        "it and the twin are bound by launches."
    ) in page
    assert (
        "fastest way (ELAS, triton, recompute, compiled, graph) is faster than its dense twin's graph, "
        "2.00 times its speed."
    ) in page
    assert "The host's own" in page
    assert "ELAS, cusparselt, dense, compiled, graph: not captured: it waits" in page


def test_many_places_are_drawn_by_their_tokens(gpu_record: dict[str, Any], tmp_path: Path) -> None:
    (case,) = gpu_record["cases"]
    gpu_record["cases"] = [
        case | {"shape": shape, "tokens": tokens} for shape in ("60m", "130m", "1b") for tokens in (4096, 16384)
    ]
    (tmp_path / "ffn.json").write_text(json.dumps(gpu_record))
    assert main(["bench", "--report", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    assert {path.name for path in (tmp_path / "page" / "plots").glob("*.svg")} == {
        "overview-1.svg",
        "ffn-ffn-forward-speed-4096-tokens.svg",
        "ffn-ffn-forward-speed-16384-tokens.svg",
    }


def test_what_a_mode_keeps_is_that_mode_s(gpu_record: dict[str, Any]) -> None:
    eager = copy.deepcopy(gpu_record)
    for measured in eager["cases"][0]["measured"]:
        measured["mode"] = measured["mode"].replace("compiled", "eager")
    assert [m.kept for m in measurements(eager)] == [2**20] * 4
    assert [m.kept_ratio for m in measurements(eager)] == [0.5] * 4
    assert [m.kept for m in measurements(gpu_record)] == [2**19] * 4
    assert [m.kept_ratio for m in measurements(gpu_record)] == [None, None, 0.125, 0.125]


def test_a_reader_sees_at_once_what_an_h200_said(tmp_path: Path) -> None:
    records = [json.loads((FOLDER / "results" / "h200" / f"{name}.json").read_text()) for name in H200]
    found = lines([row for record in records for row in measurements(record)])
    said = {row[:3]: row[3:] for row in summary_table(found).rows}
    assert said["FFN forward", "16,384", "out of the way"] == (
        "2.09 hopper",
        "1.68 hopper",
        "1.75 hopper",
        "1.36 hopper",
        "1.14 hopper",
    )
    assert said["FFN forward", "131,072", "included"] == ("2.30 hopper", "1.67 hopper", "", "1.28 hopper", "")
    assert said["FFN forward and backward", "131,072", "included"] == (
        "0.87 hopper †",
        "0.93 hopper",
        "",
        "0.99 hopper",
        "",
    )
    # its own kernels wait for the host there, and so does the twin
    assert said["FFN forward", "16,384", "included"][:3] == ("0.87 reference †", "0.80 reference †", "0.69 reference †")
    assert main(["bench", "--report", str(FOLDER / "results" / "h200"), "--out", str(tmp_path)]) == 0
    page = html.unescape((tmp_path / "report.html").read_text())
    assert "<h2>NVIDIA H200</h2>" in page
    assert "memory.peak is left of the low-rank ReLU² alone" in page
    assert page.count("the microseconds of two rows are not") == 1
    assert page.count("not measured") == 3  # the peaks that were removed


def test_a_call_is_bound_by_launches_where_its_graph_is_much_faster(gpu_record: dict[str, Any]) -> None:
    elas = "ELAS, triton, recompute"
    gpu_record["cases"][0]["measured"] = [
        row(TWIN, "compiled", 120, 60, 1.0),
        row(TWIN, "compiled, graph", 100, 9, 1.0),
        row(elas, "compiled", 125, 60, 0.96),
        row(elas, "compiled, graph", 40, 9, 2.0),
        row(elas, "eager", 125, 120, 0.96),
    ]
    assert [m.launch_bound for m in measurements(gpu_record)] == [False, False, True, False, True]
    assert [m.mode for m in side_by_side(list(measurements(gpu_record)))] == [
        "compiled",
        "compiled, graph",
        "compiled",
        "compiled, graph",
        "eager",
    ]


def test_what_one_kind_of_call_could_not_do_is_not_said_of_another(gpu_record: dict[str, Any], tmp_path: Path) -> None:
    (case,) = gpu_record["cases"]
    case["absent"][0]["kind"] = "forward_backward"
    case["measured"] += [m | {"kind": "forward_backward"} for m in case["measured"]]
    (tmp_path / "ffn.json").write_text(json.dumps(gpu_record))
    assert main(["bench", "--report", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "report.html").read_text().count("not captured: it waits") == 1


def test_without_elas_there_is_no_overview(gpu_record: dict[str, Any], tmp_path: Path) -> None:
    (case,) = gpu_record["cases"]
    case["measured"] = [m for m in case["measured"] if m["contender"] == TWIN]
    (tmp_path / "ffn.json").write_text(json.dumps(gpu_record))
    assert main(["bench", "--report", str(tmp_path), "--out", str(tmp_path / "page")]) == 0
    assert not list((tmp_path / "page" / "plots").glob("overview*"))


def test_a_folder_without_records_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--report", str(tmp_path)]) == 2
    assert "there is no benchmark record in" in capsys.readouterr().err


def test_a_record_of_another_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old.json").write_text('{"benchmark": "ffn", "command": "python ffn.py", "cases": [{}]}')
    assert main(["bench", "--report", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "is not of this version" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("ffn --rounds 1", "argument --rounds: 1 is too few: give 2 or more"),
        ("ffn --without-eager", "leaves nothing to time: add --compile"),
        ("ffn --cuda-graph --device cpu", "--cuda-graph needs a GPU, and --device is cpu"),
        ("ffn --rehearse --json record.json", "--rehearse times nothing"),
        ("ffn --tokens 0", "0 is too small: give 1 or more"),
        ("train_step --layers 0", "argument --layers: 0 is too small"),
        ("train_step --sequence 0", "argument --sequence: 0 is too small"),
        ("prefill --vocabulary -4", "argument --vocabulary: -4 is too small"),
        ("decode --rounds 0", "argument --rounds: 0 is too small"),
        ("decode --threads 0", "argument --threads: 0 is too small"),
        ("decode --tokens 17", "--tokens is 17: give at most 16"),
        ("loader --batches 0", "argument --batches: 0 is too small"),
        ("loader --rounds 1", "argument --rounds: 1 is too few"),
        ("tune --rounds 0", "argument --rounds: 0 is too small"),
        ("tune --tokens 0", "argument --tokens: 0 is too small"),
    ],
)
def test_refuses_what_cannot_be_measured(
    command: str, said: str, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        script(*shlex.split(command))
    assert end.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", SIZES)
def test_a_contender_that_nobody_is_called_is_refused(name: str, script: Script) -> None:
    with pytest.raises(UserError, match=r"--only hoper: no contender has this in its name; there are: .*hopper, dense"):
        script(name, *shlex.split("--shape smoke --device cpu --only hoper"))


def test_a_verdict_claims_no_more_than_the_rounds_show() -> None:
    """ELAS is told at its best of several ways: what the dense model reaches at its own best belongs beside it."""
    record = json.loads((FOLDER / "results" / "h200" / "ffn.json").read_text())
    rows = list(measurements(record))
    said = verdict([row for row in rows if row.kind == "ffn forward"])
    (graph,) = [one for one in said if one.startswith("60M") and "twin's graph" in one]
    assert "2.09 times its speed" in graph
    dense = max(
        row.ratio["median"]
        for row in rows
        if row.shape == "60m" and row.contender.startswith(TWIN) and row.is_graph and row.kind == "ffn forward"
    )
    assert graph.endswith(
        f"; the dense model's own fastest way ({TWIN}, triton, recompute, compiled, graph) reaches {dense:.2f} times "
        "that speed."
    )
    assert not any("own fastest way" in one for one in said if one.startswith("7B"))
    back = verdict([row for row in rows if row.kind == "ffn forward_backward"])
    (near,) = [one for one in back if one.startswith("60M")]  # 0.91 in the middle, above 1 in one round of five
    assert "is not told apart, within the spread, from its dense twin, 0.908 times" in near
