"""What the documentation tells a reader to type works as written, and its pages lead where they say."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from elas_lightning import ops
from elas_lightning.cli import main
from elas_lightning.commands import cost, data, model, study
from elas_lightning.data.sources import open_source

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# what is stored of sweeps is made and no page
PAGES = sorted(p for p in DOCS.rglob("*.md") if DOCS / "results" not in p.parents)
BENCHMARKS = {"ffn", "train-step", "prefill", "decode", "memory-account", "gpu"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, the title in quotes, its text."""

    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[str]:
        """Its lines, continued ones joined, without comments."""
        joined = self.text.replace("\\\n", " ")
        return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip()]


def _blocks(page: Path) -> list[Block]:
    found = re.findall(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```', page.read_text(), re.DOTALL | re.MULTILINE)
    return [Block(*parts) for parts in found]


def _commands(page: Path) -> list[str]:
    """Of bash blocks all, of batch scripts what ``srun`` starts."""
    commands = []
    for block in _blocks(page):
        if block.language == "bash":
            commands += block.commands
        elif block.language == "sh":
            commands += [c.removeprefix("srun ") for c in block.commands if c.startswith("srun ")]
    return commands


COMMANDS = [
    pytest.param(command, id=f"{page.stem}: {command[:60]}")
    for page in (ROOT / "README.md", *PAGES)
    for command in _commands(page)
]


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w]+", "-", title.lower()).strip("-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(DOCS)) for p in PAGES])
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), f"{link} in {page.name}"
        assert not anchor or anchor in _anchors(target), f"{link} in {page.name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_list_stands_apart_from_the_paragraph_above_it(page: Path) -> None:
    """The site's Markdown takes it for more of the paragraph otherwise."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert re.findall(r"^(?![-#\s|]|\d+\. ).+\n- .*", text, re.MULTILINE) == []


def test_the_navigation_and_the_pages_are_the_same() -> None:
    def walk(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        children = node.values() if isinstance(node, dict) else node
        return [path for child in children for path in walk(child)]  # type: ignore[attr-defined]

    listed = walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(listed) == sorted(p.relative_to(DOCS).as_posix() for p in PAGES)


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a checkout, with the files that the pages ask the reader to write."""
    for name in ("experiments", "sweeps"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for page in PAGES:
        for block in _blocks(page):
            if block.language == "yaml" and block.title:
                (tmp_path / block.title).write_text(block.text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_understood(
    command: str, reader: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command.replace("$run", "runs/x").replace("$resume", ""))
    program = words[0].removeprefix(".venv/bin/")
    if command == "source .venv/bin/activate":
        return
    if program == "make":
        _check_make(words[1], words[2:])
    elif program == "elas":
        _check_elas(words[1:], monkeypatch)
    elif program == "python":
        _check_script(ROOT / words[1], words[2:])
    else:
        pytest.fail(f"{command!r} is no command of this project")


def _check_make(target: str, given: list[str]) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    variables = dict(word.split("=", 1) for word in given)
    assert set(variables) <= {"EXP", "SIZE", "DATA", "WORKERS", "STORAGE", "ARGS"}
    if target == "sweep":
        chosen = ["--size", variables.get("SIZE", "tiny"), "--data", variables.get("DATA", "pydocs")]
        more = shlex.split(variables.get("ARGS", ""))
        more += [
            part
            for name in ("WORKERS", "STORAGE")
            if name in variables
            for part in (f"--{name.lower()}", variables[name])
        ]
        assert main(["sweep", variables["EXP"], *chosen, *more, "--dry-run"]) == 0
    elif "EXP" in variables:
        assert (ROOT / "sweeps" / f"{variables['EXP']}.yaml").is_file()


def _check_elas(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command, *rest = arguments
    if command == "fit":
        with pytest.raises(SystemExit) as end:
            main([*arguments, *([] if "--print_config" in rest else ["--print_config"])])
        assert end.value.code in (0, None)
    elif command == "sweep" and rest[0] not in ("status", "serve"):
        assert main([*arguments, *([] if "--dry-run" in rest else ["--dry-run"])]) == 0
    elif command == "bench":
        _check_bench(rest)
    elif command == "--version":
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 0
    else:
        # the options are read, the command is not carried out
        called = []
        name = f"_{rest[0] if command in ('data', 'sweep') else command}"
        (home,) = (module for module in (study, model, cost, data) if hasattr(module, name))
        monkeypatch.setattr(home, name, lambda options: called.append(options) or 0)
        assert main(arguments) == 0
        assert called


def _check_bench(arguments: list[str]) -> None:
    first, *rest = arguments
    if first == "--report":
        _check_options(Path(cost.__file__).read_text(), rest)
    else:
        assert first in BENCHMARKS | {"--tune"}
        _check_script(ROOT / "benchmarks" / f"{first.strip('-').replace('-', '_')}.py", rest)


def _check_script(path: Path, arguments: list[str]) -> None:
    shared = [ROOT / "benchmarks" / f"{name}.py" for name in ("measuring", "modes")]
    sources = [path, *shared] if path.parent.name == "benchmarks" else [path]
    _check_options("".join(source.read_text() for source in sources), arguments)


def _check_options(source: str, arguments: list[str]) -> None:
    for option in (word for word in arguments if word.startswith("--")):
        assert f'"{option}"' in source, option


def test_the_corpus_of_ones_own_is_one(reader: Path) -> None:
    (code,) = [block.text for block in _blocks(DOCS / "how-to" / "corpus.md") if block.language == "python"]
    exec(code, {})
    source = open_source("local", "runs/my_corpus", None, reader / "cache")
    assert (len(source.train), len(source.validation)) == (4, 1)


@pytest.mark.slow
def test_the_tutorial_works_as_written(tmp_path: Path) -> None:
    """Command after command, in a copy of this checkout whose .venv is the one that runs this test."""
    checkout = tmp_path / "elas-lightning"
    left_out = (".venv", ".git", "runs", "site", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*left_out))
    (checkout / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        if part.name != ".ready":
            (checkout / ".venv" / part.name).symlink_to(part)
    (checkout / ".venv" / ".ready").touch()  # what `make setup` leaves last
    environment = {**os.environ, "PYTHONPATH": str(checkout), "COLUMNS": "100"}
    environment["ELAS_CACHE_DIR"] = str(tmp_path / "cache")  # as empty as a newcomer's
    steps = []
    blocks = _blocks(DOCS / "tutorial.md")
    for block, following in zip(blocks, [*blocks[1:], None], strict=True):
        if block.language == "yaml":
            (checkout / block.title).write_text(block.text)
            continue
        if block.language == "text":
            continue
        script = {
            "bash": ["bash", "-e", "-c", f"PATH=.venv/bin:$PATH\n{block.text}"],
            "python": [".venv/bin/python", "-c", block.text],
        }[block.language]
        begun = time.perf_counter()
        done = subprocess.run(
            script, cwd=checkout, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        steps.append((round(time.perf_counter() - begun, 1), block.text.strip().splitlines()[0]))
        assert done.returncode == 0, f"{block.text}\n{done.stdout}"
        if following and following.language == "text":
            _check_printed(following.text, done.stdout)
    named = set(re.findall(r"`(runs/[\w./-]+)`", (DOCS / "tutorial.md").read_text()))
    assert {"runs/places/report.html", "runs/elas-hf/README.md"} <= named
    assert [name for name in named if not (checkout / name).exists()] == []
    result = json.loads((checkout / "runs" / "elas" / "result.json").read_text())
    assert result["metrics"]["val_perplexity"] < result["data"]["unigram_perplexity"] / 4
    print(*(f"{seconds:7.1f} s  {line}" for seconds, line in steps), sep="\n")


def _check_printed(said: str, printed: str) -> None:
    """Every line that the page shows was printed, in this order; digits may differ, an ellipsis is anything."""
    anything = {" ": r"[ \t]+", "…": ".*", "0": r"[+-]?\d[\d,.]*"}
    place = 0
    for line in said.splitlines():
        parts = re.split(r"(\s+|…|[+-]?\d[\d,]*(?:\.\d+)?)", line.strip())
        kinds = ["0" if part[-1:].isdigit() else part[:1] for part in parts]
        pattern = "".join(anything.get(kind, re.escape(part)) for kind, part in zip(kinds, parts, strict=True))
        found = re.compile(pattern).search(printed, place)
        assert found, f"the page shows {line!r}, printed was:\n{printed}"
        place = found.end()


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)},
        check=True,
    )
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]*)"', page.read_text())
        assert loaded == [], page.name
    operators = (site / "reference" / "ops.html").read_text()
    headings = re.findall(r'id="elas_lightning\.ops\.([\w.]+)"', operators)
    assert {heading.split(".")[-1] for heading in headings} >= set(ops.__all__)
    assert re.search(r"laid out as the file's top\s+says", operators)  # what is returned is one item, not one a line
