"""The program: its commands in their order, and how it ends."""

import signal
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from lens_lang.cli.cards import card
from lens_lang.cli.detecting import (
    detect_lap,
    detect_lape,
    detect_lave,
    detect_plnd,
    detect_sharing,
)
from lens_lang.cli.generating import generate
from lens_lang.cli.judging import demo, perplexity
from lens_lang.cli.keeping import apply_delta, convert, export, tune
from lens_lang.cli.layers import latent, lens
from lens_lang.cli.measuring import collect, info
from lens_lang.cli.reporting import report
from lens_lang.cli.sharing import attribute, collect_parallel
from lens_lang.cli.solving import mwork, tasks
from lens_lang.errors import LensLangError

app = typer.Typer(
    name="lens-lang",
    help="Find, switch and judge the neurons that carry languages in a language model.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help is instant; the rich one costs as much again
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command()(collect)
app.command("collect-parallel")(collect_parallel)
app.command()(generate)
app.command()(tune)
app.command()(export)
app.command("apply")(apply_delta)
app.command()(lens)
app.command()(latent)
app.command()(attribute)
app.command()(card)
app.command()(report)
app.command()(info)
app.command()(convert)

detect_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Find language neurons in a run folder's statistics.",
)
detect_app.command("lape")(detect_lape)
detect_app.command("lap")(detect_lap)
detect_app.command("lave")(detect_lave)
detect_app.command("plnd")(detect_plnd)
detect_app.command("sharing")(detect_sharing)
app.add_typer(detect_app, name="detect")


class _PerplexityFirst(TyperGroup):
    """``evaluate RUN_DIR`` is ``evaluate perplexity RUN_DIR``, as it was before it had company."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands:
            args = ["perplexity", *args]
        return super().resolve_command(ctx, args)


evaluate_app = typer.Typer(
    cls=_PerplexityFirst,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure what neurons do: to perplexity, to tasks, to the story of regions.",
)
evaluate_app.command("perplexity")(perplexity)
evaluate_app.command("tasks")(tasks)
evaluate_app.command("mwork")(mwork)
app.add_typer(evaluate_app, name="evaluate")


class _Interrupted(BaseException):
    """Ctrl-C, under a name that typer does not catch before we can say what it means."""


def _interrupt(signum: int, frame: Any) -> None:  # noqa: ARG001
    raise _Interrupted


def main() -> None:
    """Run the command line."""
    before = signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except LensLangError as error:
        sys.stderr.write(f"lens-lang: {error}\n")
        raise SystemExit(2) from None
    except _Interrupted:
        sys.stderr.write("lens-lang: interrupted; the same command continues from what was saved\n")
        raise SystemExit(130) from None
    finally:
        signal.signal(signal.SIGINT, before)
