"""Activation sparsity beyond 2:4 by magnitude: other patterns, other ways to choose. Plain PyTorch on any device.

A pattern says how many entries of a group survive, a method which ones and with what value. Stochastic methods take
their random numbers from a key, by a counter: no generator has a state that a checkpoint would have to hold.

Shape suffixes: N features, m entries of a group, k of them kept, G = N / m groups; "..." batch and time.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from elas_lightning.ops.reference import INTEGERS, magnitude
from elas_lightning.ops.sparsify import Gradient, KeptOnly, check_gradient, sparsify_24

Pattern = Literal["2:4", "1:4", "3:4", "2:8", "unstructured"]
Method = Literal["magnitude", "soft_threshold", "mvue", "random", "first"]
PATTERNS: tuple[Pattern, ...] = get_args(Pattern)
METHODS: tuple[Method, ...] = get_args(Method)
STOCHASTIC: tuple[Method, ...] = ("mvue", "random")

_KEPT = {"2:4": (2, 4), "1:4": (1, 4), "3:4": (3, 4), "2:8": (2, 8)}
_32_BITS = 0xFFFFFFFF


def width_multiple(pattern: Pattern) -> int:
    """What a width must be divisible by to carry a pattern; unstructured keeps half of an even number."""
    return 2 if pattern == "unstructured" else _KEPT[pattern][1]


def random_bits(shape: tuple[int, ...], key: Tensor | int, device: torch.device, skip: int = 0) -> Tensor:
    """Random integers of 32 bits by counter: a function of key and position alone, the same on every device.

    Two rounds of a multiply-and-shift hash (constants of Wellons' hash-prospector, 2018), with the key added between
    them. Every intermediate value stays below 2^63.

    Args:
        shape: Of the result, fewer than 2^32 entries, with those skipped.
        key: 0 to 2^32 - 1, as a scalar int64 tensor where a compiled model must not be compiled again for each value.
        device: Of the result.
        skip: How many positions come before the first.

    Returns:
        int64 in 0 to 2^32 - 1.
    """
    position = torch.arange(skip + 1, skip + math.prod(shape) + 1, device=device)
    return _mix((_mix(position) + key) & _32_BITS).reshape(shape)


def _mix(x: Tensor) -> Tensor:
    x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _32_BITS
    x = ((x ^ (x >> 15)) * 0x735A2D97) & _32_BITS
    return x ^ (x >> 15)


def sparsify(
    x: Tensor,
    *,
    pattern: Pattern = "2:4",
    method: Method = "magnitude",
    gradient: Gradient = "ste",
    key: Tensor | int | None = None,
    same_rows: bool = False,
    start: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Make features sparse along the last axis.

    Methods, for k kept of a group of m:

    - ``magnitude``: the k largest magnitudes as they are; equal ones: the lower index wins, NaN ranks above infinity.
    - ``soft_threshold``: the same entries, shrunk by the (k+1)-th largest magnitude, so that an entry leaves the choice
      continuously: S-STE's function (arXiv 2409.09099), here of activations. Without S-STE's scaling factor, which is
      fitted once to the weights at the start of training: activations have no such moment, and the linear map that
      reads them absorbs a constant factor.
    - ``mvue``: k at random and unbiased, ``E[S(x)] = x``, with the least variance that k entries allow (Chmiel et al.,
      arXiv 2203.10991): entry i is kept with probability ``p_i = min(1, |x_i| / τ)``, τ such that they sum to k, and
      its value is ``x_i / p_i``. Drawn by systematic sampling, one random number a group, which has these
      probabilities exactly; other joint distributions with the same p have the same variances.
    - ``random``: k of the group at random, every choice equally likely, values as they are.
    - ``first``: the first k of the group, always the same ones: a narrower layer.

    The last three do not go by magnitude alone; with them an entry that is NaN (for ``mvue`` also infinite) is kept
    beyond the k, so that it stays visible.

    Args:
        x: ``(..., N)`` float16, bfloat16, float32 or float64; N a multiple of ``width_multiple(pattern)``.
        pattern: ``k:m``, k of every m consecutive features, or ``unstructured``, half of all features of a token.
        method: As above.
        gradient: ``ste``: backward is the identity. ``masked``: backward with the choice held fixed. That is the
            exact derivative for ``magnitude``, ``random``, ``first`` and, with its threshold's share, for
            ``soft_threshold``; for ``mvue`` kept entries carry ``1 / p_i`` with p held fixed, too, an unbiased estimate
            of the identity.
        key: For stochastic methods, see ``random_bits``.
        same_rows: Whether all leading axes but the last two share their random numbers: a sequence's result then
            does not depend on what else is in its batch.
        start: With ``same_rows``, the place of the first token in its text: a text that is read piece by piece draws
            what it draws as a whole.
        backend: For 2:4 by magnitude, see ``resolve_backend``; everything else is plain PyTorch.

    Returns:
        A tensor of the shape and dtype of ``x``.

    Raises:
        ValueError: Unknown pattern, method or gradient, N that does not fit, unsupported dtype, a stochastic method
            without a key, or a named backend that knows 2:4 by magnitude alone.
        UserError: A backend that is unknown or cannot run here (a ValueError, too).
    """
    if pattern == "2:4" and method == "magnitude":
        return sparsify_24(x, gradient=gradient, backend=backend)
    _check(x, pattern, method, key, backend)
    check_gradient(gradient)
    features = x.shape[-1]
    k, m = _KEPT.get(pattern, (features // 2, features))
    groups = x.unflatten(-1, (features // m if m else 0, m))
    bits = None
    if method in STOCHASTIC:
        assert key is not None
        shape = tuple(groups.shape if method == "random" else (*groups.shape[:-1], 1))
        if same_rows:
            shape = shape[max(0, x.dim() - 2) :]
        bits = random_bits(shape, key, x.device, start * math.prod(shape[1:]))
    if gradient == "ste":
        return _StraightThrough.apply(groups, k, method, bits).flatten(-2)
    return _select(groups, k, method, bits).flatten(-2)


def _check(x: Tensor, pattern: Pattern, method: Method, key: Tensor | int | None, backend: str) -> None:
    if pattern not in PATTERNS:
        raise ValueError(f"pattern {pattern!r} is unknown: choose one of {', '.join(PATTERNS)}")
    if method not in METHODS:
        raise ValueError(f"method {method!r} is unknown: choose one of {', '.join(METHODS)}")
    if backend not in ("auto", "reference"):
        raise ValueError(
            f"backend {backend!r} knows pattern 2:4 with method magnitude, not {pattern} with {method}: "
            "choose auto or reference"
        )
    multiple = width_multiple(pattern)
    if x.dim() < 1 or x.shape[-1] % multiple:
        raise ValueError(f"pattern {pattern} needs a last axis that {multiple} divides, not {tuple(x.shape)}")
    if x.dtype not in INTEGERS:
        raise ValueError(f"sparsity is defined for float16, bfloat16, float32 and float64, not {x.dtype}")
    if method in STOCHASTIC and key is None:
        raise ValueError(f"method {method!r} is stochastic: give a key")


class _StraightThrough(torch.autograd.Function):
    """Backward is the identity, so nothing is saved."""

    generate_vmap_rule = True

    @staticmethod
    def forward(groups: Tensor, k: int, method: str, bits: Tensor | None) -> Tensor:
        return _select(groups, k, method, bits)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad, None, None, None


def _select(x: Tensor, k: int, method: str, bits: Tensor | None) -> Tensor:
    """A method on groups ``(..., G, m)``; autograd sees the gradient with the choice held fixed."""
    if method == "magnitude":
        return KeptOnly.apply(x, _rank(magnitude(x)) < k)
    if method == "soft_threshold":
        rank = _rank(magnitude(x))
        # of one number and zeros; autocast on a GPU would sum, and go on, in float32 if no dtype were named
        threshold = KeptOnly.apply(x.abs(), rank == k).sum(-1, keepdim=True, dtype=x.dtype)
        return KeptOnly.apply(x - x.sign() * threshold, rank < k)
    if method == "first":
        first = torch.arange(x.shape[-1], device=x.device) < k
        return KeptOnly.apply(x, first | x.isnan())
    assert bits is not None
    if method == "random":
        return KeptOnly.apply(x, (_rank(bits) < k) | x.isnan())
    chosen, factor = _sample(x.detach(), k, bits)
    return KeptOnly.apply((x * factor).to(x.dtype), chosen)


def _rank(score: Tensor) -> Tensor:
    """Place of each entry in its group, 0 for the largest; of equal ones the lower index comes first."""
    m = score.shape[-1]
    if m > 8:
        order = score.sort(dim=-1, descending=True, stable=True).indices
        place = torch.arange(m, device=score.device).expand_as(order)
        return torch.empty_like(order).scatter(-1, order, place)
    # many times faster than sorting for a handful of entries
    column = score.unbind(-1)
    places = [torch.zeros_like(column[0], dtype=torch.uint8) for _ in column]
    for i in range(m):
        for j in range(i + 1, m):
            ahead = column[i] >= column[j]
            places[j] = places[j] + ahead
            places[i] = places[i] + ~ahead
    return torch.stack(places, -1)


def _sample(x: Tensor, k: int, bits: Tensor) -> tuple[Tensor, Tensor]:
    """Which entries ``mvue`` keeps, and ``1 / p`` of each.

    The probabilities ``min(1, |x_i| / τ)`` sum to k for the smallest τ of "what the j largest leave, over k - j",
    j = 0 ... k - 1: with j capped entries that sum is at most ``j + rest_j / τ``, and equal for the right j.
    """
    # In float64 the sums round by less than the smallest step of the random number, which stays clear of 0 and 1: so
    # exactly k are chosen where there are k that are not zero.
    size = x.abs().double()
    rest = size.sort(-1, descending=True).values.flip(-1).cumsum(-1).flip(-1)
    tau = (rest[..., :k] / torch.arange(k, 0, -1, device=x.device)).amin(-1, keepdim=True)
    chance = torch.where(size >= tau, (size > 0).to(size.dtype), size / tau)
    upto = chance.cumsum(-1).clamp(max=k)
    crossed = (upto + (bits.double() + 0.5) / 2.0**32).floor()
    chosen = crossed > torch.nn.functional.pad(crossed[..., :-1], (1, 0))
    chosen = chosen | tau.isnan() | ~x.isfinite()
    return chosen, torch.where(chosen & (size < tau) & (size > 0), tau / size, 1.0)
