"""The subcommands of ``elas``, by what they are about: their options, and what two of them print.

What :mod:`elas_lightning.cli` declares a command with is light; the rest is imported when a command runs.
"""
