"""Each contender is compiled in a cache of its own, models block by block, and graphs are held against graphs."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from elas_lightning.nn import Llama, ModelConfig

FOLDER = Path(__file__).parents[2] / "benchmarks"
TWIN = "low-rank ReLU²"
SMALL_FFN = shlex.split("--shape smoke --tokens 24 --rounds 2 --device cpu")
SMALL_MODEL = shlex.split("--shape smoke --batch 2 --sequence 16 --vocabulary 50 --rounds 2 --device cpu")
Script = Callable[..., None]
# What Dynamo itself does while it looks at tensors and at autograd's functions.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, with Dynamo's settings put back behind it."""
    import torch._dynamo

    monkeypatch.setattr(sys, "path", [str(FOLDER), *sys.path])
    before = torch._dynamo.config.fail_on_recompile_limit_hit
    yield importlib.import_module("modes")
    torch._dynamo.config.fail_on_recompile_limit_hit = before
    torch._dynamo.reset()


class Backend:
    """A compiler that notes the sizes it is given and leaves the graph as it is."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def __call__(self, graph: Any, inputs: list[Any]) -> Any:
        self.seen.append(tuple(size for tensor in inputs if isinstance(tensor, Tensor) for size in tensor.shape))
        return graph.forward


def contender(number: int) -> Callable[[Tensor], Tensor]:
    """Functions that come from one line of source, as contenders do."""
    linear = torch.nn.Linear(4, 4 + number)

    def call(x: Tensor) -> Tensor:
        return linear(x)

    return call


def test_a_dozen_contenders_from_one_line_are_all_compiled(modes: ModuleType) -> None:
    backend, x = Backend(), torch.ones(3, 4)
    ways = [modes.compiled(contender(number), backend=backend) for number in range(12)]
    for _ in range(2):
        for number, way in enumerate(ways):
            assert way(x).shape == (3, 4 + number)
    assert len(backend.seen) == 12


def test_each_number_of_tokens_is_compiled_as_it_is(modes: ModuleType) -> None:
    backend, call = Backend(), contender(0)
    for tokens in (3, 5):
        modes.compiled(call, backend=backend)(torch.ones(tokens, 4))
    assert len(backend.seen) == 2
    assert all(type(size) is int for sizes in backend.seen for size in sizes)


def test_what_cannot_be_compiled_raises(modes: ModuleType) -> None:
    def call(x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return x

    with pytest.raises(torch._dynamo.exc.Unsupported):
        modes.compiled(call, backend="eager")(torch.ones(3))


def test_what_would_run_eagerly_for_the_ninth_size_raises(modes: ModuleType) -> None:
    way = modes.compiled(contender(0), backend="eager")
    for tokens in range(2, 10):
        way(torch.ones(tokens, 4))
    with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
        way(torch.ones(10, 4))


def test_one_block_is_compiled_for_all(modes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = Backend()
    monkeypatch.setattr(modes, "compiled", partial(modes.compiled, backend=backend))
    model = Llama(ModelConfig(vocab_size=11, hidden_size=8, intermediate_size=16, num_layers=5, num_heads=2))
    ids = torch.arange(10)[None]
    expected = model(ids)
    modes.compile_blocks(model)
    torch.testing.assert_close(model(ids), expected)
    assert len(backend.seen) == 1


def test_a_graph_is_held_against_a_graph(modes: ModuleType) -> None:
    assert modes.measure_of("eager", "compiled") == "compiled"
    assert modes.measure_of("max-autotune", "compiled") == "compiled"
    assert modes.measure_of("compiled, graph", "compiled") == "compiled, graph"


@pytest.mark.parametrize("wanted", [True, False])
def test_what_is_captured_later_runs_on_a_stream_of_its_own_from_the_start(
    wanted: bool, modes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[str] = []
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"stream of {device}")
    monkeypatch.setattr(torch.cuda, "set_stream", streams.append)
    modes.own_stream(argparse.Namespace(cuda_graph=wanted, device="cuda:0"))
    assert streams == (["stream of cuda:0"] if wanted else [])


@pytest.mark.parametrize("broken", ["other", TWIN])
def test_what_is_not_captured_says_why_and_without_the_twin_there_is_no_measure(
    broken: str, modes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capture(call: Callable[[], str], device: torch.device, pool: object) -> Callable[[], str]:
        if call() == broken:
            raise RuntimeError("operation not permitted\nwhen a stream is capturing")
        return call

    monkeypatch.setattr(modes, "_capture", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    calls = {(name, mode): partial(str, name) for name in ("other", TWIN) for mode in ("eager", "compiled")}
    absent = {row["contender"]: row for row in modes.add_graphs(calls, "compiled", torch.device("cpu"))}
    graphs = {key[0] for key in calls if key[1] == "compiled, graph"}
    assert len(calls) == 4 + len(graphs)
    assert {row["mode"] for row in absent.values()} == {"compiled, graph"}
    assert absent[broken]["reason"] == "not captured: RuntimeError: operation not permitted"
    if broken == TWIN:
        assert graphs == set()
        assert absent["other"]["reason"] == "the twin, its measure, could not be captured"
    else:
        assert graphs == {TWIN}


@pytest.fixture
def eager_compiler(modes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo and AOTAutograd as they are, with plain PyTorch for Inductor, whose C++ takes too long."""
    compiled = partial(modes.compiled, backend="aot_eager")
    for name in ("modes", "ffn", "prefill", "train_step"):
        monkeypatch.setattr(importlib.import_module(name), "compiled", compiled, raising=name == "modes")


