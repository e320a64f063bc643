"""What the README tells a reader to type works as written."""

import re
import shlex
from pathlib import Path

import pytest

from elas_lightning.cli import main

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make sweep")])
def test_sweeps_are_ready_to_run(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    given = dict(word.split("=", 1) for word in shlex.split(command)[2:])
    arguments = [
        "sweep",
        given["EXP"],
        "--size",
        given.get("SIZE", "tiny"),
        "--data",
        given.get("DATA", "pydocs"),
    ]
    assert main([*arguments, *shlex.split(given.get("ARGS", "")), "--dry-run"]) == 0
    assert "elas fit --config" in capsys.readouterr().out


@pytest.mark.parametrize("command", [c for c in COMMANDS if "elas fit" in c])
def test_runs_are_ready_to_start(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        main([*shlex.split(command)[1:], "--print_config"])
    assert end.value.code in (0, None)
    assert "attention_rank: 128" in capsys.readouterr().out


def test_every_command_is_one_of_those_tried_here() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] == "make" or words[0].endswith("/elas"), command
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), command


def test_the_python_example_says_what_it_prints() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    *lines, last = code.strip().splitlines()
    exec("\n".join(lines), names)
    expression, shown = last.split("  # ")
    assert repr(eval(expression, names)) == shown
    assert tuple(names["logits"].shape) == (2, 64, 4096)  # type: ignore[attr-defined]


def test_every_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
