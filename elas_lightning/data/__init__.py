"""Corpora, tokenizers and the ``C4DataModule`` that streams them."""

from elas_lightning.data.module import C4DataModule

__all__ = ["C4DataModule"]
