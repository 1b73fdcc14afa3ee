"""The commands that measure what neurons do: ``demo`` and ``evaluate perplexity``."""

from pathlib import Path
from typing import Annotated

import typer

from lens_lang.cli.options import (
    Column,
    Device,
    Json,
    Model,
    Neurons,
    RunDir,
    Texts,
    corpora_of,
    text_files,
)
from lens_lang.cli.printing import print_rows, say


def demo(
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    full: Annotated[
        bool, typer.Option("--full", help="All held-out text, five controls on every language.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find and prove the language neurons of the packaged model, on the sample text."""
    from lens_lang.demo import run_demo
    from lens_lang.sections.effect import why_not

    result = run_demo(out, full=full, say=say)
    table = result.matrix.selectivity()
    reasons = {str(lang): why_not(row, result.neurons) for lang, row in table.iterrows()}
    rows = [
        {
            "language": lang,
            "neurons": len(result.neurons[lang]),
            "own": round(float(row["own"]), 3),
            "random": round(float(row["control"]), 3),
            "rival": f"{row['rival']} {row['rival_change']:+.2f}",
            "passes": "yes" if row["specific"] and row["beyond_chance"] else "no",
        }
        for lang, row in ((str(lang), row) for lang, row in table.iterrows())
    ]
    print_rows(rows, as_json, "Nats per token that a language loses when neurons are off")
    if not as_json:
        passed = sum(row["passes"] == "yes" for row in rows)
        say(
            f"{passed} of {len(rows)} languages depend on their own neurons more than on any "
            "other's, and at least five times more than on random ones."
        )
        for row in rows:
            if row["passes"] == "no":
                say(f"  {row['language']}: {reasons[str(row['language'])]}")
        say(f"Report: {result.page}")


def perplexity(
    run_dir: RunDir,
    model: Model = "gemma-3-270m",
    device: Device = None,
    text: Texts = None,
    neurons: Neurons = "lape",
    tokens: Annotated[int | None, typer.Option(help="At most so many tokens a language.")] = None,
    controls: Annotated[int, typer.Option(help="Random controls per language.")] = 3,
    all_controls: Annotated[
        bool, typer.Option("--all-controls", help="Measure controls on every language.")
    ] = False,
    text_column: Column = "text",
    as_json: Json = False,
) -> None:
    """Switch neurons off and measure each language's perplexity, beside random controls."""
    from lens_lang.evaluate.perplexity import perplexity_matrix
    from lens_lang.intervene import ablate
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons

    found, files = LanguageNeurons.load(run_dir / f"{neurons}.safetensors"), text_files(text)
    loaded = load_model(model, device=device)
    held_out = corpora_of(
        loaded, files, 512, tokens, text_column, part=1, languages=found.languages
    )
    whose = "the text named" if files else "the last fifth of the packaged text (--text: your own)"
    say(
        f"Judging on {sum(held_out.n_tokens.values()):,} tokens of {whose}: "
        f"{', '.join(held_out.languages)}"
    )
    matrix = perplexity_matrix(
        loaded,
        held_out,
        {lang: ablate(some) for lang, some in found.items()},
        controls=controls,
        control_on="all" if all_controls else "own",
    )
    name = "perplexity" if neurons == "lape" else f"perplexity-{neurons}"
    matrix.save(run_dir / f"{name}.safetensors")
    rows = matrix.to_frame().round(4).to_dict("records")
    print_rows(rows, as_json, "Change of NLL in nats per token")
