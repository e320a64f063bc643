"""TokenLoss against torchmetrics' own perplexity and against arithmetic by hand."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy
from torchmetrics.text import Perplexity

from elas_lightning.training.metrics import TokenLoss


def _update(metric: TokenLoss, logits: torch.Tensor, labels: torch.Tensor, text_bytes: int) -> None:
    nll = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
    metric.update(nll, (labels != -100).sum(), torch.tensor(text_bytes))


def test_perplexity_is_torchmetrics_own() -> None:
    torch.manual_seed(0)
    ours, theirs = TokenLoss(), Perplexity(ignore_index=-100)
    for length in (3, 7, 5):
        logits, labels = torch.randn(2, length, 11), torch.randint(0, 11, (2, length))
        labels[0, 0] = -100
        _update(ours, logits, labels, 10)
        theirs.update(logits, labels)
    assert ours.compute()["perplexity"] == pytest.approx(theirs.compute().item(), rel=1e-5)


def test_weighted_by_tokens_and_not_by_batches() -> None:
    metric = TokenLoss()
    metric.update(torch.tensor(3.0), torch.tensor(1), torch.tensor(4))
    metric.update(torch.tensor(9.0), torch.tensor(9), torch.tensor(20))
    values = metric.compute()
    assert values["loss"] == pytest.approx(12 / 10)
    assert values["bits_per_byte"] == pytest.approx(12 / math.log(2) / 24)


def test_a_model_in_bfloat16_does_not_take_the_sums_along() -> None:
    metric = TokenLoss()
    torch.nn.ModuleList([metric]).to(torch.bfloat16)  # as Lightning does under bf16-true
    for _ in range(1000):
        metric.update(torch.tensor(5.0), torch.tensor(1), torch.tensor(4))
    assert metric.compute()["loss"] == 5.0
    metric.reset()
    assert metric.nll.dtype == torch.float64


def test_galore_protocol_divides_the_batch_means_by_one_too_many() -> None:
    metric = TokenLoss()
    metric.update(torch.tensor(3.0), torch.tensor(1), torch.tensor(4))
    metric.update(torch.tensor(9.0), torch.tensor(9), torch.tensor(20))
    assert metric.compute()["perplexity_galore_protocol"] == pytest.approx(math.exp((3 + 1) / (2 + 1)))
    assert metric._computed["batches"] == 2  # type: ignore[index]


def test_galore_protocol_of_several_ranks_divides_on_each_by_its_own_counter() -> None:
    ranks = [TokenLoss(), TokenLoss()]
    sums = [[(3.0, 1), (9.0, 9)], [(4.0, 2), (6.0, 3), (5.0, 1)]]
    printed = 0.0
    for metric, batches in zip(ranks, sums, strict=True):
        total_loss, total_batches = 0.0, 1  # their loop
        for nll, tokens in batches:
            metric.update(torch.tensor(nll), torch.tensor(tokens), torch.tensor(4))
            total_batches += 1
            total_loss += nll / tokens
        printed += total_loss / total_batches / len(ranks)
    others = iter([getattr(ranks[1], name) for name in ranks[1]._reductions])
    ranks[0].distributed_available_fn = lambda: True
    ranks[0].dist_sync_fn = lambda mine, group: [mine, next(others)]
    values = ranks[0].compute()
    assert values["perplexity_galore_protocol"] == pytest.approx(math.exp(printed))
    assert values["batches"] == 2.5
    assert values["loss"] == pytest.approx(27 / 16)


def test_batches_of_nothing_but_padding_change_nothing() -> None:
    metric = TokenLoss()
    metric.update(torch.tensor(4.0), torch.tensor(2), torch.tensor(8))
    before = metric.compute()
    metric.update(torch.tensor(0.0), torch.tensor(0), torch.tensor(0))
    metric._computed = None
    assert metric.compute() == before


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric TokenLoss was called before")
def test_no_tokens_is_nan_and_not_a_perfect_score() -> None:
    assert all(math.isnan(value) for value in TokenLoss().compute().values())


def test_a_loss_too_large_for_exp_is_infinite() -> None:
    metric = TokenLoss()
    metric.update(torch.tensor(1e4), torch.tensor(1), torch.tensor(1))
    assert metric.compute()["perplexity"] == math.inf
