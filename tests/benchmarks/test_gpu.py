"""The script for a GPU box: a rehearsal side by side, then part after part, each with its share of the time."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Script = Callable[..., None]
# A benchmark in small: it writes down its cases, and breaks where it is told to.
SCRIPT = """
import json, sys
print(sys.argv)
if "--break" in sys.argv:
    sys.exit(3)
if "--json" in sys.argv:
    where = sys.argv.index("--json")
    open(sys.argv[where + 1], "w").write(json.dumps(sys.argv[1:where]))
"""


@pytest.fixture
def gpu(script: Script) -> ModuleType:
    """The module."""
    return importlib.import_module("gpu")


def test_every_part_is_a_command_line_that_its_script_takes(
    gpu: ModuleType, script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [part for part in gpu.PARTS if part.command[0].startswith("benchmarks/")]
    assert {part.name for part in gpu.PARTS} - {part.name for part in parts} == {"tests"}
    for part in parts:
        module = importlib.import_module(Path(part.command[0]).stem)
        for command in (part.whole(), *part.rehearsals()):
            # there is no GPU here, and graphs are refused without
            words = [word for word in command[1:] if word != "--cuda-graph"]
            monkeypatch.setattr("sys.argv", [command[0], *words])
            options = module.parse()
            assert options.shape, part.name
            assert options.rehearse == ("--rehearse" in command)


def test_each_combination_is_rehearsed_by_itself(gpu: ModuleType) -> None:
    part = gpu.Part("ffn", 0.5, ("ffn.py",), (("--shape", ("60m", "1b")), ("--tokens", ("1", "2"))), ("--layers", "1"))
    assert part.whole() == ["ffn.py", "--shape", "60m", "1b", "--tokens", "1", "2"]
    assert part.rehearsals() == [
        ["ffn.py", "--shape", shape, "--tokens", tokens, "--layers", "1", "--rehearse"]
        for shape in ("60m", "1b")
        for tokens in ("1", "2")
    ]
    assert gpu.Part("tests", 0.5, ("-m", "pytest")).rehearsals() == []


def test_parts_run_one_after_the_other_and_one_that_is_slow_is_stopped(
    gpu: ModuleType, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script_, sleeping = tmp_path / "script.py", tmp_path / "sleeping.py"
    script_.write_text(SCRIPT)
    sleeping.write_text("import time\ntime.sleep(100)\n")
    parts = (
        gpu.Part("ffn", 0.9, (str(script_),), (("--tokens", ("16", "24")),), ()),
        gpu.Part("slow", 0.01, (str(sleeping),)),
        gpu.Part("broken", 0.1, (str(script_), "--break")),
        gpu.Part("unasked", 0.1, (str(script_),)),
    )
    monkeypatch.setattr(gpu, "PARTS", parts)
    with pytest.raises(SystemExit) as end:
        script("gpu", "--minutes", "2", "--out", str(tmp_path), "--only", "broken", "ffn", "slow")
    assert end.value.code == "failed: broken"
    said = capsys.readouterr().out
    assert "rehearsal: 2 processes, at most 30 s" in said
    assert "rehearsal: done" in said
    assert "slow: out of time" in said
    assert "broken: exit code 3" in said
    assert "unasked" not in said
    assert json.loads((tmp_path / "ffn.json").read_text()) == ["--tokens", "16", "24"]
    assert "--break" in (tmp_path / "broken.log").read_text()
    assert not list(tmp_path.glob("rehearsal-*"))


def test_a_rehearsal_that_does_not_end_well_keeps_its_log(
    gpu: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script_, sleeping = tmp_path / "script.py", tmp_path / "sleeping.py"
    script_.write_text(SCRIPT)
    sleeping.write_text("import time\ntime.sleep(100)\n")
    parts = [
        gpu.Part("good", 0.5, (str(script_),), (), ()),
        gpu.Part("bad", 0.5, (str(script_),), (), ("--break",)),
        gpu.Part("slow", 0.5, (str(sleeping),), (), ()),
    ]
    gpu.rehearse(parts, 2.0, tmp_path)
    assert "not to its end (it is compiled when it is timed): rehearsal-bad-0, rehearsal-slow-0" in (
        capsys.readouterr().out
    )
    assert {path.name for path in tmp_path.glob("*.log")} == {"rehearsal-bad-0.log", "rehearsal-slow-0.log"}


def test_the_commands_can_be_seen_before_they_run(
    gpu: ModuleType, script: Script, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script("gpu", "--out", str(tmp_path / "out"), "--list", "--only", "prefill", "ffn")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("ffn (45%): python benchmarks/ffn.py --compile --cuda-graph")
    assert second.startswith("prefill (15%): python benchmarks/prefill.py --compile blocks")
    assert not (tmp_path / "out").exists()
