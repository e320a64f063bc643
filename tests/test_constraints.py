"""The versions that ``make setup`` installs, and the lowest ones, are those that ``pyproject.toml`` admits."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNS = ("gpu", "eval", "export", "postgresql", "mysql", "grpc")  # the extras whose code is ours


def _pins(name: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    pins = [line.split("==") for line in lines]
    return {canonicalize_name(package): Version(version) for package, version in pins}


def _required(*extras: str) -> list[Requirement]:
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in PROJECT["optional-dependencies"][extra])]
    return [Requirement(text) for text in texts]


@pytest.mark.parametrize("requirement", _required(*PROJECT["optional-dependencies"]), ids=str)
def test_the_constraints_admit_what_is_required(requirement: Requirement) -> None:
    pinned = _pins("constraints.txt").get(canonicalize_name(requirement.name))
    assert pinned is None or pinned in requirement.specifier


@pytest.mark.parametrize("requirement", [one for one in _required(*RUNS) if one.name != "nvidia-ml-py"], ids=str)
def test_the_oldest_versions_are_the_lower_bounds(requirement: Requirement) -> None:
    pinned = _pins("constraints-oldest.txt")[canonicalize_name(requirement.name)]
    bound = next(Version(one.version) for one in requirement.specifier if one.operator == ">=")
    assert pinned == bound


def test_triton_is_the_one_that_torch_asks_for() -> None:
    """PyTorch's CUDA build names one Triton; another pin lets nobody with a GPU install."""
    asked = {"2.13.0": "3.7.1", "2.11.0": "3.6.0"}
    for name in ("constraints.txt", "constraints-oldest.txt"):
        pins = _pins(name)
        assert str(pins["triton"]) == asked[str(pins["torch"])], name
