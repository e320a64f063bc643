"""Finding overlays, sweeps and places for runs."""

from pathlib import Path

import pytest

from elas_lightning.errors import UserError
from elas_lightning.layout import new_run_directory, overlay_path, shipped_folder, sweep_folder, sweep_path


def test_the_working_directorys_folder_comes_before_the_checkouts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (shipped_folder("experiments") / "sizes" / "tiny.yaml").is_file()
    (tmp_path / "experiments").mkdir()
    assert shipped_folder("experiments").resolve() == tmp_path / "experiments"


def test_an_unknown_overlay_lists_its_neighbours() -> None:
    with pytest.raises(UserError, match=r"no overlay .*sizes/61m\.yaml: choose one of .*60m.*tiny"):
        overlay_path("sizes/61m")


def test_an_unknown_sweep_lists_those_there_are() -> None:
    with pytest.raises(UserError, match=r"no sweep named 'rnak': choose one of .*rank_ablation"):
        sweep_path("rnak")


def test_a_sweep_may_be_a_file_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.touch()
    assert sweep_path(str(mine)) == mine
    with pytest.raises(UserError, match="no file"):
        sweep_path(str(tmp_path / "other.yaml"))


def test_asked_for_sizes_and_data_have_folders_of_their_own() -> None:
    assert sweep_folder("rank_ablation", None, None) == Path("runs/rank_ablation")
    assert sweep_folder("some/rank_ablation.yaml", "60m", "c4") == Path("runs/rank_ablation_60m_c4")


def test_run_directories_are_numbered_and_never_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [new_run_directory("fit").name for _ in range(3)] == ["000", "001", "002"]
    (tmp_path / "runs/fit/mine").mkdir()
    assert new_run_directory("fit").name == "003"
