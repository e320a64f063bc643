"""The direction of imports: ops -> nn -> training -> runner -> sweep, and analysis from result files alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import elas_lightning

ROOT = Path(elas_lightning.__file__).parent
HEAVY = {"torch", "lightning", "torchmetrics", "datasets", "tokenizers", "optuna", "pandas", "scipy", "matplotlib"}
# room -> (rooms of ours it may import, outside packages of HEAVY it may import)
ALLOWED = {
    "ops": ({"ops"}, {"torch"}),
    "nn": ({"nn", "ops"}, {"torch"}),
    "data": ({"data", "ranks"}, {"torch", "lightning", "datasets", "tokenizers"}),
    "training": ({"training", "nn", "ops", "ranks"}, {"torch", "lightning", "torchmetrics"}),
    "settings": (set(), set()),
    "configuration": ({"data", "training", "nn", "layout", "settings"}, {"torch", "lightning"}),
    "continuation": ({"training", "layout", "processes"}, {"lightning"}),
    "commands/account": ({"configuration", "training", "nn", "layout"}, set()),
    "commands/corpus": ({"configuration", "data"}, set()),
    "runner": (
        {"configuration", "continuation", "training", "nn", "ops", "data", "layout", "processes", "result"},
        {"torch", "lightning"},
    ),
    "inference": (
        # analysis: a model card's interval over seeds is the report's
        {"inference", "result", "continuation", "configuration", "layout", "training", "data", "nn", "ops", "analysis"},
        # datasets: its errors, where the data of lm-eval's tasks is damaged
        {"torch", "tokenizers", "datasets"},
    ),
    "sweep": (
        {
            "sweep",
            "runner",
            "result",
            "configuration",
            "layout",
            "processes",
            "training",
            "data",
            "plot_options",
            "settings",
            "trials_table",
        },
        {"torch", "lightning", "optuna"},
    ),
    "analysis": ({"analysis", "trials_table", "file_fields"}, {"pandas", "scipy", "matplotlib"}),
    "plots": ({"analysis", "plot_options"}, {"matplotlib"}),
    "plot_options": ({"trials_table"}, set()),
    "trials_table": (set(), set()),
    "file_fields": ({"trials_table"}, set()),
    "result": ({"layout", "file_fields"}, set()),
    "layout": (set(), set()),
    "processes": (set(), set()),
    "ranks": (set(), {"torch"}),
    "files": (set(), set()),
    "errors": (set(), set()),
}


def _modules(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_rooms_import_only_what_lies_before_them(room: str) -> None:
    ours, outside = ALLOWED[room]
    files = [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for module in _modules(path):
            first, _, rest = module.partition(".")
            if first == "elas_lightning" and rest:
                assert rest.split(".")[0] in ours | {"errors", "files"}, f"{path.name} imports {module}"
            else:
                assert first not in HEAVY - outside, f"{path.name} imports {module}"


# from the lightest on, since they are opened one after another in one process
LIGHT_DOORS = {
    "import elas_lightning.cli": {"torch", "lightning", "pandas", "optuna"},
    "assert elas_lightning.cli.main(['sweep', 'gird']) == 2": {"torch", "lightning", "pandas", "optuna"},
    "import elas_lightning.analysis.report": {"torch", "lightning", "optuna"},
    "from elas_lightning import load_run, load_sweep, plots; plots.curves": {
        "torch", "lightning", "optuna", "matplotlib.pyplot",
    },
    "import elas_lightning.ops, elas_lightning.nn.llama": {"lightning", "datasets", "optuna", "jsonargparse"},
}  # fmt: skip


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """What is imported behind each door."""
    code = "\n".join(f"{statement}\nprint(','.join(sys.modules))" for statement in LIGHT_DOORS)
    done = subprocess.run([sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, check=True)
    return dict(zip(LIGHT_DOORS, (set(line.split(",")) for line in done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("statement", LIGHT_DOORS)
def test_light_doors_stay_light(loaded: dict[str, set[str]], statement: str) -> None:
    assert not LIGHT_DOORS[statement] & loaded[statement]


def test_every_file_reads_in_one_sitting() -> None:
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert long == {}
