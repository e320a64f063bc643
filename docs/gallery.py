"""Fills the results page when the site is built: every stored sweep and every benchmark record, as they are.

A stored sweep is a folder of ``docs/results/`` with the ``summary.json``, ``trials.csv``, ``plots/`` and ``tables/``
of a folder of ``runs/``; ``make store EXP=rank_ablation`` copies them. Nothing on the page is typed.
They stand in the order of ``sweeps/paper.yaml``, the most important first.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mkdocs.structure.files import File, Files

from elas_lightning.analysis import style
from elas_lightning.analysis.benchmark_records import KINDS, measurements, read_records
from elas_lightning.analysis.benchmark_summary import Line, lines, summary_figure, summary_table
from elas_lightning.analysis.benchmarks import speed_table, verdict
from elas_lightning.analysis.paper.cost import cost_figure
from elas_lightning.analysis.paper.load import Paper, load_stored
from elas_lightning.errors import UserError

PAGE = "gallery.md"
_COST = "assets/results/cost_of_24.svg"
ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "docs" / "results"
RECORDS = ROOT / "benchmarks" / "results"


def on_files(files: Files, config: Any) -> Files:
    """Take the plots along; the folder itself is no part of the site."""
    for picture in sorted(STORED.glob("*/plots/*.svg")):
        name = f"assets/results/{picture.parent.parent.name}/{picture.name}"
        files.append(File.generated(config, name, content=picture.read_bytes()))
    with tempfile.TemporaryDirectory() as folder:
        if cost := cost_figure(_stored()):
            _, picture = style.save(cost[0], Path(folder) / "cost")
            files.append(File.generated(config, _COST, content=picture.read_bytes()))
        for device, found in _devices().items():
            _, picture = style.save(summary_figure(found), Path(folder) / "overview")
            files.append(File.generated(config, _picture(device), content=picture.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put sweeps and benchmarks below the page's own words."""
    if page.file.src_uri != PAGE:
        return markdown
    sweeps = list(_sweeps()) or ["No sweep is stored yet."]
    return "\n\n".join([markdown, "## Sweeps", *sweeps, "## Benchmarks", *_benchmarks()])


def _stored() -> Paper:
    order = yaml.safe_load((ROOT / "sweeps" / "paper.yaml").read_text(encoding="utf-8"))["parts"]
    return load_stored(STORED, order)


def _sweeps() -> Iterator[str]:
    paper = _stored()
    if cost := cost_figure(paper):
        yield "### What does 2:4 cost, wherever it was asked?"
        yield f"![Models with the 2:4 step against the same ones without it]({_COST}){{ .figure }}\n\n*{cost[1]}*"
    for name, results in paper.parts.items():
        summary = results.summary
        environment = summary.get("environment") or {}
        versions = ", ".join(f"{key} {value}" for key, value in (environment.get("versions") or {}).items())
        yield f"### {summary['question']}"
        yield (
            f"`{summary['command']}`: size `{summary['size']}`, corpus `{(summary.get('data') or {}).get('source')}`, "
            f"{environment.get('hardware')}; {versions}."
        )
        drawn = json.loads((STORED / name / "plots" / "captions.json").read_text(encoding="utf-8"))["figures"]
        first, more = [], []
        for figure in drawn:
            (more if first and figure["kind"] != "differences" else first).append(
                f"![{figure['title']}](assets/results/{name}/{figure['name']}.svg){{ .figure }}\n\n"
                f"*{figure['caption']}*"
            )
        yield from first
        if more:
            yield _folded(f"Figures: {len(more)} more", "\n\n".join(more))
        for table in sorted((STORED / name / "tables").glob("*.md")):
            yield _folded(f"Table: {table.stem.replace('_', ' ')}", table.read_text(encoding="utf-8"))


def _benchmarks() -> Iterator[str]:
    try:
        records = read_records(RECORDS)
    except UserError:
        yield "No benchmark is stored yet."
        return
    for device, found in _devices().items():
        yield f"### {device}: ELAS beside its dense twin"
        yield f"![How many times the dense twin's speed, by kind of call and shape]({_picture(device)}){{ .figure }}"
        yield summary_table(found).markdown()
    for path, record in records:
        yield f"### {path.relative_to(RECORDS).with_suffix('')}"
        yield f"`{record['command']}` on {record['device']}."
        try:
            rows = list(measurements(record))
        except UserError:
            yield "This record is of an earlier format; the command writes it anew."
            continue
        for kind, title in KINDS.items():
            if own := [row for row in rows if row.kind == kind]:
                yield f"**{title}**"
                yield "\n".join(f"- {sentence}" for sentence in verdict(own))
                yield _folded("All numbers", speed_table(own).markdown())


def _devices() -> dict[str, list[Line]]:
    """What all records of a device say together, where they say it of ELAS."""
    try:
        records = read_records(RECORDS)
    except UserError:
        return {}
    rows: dict[str, list[Any]] = {}
    for _, record in records:
        try:
            rows.setdefault(record["device"], []).extend(measurements(record))
        except UserError:  # an earlier format, which the page says where the record stands
            continue
    found = {device: lines(own) for device, own in rows.items()}
    return {device: own for device, own in found.items() if own}


def _picture(device: str) -> str:
    return f"assets/benchmarks/{re.sub('[^a-z0-9]+', '_', device.lower()).strip('_')}.svg"


def _folded(title: str, markdown: str) -> str:
    return f"<details markdown><summary>{title}</summary>\n\n{markdown}\n</details>"
