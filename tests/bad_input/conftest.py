"""A small project to make mistakes in, and the one way in which each must be refused."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from good_sweep import GRID

from elas_lightning.cli import main


class Place:
    """The working directory: ``experiments/``, ``sweeps/grid.yaml`` and ``run.yaml``, all of them good.

    Args:
        root: The directory.
        capture: pytest's, for what is printed.
    """

    def __init__(self, root: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capture = capture
        self.printed = ""

    def write(self, name: str, content: Any) -> str:
        """Write a file: bytes and text as they are, anything else as YAML. Gives its name back."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False))
        return name

    def files(self) -> dict[str, str]:
        """Every file and folder below, with a digest of what is in it."""
        return {
            str(path.relative_to(self.root)): "" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.root.rglob("*"))
            if "cache" not in path.relative_to(self.root).parts  # what may be thrown away at any time
        }

    def refuses(self, *arguments: str, saying: str) -> None:
        """Run a command and see it refused: exit code 2, one line that says all of ``saying``, nothing changed.

        Args:
            arguments: Of ``elas``.
            saying: What the line must hold, in parts between ``…``.
        """
        before = self.files()
        self._capture.readouterr()
        try:
            code = main(arguments)
        except SystemExit as exit_:  # argparse's way
            code = exit_.code  # type: ignore[assignment]
        self.printed, error = self._capture.readouterr()
        assert code == 2, error
        assert error.startswith("error: "), error
        assert error.count("\n") == 1, error
        assert len(error) < 700, error
        rest = error
        for part in saying.split("…"):
            assert part in rest, f"{part!r} is missing in {error!r}"
            rest = rest[rest.index(part) + len(part) :]
        after = self.files()
        assert {name for name in after if name not in before} == set(), "left behind"
        assert after == before


@pytest.fixture
def place(
    write_overlay: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Place:
    """Where the mistake is made."""
    root = tmp_path / "place"
    made = Place(root, capsys)
    for method, placement in (("dense", []), ("elas", ["ffn_hidden"])):
        made.write(f"experiments/methods/{method}.yaml", {"model": {"config": {"sparsity": {"placement": placement}}}})
    made.write("sweeps/grid.yaml", GRID)
    made.write("experiments/data/own.yaml", {"data": {"num_workers": 0}})
    made.write("experiments/sizes/small.yaml", write_overlay(root).read_text())
    monkeypatch.chdir(root)
    return made


@pytest.fixture(scope="session")
def finished_run(write_overlay: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with its result and its checkpoint."""
    folder = tmp_path_factory.mktemp("finished")
    directory = folder / "run"
    arguments = [f"--config={write_overlay(folder)}", f"--trainer.default_root_dir={directory}"]
    assert main(["fit", *arguments, "--checkpoint.every_n_train_steps=4"]) == 0
    return directory


@pytest.fixture
def run_here(place: Place, finished_run: Path) -> Path:
    """The finished run, copied into the place as ``mine``."""
    shutil.copytree(finished_run, place.root / "mine")
    return Path("mine")
