"""``plots``, ``report``, ``compare`` of result files that are torn or of another format; ``account`` and ``bench``."""

import json
import re
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from elas_lightning import load_run
from elas_lightning.cli import main
from elas_lightning.errors import UserError
from elas_lightning.result import RunResult

READERS = {"plots": ("plots", "grid"), "report": ("report", "grid"), "compare": ("compare", "runs/grid")}


@pytest.fixture
def sweep_here(place: Any, finished_run: Path) -> Path:
    """A finished sweep of one run in ``runs/grid``."""
    folder = place.root / "runs/grid"
    home = folder / "runs/rank=4-s0"
    shutil.copytree(finished_run, home)
    result = json.loads((home / "result.json").read_text())
    place.write(
        "runs/grid/summary.json",
        json.dumps(
            {
                "name": "grid",
                "question": "?",
                "objective": "val_perplexity",
                "size": "small",
                "data": {"source": "own"},
                "seeds": [0],
                "sampler": "grid",
                "plots": [{"kind": "bars", "x": "rank"}],
                "search": {"rank": {"kind": "choices", "label": "rank", "values": [4]}},
                "runs": {"planned": 1, "complete": 1},
                "command": "elas sweep grid",
            }
        ),
    )
    metrics = {k: v for k, v in result["metrics"].items() if not isinstance(v, dict)}
    head = ["trial", "rank", "seed", "state", "run", *metrics]
    row = [0, 4, 0, "complete", "rank=4-s0", *("" if v is None else v for v in metrics.values())]
    place.write("runs/grid/trials.csv", ",".join(head) + "\n" + ",".join(map(str, row)) + "\n")
    return Path("runs/grid")


RECORDS = Path(__file__).resolve().parents[2] / "benchmarks/results"
DAMAGE: dict[str, tuple[str, Any, str]] = {
    "summary-torn": ("summary.json", '{"name": "gr', "summary.json"),
    "summary-list": ("summary.json", "[]", "summary.json"),
    "summary-empty": ("summary.json", "", "summary.json"),
    "summary-bare": ("summary.json", "{}", "summary.json"),
    "summary-binary": ("summary.json", b"\xff\xfe", "summary.json"),
    "summary-search": ("summary.json", '{"name": "grid", "search": {"rank": [4]}}', "summary.json: search.rank is [4]"),
    "summary-plots": (
        "summary.json",
        '{"name": "grid", "search": {}, "plots": ["bars"]}',
        "summary.json: plots.0 is 'bars', where a mapping belongs",
    ),
    "summary-seeds": ("summary.json", '{"name": "grid", "search": {}, "seeds": ["a"]}', "summary.json: seeds.0 is 'a'"),
    "trials-empty": ("trials.csv", "", "trials.csv"),
    "trials-columns": ("trials.csv", "a,b\n1,2\n", "trials.csv"),
    "trials-state": ("trials.csv", "trial,rank,seed,state,run\n0,4,0,happy,x\n", "trials.csv…happy"),
    "trials-seed": ("trials.csv", "trial,rank,seed,state,run\n0,4,one,complete,x\n", "trials.csv…seed"),
    "trials-binary": ("trials.csv", b"\xff\xfe\x00", "trials.csv"),
}


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("kind", DAMAGE)
def test_result_files(place: Any, sweep_here: Path, kind: str, command: str) -> None:
    name, content, saying = DAMAGE[kind]
    place.write(f"runs/grid/{name}", content)
    place.refuses(*READERS[command], saying=saying)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("result.json", ""),
        ("result.json", "{"),
        ("result.json", "[]"),
        ("result.json", b"\xff\xfe"),
        ("curve.csv", ""),
        ("curve.csv", b"\xff\xfe"),
    ],
)
def test_run_files(place: Any, run_here: Path, name: str, content: Any) -> None:
    place.write(f"mine/{name}", content)
    place.refuses("compare", "mine", "mine", saying=name)


WRONG_FIELDS = {
    "seed": ("1", "seed is '1', where a whole number belongs"),
    "state": ("happy", "state is 'happy', where complete or diverged or failed or pruned belongs"),
    "metrics": ([], "metrics is [], where a mapping belongs"),
    "metrics.val_loss": ("3.5", "metrics.val_loss is '3.5', where a number or null belongs"),
    "metrics.account": ([1], "metrics.account is [1], where a mapping or null belongs"),
    "backend": ("triton", "backend is 'triton', where a mapping or null belongs"),
    "environment.command": (["elas"], "environment.command is ['elas'], where a text or null belongs"),
    "data": (True, "data is True, where a mapping or null belongs"),
}


