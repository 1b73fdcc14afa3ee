"""A page opened in headless Chromium without a network, with what it said and asked for.

Whoever has no Chromium skips the tests that need it; with ``LENS_LANG_BROWSER=required`` in the
environment they fail instead.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HEIGHT = 900


@dataclass
class Opened:
    """A page in the browser.

    Attributes:
        page: Playwright's page.
        errors: What it wrote to the console as an error, and what it threw.
        requests: Addresses that it asked for, other than its own file, data: and blob:.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


Browse = Callable[..., Opened]


def missing(reason: str) -> None:
    """Skip the test, or fail it where a browser is required."""
    if os.environ.get("LENS_LANG_BROWSER") == "required":
        pytest.fail(f"LENS_LANG_BROWSER=required, but {reason}")
    pytest.skip(reason)


@contextmanager
def running_browser() -> Iterator[Any]:
    """Playwright's browser, closed with its event loop at the end."""
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        missing(f"no browser is installed ({', '.join(NAMES)})")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install 'lens-lang[dev]'")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opening(browser: Any) -> Iterator[Browse]:
    """A function that opens files; what it opened is closed at the end."""
    contexts: list[Any] = []

    def browse(path: str | Path, width: int = 1280, dark: bool = False, **options: Any) -> Opened:
        """Open a file, offline; other options are those of playwright's ``new_context``."""
        address = Path(path).resolve().as_uri()
        context = browser.new_context(
            viewport={"width": width, "height": HEIGHT},
            color_scheme="dark" if dark else "light",
            offline=True,
            **options,
        )
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.page.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.page.on(
            "console",
            lambda message: opened.errors.append(message.text) if message.type == "error" else None,
        )

        def asked(request: Any) -> None:
            if request.url.partition("#")[0] != address and not request.url.startswith(
                ("data:", "blob:")
            ):
                opened.requests.append(request.url)

        opened.page.on("request", asked)
        opened.page.goto(address)
        return opened

    try:
        yield browse
    finally:
        for context in contexts:
            context.close()
