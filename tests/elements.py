"""A page as a browser would read it, without a browser."""

import json
from html.parser import HTMLParser
from typing import Any


class Elements(HTMLParser):
    """What a browser would make of a page: elements with attributes, scripts, cells, text.

    ``tables`` has the cells of each section's table, by its heading; ``cells`` those of results.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.attributes: list[tuple[str, str, str]] = []
        self.scripts: list[str] = []
        self.tables: dict[str, list[str]] = {}
        self.headings: list[str] = []
        self.text = ""
        self._inside = ""
        self._table, self._cell = False, False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._inside = tag
        said = dict(attrs)
        if tag == "table":
            self._table = "result" in str(said.get("class")).split()
        if self._table and (tag == "td" or said.get("scope") == "row"):
            self._cell = True
            self.tables.setdefault(self.headings[-1] if self.headings else "", []).append("")
        for wanted, held in (("script", self.scripts), ("h2", self.headings)):
            if tag == wanted:
                held.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        held = {"script": self.scripts, "h2": self.headings}.get(self._inside)
        if self._cell:
            held = self.tables[self.headings[-1] if self.headings else ""]
        if held is not None:
            held[-1] += data
        if self._inside not in ("script", "style"):
            self.text += data

    @property
    def cells(self) -> list[str]:
        """Of the tables of results, not of files and texts."""
        return [
            cell
            for heading, cells in self.tables.items()
            if heading not in ("Data", "Texts")
            for cell in cells
        ]

    @property
    def figures(self) -> list[dict[str, Any]]:
        return [json.loads(v) for _, name, v in self.attributes if name == "data-figure"]

    @property
    def loads(self) -> list[str]:
        """Addresses that a browser would fetch or link to."""
        names = ("src", "href", "srcset", "action", "poster", "data", "formaction", "xlink:href")
        found = [value for _, name, value in self.attributes if name in names]
        return [value for value in found if not value.startswith("#")]