@pytest.mark.parametrize("field", WRONG_FIELDS)
def test_a_field_of_another_kind(place: Any, sweep_here: Path, field: str) -> None:
    """In every reader: the sweep's own, the analysis', and a notebook's."""
    home = sweep_here / "runs/rank=4-s0"
    result = json.loads((home / "result.json").read_text())
    *outer, last = field.split(".")
    wrong, said = WRONG_FIELDS[field]
    (result[outer[0]] if outer else result)[last] = wrong
    place.write(str(home / "result.json"), json.dumps(result))
    for command in READERS.values():
        place.refuses(*command, saying=f"rank=4-s0/result.json: {said}")
    for read in (load_run, RunResult.read):
        with pytest.raises(UserError, match=re.escape(f"result.json: {said}")):
            read(home)


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["report"], "name"),
        (["report", "nothing"], "runs/nothing"),
        (["plots", "nothing", "--size", "7b"], "nothing_7b"),
        (["report", "run.yaml"], "runs/run"),
        (["compare"], "RUN"),
        (["compare", "nowhere"], "nowhere"),
        (["compare", "run.yaml"], "run.yaml"),
        (["compare", "experiments"], "experiments"),
        (["account"], "--config"),
        (["account", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["account", "--config", "run.yaml", "--all"], "--all"),
        (["account", "--config", "run.yaml", "--batch", "0"], "batch"),
        (["account", "--config", "run.yaml", "--batch", "few"], "--batch…few"),
        (["account", "--config", "run.yaml", "--sequence", "-1"], "sequence"),
        (["account", "--config", "run.yaml", "--dtype", "int4"], "int4"),
        (["account", "--config", "run.yaml", "--device", "tpu"], "tpu"),
        (["account", "--config", "run.yaml", "--checkpointing", "all"], "all"),
        (["account", "--config", "run.yaml", "--json", "nowhere/a.json"], "nowhere/a.json"),
        (["account", "--config", "run.yaml", "--set", "model.config.ffn_rank=0"], "ffn_rank"),
        (["bench", "--nothing"], "--nothing"),
        (["bench", "ffn", "--shape", "square"], "square"),
        (["bench", "ffn", "--device", "abacus"], "abacus"),
        (["bench", "ffn", "--rounds", "0"], "rounds…`elas bench ffn --help`"),
        (["bench", "ffn", "--rounds", "few"], "--rounds…few"),
        (["bench", "nothing"], "no benchmark named 'nothing'…train-step"),
        (["bench", "gpu", "--minutes", "-1", "--out", "new"], "--minutes is -1…above 0"),
        (["bench", "gpu", "--out", "run.yaml/new"], "--out run.yaml/new cannot be made"),
        (["bench", "ffn", "--json", "run.yaml/new.json"], "--json run.yaml/new.json cannot be written"),
        (["bench", "memory-account", "--json", "run.yaml/new.json"], "--json run.yaml/new.json cannot be written"),
        (["bench", "--tune", "--out", "run.yaml/new.json"], "--out run.yaml/new.json cannot be written"),
        (["bench", "--report", str(RECORDS), "--out", "run.yaml/new"], "--out run.yaml/new cannot be made"),
        (["bench", "--report", "nowhere"], "nowhere"),
        (["bench", "--report", "experiments"], "experiments"),
        (["bench", "loader", "--nothing"], "--nothing"),
        ([], "command"),
        (["swep"], "'swep'"),
        (["--colour"], "command"),
        (["fit", "--config"], "--config"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options(place: Any, arguments: list[str], saying: str) -> None:
    place.refuses(*arguments, saying=saying)


@pytest.mark.parametrize("command", ["plots", "report"])
def test_a_disk_without_room(sweep_here: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Stood for by a process that may write no file, which the kernel refuses in the same way."""
    allowed = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, allowed[1]))
    try:
        code = main([command, "grid"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, allowed)
    assert code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.endswith(
        "cannot be used (File too large): make room or see to its rights, then the same command goes on\n"
    )
