"""Text from a model: one token after the other, greedy or sampled, and its bytes put together to characters.

Shape suffixes: B batch (always 1), T time, V vocabulary.
"""

import codecs
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from elas_lightning.data.tokenizer import TextTokenizer
from elas_lightning.errors import UserError
from elas_lightning.inference.load import TrainedModel
from elas_lightning.nn.cache import Cache
from elas_lightning.nn.llama import Llama

_COLDEST = torch.finfo(torch.float32).tiny  # what is below may be zero to the device


def generate(
    model: Llama,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    end_id: int | None = None,
) -> Iterator[int]:
    """Continue a prompt.

    Args:
        model: In evaluation mode; on any device, in any dtype.
        prompt_ids: What to continue.
        max_new_tokens: How many tokens at most.
        temperature: 0 takes the likeliest token each time; otherwise logits are divided by it before sampling.
        top_p: Sample from the smallest set of likeliest tokens whose probabilities sum to at least this (nucleus
            sampling, arXiv 1904.09751); 1 samples from all.
        seed: Of the sampling: the same seed gives the same tokens on the same device.
        end_id: A token after which to stop; it is yielded. None never stops early.

    Yields:
        The new ids as they are made.

    Raises:
        UserError: A number out of range, an empty prompt or an id that the model has no row for; raised by the call
            and not by the first step.
    """
    for name, value, fine, allowed in (
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "give at least 1"),
        ("temperature", temperature, 0 <= temperature < math.inf, "give 0 (greedy) or a positive number"),
        ("top_p", top_p, 0 < top_p <= 1, "give a number above 0 and at most 1"),
        ("seed", seed, 0 <= seed < 2**63, "give an integer, 0 or more and below 2^63"),
    ):
        if not fine:
            raise UserError(f"{name} = {value} is not possible: {allowed}")
    ids_1T = torch.tensor([list(prompt_ids)], dtype=torch.int64)
    if ids_1T.numel() == 0:
        raise UserError("the prompt is empty: give at least one token of text to continue")
    if not 0 <= int(ids_1T.min()) <= int(ids_1T.max()) < model.config.vocab_size:
        raise UserError(f"the prompt has an id outside of the model's {model.config.vocab_size}")
    return _continue(model, ids_1T, max_new_tokens, temperature, top_p, seed, end_id)


@torch.inference_mode()
def _continue(
    model: Llama, ids_1T: Tensor, max_new_tokens: int, temperature: float, top_p: float, seed: int, end_id: int | None
) -> Iterator[int]:
    device = model.embed_tokens.weight.device
    chance = torch.Generator(device).manual_seed(seed)
    cache = Cache(model.config.num_layers, ids_1T.shape[1] + max_new_tokens)
    for _ in range(max_new_tokens):
        logits_V = model.lm_head(model.hidden(ids_1T.to(device), cache)[0, -1])
        if temperature == 0:
            chosen = logits_V.argmax()
        else:
            chosen = torch.multinomial(next_token_probabilities(logits_V, temperature, top_p), 1, generator=chance)
        token = int(chosen)
        yield token
        if token == end_id:
            return
        ids_1T = chosen.view(1, 1)


def next_token_probabilities(logits_V: Tensor, temperature: float, top_p: float) -> Tensor:
    """What the next token is sampled from.

    Args:
        logits_V: Of one position.
        temperature: Above 0.
        top_p: As for :func:`generate`.

    Returns:
        ``(V,)`` float32, sums to 1; zero outside of the nucleus. The likeliest token is always in it.
    """
    logits_V = logits_V.float()
    # differences, which may become -inf: the logits themselves overflow where the temperature is tiny
    p_V = ((logits_V - logits_V.max()) / max(temperature, _COLDEST)).softmax(-1)
    if top_p < 1:
        sorted_V, order_V = p_V.sort(descending=True, stable=True)
        # a token is in as long as those before it do not reach top_p; before the first there is nothing to do so
        outside_V = sorted_V.cumsum(-1) - sorted_V >= top_p
        outside_V[0] = False
        sorted_V = sorted_V.masked_fill(outside_V, 0)
        p_V = torch.zeros_like(p_V).scatter_(0, order_V, sorted_V)
    return p_V / p_V.sum()


def prompt_ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    """The ids of a text that is to go on: as a document in training begins, and without its end token.

    Raises:
        UserError: The text cannot be written as UTF-8, as when a terminal gave bytes that are none.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is not UTF-8 text ({error.reason} at character {error.start})") from error
    ids: list[int] = tokenizer.encode([text])[0][:-1].tolist()
    return ids


class TextStream:
    """Ids in, text out, as soon as it is whole: bytes wait until they make up a character.

    Args:
        tokenizer: Of the model.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int) -> str:
        """The text that a further token completes; often less or more than its own, and maybe none.

        Args:
            token: An id. One that the tokenizer lacks (a model may have more rows) stands for no text.
        """
        return self._decoder.decode(self._bytes[token] if token < len(self._bytes) else b"")

    def close(self) -> str:
        """What is left: a replacement character for bytes that never became a character."""
        return self._decoder.decode(b"", final=True)


def print_continuation(trained: TrainedModel, prompt: str, **sampling: Any) -> None:
    """Print a prompt and its continuation while it is made; what there is to know of it goes to standard error.

    Args:
        trained: The model with its tokenizer.
        prompt: The text to continue.
        **sampling: As for :func:`generate`.

    Raises:
        UserError: As :func:`generate`.
    """
    ids = prompt_ids(trained.tokenizer, prompt)
    tokens = generate(trained.model, ids, end_id=trained.tokenizer.end_id, **sampling)
    stream, count, start = TextStream(trained.tokenizer), 0, time.perf_counter()
    print(prompt, end="", flush=True)
    token = None
    for token in tokens:
        count += 1
        print(stream.add(token), end="", flush=True)
    print(stream.close(), flush=True)
    seconds = time.perf_counter() - start
    ending = "the end token" if token == trained.tokenizer.end_id else "the limit of tokens"
    print(f"{count} tokens to {ending}, {count / seconds:.0f} tokens/s with the prompt", file=sys.stderr)
    if len(ids) + count > trained.sequence_length:
        print(
            f"note: the model was trained on {trained.sequence_length} tokens at a time; longer texts are beyond its "
            "experience",
            file=sys.stderr,
        )
