"""Copies what the results page needs of a finished sweep from ``runs/`` to ``docs/results/``.

    python docs/store.py rank_ablation [--size 60m] [--data c4]

Tables, trials, captions and the plots as SVG; no weights, no logs, no single runs. The README's figure of all that is
stored is drawn anew.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import yaml

from elas_lightning.analysis import style
from elas_lightning.analysis.paper.cost import cost_figure
from elas_lightning.analysis.paper.load import load_stored
from elas_lightning.errors import UserError
from elas_lightning.layout import sweep_folder

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "docs" / "results"
KEPT = ("summary.json", "trials.csv", "plots/captions.json", "plots/*.svg", "tables/*")


def store(source: Path, target: Path) -> Path:
    """Copy a sweep's results, in place of what an earlier call left there.

    Args:
        source: ``runs/<name>``.
        target: Where to.

    Raises:
        UserError: The sweep has no results, or no report has been made of them.
    """
    for needed in ("summary.json", "trials.csv", "plots/captions.json"):
        if not (source / needed).is_file():
            raise UserError(f"there is no {source / needed}: run the sweep, or `make report`, first")
    shutil.rmtree(target, ignore_errors=True)
    for pattern in KEPT:
        for path in source.glob(pattern):
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    return target


def draw_cost(stored: Path, picture: Path) -> None:
    """What the 2:4 step costs in all stored sweeps, as a PNG."""
    order = yaml.safe_load((ROOT / "sweeps" / "paper.yaml").read_text(encoding="utf-8"))["parts"]
    if cost := cost_figure(load_stored(stored, order)):
        with tempfile.TemporaryDirectory() as folder:
            png, _ = style.save(cost[0], Path(folder) / "cost")
            shutil.copyfile(png, picture)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser("store", description="Keep a sweep's results with the code.")
    parser.add_argument("name", help="as for `elas report`")
    parser.add_argument("--size")
    parser.add_argument("--data")
    options = parser.parse_args()
    try:
        source = sweep_folder(options.name, options.size, options.data)
        print(f"stored: {store(source, STORED / source.name)}")
        draw_cost(STORED, ROOT / "docs" / "images" / "cost_of_24.png")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
