"""What the CSV files of runs and sweeps hold."""

import csv
from pathlib import Path


def rows_of(path: Path) -> list[dict[str, str]]:
    """Every row, by column."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column_of(path: Path, name: str) -> list[float]:
    """A column, where it has a value."""
    return [float(row[name]) for row in rows_of(path) if row[name]]
