"""What the build adds: links to and from notebooks work, and no page fetches from the network.

In the repository the notebooks lie beside ``docs``, in the site inside it. A warning ends a strict
build.
"""

import logging
import posixpath
import re
from typing import Any

logger = logging.getLogger("mkdocs.plugins.checks")

_FETCHING = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?"
    r"\bsrc\s*=\s*[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?![^>]*\brel=[\"']?canonical)[^>]*?\bhref\s*=\s*[\"']?((?:https?:)?//[^\"'\s>]+)",
    re.IGNORECASE,
)
"""What a browser loads as soon as it meets it; links that a reader may follow are not."""

_LINK = re.compile(r'(<a href=")([^":#]+\.(?:md|ipynb))(?=[#"])')


def fetched(html: str) -> list[str]:
    """Return the addresses on the network that a page loads by itself."""
    return [script or link for script, link in _FETCHING.findall(html)]


def at_home(link: str) -> str:
    """Return where a link of ``notebooks/`` leads, seen from ``docs/notebooks/``.

    Examples:
        >>> at_home("../docs/methods.md"), at_home("2_next.ipynb")
        ('methods.md', 'notebooks/2_next.ipynb')
    """
    path = posixpath.normpath(posixpath.join("notebooks", link))
    return path.removeprefix("docs/")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001
    """Lead links to notebooks, which lie beside the documentation, to their copies in the site."""
    return re.sub(r"\]\(\.\./((?:\.\./)*notebooks/)", r"](\1", markdown)


def on_page_content(html: str, *, page: Any, config: Any, files: Any) -> str:  # noqa: ARG001
    """Lead the links of a notebook to pages of the site."""
    if not page.file.src_path.endswith(".ipynb"):
        return html

    def led(found: re.Match[str]) -> str:
        target = files.get_file_from_path(at_home(found[2]))
        if target is None:
            logger.warning("%s links to %s, which is no page", page.file.src_path, found[2])
            return found[0]
        return found[1] + target.url_relative_to(page.file)

    return _LINK.sub(led, html)


def on_post_page(output: str, *, page: Any, config: Any) -> str:  # noqa: ARG001
    """Warn of every address that a page would fetch."""
    for address in fetched(output):
        logger.warning("%s would fetch %s", page.file.src_path, address)
    return output
