"""The command line: one verb per function, everything else in the functions.

Progress goes to stderr, tables to stdout, results into the run folder. Bad input ends with exit
code 2 and one sentence. Nothing heavy is imported until a command needs it.
"""

from lens_lang.cli.program import app, main

__all__ = ["app", "main"]
