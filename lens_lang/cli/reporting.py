"""The command that writes the page: ``report``."""

from lens_lang.cli.options import RunDir
from lens_lang.cli.printing import print_line


def report(run_dir: RunDir) -> None:
    """Write one HTML page, which opens offline, from a run folder."""
    from lens_lang import page

    print_line(str(page.report(run_dir)))
