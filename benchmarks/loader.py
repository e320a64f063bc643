"""Time training loaders side by side: tokens that are no padding, a second, on the same text with the same workers.

The baseline is the loader that GaLore's code made common (``galore`` below): every worker has a share of the documents,
hands each of them alone to a ``transformers`` tokenizer, which cuts or pads it to the sequence length, and stacks what
comes back. Ours are the streams that training reads: text with truncated rows, text with packed rows, token shards with
either. All read the same shards with the same tokenizer; a turn counts what a number of batches holds that is not
padding, after the workers have started.

    python benchmarks/loader.py --workers 0 2 --json benchmarks/results/loader_cpu.json
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from measuring import Record, ratios, rounds_of, spread

from elas_lightning.commands.arguments import Parser, at_least_one
from elas_lightning.data import C4DataModule
from elas_lightning.data.prepare import prepare
from elas_lightning.errors import UserError

BASELINE = "GaLore-family loader"
STARTING_BATCHES = 4  # taken before the clock starts, for each worker


class AloneAndPadded(IterableDataset[dict[str, torch.Tensor]]):
    """The GaLore family's way, written anew from its description.

    Args:
        shards: of text, in C4's format.
        tokenizer: of ``transformers``.
        batch_size: documents of a batch.
        length: positions of each.
    """

    def __init__(self, shards: tuple[str, ...], tokenizer: Any, batch_size: int, length: int) -> None:
        self.shards, self.tokenizer, self.batch_size, self.length = shards, tokenizer, batch_size, length

    def _texts(self) -> Iterator[str]:
        while True:
            for shard in self.shards:
                with gzip.open(shard, "rt", encoding="utf-8") as file:
                    for line in file:
                        yield json.loads(line)["text"]

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        worker = get_worker_info()
        texts = self._texts() if worker is None else islice(self._texts(), worker.id, None, worker.num_workers)
        while True:
            rows = [
                self.tokenizer(text, max_length=self.length, truncation=True, padding="max_length", return_tensors="pt")
                for text in islice(texts, self.batch_size)
            ]
            yield {
                name: torch.stack([row[name].squeeze(0) for row in rows]) for name in ("input_ids", "attention_mask")
            }


def galore(data: C4DataModule, workers: int) -> Callable[[], Generator[int, None, None]]:
    """The baseline on the shards of ``data``: how many real tokens each batch holds.

    Raises:
        UserError: ``transformers`` is not installed.
    """
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise UserError("the baseline needs transformers: pip install 'elas-lightning[export]'") from error

    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        file.write(data.text_tokenizer.definition)
        file.flush()
        end = data.text_tokenizer.end_token
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=file.name, eos_token=end, pad_token=end)

    def batches() -> Generator[int, None, None]:
        dataset = AloneAndPadded(data.corpus.train, tokenizer, data.batch_size, data.sequence_length)
        for batch in DataLoader(dataset, None, num_workers=workers, worker_init_fn=_without_threads):
            yield int(batch["attention_mask"].sum())

    return batches


def _without_threads(_: int) -> None:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as in our workers; they would not survive the fork


def ours(data: C4DataModule) -> Callable[[], Generator[int, None, None]]:
    """The stream that training reads: positions that are no padding, batch by batch."""
    end = data.text_tokenizer.end_id

    def batches() -> Generator[int, None, None]:
        for batch in data.train_dataloader():
            ids = batch["input_ids"]
            # padding is a run of end tokens behind the first of them
            yield int(ids.numel() - ((ids[:, 1:] == end) & (ids[:, :-1] == end)).sum())

    return batches


def turn(batches: Callable[[], Generator[int, None, None]], count: int, workers: int) -> float:
    """Seconds for each million tokens that are no padding."""
    iterator = batches()
    for _ in range(STARTING_BATCHES * max(1, workers)):  # workers start and fill their queues
        next(iterator)
    began = time.perf_counter()
    tokens = sum(islice(iterator, count))
    seconds = time.perf_counter() - began
    iterator.close()  # and with it the workers
    return seconds / tokens * 1e6


def run_case(text: dict[str, Any], prepared: Path, workers: int, options: argparse.Namespace) -> dict[str, Any]:
    """All contenders with one number of workers, taking turns."""

    def data(**changes: Any) -> C4DataModule:
        module = C4DataModule(**{**text, "num_workers": workers, **changes})
        module.setup("fit")
        return module

    tokens = {"source": "tokens", "path": str(prepared), "tokenizer": "auto"}
    contenders = {
        BASELINE: galore(data(), workers),
        "ours, text, truncate": ours(data()),
        "ours, text, pack": ours(data(batching="pack")),
        "ours, token shards, truncate": ours(data(**tokens)),
        "ours, token shards, pack": ours(data(batching="pack", **tokens)),
    }
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(options.rounds):
        for position in range(len(names)):
            name = names[(number + position) % len(names)]
            # what is fast takes more batches, so that every turn is long enough for the clock
            count = options.batches * (1 if name == BASELINE else 20 if "token shards" in name else 5)
            seconds[name].append(turn(contenders[name], count, workers))
    rows = {}
    for name in names:
        against = ratios(seconds[BASELINE], seconds[name])
        rate = 1e6 / statistics.median(seconds[name])
        rows[name] = {
            "seconds_per_million_tokens": spread(seconds[name]),
            "tokens_per_second": rate,
            "speed_against": {BASELINE: against},
        }
        print(
            f"  {name:30} {rate:12,.0f} tokens/s  {against['median']:6.2f} times "
            f"({against['p20']:.2f} to {against['p80']:.2f})",
            flush=True,
        )
    return {
        "workers": workers,
        "batch": options.batch,
        "sequence": options.sequence,
        "batches_of_a_turn": options.batches,
        "rounds": options.rounds,
        "corpus": f"{text['source']} ({data().fingerprint})",
        "tokenizer": f"{data().text_tokenizer.name} ({data().text_tokenizer.fingerprint})",
        "contenders": rows,
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = Parser("elas bench loader", description="Time training loaders side by side.")
    parser.add_argument("--source", choices=["pydocs", "local"], default="pydocs")
    parser.add_argument("--path", help="of local shards")
    parser.add_argument("--tokenizer", default="auto", help="as data.tokenizer")
    parser.add_argument("--lanes", type=int, default=16)
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2], help="loader processes, a case each")
    parser.add_argument("--batch", type=int, default=16, help="rows")
    parser.add_argument("--sequence", type=int, default=256, help="positions of a row")
    parser.add_argument("--batches", type=at_least_one, default=100, help="of a turn")
    parser.add_argument("--rounds", type=rounds_of, default=7, help="measured rounds")
    parser.add_argument("--json", type=Path, help="where to write the record, after every case")
    return parser.parse_args()


def main() -> None:
    """Prepare token shards of the text, then run the cases one after the other."""
    options = parse()
    text = {
        "source": options.source,
        "path": options.path,
        "tokenizer": options.tokenizer,
        "sequence_length": options.sequence,
        "batch_size": options.batch,
        "lanes": options.lanes,
        "shuffle_block": 128,
        "batching": "truncate",
    }
    record = Record("loader", torch.device("cpu"), torch.float32, options.json)
    with tempfile.TemporaryDirectory() as folder:
        data = C4DataModule(**text)
        prepare(data.corpus, data.text_tokenizer, Path(folder) / "tokens", workers=2)
        for workers in options.workers:
            print(f"{workers} workers, {options.batch} x {options.sequence} positions")
            record.add(run_case(text, Path(folder) / "tokens", workers, options))


if __name__ == "__main__":
    main()