@pytest.mark.usefixtures("eager_compiler")
def test_compiled_forms_are_measured_and_what_they_keep(script: Script, tmp_path: Path) -> None:
    record = tmp_path / "ffn.json"
    options = [*SMALL_FFN, "--tokens", "24", "40", "--compile", "--without-eager"]
    script("ffn", *options, "--json", str(record), "--only", "reference, recompute")
    cases = json.loads(record.read_text())["cases"]
    assert [case["tokens"] for case in cases] == [24, 40]
    sparse = "ELAS, reference, recompute"
    for case in cases:
        assert set(case["contenders"]) == {TWIN, sparse}
        assert {(m["contender"], m["mode"]) for m in case["measured"]} == {(TWIN, "compiled"), (sparse, "compiled")}
        assert len(case["measured"]) == 4
        row = case["contenders"][sparse]
        # of z and the output's bottleneck alone, where the twin keeps two tensors as wide as d_ff, too
        assert row["kept_against_compiled"][TWIN] < 0.15
        assert case["absent"] == []


@pytest.mark.usefixtures("eager_compiler")
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("train_step", "blocks"),
        ("prefill", "blocks"),
        pytest.param("train_step", "whole", marks=pytest.mark.slow),
        pytest.param("prefill", "whole", marks=pytest.mark.slow),
    ],
)
def test_whole_models_are_compiled_in_either_way(name: str, how: str, script: Script, tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    script(name, *SMALL_MODEL, "--compile", how, "--json", str(record), "--only", TWIN, "reference, dense")
    (case,) = json.loads(record.read_text())["cases"]
    mode = {"whole": "compiled", "blocks": "compiled by block"}[how]
    assert not [row["absent"] for row in case["contenders"].values() if "absent" in row]
    if name == "train_step":
        assert case["mode"] == mode
    else:
        assert {m["mode"] for m in case["measured"]} == {"eager", mode}
        assert len(case["measured"]) == 2 * len(case["contenders"])


def test_a_rehearsal_times_nothing(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    script("ffn", *SMALL_FFN, "--rehearse", "--only", "reference, dense")
    said = capsys.readouterr().out
    assert "ELAS, reference, dense: " in said
    assert " us" not in said


def test_a_contender_that_breaks_costs_no_other_its_figure(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ffn, record = importlib.import_module("ffn"), tmp_path / "ffn.json"
    make = ffn.make_ffn

    def broken(config: ModelConfig, layer: int) -> torch.nn.Module:
        if config.ffn_storage == "packed":
            raise RuntimeError("illegal instruction\nand more")
        return make(config, layer)  # type: ignore[no-any-return]

    monkeypatch.setattr(ffn, "make_ffn", broken)
    with pytest.raises(SystemExit) as end:
        script("ffn", *SMALL_FFN, "--json", str(record), "--only", "ELAS, reference")
    said = "ELAS, reference, packed: RuntimeError: illegal instruction"
    assert str(end.value.code) == f"failed:\n{said}"
    content = json.loads(record.read_text())
    assert content["failures"] == [said]
    (case,) = content["cases"]
    assert case["contenders"]["ELAS, reference, packed"]["absent"] == "RuntimeError: illegal instruction"
    assert {m["contender"] for m in case["measured"]} == {TWIN, "ELAS, reference, dense", "ELAS, reference, recompute"}


@pytest.mark.parametrize(("name", "maker"), [("ffn", "make_ffn"), ("prefill", "Llama")])
def test_without_its_measure_nobody_is_timed(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, maker: str
) -> None:
    """On a small GPU the twin is the first that has no room."""
    module, record = importlib.import_module(name), tmp_path / "record.json"
    make = getattr(module, maker)

    def short_of_memory(config: ModelConfig, *layer: int) -> torch.nn.Module:
        if not config.sparsity.placement and config.ffn == "relu2":
            raise torch.OutOfMemoryError
        return make(config, *layer)  # type: ignore[no-any-return]

    monkeypatch.setattr(module, maker, short_of_memory)
    sizes = SMALL_FFN if name == "ffn" else SMALL_MODEL
    script(name, *sizes, "--json", str(record), "--only", "ELAS, reference, dense")
    (case,) = json.loads(record.read_text())["cases"]
    assert case["contenders"][TWIN]["absent"] == "out of memory"
    assert case["measured"] == []
    elas = {row["reason"] for row in case["absent"] if row["contender"] == "ELAS, reference, dense"}
    assert elas == {"the twin, its measure, could not run"}


def test_transformers_is_not_held_against_what_is_checkpointed(script: Script, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="it is the contender")
    record = tmp_path / "record.json"
    script("train_step", *SMALL_MODEL, "--checkpointing", "block", "--json", str(record), "--only", "transformers")
    ((row,),) = (case["contenders"].values() for case in json.loads(record.read_text())["cases"])
    assert "leave out --compile and --checkpointing" in row["absent"]


@pytest.mark.gpu
def test_a_call_is_captured_or_says_why_not(modes: ModuleType) -> None:
    device = torch.device("cuda")
    modes.own_stream(argparse.Namespace(cuda_graph=True, device="cuda"))
    x = torch.randn(64, 64, device=device, requires_grad=True)
    calls = {
        (TWIN, "eager"): lambda: torch.autograd.grad((x @ x).square().sum(), [x]),
        ("waits", "eager"): lambda: x * x.sum().item(),
        ("other", "eager"): lambda: x @ x,
        ("other", "compiled"): lambda: x @ x,
    }
    absent = modes.add_graphs(calls, "eager", device)
    assert {key for key in calls if key[1] == "eager, graph"} == {(TWIN, "eager, graph"), ("other", "eager, graph")}
    assert [(row["contender"], row["mode"]) for row in absent] == [("waits", "eager, graph")]
    assert "synchron" in absent[0]["reason"]
    calls[TWIN, "eager, graph"]()
    torch.cuda.synchronize()
    assert torch.randn(3, device=device).isfinite().all()
    torch.cuda.set_stream(torch.cuda.default_stream())


@pytest.mark.gpu
def test_the_peak_of_a_step_is_its_own(modes: ModuleType) -> None:
    memory, device = importlib.import_module("memory"), torch.device("cuda")
    x = torch.randn(256, 512, device=device)

    def peak() -> int:
        model = torch.nn.Linear(512, 512, device=device)
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        split = memory.memory_split(
            model, optimizer, lambda: model(x), lambda out: out.square().mean(), contextlib.nullcontext
        )
        return int(split["peak"])

    alone = peak()
    beside = torch.zeros(2**26, device=device)
    assert peak() == pytest.approx(alone, rel=0.1)
    assert alone < beside.nbytes
