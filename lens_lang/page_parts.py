"""Sections as the page's template takes them: cells, figures, and the contents."""

import json
import re
from dataclasses import dataclass, replace

from lens_lang.sections.caption import Caption, describe
from lens_lang.sections.cells import (
    Cell,
    cell_value,
    column_kinds,
    known_numbers,
    split_interval,
)
from lens_lang.sections.section import Section

_LONG_NAME = 14
"""Longer names of rows than this are wrapped on a small screen, where they stay in sight."""

_STACKED = 3
"""With so many columns that have intervals, these stand below their values."""


@dataclass(frozen=True)
class PageCell:
    """A cell as the page writes it, sorts it, and gives it in a download."""

    text: str
    interval: str
    value: float | None
    number: str = ""
    ends: tuple[str, str] | None = None
    lang: str = ""
    link: str = ""


@dataclass(frozen=True)
class PageFigure:
    """A figure as the page holds it, until it is drawn."""

    json: str
    caption: Caption
    height: int


@dataclass(frozen=True)
class Part:
    """A section with all that its place on the page needs."""

    id: str
    title: str
    text: list[str]
    columns: list[str]
    kinds: list[str]
    units: list[str]
    ends: list[bool]
    stacked: bool
    long_names: bool
    rows: list[list[PageCell]]
    figures: list[PageFigure]
    fragments: list[str]
    views: list[str]
    options: list[tuple[str, str]]
    group: str


@dataclass(frozen=True)
class Entry:
    """A line of the contents."""

    id: str
    label: str


@dataclass(frozen=True)
class Group:
    """Lines of the contents that belong together; one alone has no head."""

    head: str
    entries: list[Entry]


def contents_of(parts: list[Part]) -> list[Group]:
    """Return the page's contents: its parts by kind of result, in their order."""
    together: dict[str, list[Part]] = {}
    for part in parts:
        together.setdefault(part.group or part.id, []).append(part)
    groups = []
    for head, some in together.items():
        names = [_in_brackets(part.title) for part in some]
        groups.append(
            Group(
                head if len(some) > 1 else "",
                [
                    Entry(
                        part.id, name if name and names.count(name) == 1 < len(some) else part.title
                    )
                    for part, name in zip(some, names, strict=True)
                ],
            )
        )
    return groups


def _in_brackets(title: str) -> str:
    """What stands in brackets at the end of a title: the file it is of."""
    found = re.search(r"\(([^()]+)\)$", title)
    return found[1] if found else ""


def part_of(number: int, section: Section) -> Part:
    """Return a section with what its place on the page needs.

    Args:
        number: Which section of the page this is, from 1: its anchor.
        section: The section.
    """
    kinds = column_kinds(section.columns, section.rows)
    columns = [[row[place] for row in section.rows] for place in range(len(section.columns))]
    return Part(
        id=f"s{number}",
        title=section.title,
        text=section.text,
        columns=section.columns,
        kinds=kinds,
        units=[_unit(column, kind) for column, kind in zip(columns, kinds, strict=True)],
        ends=[any(known_numbers(cell)[1] is not None for cell in column) for column in columns],
        long_names=any(len(row[0]) > _LONG_NAME for row in section.rows if row),
        stacked=_intervals(section.rows) >= _STACKED,
        rows=[
            [_cell(cell, kind) for cell, kind in zip(row, kinds, strict=True)]
            for row in section.rows
        ],
        figures=[_figure(figure) for figure in section.figures],
        fragments=section.fragments,
        views=[view.to_html() for view in section.views],
        options=section.options,
        group=section.group,
    )


def _unit(column: list[str], kind: str) -> str:
    """``" (%)"`` where all numbers of a column are in it, which a download says in the head."""
    said = [split_interval(cell)[0] for cell in column if cell.strip()]
    return " (%)" if kind == "number" and all(cell.endswith("%") for cell in said) else ""


def _intervals(rows: list[list[str]]) -> int:
    """How many columns have intervals."""
    return sum(
        any(split_interval(cell)[1] for cell in column) for column in zip(*rows, strict=True)
    )


def _cell(text: str, kind: str) -> PageCell:
    """A cell of a column of one kind; numbers have the minus sign that axes have."""
    if kind == "name":
        return PageCell(str(text), "", None)
    said, interval = split_interval(text)
    order, lang = (text.order, text.lang) if isinstance(text, Cell) else (None, "")
    if kind == "number" or order is not None:
        said, interval = said.replace("-", "−"), interval.replace("-", "−")
    number, low, high = known_numbers(text) if kind == "number" else (None, None, None)
    value = next((x for x in (order, number) if x is not None), cell_value(text))
    return PageCell(
        said,
        interval,
        value,
        "" if number is None else _plain(number),
        None if low is None or high is None else (_plain(low), _plain(high)),
        lang if _TAG.fullmatch(lang) else "",
    )


_TAG = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")
"""A language as browsers want to have it named."""


def _plain(number: float) -> str:
    """All digits of a number, none of them after the point if it is whole."""
    return str(int(number)) if number.is_integer() else repr(number)


def _figure(text: str) -> PageFigure:
    figure = json.loads(text)
    caption = describe(figure)
    note = (figure["layout"].get("meta") or {}).get("note")
    if note:
        caption = replace(caption, text=f"{caption.text} {note}")
    return PageFigure(text, caption, int(figure["layout"].get("height") or 450))
