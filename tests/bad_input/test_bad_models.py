"""Checkpoints and model folders that are torn, foreign or of something else, for all commands that read one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

LAST = Path("mine/checkpoints/last.ckpt")


def _torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def _flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _text(path: Path) -> None:
    path.write_text("no checkpoint")


def _foreign(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def _list(path: Path) -> None:
    torch.save([1, 2, 3], path)


class _Evil:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return print, ("code of the file's own was run",)


def _pickled(path: Path) -> None:
    torch.save({"state_dict": _Evil(), "global_step": 1}, path)


def _bare(path: Path) -> None:
    torch.save({"state_dict": {}, "global_step": 1}, path)


CHECKPOINTS = {
    "torn": _torn,
    "flipped": _flipped,
    "empty": _empty,
    "text": _text,
    "foreign": _foreign,
    "list": _list,
    "pickled-code": _pickled,
    "bare": _bare,
}
READERS: dict[str, tuple[str, ...]] = {
    "fit": ("fit", "--config", "run.yaml", f"--ckpt_path={LAST}"),
    "validate": ("validate", "--config", "run.yaml", f"--ckpt_path={LAST}"),
    "generate": ("generate", str(LAST), "once"),
    "export": ("export", str(LAST), "out"),
    "eval": ("eval", str(LAST), "--text", "run.yaml"),
}


@pytest.mark.parametrize("command", READERS)
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints(place: Any, run_here: Path, kind: str, command: str) -> None:
    CHECKPOINTS[kind](LAST)
    place.refuses(*READERS[command], saying="last.ckpt")
    assert "code of the file" not in place.printed


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_of_another_model(place: Any, run_here: Path, command: str) -> None:
    place.refuses(*READERS[command], "--model.config.ffn_rank=2", saying="ffn_rank…4")


def test_a_run_of_another_configuration(place: Any, run_here: Path) -> None:
    arguments = ("fit", "--config", "run.yaml", "--trainer.default_root_dir=mine", "--data.batch_size=2")
    place.refuses(*arguments, saying="mine…data.batch_size")


def test_a_run_whose_configuration_is_torn(place: Any, run_here: Path) -> None:
    (run_here / "config.yaml").write_text("model: [1")
    place.refuses("fit", "--config", "run.yaml", "--trainer.default_root_dir=mine", saying="mine…delete it")


def test_a_run_whose_configuration_is_another_thing(place: Any, run_here: Path) -> None:
    (run_here / "config.yaml").write_text("- 1\n")
    place.refuses("fit", "--config", "run.yaml", "--trainer.default_root_dir=mine", saying="mine…delete it")


@pytest.mark.parametrize(
    ("arguments", "saying"),
    [
        (["generate", "nowhere", "once"], "nowhere"),
        (["generate", "experiments", "once"], "no checkpoint in experiments"),
        (["generate", "x" * 300, "once"], "there is no checkpoint xxx"),
        (["generate", "mine"], "prompt"),
        (["generate", "mine", ""], "prompt"),
        (["generate", "mine", "once", "--temperature", "-1"], "temperature"),
        (["generate", "mine", "once", "--temperature", "nan"], "temperature"),
        (["generate", "mine", "once", "--top-p", "0"], "top_p"),
        (["generate", "mine", "once", "--top-p", "2"], "top_p"),
        (["generate", "mine", "once", "--max-new-tokens", "-1"], "max_new_tokens"),
        (["generate", "mine", "once", "--max-new-tokens", "many"], "--max-new-tokens…many"),
        (["generate", "mine", "once", "--device", "abacus"], "device 'abacus'"),
        (["generate", "mine", "once", "--device", "cuda:99"], "device 'cuda:99'"),
        (["export", "mine", "run.yaml"], "run.yaml"),
        (["export", "mine", "experiments"], "experiments"),
        (["export", "mine", "out", "--form", "onnx"], "--form…onnx"),
        (["export", "mine", "out", "--dtype", "int8"], "--dtype…int8"),
        (["export", "mine", "out", "--eval-tokens", "-1"], "eval-tokens"),
        (["export", "mine", "run.yaml/below"], "run.yaml/below cannot be written to"),
        (["export", "mine", "/proc/nowhere"], "/proc/nowhere cannot be written to"),
        (["generate", "mine", "x", "--seed", "-1"], "seed = -1…0 or more"),
        (["generate", "mine", "x", "--seed", "9" * 20], "seed = 999…below 2^63"),
        (["import", "nowhere", "out"], "nowhere"),
        (["import", "experiments", "out"], "experiments"),
        (["import", "run.yaml", "out"], "run.yaml"),
        (["eval", "mine"], "--text FILE"),
        (["eval", "mine", "--text", "nowhere.txt"], "nowhere.txt"),
        (["eval", "mine", "--text", "experiments/sizes"], "experiments/sizes"),
        (["eval", "mine", "--text", "run.yaml", "--length", "1"], "--length"),
        (["eval", "mine", "--text", "run.yaml", "--stride", "100"], "--stride"),
        (["eval", "mine", "--text", "run.yaml", "--batch-size", "0"], "--batch-size"),
        (["eval", "mine", "--text", "run.yaml", "--limit", "0"], "--limit"),
        (["eval", "mine", "--text", "run.yaml", "--device", "abacus"], "abacus"),
        (["eval", "mine", "--tasks", "nothing_at_all", "--include", "nowhere"], "nowhere"),
        (["eval", "mine", "--text", "run.yaml", "--json", "experiments"], "experiments"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options(place: Any, run_here: Path, arguments: list[str], saying: str) -> None:
    place.refuses(*arguments, saying=saying)


def test_text_that_is_not_utf8(place: Any, run_here: Path) -> None:
    place.write("latin.txt", b"caf\xe9")
    place.refuses("eval", "mine", "--text", "latin.txt", saying="latin.txt")


def test_text_that_is_empty(place: Any, run_here: Path) -> None:
    place.write("empty.txt", "")
    place.refuses("eval", "mine", "--text", "empty.txt", saying="empty.txt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "no json"),
        ("config.json", "[]"),
        ("config.json", '{"model_type": "bert"}'),
        ("config.json", '{"model_type": "llama"}'),
    ],
)
def test_foreign_model_folders(place: Any, name: str, content: str) -> None:
    place.write(f"theirs/{name}", content)
    place.refuses("import", "theirs", "out", saying="theirs")


def _factors(place: Any) -> Path:
    from elas_lightning.cli import main

    assert main(["export", "mine", "factors", "--form", "factors", "--eval-tokens", "0"]) == 0
    return Path("factors")


@pytest.mark.parametrize("damage", ["weights", "facts", "tokenizer"])
def test_damaged_model_folders(place: Any, run_here: Path, damage: str) -> None:
    folder = _factors(place)
    ending = {"weights": "*.safetensors", "facts": "config.json", "tokenizer": "tokenizer.json"}[damage]
    file = next(iter(folder.glob(ending)), None)
    assert file is not None, sorted(folder.iterdir())
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    place.refuses("generate", "factors", "once", saying="factors")
