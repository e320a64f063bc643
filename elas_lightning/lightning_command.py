"""``lightning run model …``, which Lightning itself dropped and lightning-sdk's command of that name does not have.

No entry point of this package is called ``lightning``: two packages that declare one script overwrite each other
silently. ``make setup`` runs :func:`install` instead, which writes a small script only where there is none.
"""

import os
import stat
import sys
from importlib.metadata import entry_points
from pathlib import Path

_SCRIPT = """#!{python}
# Written by elas-lightning because no `lightning` command was here; safe to delete.
import sys

from elas_lightning.lightning_command import lightning

sys.exit(lightning())
"""


def main(arguments: list[str] | None = None) -> int:
    """``python -m elas_lightning``: ``run model …`` as below, anything else goes to ``elas``."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:2] == ["run", "model"]:
        return run_model(arguments[2:])
    from elas_lightning.cli import main as elas

    return elas(arguments)


def lightning(arguments: list[str] | None = None) -> int:
    """The ``lightning`` command: ``run model …`` is ours, anything else goes to lightning-sdk's."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:2] == ["run", "model"]:
        return run_model(arguments[2:])
    commands = list(entry_points(group="console_scripts", name="lightning"))
    if commands:
        return commands[0].load()() or 0
    print(
        "error: this `lightning` command knows `lightning run model …`; for others install lightning-sdk",
        file=sys.stderr,
    )
    return 2


def run_model(arguments: list[str]) -> int:
    """``elas fit …``; with a ``.py`` file as first argument, Fabric's runner."""
    if arguments and arguments[0].endswith(".py"):
        if not Path(arguments[0]).is_file():
            print(f"error: there is no file {arguments[0]}: give the path of a script", file=sys.stderr)
            return 2
        from lightning.fabric.cli import _main as fabric

        fabric(["run", *arguments])
        return 0
    from elas_lightning.cli import main as elas

    return elas(["fit", *arguments])


def install() -> None:
    """Put a ``lightning`` command beside this interpreter, unless there is one."""
    target = Path(sys.executable).parent / "lightning"
    if target.exists():
        return
    staged = target.with_name(f".lightning.{os.getpid()}")
    staged.write_text(_SCRIPT.format(python=sys.executable))
    staged.chmod(staged.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    try:
        os.link(staged, target)  # fails rather than overwrite, also when two set-ups race
    except FileExistsError:
        pass
    finally:
        staged.unlink()


if __name__ == "__main__":
    install()
