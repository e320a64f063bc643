"""What the README shows works as written; its commands are tried with those of the documentation (test_docs.py)."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_says_what_it_prints() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    *lines, last = code.strip().splitlines()
    exec("\n".join(lines), names)
    expression, shown = last.split("  # ")
    assert repr(eval(expression, names)) == shown
    assert tuple(names["logits"].shape) == (2, 64, 4096)  # type: ignore[attr-defined]


def test_every_link_leads_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
