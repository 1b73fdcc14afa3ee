"""The commands that keep a change or a file: ``tune``, ``export``, ``apply`` and ``convert``."""

from pathlib import Path
from typing import Annotated

import typer

from lens_lang.cli.options import (
    Column,
    CtxLen,
    Device,
    Json,
    Model,
    Neurons,
    RunDir,
    Texts,
    corpora_of,
    text_files,
)
from lens_lang.cli.printing import print_line, print_rows
from lens_lang.errors import OptionError


def tune(
    run_dir: RunDir,
    language: Annotated[str, typer.Option(help="Whose neurons to train, on whose text.")],
    model: Model = "gemma-3-270m",
    device: Device = None,
    neurons: Neurons = "lape",
    steps: Annotated[int, typer.Option(help="Steps of the optimiser.")] = 100,
    lr: Annotated[float, typer.Option(help="Highest learning rate.")] = 1e-4,
    text: Texts = None,
    held_out: Annotated[
        list[str] | None,
        typer.Option("--held-out", help="LANGUAGE=FILE to judge on; without, of the sample."),
    ] = None,
    tokens: Annotated[int | None, typer.Option(help="Held-out tokens a language, at most.")] = 320,
    controls: Annotated[int, typer.Option(help="Random sets trained alike.")] = 1,
    cloze: Annotated[
        int, typer.Option(help="Sentences a language to fill a word in, before and after.")
    ] = 0,
    ctx_len: CtxLen = None,
    text_column: Column = "text",
    as_json: Json = False,
) -> None:
    """Train exactly a language's neurons; keep the change as a small file."""
    from lens_lang.concepts import cloze_prompts, read_concepts
    from lens_lang.evaluate.answers import answer_scores
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons
    from lens_lang.tuning import tune as train

    found = LanguageNeurons.load(run_dir / f"{neurons}.safetensors")[language]
    files, judged = text_files(text), text_files(held_out)
    loaded = load_model(model, device=device)
    corpora = corpora_of(loaded, files, ctx_len, None, text_column)[language]
    read_too = corpora_of(loaded, judged, 512, tokens, text_column, part=1)
    concepts = read_concepts()[:cloze] if cloze > 0 else []
    asked = {
        lang: cloze_prompts(concepts, lang, pivot=lang)
        for lang in read_too.languages
        if concepts and lang in concepts[0].cloze
    }
    before = answer_scores(loaded, asked) if asked else None
    tuned = train(
        loaded,
        found,
        corpora,
        steps=steps,
        lr=lr,
        held_out=read_too,
        controls=controls,
        run_dir=run_dir / f"tuning-{language}",
    )
    delta = run_dir / f"delta-{language}.safetensors"
    tuned.delta.save(delta)
    assert tuned.held_out is not None  # it was given
    tuned.held_out.save(run_dir / f"tuned-{language}.safetensors")
    rows = tuned.held_out.to_frame().round(4).to_dict("records")
    if before is not None:
        answers = answer_scores(loaded, asked).change_from(before).round(4)
        by_language = answers.set_index("language").to_dict("index")
        for row in rows:
            row.update({f"word {k}": v for k, v in by_language.get(row["language"], {}).items()})
    print_rows(rows, as_json, f"Change of held-out NLL in nats per token; weights in {delta}")


def export(
    run_dir: RunDir,
    out: Annotated[Path, typer.Argument(help="New folder, for AutoModelForCausalLM.")],
    language: Annotated[str, typer.Option(help="Whose neurons to switch off in the weights.")],
    model: Model = "gemma-3-270m",
    device: Device = None,
    neurons: Neurons = "lape",
    scale: Annotated[float, typer.Option(help="Multiply them by this instead.")] = 0.0,
) -> None:
    """Write a Hugging Face model with a language's neurons off for good."""
    from lens_lang.exporting import export as write
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons

    found = LanguageNeurons.load(run_dir / f"{neurons}.safetensors")[language]
    print_line(str(write(load_model(model, device=device), found, out, scale=scale)))


def apply_delta(
    delta: Annotated[Path, typer.Argument(help="File that `tune` wrote.")],
    out: Annotated[Path, typer.Argument(help="New folder, for AutoModelForCausalLM.")],
    model: Model = "gemma-3-270m",
    device: Device = None,
) -> None:
    """Write a Hugging Face model with a tuned change in its weights."""
    from lens_lang.delta import Delta
    from lens_lang.exporting import export as write
    from lens_lang.models import load_model
    from lens_lang.neurons import NeuronSet

    change, loaded = Delta.load(delta), load_model(model, device=device)
    change.apply(loaded)
    print_line(str(write(loaded, NeuronSet({}), out)))


def convert(
    source: Annotated[Path, typer.Argument(help="Neuron file: .pth of the LAPE code, or ours.")],
    target: Annotated[Path, typer.Argument(help="Neuron file to write, of the other kind.")],
    languages: Annotated[
        str, typer.Option(help="Languages of a .pth file, in its order, with commas.")
    ] = "",
) -> None:
    """Turn a published neuron file into one of lens_lang, or back."""
    from lens_lang import formats
    from lens_lang.neurons import LanguageNeurons

    if source.suffix == ".pth":
        names = [name.strip() for name in languages.split(",") if name.strip()]
        if not names:
            raise OptionError("--languages is needed: a .pth file does not name its languages")
        neurons = formats.read(source, languages=names)
        neurons.save(target)
    else:
        neurons = LanguageNeurons.load(source)
        formats.write(neurons, target)
    print_line(f"{target}: {neurons!r}")
