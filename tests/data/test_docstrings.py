import pytest

from elas_lightning.data.docstrings import docstrings

SOURCE = '''
"""Of the module."""
class Outer:
    """Of the class.

    Dedented:
        this far.
    """
    if True:
        async def method(self):
            """Of the method."""
            x = "not a docstring"
try:
    add_docstr(torch.abs, r"""abs(x) -> Tensor

    The {absolute} value.""".format(**common_args))
    add_newdoc("numpy", "ndarray", ("copy", """The copy."""))
    print("""not documentation""")
except ImportError:
    def fallback():
        """Of the fallback."""
'''


def test_finds_all_that_is_documentation_and_nothing_else():
    found = dict(docstrings(SOURCE))
    assert found == {
        "": "Of the module.",
        "Outer": "Of the class.\n\nDedented:\n    this far.",
        "Outer.method": "Of the method.",
        "torch.abs": "abs(x) -> Tensor\n\nThe {absolute} value.",
        "numpy.ndarray.copy": "The copy.",
        "fallback": "Of the fallback.",
    }


def test_does_not_warn_of_what_is_wrong_with_other_peoples_files():
    assert list(docstrings('"""\\d"""')) == [("", "\\d")]


def test_refuses_what_is_not_python():
    with pytest.raises(SyntaxError):
        list(docstrings("def"))
