"""The exceptions of lens_lang.

    LensLangError
    ├── SiteError          a hook point or a model layout is not what was asked for
    ├── LanguageError      a language is unknown or missing            (also KeyError)
    ├── ShapeError         neurons, values and model disagree in size  (also ValueError)
    ├── OptionError        an argument has an impossible value         (also ValueError)
    ├── CorpusError        text or tokens cannot be used               (also ValueError)
    ├── ActivationError    a model produced NaN or infinity            (also ValueError)
    ├── StorageError       a file cannot be read, written or trusted   (also OSError)
    ├── ModelError         a model cannot be loaded or is not supported
    └── MissingExtraError  an optional dependency is not installed     (also ImportError)

Every message is one sentence or two: what was being done, what was expected, what was
found, and what to do about it.
"""

import difflib
from collections.abc import Iterable


class LensLangError(Exception):
    """Base of every error that lens_lang raises on purpose."""

    def __str__(self) -> str:
        # KeyError would print the repr of its argument, with quotes and escapes.
        return str(self.args[0]) if self.args else ""


class SiteError(LensLangError):
    """A hook point or the layout of a model is not what was asked for."""


class LanguageError(LensLangError, KeyError):
    """A language is unknown, missing, or named twice."""


class ShapeError(LensLangError, ValueError):
    """Neurons, values and model disagree about layers or widths."""


class OptionError(LensLangError, ValueError):
    """An argument has a value that cannot work."""


class CorpusError(LensLangError, ValueError):
    """Text or tokens cannot be used."""


class ActivationError(LensLangError, ValueError):
    """A model produced NaN or infinite activations."""


class StorageError(LensLangError, OSError):
    """A file cannot be read, written or trusted."""


class ModelError(LensLangError):
    """A model cannot be loaded, or is of a kind that is not supported."""


class MissingExtraError(LensLangError, ImportError):
    """An optional dependency is not installed."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(
            f"{purpose} needs packages that are not installed: pip install 'lens-lang[{extra}]'"
        )


def near_misses(name: str, known: Iterable[str]) -> str:
    """Name what a misspelt word may have meant, as the end of an error message.

    Args:
        name: What was asked for.
        known: What exists.

    Returns:
        ``"; did you mean 'x' or 'y'?"`` or, when nothing is close, a list of what exists.

    Examples:
        >>> near_misses("gemma", ["gemma-3", "llama"])
        "; did you mean 'gemma-3'?"
    """
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(repr(word) for word in close)}?"
    shown = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
    return f"; known here: {shown or 'nothing'}"
