"""The command that writes the page: ``report``."""

import sys

import typer

from lens_lang.cli.options import RunDir
from lens_lang.cli.printing import print_line


def report(run_dir: RunDir) -> None:
    """Write one HTML page, which opens offline, from a run folder.

    Files that cannot be read are named, and the command ends with 1.
    """
    from lens_lang import page

    written = page.write_page(run_dir)
    print_line(str(written.path))
    for path, why in written.unread.items():
        sys.stderr.write(f"lens-lang: {path.name} is not on the page: {why}\n")
    if written.unread:
        raise typer.Exit(1)
