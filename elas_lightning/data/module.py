"""``C4DataModule``: streamed text for training and validation, with a place that survives any restart."""

import hashlib
import inspect
import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from elas_lightning.data import unigram
from elas_lightning.data.cache import cache_root
from elas_lightning.data.lanes import Place, StreamConfig, TrainStream
from elas_lightning.data.loaders import TrainLoader, ValidationBatches, ValidationSet, train_loader
from elas_lightning.data.rows import Batching
from elas_lightning.data.shards import OnDamage
from elas_lightning.data.sources import Source, SourceName, as_it_was, open_source
from elas_lightning.data.tokenizer import TextTokenizer, load_tokenizer
from elas_lightning.errors import UserError
from elas_lightning.ranks import of_every_rank, rank_and_world_size

# Not num_workers, cache_dir, on_damaged_shard and the validation options: they leave the training order as it is.
_SIGNATURE = ("sequence_length", "batch_size", "batching", "seed", "lanes", "shuffle_block")
_CHOICES = {"source": get_args(SourceName), "batching": get_args(Batching), "on_damaged_shard": get_args(OnDamage)}
_LEAST = {
    "sequence_length": 2,
    "batch_size": 1,
    "num_workers": 0,
    "lanes": 1,
    "shuffle_block": 1,
    "validation_tokens": 1,
    "validation_batch_size": 1,
}


