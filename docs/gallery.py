"""Fills the results page when the site is built: every stored sweep and every benchmark record, as they are.

A stored sweep is a folder of ``docs/results/`` with the ``summary.json``, ``trials.csv``, ``plots/`` and ``tables/`` of a
folder of ``runs/`` (``make store EXP=rank_ablation`` copies them). Nothing on the page is typed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from elas_lightning.analysis.benchmarks import KINDS, measurements, read_records, speed_table, verdict

PAGE = "gallery.md"
ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "docs" / "results"
RECORDS = ROOT / "benchmarks" / "results"


def on_files(files: Files, config: Any) -> Files:
    """Take the plots along; the folder itself is no part of the site."""
    for picture in sorted(STORED.glob("*/plots/*.svg")):
        name = f"assets/results/{picture.parent.parent.name}/{picture.name}"
        files.append(File.generated(config, name, content=picture.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put sweeps and benchmarks below the page's own words."""
    if page.file.src_uri != PAGE:
        return markdown
    return "\n\n".join([markdown, *_sweeps(), "## Benchmarks", *_benchmarks()])


def _sweeps() -> Iterator[str]:
    for folder in sorted(path.parent for path in STORED.glob("*/summary.json")):
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        environment = summary.get("environment") or {}
        versions = ", ".join(f"{key} {value}" for key, value in (environment.get("versions") or {}).items())
        yield f"## {summary.get('question') or summary['name']}"
        yield f"`{summary['command']}`: size `{summary['size']}`, {environment.get('hardware')}; {versions}."
        figures = json.loads((folder / "plots" / "captions.json").read_text(encoding="utf-8"))["figures"]
        for figure in figures:
            yield f"![{figure['title']}](assets/results/{folder.name}/{figure['name']}.svg)"
            yield f"*{figure['caption']}*"
        for table in sorted((folder / "tables").glob("*.md")):
            yield f'<details markdown><summary>{table.stem}</summary>\n\n{table.read_text("utf-8")}\n</details>'


def _benchmarks() -> Iterator[str]:
    for path, record in read_records(RECORDS):
        rows = list(measurements(record))
        yield f"### {path.relative_to(ROOT)}"
        yield f"`{record['command']}` on {record['device']}."
        for kind, title in KINDS.items():
            own = [row for row in rows if row.kind == kind]
            if own:
                yield f"**{title}**"
                yield "\n".join(f"- {sentence}" for sentence in verdict(own))
                yield f"<details markdown><summary>All numbers</summary>\n\n{speed_table(own).markdown()}\n</details>"
