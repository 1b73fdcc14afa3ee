"""What the cells of a table are: numbers, words or sentences, and what they sort by."""

import re

_NUMBER = re.compile(
    r"(?P<bound>[<>≤≥]?)\s*"
    r"(?P<sign>[+\-−]?)"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?)"
    r"(?P<power>e[+\-]?\d+)?"
    r"\s*[%×]?"
    r"(?P<rest>\s*(?:[\[(].*|to\s.*)?)",
    re.DOTALL,
)

_SENTENCE = 44
"""A column with longer cells than this is wrapped."""


def cell_value(cell: str) -> float | None:
    """Return the number that a cell says, to sort by, or None for words and empty cells.

    Args:
        cell: Such as ``+0.120 [+0.100, +0.140]``, ``1,234``, ``0.5 %`` or ``<.001``.

    Examples:
        >>> cell_value("1,234"), cell_value("-0.5 [-1.0, 0.0]"), cell_value("layer 3 (2)")
        (1234.0, -0.5, None)
        >>> 0.0009 < cell_value("<.001") < 0.001
        True
    """
    found = _NUMBER.fullmatch(cell.strip())
    if found is None or not found["digits"]:
        return None
    value = float(found["digits"].replace(",", "") + (found["power"] or ""))
    if found["sign"] in ("-", "−") and found["sign"]:
        value = -value
    # just beside the bound, so that <.001 stands before .001
    step = {"<": -1e-6, ">": 1e-6}.get(found["bound"], 0.0)
    return value + step * (abs(value) or 1.0)


def split_interval(cell: str) -> tuple[str, str]:
    """Divide a cell into its value and what stands behind it in brackets.

    Examples:
        >>> split_interval("+0.12 [+0.10, +0.14]")
        ('+0.12', ' [+0.10, +0.14]')
        >>> split_interval("fr")
        ('fr', '')
    """
    if cell_value(cell) is None:
        return cell, ""
    start = re.search(r"\s*[\[(]", cell)
    return (cell[: start.start()], cell[start.start() :]) if start else (cell, "")


def column_kinds(columns: list[str], rows: list[list[str]]) -> list[str]:
    """Say of each column of a table whether it holds names, numbers, words or sentences.

    Args:
        columns: The heads. Neurons are named like numbers (12.1542), and are none.
        rows: The cells; every row has as many.

    Returns:
        ``"name"``, ``"number"``, ``"word"`` or ``"sentence"``, one for each column.

    Examples:
        >>> column_kinds(["language", "tokens", "p"], [["en", "10", ""], ["fr", "20 [1, 3]", ""]])
        ['word', 'number', 'word']
        >>> column_kinds(["neuron"], [["12.1542"]])
        ['name']
    """
    kinds = []
    for place, head in enumerate(columns):
        column = [row[place] for row in rows]
        if head == "neuron":
            kinds.append("name")
            continue
        said = [cell for cell in column if cell.strip()]
        if said and all(cell_value(cell) is not None for cell in said):
            kinds.append("number")
        else:
            kinds.append("sentence" if any(len(cell) > _SENTENCE for cell in said) else "word")
    return kinds
