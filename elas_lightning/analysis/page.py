"""What every page shares: its templates, pictures inside the page, tables that escape themselves."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from elas_lightning.analysis.tables import Table


def render(template: str, **values: Any) -> str:
    """A page from a template of this folder; a value that it lacks is an error."""
    environment = Environment(
        loader=PackageLoader("elas_lightning.analysis", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)


def data_uri(path: Path) -> str:
    """An SVG file as an image's address."""
    # An image of its own rather than inline SVG: ids inside one picture cannot clash with another's.
    return f"data:image/svg+xml;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def drawn(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """A sweep's figures as ``write_plots`` left them, each with its picture as ``source``; and what it did not draw."""
    captions = json.loads((folder / "plots" / "captions.json").read_text(encoding="utf-8"))
    for figure in captions["figures"]:
        figure["source"] = data_uri(folder / "plots" / f"{figure['name']}.svg")
    return captions["figures"], captions["not_drawn"]


def table_html(table: Table | None, label: str) -> Markup | None:
    """A table as markup; ``Table.html`` escapes every cell itself."""
    return Markup(table.html(label)) if table else None
