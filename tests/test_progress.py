"""Bars are seen where somebody watches, and nowhere else."""

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from lens_lang.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def seen_on(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, *, progress: bool = True) -> bool:
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar(progress, total=3, unit="batch", label="collect", done=1) as bar:
        bar.update()
        assert bar.disable or (bar.n, bar.total, bar.desc) == (2, 3, "collect")
    return "collect" in stream.getvalue()


def test_a_pipe_sees_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not seen_on(io.StringIO(), monkeypatch)


def test_a_terminal_does_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert seen_on(Terminal(), monkeypatch)
    assert not seen_on(Terminal(), monkeypatch, progress=False)


@pytest.mark.parametrize(("shell", "seen"), [(SimpleNamespace(kernel=1), True), (None, False)])
def test_a_notebook_does_and_ipython_in_a_pipe_does_not(
    monkeypatch: pytest.MonkeyPatch, shell: Any, seen: bool
) -> None:
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert seen_on(io.StringIO(), monkeypatch) is seen
