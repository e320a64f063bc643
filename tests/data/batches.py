"""Batches as the trainer takes them: with one fetched beyond those that are trained on."""

from itertools import islice


def train_on(data, count):
    taken = list(islice(data.train_dataloader(), count + 1))[:count]
    return [data.on_after_batch_transfer(batch, 0) for batch in taken]


def train_on_ids(data, count):
    """The token ids alone, which compare as lists do."""
    return [batch["input_ids"].tolist() for batch in train_on(data, count)]
