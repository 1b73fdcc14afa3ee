"""What the cells of a table are: numbers, words or sentences, and what they sort by."""

import re

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?"

_NUMBER = re.compile(
    r"(?P<bound>[<>≤≥]?)\s*"
    r"(?P<sign>[+\-−]?)"
    rf"(?P<digits>{_DIGITS})"
    r"(?P<power>e[+\-]?\d+)?"
    r"\s*[%×]?"
    r"(?P<rest>\s*(?:[\[(].*|to\s.*|†)?)",
    re.DOTALL,
)

_ENDS = re.compile(rf"\[(?P<low>[+\-−]?{_DIGITS}),\s*(?P<high>[+\-−]?{_DIGITS})\]")

_SENTENCE = 44
"""A column with longer cells than this is wrapped."""


class Cell(str):
    """What a cell says, with what it knows beyond that.

    Attributes:
        value: The number that it says, before it was rounded.
        low: The lower end of its interval.
        high: The upper end.
        order: What it sorts by, where it says more than a number.
        lang: The language of its text.

    Examples:
        >>> cell = Cell("0.33 [0.10, 0.67]", value=1 / 3, low=0.1, high=2 / 3)
        >>> cell == "0.33 [0.10, 0.67]", cell.value
        (True, 0.3333333333333333)
    """

    __slots__ = ("high", "lang", "low", "order", "value")

    value: float | None
    low: float | None
    high: float | None
    order: float | None
    lang: str

    def __new__(
        cls,
        text: str,
        *,
        value: float | int | None = None,
        low: float | int | None = None,
        high: float | int | None = None,
        order: float | int | None = None,
        lang: str = "",
    ) -> "Cell":
        """Say a text, and remember the rest; NaN is remembered as nothing."""
        made = super().__new__(cls, text)
        made.value, made.low, made.high, made.order = (
            None if x is None or x != x else float(x) for x in (value, low, high, order)
        )
        made.lang = lang
        return made


def known_numbers(cell: str) -> tuple[float | None, float | None, float | None]:
    """Return the number of a cell and the ends of its interval, unrounded where it knows them.

    Args:
        cell: As `cell_value` takes it.

    Returns:
        None for what it does not say; neither a bound such as ``<.001`` is a number, nor two.

    Examples:
        >>> known_numbers("1,234"), known_numbers("-0.5 [-1.0, 0.0]")
        ((1234.0, None, None), (-0.5, -1.0, 0.0))
        >>> known_numbers(Cell("<.001", value=1e-5)), known_numbers("<.001")
        ((1e-05, None, None), (None, None, None))
    """
    if isinstance(cell, Cell) and cell.value is not None:
        return cell.value, cell.low, cell.high
    if cell.strip().startswith(("<", ">", "≤", "≥")) or " to " in cell:
        return None, None, None
    value, ends = cell_value(cell), _ENDS.search(cell)
    if value is None or ends is None:
        return value, None, None
    return value, cell_value(ends["low"]), cell_value(ends["high"])


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
        return str(cell), ""
    start = re.search(r"\s*[\[(]", cell)
    return (cell[: start.start()], cell[start.start() :]) if start else (str(cell), "")


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
