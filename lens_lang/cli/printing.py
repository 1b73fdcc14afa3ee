"""What a command says: tables and paths to stdout, progress to stderr."""

import json
import math
import sys
from typing import Any


def say(line: str) -> None:
    """Tell the person; stderr, so that stdout holds results only."""
    from rich.console import Console

    Console(stderr=True, highlight=False, soft_wrap=True).print(line, markup=False)


def print_line(line: str) -> None:
    """Print one line of results."""
    from rich.console import Console

    Console(highlight=False, soft_wrap=True).print(line, markup=False)


def print_rows(rows: list[dict[Any, Any]], as_json: bool, title: str) -> None:
    """Print a table, or the same as JSON, where what was not measured is null."""
    if as_json:
        finite = [
            {
                key: None if isinstance(x, float) and not math.isfinite(x) else x
                for key, x in r.items()
            }
            for r in rows
        ]
        print_line(json.dumps(finite, ensure_ascii=False, allow_nan=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if title:  # by itself, because a table's own is cut to its width
        print_line(title)
    table = Table()
    for column in rows[0]:
        numeric = isinstance(rows[0][column], int | float)
        table.add_column(str(column), justify="right" if numeric else "left")
    for row in rows:
        # What rounds to nothing has no sign: -0.0 + 0.0 is 0.0.
        shown = (x + 0.0 if isinstance(x, float) else x for x in row.values())
        table.add_row(*(Text(str(value)) for value in shown))
    # Whoever reads a pipe has no width to fit.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
