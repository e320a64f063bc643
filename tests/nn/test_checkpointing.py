"""Backward that computes again gives the gradients of one that kept everything, and keeps what is said."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elas_lightning.errors import UserError
from elas_lightning.nn import Llama, ModelConfig, SparsityConfig

MODELS: dict[str, dict[str, Any]] = {
    "cola": {"attention_rank": 8, "ffn_rank": 12, "bottleneck_activation": "silu"},
    "elas": {
        "attention_rank": 8,
        "ffn_rank": 12,
        "ffn": "relu2",
        "sparsity": SparsityConfig(placement=("ffn_hidden",)),
    },
    "elas, packed": {
        "attention_rank": 8,
        "ffn_rank": 12,
        "ffn": "relu2",
        "ffn_storage": "packed",
        "sparsity": SparsityConfig(placement=("ffn_hidden",), gradient="masked"),
    },
    "full-rank attention": {"ffn_rank": 12},
}


def _gradients(config: ModelConfig, input_ids: torch.Tensor, run: Callable[..., Any] | None = None) -> list[Any]:
    torch.manual_seed(1)
    model = Llama(config)
    loss = (run or (lambda model, ids: model(ids).square().mean()))(model, input_ids)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("checkpointing", ["block", "bottleneck"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_gradients_are_those_without(
    swiglu: Callable[..., ModelConfig], input_ids: torch.Tensor, model: dict[str, Any], checkpointing: str
) -> None:
    plain = _gradients(swiglu(**model), input_ids)
    again = _gradients(swiglu(**model, checkpointing=checkpointing), input_ids)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


def test_under_autocast_too(swiglu: Callable[..., ModelConfig], input_ids: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        plain = _gradients(swiglu(**MODELS["cola"]), input_ids)
        again = _gradients(swiglu(**MODELS["cola"], checkpointing="bottleneck"), input_ids)
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


class _Made(TorchDispatchMode):
    """Every storage that is made while it is on, whoever holds it: autograd, or a checkpoint's own cache."""

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return out

    def alive(self) -> int:
        made = {key: value for key, value in self.storages.items() if key not in self.known}
        return sum(size for reference, size in made.values() if not reference.expired())


def _kept(config: ModelConfig, input_ids: torch.Tensor) -> int:
    """Bytes that forward makes and that stay until backward, parameters aside."""
    model = Llama(config)
    with _Made(model.parameters()) as made:
        out = model.hidden(input_ids)
    kept = made.alive()
    out.sum().backward()
    return kept


def test_each_scheme_keeps_what_it_says(swiglu: Callable[..., ModelConfig]) -> None:
    tokens, width, layers = 2 * 24, 32, 3
    input_ids = torch.randint(97, (2, 24))
    cola = {**MODELS["cola"], "num_layers": layers}
    kept = {
        scheme: _kept(swiglu(**cola, checkpointing=scheme), input_ids) for scheme in ("none", "block", "bottleneck")
    }
    one_block_more = _kept(swiglu(**{**cola, "num_layers": layers + 1}, checkpointing="block"), input_ids)
    assert one_block_more - kept["block"] == 4 * tokens * width
    # n r for each of the seven matrices, beside the block's input
    assert kept["bottleneck"] - kept["block"] == 4 * tokens * layers * (4 * 8 + 3 * 12)
    assert kept["none"] > 3 * kept["bottleneck"]


def test_bottlenecks_are_not_multiplied_again(swiglu: Callable[..., ModelConfig], input_ids: torch.Tensor) -> None:
    class Count(TorchDispatchMode):
        products = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.products += func is torch.ops.aten.mm.default
            return func(*args, **(kwargs or {}))

    def products(scheme: str) -> int:
        model = Llama(swiglu(**MODELS["cola"], num_layers=1, checkpointing=scheme))
        loss = model.hidden(input_ids).sum()
        with Count() as count:
            loss.backward()
        return count.products

    plain = products("none")
    # 14 factors; the last one's product is not asked for
    assert products("block") - plain == 13
    assert products("bottleneck") - plain == 6


def test_evaluation_is_untouched(swiglu: Callable[..., ModelConfig], input_ids: torch.Tensor) -> None:
    torch.manual_seed(1)
    plain = Llama(swiglu(**MODELS["cola"]))
    model = Llama(swiglu(**MODELS["cola"], checkpointing="bottleneck"))
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        assert torch.equal(model(input_ids), plain(input_ids))


def test_bottlenecks_need_factors(swiglu: Callable[..., ModelConfig]) -> None:
    with pytest.raises(UserError, match=r"model\.config\.checkpointing = 'bottleneck' is not possible: .*rank"):
        swiglu(checkpointing="bottleneck")
    with pytest.raises(UserError, match=r"model\.config\.checkpointing = 'half' .* none, block, bottleneck"):
        swiglu(checkpointing="half")


# inductor imports what torch itself has deprecated
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", ["block", "bottleneck"])
def test_compiled_in_one_graph(swiglu: Callable[..., ModelConfig], input_ids: torch.Tensor, checkpointing: str) -> None:
    compiled = torch.compile(lambda model, ids: model(ids).square().mean(), fullgraph=True)
    plain = _gradients(swiglu(**MODELS["cola"]), input_ids)
    again = _gradients(swiglu(**MODELS["cola"], checkpointing=checkpointing), input_ids, compiled)
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
