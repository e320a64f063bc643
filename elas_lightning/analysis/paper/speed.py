"""Speed measured side by side in one process: the ratios in the benchmarks' records, to both yardsticks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from elas_lightning.analysis.paper.load import Paper
from elas_lightning.analysis.tables import Table
from elas_lightning.analysis.wording import listing


class Ratio(NamedTuple):
    """How many times as fast one contender is as another, as text, and where that was measured."""

    record: str
    kind: str
    device: str
    gpu: bool
    place: str
    contender: str
    against: str
    times: str

    @property
    def is_ours_against_its_twin(self) -> bool:
        """ELAS beside the same low-rank model without 2:4: what the paper does not report."""
        return self.contender.lower().startswith("elas") and "full" not in self.against and "transf" not in self.against


def ratios(paper: Paper) -> list[Ratio]:
    """Every ratio of every record, whatever the benchmark: found by its key ``speed_against``."""
    return [
        ratio
        for name, record in paper.records.items()
        for ratio in _walk(record, name, record, tuple(_words(record.get("settings") or {})), "")
    ]


def _walk(node: Any, name: str, record: Mapping[str, Any], place: tuple[str, ...], label: str) -> Iterator[Ratio]:
    if isinstance(node, list):
        for item in node:
            yield from _walk(item, name, record, place, label)
    if not isinstance(node, Mapping):
        return
    here = (*place, *(word for word in _words(node) if word not in place))
    contender = str(node.get("contender", label))
    settings = record.get("settings") or {}
    device_type = str(record.get("device_type") or settings.get("device", ""))
    for against, found in (node.get("speed_against") or {}).items():
        times = f"{found['median']:.2f} ({found['p20']:.2f} to {found['p80']:.2f})"
        yield Ratio(
            name,
            str(record.get("benchmark")),
            str(record.get("device")),
            device_type.startswith("cuda"),
            ", ".join(here),
            contender,
            against,
            times,
        )
    for key, item in node.items():
        if key != "speed_against":
            yield from _walk(item, name, record, here, key if isinstance(item, Mapping) else contender)


def _words(node: Mapping[str, Any]) -> list[str]:
    return [f"{node[key]}{unit}" for key, unit in _PLACES.items() if isinstance(node.get(key), str | int)]


_PLACES = {"shape": "", "batch": " sequences", "sequence": " tokens each", "tokens": " tokens", "mode": ""}


def speed_table(paper: Paper) -> Table | None:
    """All ratios; None without a record."""
    found = ratios(paper)
    if not found:
        return None
    rows = tuple((r.kind, r.device, r.place, r.contender, r.against, r.times, r.record) for r in found)
    columns = ("What", "Device", "Where", "Contender", "Against", "Times as fast", "Record")
    caption = (
        "Contenders take turns in one process; medians of the ratios with their 20th and 80th percentiles. "
        "Above 1 is faster."
    )
    return Table(caption, columns, rows, 5)


def speed_sentences(paper: Paper) -> list[str]:
    """ELAS against its dense twin on each device, and what has not been measured."""
    return [text for _, text in speed_answers(paper)]


def speed_answers(paper: Paper) -> Iterator[tuple[bool, str]]:
    """The sentences, and of each whether it says something that was measured."""
    found = ratios(paper)
    if not found:
        yield False, "No record with ratios lies under benchmarks/results/: elas bench --json FILE makes one."
        return
    for ratio in found:
        if ratio.is_ours_against_its_twin:
            yield (
                True,
                f"{ratio.contender} runs at {ratio.times} times the speed of {ratio.against} ({ratio.kind}"
                f"{', ' + ratio.place if ratio.place else ''}; {ratio.device}).",
            )
    if not any(ratio.gpu for ratio in found):
        yield (
            False,
            "There is no record from a GPU. On a CPU the 2:4 step is work and saves none, so these ratios say nothing "
            "about sparse tensor cores; whether 2:4 pays on a low-rank FFN is not answered here yet.",
        )
    kinds = {ratio.kind for ratio in found}
    if lacking := [
        what for what, kind in (("of training", "train_step"), ("of prefill", "prefill")) if kind not in kinds
    ]:
        yield False, f"Not measured yet: the speed {listing(lacking)}."
