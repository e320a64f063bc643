"""Checkpoints whose writer dies at every stage, that are torn afterwards, that find no room, or that are not ours."""

import errno
import os
import random
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from fitting import Forked

from elas_lightning.errors import UserError
from elas_lightning.files import write_atomically
from elas_lightning.training import checkpoints
from elas_lightning.training.checkpoints import SafeCheckpointIO, TornCheckpoint, newest_usable, read, take_up, verify


def _content(step: int) -> dict[str, Any]:
    weights = {"w": torch.full((5000,), float(step))}
    return {"state_dict": weights, "global_step": step, "pytorch-lightning_version": "2"}


def _save(folder: Path, step: int) -> None:
    SafeCheckpointIO().save_checkpoint(_content(step), folder / "last.ckpt")


def _step(path: Path | None) -> int:
    assert path is not None
    content = SafeCheckpointIO().load_checkpoint(path)
    step: int = content["global_step"]
    assert torch.equal(content["state_dict"]["w"], _content(step)["state_dict"]["w"])
    return step


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _dying_before(function: Callable[..., Any], call: int) -> Callable[..., Any]:
    left = [call]

    def dies(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            _die()
        return function(*arguments, **named)

    return dies


def _half(file: BinaryIO) -> None:
    file.write(b"PK\x03\x04" + bytes(3000))
    file.flush()
    _die()


def save_and_die(folder: Path, stage: str) -> None:
    """Save step 3, and be killed on the way: in a process of its own."""
    if stage == "while writing":
        torch.save = lambda content, file: _half(file)  # type: ignore[assignment]
    elif stage == "before the file is on the disk":
        os.fsync = _dying_before(os.fsync, 1)
    elif stage == "before it is read back":
        checkpoints.verify = _dying_before(verify, 1)
    elif stage == "before the old one is moved":
        os.replace = _dying_before(os.replace, 1)
    elif stage == "before the new one takes its place":
        os.replace = _dying_before(os.replace, 2)
    elif stage == "before the folder is on the disk":
        os.fsync = _dying_before(os.fsync, 2)
    _save(folder, 3)
    _die()


@pytest.mark.parametrize(
    ("stage", "kept", "before"),
    [
        ("while writing", 2, 1),
        ("before the file is on the disk", 2, 1),
        ("before it is read back", 2, 1),
        ("before the old one is moved", 2, 1),
        ("before the new one takes its place", 2, None),
        ("before the folder is on the disk", 3, 2),
        ("after it", 3, 2),
    ],
)
def test_a_killed_writer_leaves_a_good_checkpoint(tmp_path: Path, stage: str, kept: int, before: int | None) -> None:
    for step in (1, 2):
        _save(tmp_path, step)
    assert Forked(save_and_die, tmp_path, stage).end() == -signal.SIGKILL
    assert _step(take_up(tmp_path)) == kept
    files = {"last.ckpt", "previous.ckpt"} if before is not None else {"previous.ckpt"}
    assert {path.name for path in tmp_path.iterdir()} == files
    if before is not None:
        assert _step(tmp_path / "previous.ckpt") == before
    _save(tmp_path, 4)
    assert _step(take_up(tmp_path)) == 4


def _cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": _cut,
    "flipped": _flip,
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "foreign": lambda data: b"not a checkpoint\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_torn_newest_one_gives_way_to_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    for step in (1, 2):
        _save(tmp_path, step)
    last = tmp_path / "last.ckpt"
    last.write_bytes(damage(last.read_bytes()))
    with pytest.raises(TornCheckpoint, match=r"last\.ckpt cannot be read"):
        SafeCheckpointIO().load_checkpoint(last)
    assert _step(take_up(tmp_path)) == 1
    assert "last.ckpt): going on from the one before" in caplog.text
    assert "previous.ckpt" in caplog.text
    # the torn one is out of the way: it does not become the previous one
    _save(tmp_path, 3)
    assert {_step(path) for path in tmp_path.glob("*.ckpt")} == {1, 3}
    _save(tmp_path, 4)
    assert {_step(path) for path in tmp_path.glob("*.ckpt")} == {3, 4}


def test_if_all_are_torn_both_are_named_and_left(tmp_path: Path) -> None:
    for step in (1, 2):
        _save(tmp_path, step)
    for path in tmp_path.iterdir():
        path.write_bytes(_cut(path.read_bytes()))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TornCheckpoint, match=r"all checkpoints are torn \(.*last\.ckpt, .*previous\.ckpt\)"):
        take_up(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_flipped_bit_changes_what_is_read(tmp_path: Path) -> None:
    path, draw = tmp_path / "last.ckpt", random.Random(0)
    content = {**_content(7), "state_dict": {"w": torch.arange(40.0)}}
    SafeCheckpointIO().save_checkpoint(content, path)
    whole, found = path.read_bytes(), 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        try:
            verify(path)
            loaded = read(path)
        except UserError:
            found += 1
            continue
        assert loaded["global_step"] == 7
        assert torch.equal(loaded["state_dict"]["w"], content["state_dict"]["w"])
    assert found > 100  # the rest hit padding and dates


def test_a_full_disk_costs_one_line_and_nothing_else(tmp_path: Path) -> None:
    for step in (1, 2):
        _save(tmp_path, step)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        with pytest.raises(UserError, match=r"last\.ckpt cannot be written \(File too large\): .* untouched"):
            _save(tmp_path, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_room_when_the_file_is_forced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        _save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert _step(tmp_path / "last.ckpt") == 1


def test_a_disk_that_returns_other_bytes_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 1)

    def save(content: Any, file: BinaryIO) -> None:
        file.write(_flip((tmp_path / "last.ckpt").read_bytes()))

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(TornCheckpoint, match=r"last\.ckpt\.tmp cannot be read"):
        _save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert _step(tmp_path / "last.ckpt") == 1


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(UserError, match=r"cannot be written \(File exists\)"):
        _save(tmp_path / "checkpoints", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere; runs for other users")
def test_a_read_only_folder(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        _save(tmp_path, 2)
    tmp_path.chmod(0o700)
    assert _step(take_up(tmp_path)) == 1


class _Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_no_file_runs_code(tmp_path: Path) -> None:
    bomb = tmp_path / "last.ckpt"
    torch.save({**_content(1), "bomb": _Bomb(tmp_path / "exploded")}, bomb)
    verify(bomb)  # it is whole
    for weights_only in (None, False):
        with pytest.raises(UserError, match=r"last\.ckpt cannot be read \(UnpicklingError\)"):
            SafeCheckpointIO().load_checkpoint(bomb, weights_only=weights_only)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [[1, 2], {"weights": 1}, torch.zeros(3)])
def test_what_is_no_checkpoint_of_a_run_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match=r"other\.ckpt is not the checkpoint of a run"):
        SafeCheckpointIO().load_checkpoint(tmp_path / "other.ckpt")


def test_there_are_always_two(tmp_path: Path) -> None:
    """Also where Lightning names each save and removes the one before."""
    io = SafeCheckpointIO()
    for step in (1, 2, 3):
        io.save_checkpoint(_content(step), tmp_path / f"step={step}.ckpt")
        if step > 1:
            io.remove_checkpoint(tmp_path / f"step={step - 1}.ckpt")
    assert {path.name for path in tmp_path.iterdir()} == {"previous.ckpt", "step=3.ckpt"}
    assert _step(newest_usable(tmp_path)) == 3
    assert _step(tmp_path / "previous.ckpt") == 2


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert take_up(tmp_path / "nowhere") is None
    assert newest_usable(tmp_path) is None


def test_any_file_can_be_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "figures.csv"
    write_atomically(path, lambda file: file.write(b"1"))

    def fails(file: BinaryIO) -> None:
        file.write(b"2")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fails)
    assert path.read_bytes() == b"1"
    assert [p.name for p in tmp_path.iterdir()] == ["figures.csv"]
