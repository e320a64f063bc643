"""Two processes on one run: a signal to any of them stops both together, and the same command goes on."""

import gzip
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from fitting import Fresh, wait_until
from small_corpus import write_shard

STEPS = 30


def _arguments(overlay: Path, directory: str) -> list[str]:
    noting = {"path": f"{directory}/seen", "pause": 0.03}
    seen = [{"class_path": "watching.Seen", "init_args": noting}]
    own = ["--trainer.devices=2", "--trainer.strategy=ddp", f"--trainer.max_steps={STEPS}", "--data.num_workers=2"]
    where = [f"--trainer.default_root_dir={directory}", f"--trainer.callbacks={json.dumps(seen)}"]
    return ["fit", "--config", str(overlay), *own, *where, "--trainer.accumulate_grad_batches=2"]


def _second(first: int) -> int:
    """The process that the first rank has started."""
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    (second,) = [
        c
        for c in children
        if b"elas_lightning" in Path(f"/proc/{c}/cmdline").read_bytes()
        and b"LOCAL_RANK=1" in Path(f"/proc/{c}/environ").read_bytes()
    ]
    return int(second)


def _ends(pid: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while Path(f"/proc/{pid}/cmdline").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return time.monotonic() < deadline


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
def test_whichever_rank_gets_the_signal(overlay: Path, tmp_path: Path) -> None:
    assert Fresh(_arguments(overlay, "whole"), tmp_path).end() == 0
    seen = tmp_path / "broken/seen.0"
    for who, number in (("second", signal.SIGTERM), ("both", signal.SIGTERM), ("first", signal.SIGUSR1)):
        process = Fresh(_arguments(overlay, "broken"), tmp_path)
        begun = _lines(seen)
        assert wait_until(lambda: _lines(seen) >= begun + 8, process), process.log.read_text()  # noqa: B023
        ranks = {"first": process.pid, "second": _second(process.pid)}
        for rank, pid in ranks.items():
            if who in (rank, "both"):
                os.kill(pid, number)
        assert process.end() == 128 + number, process.log.read_text()
        assert _ends(ranks["second"])
        assert process.log.read_text().count("stopped; the same command goes on") == 1
        assert "Traceback" not in process.log.read_text()
    process = Fresh(_arguments(overlay, "broken"), tmp_path)
    assert process.end() == 0
    assert "going on with broken from step" in process.log.read_text()
    for rank in (0, 1):
        mine, theirs = (tmp_path / f"{name}/seen.{rank}" for name in ("broken", "whole"))
        assert _lines(theirs) == 2 * STEPS
        assert mine.read_text() == theirs.read_text()
    curves = [(tmp_path / name / "curve.csv").read_text().splitlines() for name in ("broken", "whole")]
    mine_rows, their_rows = ([row.split(",")[:2] + row.split(",")[3:8] for row in curve] for curve in curves)
    assert mine_rows == their_rows


@pytest.mark.slow
def test_two_processes_without_a_directory_share_the_first_ones(overlay: Path, tmp_path: Path) -> None:
    arguments = ["fit", "--config", str(overlay), "--trainer.devices=2", "--trainer.strategy=ddp"]
    process = Fresh(arguments, tmp_path)
    assert process.end() == 0, process.log.read_text()
    assert [path.name for path in (tmp_path / "runs/fit").iterdir()] == ["000"]


@pytest.mark.slow
def test_what_one_rank_alone_refuses_is_said_in_lines(overlay: Path, corpus: Path, tmp_path: Path) -> None:
    own = shutil.copytree(corpus, tmp_path / "own")
    write_shard(own / "c4-train.00001-of-00004.json.gz", ["once"] * 4)
    with gzip.open(own / "c4-train.00001-of-00004.json.gz", "at") as file:  # of the second rank's lanes
        file.write("no record\n")
    where = [f"--trainer.default_root_dir={tmp_path / 'run'}", f"--data.path={own}"]
    process = Fresh(
        ["fit", "--config", str(overlay), "--trainer.devices=2", "--trainer.strategy=ddp", *where], tmp_path
    )
    assert process.end() == 2, process.log.read_text()
    lines = process.log.read_text().splitlines()
    assert len(lines) == 2
    assert "record without a string field 'text' (number 4: 'no record')" in lines[0]
    assert lines[1].startswith("error: another process of the run was refused")
    assert not (tmp_path / "run").exists()