class C4DataModule(L.LightningDataModule):
    """Batches of C4, of local shards of text or tokens, or of the documentation of the installed packages.

    Train batches come without end in an order that depends on the arguments marked (order) and not on the
    number of ranks or workers. A checkpoint holds the place of the last batch that was trained on, whatever
    was prefetched, and any number of ranks that divides ``lanes`` can go on from it.

    Args:
        source: ``pydocs`` (made here, no network), ``c4`` (streamed from the hub), ``local`` (shards in C4's format)
            or ``tokens`` (what ``elas data prepare`` made of one of the others: the same batches). (order)
        path: folder of ``c4-train.*.json.gz`` and ``c4-validation.*.json.gz`` for ``local``, of token shards for
            ``tokens``. (order)
        revision: commit of ``allenai/c4``; None for the pinned one; only for ``c4``. (order)
        tokenizer: ``auto`` (``tokens``: theirs; ``pydocs``: its own byte-level BPE of 4,096; else ``t5-base``), the
            path of a ``tokenizer.json``, or a model on the hub, ``name`` or ``name@commit``. (order)
        sequence_length: positions of a row, T. (order)
        batch_size: rows of a micro-batch, on each rank. (order)
        batching: ``truncate`` (the paper's: one row a document, cut or padded) or ``pack`` (rows without
            padding; no target crosses from one document into the next). (order)
        seed: of the data's order, apart from the seed of the initialisation. (order)
        num_workers: loader processes on each rank; world size times workers must divide ``lanes``.
        lanes: logical streams, at most as many as training shards (``pydocs`` 16, C4 1,024). (order)
        shuffle_block: documents of a lane that are shuffled together. (order)
        on_damaged_shard: ``stop`` the run at a training shard that cannot be read to its end, or ``skip`` the rest of
            it: named in a warning and in the result file, and remembered in checkpoints.
        validation_tokens: targets of the validation set; the whole split where it has fewer.
        validation_batch_size: rows of a validation batch on each rank; does not change the set.
        cache_dir: folder for what is made once; None for ``$ELAS_CACHE_DIR`` or the user's cache folder.

    Raises:
        UserError: an argument out of range. What needs the corpus (a missing folder, say) is checked by
            ``prepare_data``, ``setup`` or the first batch.
    """

    def __init__(
        self,
        source: SourceName = "pydocs",
        path: str | None = None,
        revision: str | None = None,
        tokenizer: str = "auto",
        sequence_length: int = 256,
        batch_size: int = 16,
        batching: Batching = "truncate",
        seed: int = 0,
        num_workers: int = 0,
        lanes: int = 16,
        shuffle_block: int = 1024,
        on_damaged_shard: OnDamage = "stop",
        validation_tokens: int = 10_000_000,
        validation_batch_size: int = 32,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.path = path
        self.revision = revision
        self.tokenizer = tokenizer
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.batching: Batching = batching
        self.seed = seed
        self.num_workers = num_workers
        self.lanes = lanes
        self.shuffle_block = shuffle_block
        self.on_damaged_shard: OnDamage = on_damaged_shard
        self.validation_tokens = validation_tokens
        self.validation_batch_size = validation_batch_size
        self.cache_dir = cache_dir
        # into checkpoints, whose readers need the tokenizer; named one by one, since Lightning would add its own
        arguments = {name: getattr(self, name) for name in inspect.signature(C4DataModule).parameters}
        self._check_arguments(arguments)
        self.save_hyperparameters(arguments, logger=False)
        self._next_micro_batch = 0
        self._places: list[Place | None] = [None] * lanes
        self._train_loader: TrainLoader | None = None

    @staticmethod
    def _check_arguments(arguments: dict[str, Any]) -> None:
        for name, allowed in _CHOICES.items():
            if arguments[name] not in allowed:
                raise UserError(f"data.{name}={arguments[name]!r} is not known; choose one of {', '.join(allowed)}")
        for name, least in _LEAST.items():
            if arguments[name] < least:
                raise UserError(f"data.{name}={arguments[name]} is too small; it must be at least {least}")

    # What there is to read, made on first use

    @cached_property
    def _cache(self) -> Path:
        return cache_root(self.cache_dir)

    @cached_property
    def corpus(self) -> Source:
        """The shards that are read, found (or made) on first use."""
        return open_source(self.source, self.path, self.revision, self._cache)

    @cached_property
    def text_tokenizer(self) -> TextTokenizer:
        """The tokenizer of the run, made or fetched on first use."""
        # Said outright, or the library warns at every fork; loader workers switch it off for themselves.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        return load_tokenizer(self.tokenizer, self.corpus, self._cache)

    @cached_property
    def _validation(self) -> ValidationSet:
        return ValidationSet(
            self.corpus, self.text_tokenizer, self.sequence_length, self.batching, self.validation_tokens
        )

    @property
    def vocab_size(self) -> int:
        """How many ids the tokenizer makes; ``model.config.vocab_size`` must be no smaller."""
        return self.text_tokenizer.vocab_size

    @property
    def fingerprint(self) -> str:
        """Of the corpus: equal fingerprints mean equal text."""
        return self.corpus.fingerprint

    def description(self) -> dict[str, Any]:
        """What the data of a run was, for its result file: plain types."""
        return {
            **self._signature(),
            "form": "text" if self.corpus.tokenizer is None else "tokens",
            "skipped_shards": self._skipped_shards(),
            "tokenizer": f"{self.text_tokenizer.name} ({self.text_tokenizer.fingerprint})",
            "vocab_size": self.vocab_size,
            "validation_tokens": self._validation.targets,
        }

    def unigram_perplexity(self) -> float:
        """Validation perplexity of token frequencies alone; computed once, kept on disk (``unigram.py``)."""
        identity = [
            self.fingerprint,
            self.text_tokenizer.fingerprint,
            self.sequence_length,
            self.batching,
            self.validation_tokens,
            unigram.SAMPLE_TOKENS,
        ]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
        value = unigram.remembered(self._cache, key)
        if value is None:
            value = unigram.unigram_perplexity(
                self.corpus, self.text_tokenizer, self._validation, self.on_damaged_shard
            )
            unigram.remember(self._cache, key, value)
        return value

    # Lightning's hooks

    def prepare_data(self) -> None:
        """Make or fetch corpus and tokenizer; Lightning calls this in one process of each machine."""
        if self.on_damaged_shard == "stop":  # else a checkpoint may know of shards that are lost by now
            self._check_lanes()
        _ = self.text_tokenizer  # the first use is what makes it

    def setup(self, stage: str) -> None:
        """Check the layout of ranks and workers, so that a wrong one is refused before anything is read."""
        if self.on_damaged_shard == "stop":
            self._check_layout()
        _ = self.text_tokenizer

    def train_dataloader(self) -> TrainLoader:
        """This rank's batches from the place reached so far, without end (``max_steps`` ends training)."""
        self._check_layout()
        rank, world_size = rank_and_world_size()
        order = {field: getattr(self, field) for field in _SIGNATURE}
        config = StreamConfig(shards=self.corpus.train, on_damaged_shard=self.on_damaged_shard, **order)
        stream = TrainStream(config, self.text_tokenizer, rank, world_size, self._next_micro_batch, list(self._places))
        self._train_loader = train_loader(stream, self.num_workers)
        return self._train_loader

    @property
    def waited_seconds(self) -> float:
        """How long training has waited for its batches on this rank, since the loader was made."""
        return 0.0 if self._train_loader is None else self._train_loader.waited_seconds

    def val_dataloader(self) -> ValidationBatches:
        """This rank's share of the validation set."""
        return self._validation.batches(self.validation_batch_size, *rank_and_world_size())

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Take the cursor off a train batch and keep it.

        Lightning fetches a batch ahead and workers several; this hook runs when a batch is about to be
        trained on, so what is kept is the place behind it: a checkpoint never skips what was only prefetched. An
        epoch that the trainer limits goes on there, too, unless it is to see the same again (``overfit_batches``).
        """
        cursor = batch.pop("cursor", None)
        if cursor is not None and (self.trainer is None or self.trainer.training):
            self._places[cursor["lane"]] = cursor["state"]
            self._next_micro_batch = cursor["micro_batch"] + rank_and_world_size()[1]
            if self._train_loader is not None and not getattr(self.trainer, "overfit_batches", 0):
                self._train_loader.stream.begin_at(self._next_micro_batch, self._places)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The place of every lane on every rank, of plain types; a collective call, as Lightning makes it."""
        every = of_every_rank((self._next_micro_batch, self._places))
        # All ranks have taken equally many batches: the rank that is least far is at the first one not taken.
        following = min(number for number, _ in every)
        places = [max((places[lane] for _, places in every), key=_progress) for lane in range(self.lanes)]
        return {
            "signature": self._signature(),
            "files": dict(self.corpus.files),
            "next_micro_batch": following,
            "places": places,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a place. To validate takes none, and may look at other rows of the same token ids.

        Raises:
            UserError: The place belongs to another order of batches, or the ids to another tokenizer.
        """
        signature = state_dict["signature"]
        if self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING:
            if signature["tokenizer"] != self.text_tokenizer.fingerprint:
                raise UserError(
                    f"data.tokenizer={self.tokenizer} is not the one that the checkpoint was trained with, so its ids "
                    "mean other text; set it back"
                )
            return
        if self.on_damaged_shard == "skip":
            skipped = [name for place in state_dict["places"] if place for name in place["skipped"]]
            self.corpus = as_it_was(self.corpus, state_dict["files"], skipped)
        for field, value in self._signature().items():
            if signature.get(field) != value:
                raise UserError(
                    f"data.{field} is {value!r}, but the checkpoint was written with {signature.get(field)!r}, so its "
                    "place in the data means nothing here; set it back, or start a new run"
                )
        self._next_micro_batch = state_dict["next_micro_batch"]
        self._places = list(state_dict["places"])

    def _signature(self) -> dict[str, Any]:
        return {
            "source": self.corpus.name,
            "fingerprint": self.fingerprint,
            "tokenizer": self.text_tokenizer.fingerprint,  # not its name: a file may have moved
            **{field: getattr(self, field) for field in _SIGNATURE},
        }

    def _check_lanes(self) -> None:
        shards = len(self.corpus.train)
        if self.lanes > shards:
            raise UserError(
                f"data.lanes={self.lanes} is more than the {shards} training shards of data.source={self.source}; "
                f"set it to {shards} or less"
            )

    def _check_layout(self) -> None:
        self._check_lanes()
        _, world_size = rank_and_world_size()
        if self.lanes % world_size:
            raise UserError(
                f"data.lanes={self.lanes} cannot be shared by {world_size} ranks; train on a number of ranks "
                f"that divides it ({_divisors(self.lanes)}), or change data.lanes"
            )
        share = self.lanes // world_size
        if self.num_workers and share % self.num_workers:
            raise UserError(
                f"data.num_workers={self.num_workers} cannot share the {share} lanes of a rank (data.lanes="
                f"{self.lanes} on {world_size} rank(s)); choose one of 0, {_divisors(share)}"
            )

    def _skipped_shards(self) -> dict[str, int]:
        """Damaged shards that were met, with the documents each still has; a collective call."""
        places = [place for rank in of_every_rank(self._places) for place in rank if place is not None]
        return {name: kept for place in places for name, kept in sorted(place["skipped"].items())}


def _progress(place: Place | None) -> tuple[int, ...]:
    if place is None:
        return ()
    return (place["epoch"], place["block"], place["position"], place["offset"])


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
