"""Docstrings of Python files, found with ``ast``; nothing is imported or run.

``pydocs`` starts this file as a script, one process a core: tab-separated ``package``, ``module``, ``path``
lines on stdin, one JSON line a file on stdout. Being standard library only it starts in a few hundredths of a
second (importing the package would load torch), and a plain subprocess has none of the hazards of forking a
program that already runs threads.
"""

import ast
import inspect
import json
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

# numpy and torch document their compiled functions with calls such as ``add_docstr(torch.abs, "…")``.
_DOCUMENTING_CALLS = frozenset({"add_docstr", "add_newdoc"})


def docstrings(source: str) -> Iterator[tuple[str, str]]:
    """Yield the documentation of a module and everything defined in it, in source order.

    Args:
        source: text of a Python file.

    Yields:
        ``(qualified name, docstring)``; the name is empty for the module itself, the text is dedented.

    Raises:
        SyntaxError: the file is not valid Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escapes are not our user's business
        tree = ast.parse(source)
    yield from _walk(tree, "")


def _walk(node: ast.AST, qualname: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        if not isinstance(node, ast.Module):
            qualname = f"{qualname}.{node.name}" if qualname else node.name
        if text := ast.get_docstring(node, clean=True):
            yield qualname, text
    elif isinstance(node, ast.Expr):
        yield from _documenting_call(node.value)
    # Definitions live in statements only; walking expressions as well would double the time.
    for block in ("body", "orelse", "handlers", "finalbody", "cases"):
        for child in getattr(node, block, ()):
            yield from _walk(child, qualname)


def _documenting_call(node: ast.expr) -> Iterator[tuple[str, str]]:
    if not isinstance(node, ast.Call):
        return
    called = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
    if called not in _DOCUMENTING_CALLS:
        return
    strings = [
        constant.value
        for argument in node.args
        for constant in ast.walk(argument)
        if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
    ]
    if strings:
        text = max(strings, key=len)
        names = [s for s in strings if s is not text and s.replace(".", "").isidentifier()]
        if not isinstance(node.args[0], ast.Constant):
            names.insert(0, ast.unparse(node.args[0]))
        yield ".".join(names), inspect.cleandoc(text)


def main() -> None:
    """Answer every line on stdin with ``{"package": …, "documents": [[url, text], …]}``."""
    for line in sys.stdin:
        package, module, path = line.rstrip("\n").split("\t")
        documents: list[tuple[str, str]] = []
        try:
            for qualname, text in docstrings(Path(path).read_text(encoding="utf-8")):
                documents.append((f"pydoc://{package}/{module}#{qualname}", text))
        except (SyntaxError, UnicodeDecodeError):
            # Templates and files for other interpreters: no package is worse off for a file less.
            documents = []
        print(json.dumps({"package": package, "documents": documents}), flush=True)


if __name__ == "__main__":
    main()
