"""Bars that say how far a measurement is: in terminals and notebooks, and nowhere else."""

import sys
from typing import Any

from tqdm import tqdm


def progress_bar(
    progress: bool, *, total: int, unit: str, label: str | None = None, done: int = 0
) -> "tqdm[Any]":
    """Return a bar on stderr, which is silent where nobody watches.

    Args:
        progress: Whether to show it at all. ``TQDM_DISABLE=1`` hides all bars.
        total: Of units.
        unit: What is counted.
        label: What stands in front.
        done: Units done before.
    """
    watched = sys.stderr.isatty() or _in_notebook()
    # tqdm takes TQDM_DISABLE only where it is not told.
    hidden = {} if progress and watched else {"disable": True}
    return tqdm(total=total, unit=unit, desc=label, initial=done, file=sys.stderr, **hidden)


def _in_notebook() -> bool:
    """Whether a Jupyter kernel runs this."""
    interactive = sys.modules.get("IPython")
    shell = None if interactive is None else interactive.get_ipython()
    return hasattr(shell, "kernel")
