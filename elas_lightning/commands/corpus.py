"""``elas data``: token shards made, and what a model will see of a corpus, in a terminal."""

import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from elas_lightning.configuration import resolve
from elas_lightning.data import inspection
from elas_lightning.data import prepare as preparation
from elas_lightning.data.inspection import Amount
from elas_lightning.data.module import C4DataModule
from elas_lightning.data.rows import Batching
from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.errors import UserError

_SHOWN_CHARACTERS = 160  # of each document in a row
_BAR = 28


def prepare(overlays: Sequence[Path], overrides: dict[str, Any], out: Path, workers: int) -> None:
    """Tokenize a source into a folder of token shards.

    Raises:
        UserError: the configuration, the source or the folder will not do.
    """
    if workers < 1:
        raise UserError(f"--workers {workers} is too small; it must be at least 1")
    data = C4DataModule(**resolve(overlays, overrides)["data"])
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("shards, {task.fields[documents]:,} documents"),
        TimeElapsedColumn(),
    )
    began = time.perf_counter()
    seen = preparation.Progress(0, 0, 0)
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("tokenizing", total=None, documents=0)

        def report(progress: preparation.Progress) -> None:
            nonlocal seen
            seen = progress
            bar.update(task, completed=progress.done, total=progress.shards, documents=progress.documents)

        manifest = preparation.prepare(data.corpus, data.text_tokenizer, out, workers, report)
    records = manifest.records.values()
    documents, tokens, text_bytes = (
        sum(getattr(record, name) for record in records) for name in ("documents", "tokens", "text_bytes")
    )
    console.print(
        f"{out}: {len(manifest.train)} training and {len(manifest.validation)} validation shards, {documents:,} "
        f"documents, {tokens:,} tokens ({text_bytes / max(1, tokens):.2f} bytes a token)",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    if seen.documents:
        console.print(f"{seen.documents / (time.perf_counter() - began):,.0f} documents a second", highlight=False)
    console.print(
        f"train from them by stacking: --config experiments/data/tokens.yaml {shlex.quote(f'--data.path={out}')}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def inspect(overlays: Sequence[Path], overrides: dict[str, Any], documents: int, rows: int, verify: bool) -> None:
    """Print what a configuration's model will see.

    Args:
        overlays: of the configuration.
        overrides: dotted keys over them.
        documents: how many to measure.
        rows: how many to print.
        verify: read every file to its end first.

    Raises:
        UserError: the configuration or the corpus will not do, or a file is damaged.
    """
    if documents < 1 or rows < 0:
        raise UserError(f"--documents {documents} --rows {rows}: at least one document and no fewer than 0 rows")
    config = resolve(overlays, overrides)
    data = C4DataModule(**config["data"])
    data.prepare_data()
    data.setup("fit")
    console = Console()
    console.print(_corpus_table(data))
    if verify:
        if wrong := inspection.damaged_files(data):
            raise UserError(f"{len(wrong)} damaged file(s): " + "; ".join(wrong))
        console.print("every file was read to its end and is whole\n")
    lengths = inspection.sample_lengths(data, documents)
    size = inspection.corpus_size(data, float(lengths.mean()))
    console.print(_lengths_table(lengths))
    _print_histogram(console, lengths, data.sequence_length)
    console.print(_rows_table(lengths, data))
    console.print(_amounts_table(config, data, lengths, size))
    if rows:
        console.print(f"[bold]First rows of training[/] (seed {data.seed}, batching {data.batching})")
    for number, row in enumerate(inspection.first_rows(data, rows)):
        console.print(f"[bold]{number}[/] {_row_in_words(row, data.text_tokenizer)}\n", highlight=False)


def _plain_table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    return table


def _corpus_table(data: C4DataModule) -> Table:
    table = Table.grid(padding=(0, 2))
    corpus, tokenizer = data.corpus, data.text_tokenizer
    form = "text" if corpus.tokenizer is None else "token shards"
    splits = f"{len(corpus.train):,} for training, {len(corpus.validation):,} for validation"
    for name, value in (
        ("corpus", f"{corpus.name} ({corpus.fingerprint}), read as {form}"),
        ("shards", f"{splits}, {data.lanes} lanes"),
        ("tokenizer", f"{tokenizer.name} ({tokenizer.fingerprint}), {tokenizer.vocab_size:,} ids"),
        ("", ""),
    ):
        table.add_row(name, escape(value))
    return table


def _lengths_table(lengths: np.ndarray) -> Table:
    marks = (5, 25, 50, 75, 95, 99)
    title = f"Tokens of a document (sample of {len(lengths):,})"
    table = _plain_table(title, "", "mean", *(f"{mark} %" for mark in marks), "longest")
    figures = [lengths.mean(), *np.percentile(lengths, marks), lengths.max()]
    table.add_row("tokens", *(f"{figure:,.0f}" for figure in figures))
    return table


def _print_histogram(console: Console, lengths: np.ndarray, sequence_length: int) -> None:
    """Shares of documents and of tokens by length, in powers of two."""
    powers = np.floor(np.log2(lengths)).astype(int)
    table = _plain_table("", "tokens", "documents", "of all tokens", "")
    largest = np.bincount(powers).max()
    for power in range(powers.min(), powers.max() + 1):
        own = powers == power
        first, last = 1 << power, (2 << power) - 1
        mark = " ← T" if first <= sequence_length <= last else ""
        bar = "█" * math.ceil(_BAR * own.sum() / largest)
        table.add_row(
            f"{first:,}–{last:,}" if last > first else f"{first:,}",
            f"{own.mean():.1%}",
            f"{lengths[own].sum() / lengths.sum():.1%}",
            bar + mark,
        )
    table.columns[-1].justify = "left"
    console.print(table)
    console.print()


def _rows_table(lengths: np.ndarray, data: C4DataModule) -> Table:
    columns = ("batching", "rows a document", "padding", "with a target", "text cut off")
    table = _plain_table(f"Rows of {data.sequence_length} positions", *columns)
    for name in get_args(Batching):
        share = inspection.shares(name, lengths, data.sequence_length)
        table.add_row(
            f"{name} (configured)" if name == data.batching else name,
            f"{share.rows:.2f}",
            f"{share.padding:.1%}",
            f"{share.targets:.1%}",
            f"{share.cut_off:.1%}",
        )
    return table


def _amounts_table(
    config: dict[str, Any], data: C4DataModule, lengths: np.ndarray, size: tuple[Amount, Amount] | None
) -> Table:
    table = Table.grid(padding=(0, 2))
    shares = inspection.shares(data.batching, lengths, data.sequence_length)
    table.add_row("", "")
    if size is None:
        table.add_row("training split", "not counted, since that would take a download")
    else:
        documents, tokens = size
        table.add_row("training split", f"{_amount(documents)} documents, {_amount(tokens)} tokens")
    trainer = config["trainer"]
    steps, ranks = trainer["max_steps"], _ranks(trainer)
    if steps > 0:
        rows = steps * trainer["accumulate_grad_batches"] * data.batch_size * ranks
        targets = rows * data.sequence_length * shares.targets
        seen = rows / shares.rows
        epochs = "" if size is None else f", {seen / size[0].number:.2f} epochs"
        table.add_row(
            "configured run",
            f"{steps:,} steps on {ranks} rank(s): {rows:,} rows, about {targets:,.0f} targets of {seen:,.0f} "
            f"documents{epochs}",
        )
    table.add_row("", "")
    return table


def _amount(amount: Amount) -> str:
    return f"{amount.number:,.0f}" if amount.exact else f"about {amount.number:,.0f}"


def _ranks(trainer: dict[str, Any]) -> int:
    """Processes of a run, one where the machine decides."""
    devices = trainer["devices"]
    if isinstance(devices, list):
        devices = len(devices)
    return (devices if isinstance(devices, int) and devices > 0 else 1) * int(trainer["num_nodes"])


def _row_in_words(row: list[int], tokenizer: TextTokenizer) -> str:
    documents, padding = inspection.segments(row, tokenizer.end_id)
    words = []
    for ids in documents:
        text = " ".join(tokenizer.decode(ids).split())
        if len(text) > _SHOWN_CHARACTERS:
            half = _SHOWN_CHARACTERS // 2
            text = f"{text[:half]} […] {text[-half:]}"
        border = " [green]⟨end⟩[/]" if ids[-1] == tokenizer.end_id else " [green]⟨row ends⟩[/]"
        words.append(escape(text) + border)
    if padding:
        words.append(f"[dim]⟨padding × {padding}⟩[/]")
    return " ".join(words)
