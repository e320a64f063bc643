"""How calls are run: compiled in a cache of their own, as replays of CUDA graphs, and timed in turns.

A graph is launched by the host in one go, so that its time is the device's; beside the same call without one it shows
what launches cost.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch
import torch._dynamo
from contenders import SHAPES, TWIN
from measuring import Record, figures, measure, one_line, ratios
from torch import Tensor

from elas_lightning.commands.arguments import at_least_one
from elas_lightning.nn.llama import Block, Llama

# How a whole model can be compiled, and what that mode is called in a record.
COMPILED = {"whole": "compiled", "blocks": "compiled by block"}

Calls = dict[tuple[str, str], Callable[[], Any]]
Returned = TypeVar("Returned")

# Relative, in the Frobenius norm: sums by atomics differ in their last bits from one call to the next.
_SAME = 1e-2

_number = count()
# A capture that was broken off leaves its graph known to the allocator, so it must stay where it is.
_broken: list[Any] = []


def compiled(function: Callable[..., Returned], **options: Any) -> Callable[..., Returned]:
    """``torch.compile`` of one function for one contender, one kind of call and one set of shapes.

    Dynamo keeps what it has compiled with a function's code. Contenders that come from one line of source
    share that cache, and from the ninth on they would run eagerly, with a warning; a second shape would be compiled
    for any number of tokens, which is slower. The copy compiled here has code of its own and takes every shape as it
    is; where a part of it could not be compiled, or too often would have to be, it raises.

    Args:
        function: An ordinary function; what it closes over is shared with the copy.
        options: Of ``torch.compile``, such as ``mode``.
    """
    assert isinstance(function, FunctionType), "a function with code of its own"
    code = function.__code__.replace(co_name=f"{function.__code__.co_name}_{next(_number)}")
    own = FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    return torch.compile(own, fullgraph=True, dynamic=False, **options)


def compile_blocks(model: Llama) -> None:
    """Compile the decoder's blocks: the first is compiled, the others run as what was made of it.

    Of a deep model this is far sooner done than compiling it whole; what is lost is fusion across blocks.
    """
    forward = compiled(Block.forward)
    for block in model.layers:
        block.forward = MethodType(forward, block)


def add_model(parser: argparse.ArgumentParser, batch: str) -> None:
    """The options of a benchmark of whole models: which, of how much, and how they are compiled.

    Args:
        parser: Of the benchmark.
        batch: What a batch counts.
    """
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["60m"])
    parser.add_argument("--layers", type=at_least_one, help="fewer layers than the shape has, where memory is short")
    parser.add_argument("--batch", nargs="+", type=at_least_one, default=[4], help=batch)
    parser.add_argument("--sequence", type=at_least_one, default=256, help="tokens of each")
    parser.add_argument("--vocabulary", type=at_least_one, default=32000)
    parser.add_argument(
        "--compile", nargs="?", const="whole", choices=COMPILED, help="in one graph (default) or block by block"
    )


def add_graphs(calls: Calls, mode: str, device: torch.device) -> list[dict[str, str]]:
    """Add to the calls of one mode their replays, under a mode of their own (``compiled, graph``).

    The graphs share their memory, so what a replay computes is overwritten by the next. Each is checked: it computes
    what its call does.

    Args:
        calls: By contender and mode, tried out before; each returns a tensor or a tuple of tensors.
        mode: Whose calls.
        device: A GPU; its current stream is captured, which cannot be the default one (``own_stream``).

    Returns:
        What could not be captured, and why. Without the twin's graph there is nothing to hold the others against, so
        then none is added.
    """
    graphs: Calls = {}
    absent = []
    pool = torch.cuda.graph_pool_handle()
    for (name, _), call in [item for item in calls.items() if item[0][1] == mode]:
        key = (name, f"{mode}, graph")
        try:
            graphs[key] = _capture(call, device, pool)
        except Exception as error:  # of whatever kind: it is what the record says
            absent.append({"contender": name, "mode": key[1], "reason": f"not captured: {one_line(error)}"})
            pool = torch.cuda.graph_pool_handle()  # the old one may still be the broken capture's
    if (TWIN, f"{mode}, graph") in graphs:
        calls |= graphs
    else:
        absent += [
            {"contender": name, "mode": own, "reason": "the twin, its measure, could not be captured"}
            for name, own in graphs
        ]
    return absent


def own_stream(options: argparse.Namespace) -> None:
    """Where graphs are wanted, leave the default stream for good, before any tensor is made.

    Autograd ends a backward pass on the stream where a leaf was first used. The default one would wait for every
    other, and what is being captured cannot be waited for. So leaves, warm-up and capture share a stream.
    """
    if options.cuda_graph:
        torch.cuda.set_stream(torch.cuda.Stream(options.device))


def in_turns(
    calls: Calls,
    plain: str,
    against: Iterable[str],
    flops: Mapping[str, float],
    options: argparse.Namespace,
    record: Record,
) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """Time calls beside each other, and their graphs where wanted: rows of a record, and who is absent from them.

    Args:
        calls: By contender and mode, tried out before; graphs are added.
        plain: The mode that is captured, and held against.
        against: The contenders that each is held against, as far as they could run; the twin among them.
        flops: Of one call, by contender.
        options: Of the command line.
        record: Where the rows will go.
    """
    absent = drop_without_measure(calls, plain)
    if options.cuda_graph:
        absent += add_graphs(calls, plain, record.device)
    seconds = measure(calls, record.device, options.rounds)
    measured = []
    for (name, mode), own in seconds.items():
        found = figures(own, calls[name, mode], record.device, options.energy)
        held = measure_of(mode, plain)
        measured.append(
            {
                "contender": name,
                "mode": mode,
                **found,
                "speed_against": {
                    other: ratios(seconds[other, held], own) for other in against if (other, held) in seconds
                },
                "share_of_matmul_peak": flops[name] / found["seconds"]["median"] / record.peak,
            }
        )
    return measured, absent


def measure_of(mode: str, plain: str) -> str:
    """The mode that a mode is held against: graphs against graphs, else the plain one."""
    return f"{plain}, graph" if mode.endswith(", graph") else plain


def drop_without_measure(calls: Calls, plain: str) -> list[dict[str, str]]:
    """Leave nothing to time where the twin, which keeps more than others, could not run: who is absent, and why."""
    if (TWIN, plain) in calls:
        return []
    absent = [
        {"contender": name, "mode": mode, "reason": "the twin, its measure, could not run"} for name, mode in calls
    ]
    calls.clear()
    return absent


def _capture(call: Callable[[], Any], device: torch.device, pool: Any) -> Callable[[], None]:
    # a call that waits for the device cannot be captured; known before, nothing is left half done
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    current, graph = torch.cuda.current_stream(device), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=current):
            made = _tensors(call())
    except Exception as error:
        # torch leaves stream and generator in the state of a capture
        _broken.append(graph)
        torch.cuda.set_stream(current)
        generator = torch.cuda.default_generators[current.device_index]
        generator.graphsafe_set_state(generator.clone_state())
        # the end of a broken capture fails, too, and hides why
        raise error.__context__ or error from None
    expected = _tensors(call())
    for tensor in made:
        tensor.zero_()  # else the memory might hold what another call left there
    graph.replay()
    for tensor, other in zip(made, expected, strict=True):
        apart = float((tensor.float() - other.float()).norm() / other.float().norm())
        if not apart < _SAME:
            raise RuntimeError(f"the replay computes something else: error {apart:.2g}")
    return graph.replay


def _tensors(returned: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    found = returned if isinstance(returned, tuple) else (returned,)
    return tuple(tensor.detach() for tensor in found)
