"""The commands that read layers by language: ``lens`` and ``latent``."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lens_lang.cli.options import (
    Column,
    Device,
    Json,
    Model,
    Texts,
    corpora_of,
    text_files,
    vocabulary_of,
)
from lens_lang.cli.printing import print_rows, say
from lens_lang.errors import OptionError


def lens(
    out: Annotated[Path, typer.Argument(help="Run folder.")],
    model: Model = "gemma-3-270m",
    device: Device = None,
    text: Texts = None,
    neurons: Annotated[
        str | None,
        typer.Option(help="Neuron file in the run folder: switch each language's own off, too."),
    ] = None,
    prompts: Annotated[int, typer.Option(help="Held-out documents a language.")] = 8,
    last: Annotated[
        bool, typer.Option("--last", help="Read the last token only, not every one: quicker.")
    ] = False,
    top_k: Annotated[
        int | None, typer.Option(help="Count the likeliest items instead of summing probability.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Read without the final norm.")] = False,
    text_column: Column = "text",
    as_json: Json = False,
) -> None:
    """Measure which language each layer speaks, and how that changes without its neurons."""
    import torch

    from lens_lang.intervene import ablate
    from lens_lang.lens import first_documents, language_curve
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons, random_like

    files = text_files(text)
    found = LanguageNeurons.load(out / f"{neurons}.safetensors") if neurons else None
    loaded = load_model(model, device=device)
    if files:
        train, held_out = corpora_of(loaded, files, 512, None, text_column, part=1).split(
            0.8, seed=0
        )
    else:
        train, held_out = (
            corpora_of(loaded, files, 512, None, text_column, part) for part in (0, 1)
        )
    some = first_documents(held_out, prompts)
    vocabulary = vocabulary_of(loaded, train)
    vocabulary.save(out / "vocabulary.safetensors")
    if found is not None and not set(found.languages) & set(some.languages):
        raise OptionError(
            f"{neurons} has no neurons of {', '.join(some.languages)}: none to switch off"
        )
    cases: dict[str, dict[str, Any]] = {"curve": {}}
    if found is not None:
        generator = torch.Generator().manual_seed(0)
        known = {lang: each for lang, each in found.items() if lang in some.languages}
        cases[f"curve-{neurons}-off"] = {lang: ablate(each) for lang, each in known.items()}
        cases[f"curve-{neurons}-random"] = {
            lang: ablate(random_like(each, generator=generator)) for lang, each in known.items()
        }
    rows: list[dict[Any, Any]] = []
    for name, hooks in cases.items():
        curve = language_curve(
            loaded,
            some,
            vocabulary,
            fwd_hooks=hooks,
            positions="last" if last else "all",
            top_k=top_k,
            norm=not raw,
        )
        curve.save(out / f"{name}.safetensors")
        say(f"{name} is measured")
        table = curve.summary() if "en" in curve.languages else curve.to_frame()
        rows += [{"case": name, **row} for row in table.round(3).to_dict("records")]
    print_rows(rows, as_json, "Share of each layer's prediction")


def latent(
    out: Annotated[Path, typer.Argument(help="Run folder.")],
    target: Annotated[str, typer.Option(help="Language of the word that is asked for.")],
    source: Annotated[
        str | None, typer.Option(help="Language to translate from; without, fill in sentences.")
    ] = None,
    model: Model = "gemma-3-270m",
    device: Device = None,
    words: Annotated[
        Path | None, typer.Option(help="JSON lines of concepts; without, those of lens_lang.")
    ] = None,
    prompts: Annotated[int, typer.Option(help="At most so many prompts.")] = 48,
    neurons: Annotated[
        str | None,
        typer.Option(help="Neuron file in the run folder: the target's off, then random ones."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure in which language a word is on its way, layer by layer (Wendler et al. 2024)."""
    import torch

    from lens_lang.concepts import cloze_prompts, read_concepts, translation_prompts
    from lens_lang.intervene import ablate
    from lens_lang.languages import language_tag
    from lens_lang.latent import latent_language, separable_prompts
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons, random_like

    if prompts < 1:
        raise OptionError(f"--prompts must be at least 1, got {prompts}")
    concepts, asked = read_concepts(words), language_tag(target)
    given = None if source is None else language_tag(source)
    made = (
        cloze_prompts(concepts, asked)
        if given is None
        else translation_prompts(concepts, given, asked)
    )
    task = "cloze" if given is None else given
    cases: dict[str, Any] = {f"latent-{task}-{asked}": []}
    if neurons:
        some = LanguageNeurons.load(out / f"{neurons}.safetensors")[asked]
        random = random_like(some, generator=torch.Generator().manual_seed(0))
        cases = {
            f"latent-{task}-{asked}-{neurons}-off": ablate(some),
            f"latent-{task}-{asked}-{neurons}-random": ablate(random),
        }
    loaded = load_model(model, device=device)
    kept, sets = separable_prompts(loaded, made)
    say(f"{len(kept)} of {len(made)} prompts have answers that begin differently")
    rows: list[dict[Any, Any]] = []
    for name, hooks in cases.items():
        found = latent_language(loaded, kept[:prompts], sets[:prompts], fwd_hooks=hooks)
        found.save(out / f"{name}.safetensors")
        means = (found.mean, found.entropy.mean(0), found.energy.mean(0))
        for layer, (mean, bits, energy) in enumerate(
            zip(*(values.tolist() for values in means), strict=True)
        ):
            rows.append(
                {
                    "case": name,
                    "layer": layer,
                    **{lang: round(p, 4) for lang, p in zip(found.languages, mean, strict=True)},
                    "entropy": round(bits, 2),
                    "energy": round(energy, 3),
                }
            )
    print_rows(rows, as_json, "Probability of the word's beginnings, bits, token energy")
