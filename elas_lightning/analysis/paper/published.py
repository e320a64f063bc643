"""The figures that papers report, kept apart from ours: read from ``published.yaml``, shown with their source."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from elas_lightning.analysis.tables import Table


@cache
def published() -> dict[str, Any]:
    """The whole file."""
    text = (files("elas_lightning.analysis.paper") / "published.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content


def published_tables(part: str) -> list[tuple[str, Table]]:
    """What the papers say on a part's question: title and table, each captioned as theirs and not ours."""
    found = []
    for entry in published()["tables"]:
        if part in entry["parts"]:
            rows = tuple(tuple("not given" if cell is None else str(cell) for cell in row) for row in entry["rows"])
            caption = (
                f"Published, not measured here: {entry['source']}. Other data, sizes and budgets than ours: compare "
                "the order and the gaps, never figure with figure."
            )
            found.append((entry["title"], Table(caption, tuple(entry["columns"]), rows, 1)))
    return found


def published_perplexities(method: str) -> dict[str, float]:
    """A method's validation perplexity by size, from the paper's results."""
    (table,) = (entry for entry in published()["tables"] if "Validation perplexity" in entry["columns"])
    return {row[1]: float(row[4]) for row in table["rows"] if row[0] == method}
