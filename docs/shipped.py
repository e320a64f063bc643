"""Fills in lists of what ships when the site is built: methods, sweeps and commands, from the files that are them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each ``<!-- name -->`` line by its list."""
    for name, write in LISTS.items():
        if (marker := f"<!-- {name} -->") in markdown:
            markdown = markdown.replace(marker, write())
    return markdown


def on_page_content(html: str, **_: Any) -> str:
    """Show the docstrings' cross-references (``:class:`~a.b.C```) as the names that they are."""
    return re.sub(r":(?:class|func|meth|attr|mod):<code>(?:~[\w.]*\.)?([^<]+)</code>", r"<code>\1</code>", html)


def _methods() -> str:
    """Each overlay of a method with the comment it begins with."""
    rows = [
        f"| `{path.stem}` | {_comment(path)} |" for path in sorted((ROOT / "experiments" / "methods").glob("*.yaml"))
    ]
    return "\n".join(["| method | is |", "|---|---|", *rows])


def _sweeps() -> str:
    """Each sweep with its question."""
    rows = []
    for path in sorted((ROOT / "sweeps").glob("*.yaml")):
        question = yaml.safe_load(path.read_text(encoding="utf-8"))["question"]
        rows.append(f"| `{path.stem}` | {question} |")
    return "\n".join(["| `EXP=` | asks |", "|---|---|", *rows])


def _commands() -> str:
    """What ``elas --help`` says."""
    said = subprocess.run(
        [sys.executable, "-m", "elas_lightning", "--help"],
        cwd=ROOT,
        env={"COLUMNS": "84", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    table = said.split("  command\n", 1)[1].rstrip()
    return f"```text\n{table}\n```"


def _comment(path: Path) -> str:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return re.sub(r"\|", r"\\|", " ".join(lines))


LISTS: dict[str, Callable[[], str]] = {"methods": _methods, "sweeps": _sweeps, "commands": _commands}
