"""A mixture of experts: several feed-forward networks in the place of one, and a router that chooses for each token.

No token is dropped and no expert has a capacity: each works on as many tokens as were sent to it.

Shape suffixes: T tokens (batch times time), C model width, E experts, K experts of a token, P = T K places; "..." batch
and time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elas_lightning.nn.config import ModelConfig
from elas_lightning.nn.ffn import make_ffn


class Router(nn.Module):
    """Scores experts: ``softmax(W x)`` in float32 whatever the model's precision (arXiv 2101.03961, section 2.4).

    Attributes:
        weight: ``(E, C)``, which ``initialize`` fills. No ``nn.Linear``, since nothing that acts on a block's matrices
            is meant for it.
    """

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))

    def forward(self, x_TC: Tensor) -> Tensor:
        """Probabilities ``(T, E)`` in float32."""
        with torch.autocast(x_TC.device.type, enabled=False):
            return F.linear(x_TC.float(), self.weight.float()).softmax(-1)


class Routes(NamedTuple):
    """Which tokens go where: place ``p`` holds token ``order_P[p] // K``, sorted by expert.

    Attributes:
        weight_TK: What each of a token's experts counts.
        order_P: The place of a token and its k-th expert among all, ``t K + k``, by expert.
        tokens_E: How many each expert has.
        balance: ``E Σ f P`` (arXiv 2101.03961, equation 4): 1 where all experts have as many tokens.
    """

    weight_TK: Tensor
    order_P: Tensor
    tokens_E: Tensor
    balance: Tensor


class MixtureOfExperts(nn.Module):
    """``Σ p_e FFN_e(x)`` over the K experts of largest probability; with K = 1 a Switch Transformer (arXiv 2101.03961).

    The probabilities are those among all experts, so that the router has a gradient where a token has one expert, too.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.per_token = config.experts.per_token
        self.router = Router(config.hidden_size, config.experts.count)
        self.experts = nn.ModuleList(make_ffn(config, layer) for _ in range(config.experts.count))
        self.balance: Tensor | None = None

    def route(self, x_TC: Tensor) -> Routes:
        """Choose each token's experts, ``(T, C)``."""
        probability_TE = self.router(x_TC)
        weight_TK, expert_TK = probability_TE.topk(self.per_token)
        expert_P, order_P = expert_TK.flatten().sort(stable=True)
        tokens_E = torch.bincount(expert_P, minlength=len(self.experts))
        # no true division of integers: its dtype is the default one, which 64-true changes in forward alone
        share_E = tokens_E.to(probability_TE.dtype) / max(1, expert_P.numel())
        balance = len(self.experts) * (share_E * probability_TE.mean(0)).sum()
        return Routes(weight_TK, order_P, tokens_E, balance)

    def take_balance(self) -> Tensor:
        """The balance of the last call, a scalar with its gradient; afterwards without, so that no graph is kept.

        Raises:
            RuntimeError: There has been no call.
        """
        if self.balance is None:
            raise RuntimeError("the mixture of experts has not been called: there is no balance")
        balance, self.balance = self.balance, self.balance.detach()
        return balance

    def __getstate__(self) -> dict[str, Any]:
        """Without the balance of the last call: torch copies no tensor that has a graph behind it."""
        return {**self.__dict__, "balance": None}

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., C)`` to ``(..., C)``, and leave the balance of this call behind."""
        x_TC = x.flatten(0, -2)
        routes = self.route(x_TC)
        if self.balance is None:  # else backward is computing a checkpointed block again
            self.balance = routes.balance
        # copies of a token lie side by side, so that its gradient is a sum and no scattered addition
        x_PC = x_TC.repeat_interleave(self.per_token, 0).index_select(0, routes.order_P)
        parts = x_PC.split(routes.tokens_E.tolist())
        # an expert without tokens takes part in training: its gradient is zero, which other processes wait for
        out_PC = torch.cat([expert(part) for expert, part in zip(self.experts, parts, strict=True)])
        out_TKC = out_PC.index_select(0, routes.order_P.argsort()).unflatten(0, routes.weight_TK.shape)
        summed_TC = (routes.weight_TK[..., None] * out_TKC).sum(1)
        return summed_TC.to(out_PC.dtype).view_as(x)
