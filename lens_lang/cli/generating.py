"""The command that lets a model answer open questions: ``generate``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_lang.cli.options import (
    Json,
    Languages,
    Model,
    RunDir,
    Texts,
    corpora_of,
    languages_of,
    text_files,
)
from lens_lang.cli.printing import print_rows, say
from lens_lang.errors import OptionError

if TYPE_CHECKING:
    from lens_lang.evaluate.answering import SteeringMethod
    from lens_lang.stats import Activations


def generate(
    run_dir: RunDir,
    model: Model = "gemma-3-270m",
    neurons: Annotated[
        str, typer.Option(help="Neuron files in the run folder, with commas.")
    ] = "lape",
    languages: Languages = None,
    off: Annotated[
        bool, typer.Option("--off", help="Switch neurons off instead of steering with them.")
    ] = False,
    targets: Annotated[
        str | None, typer.Option(help="Steer into these, with commas; without, into all.")
    ] = None,
    strengths: Annotated[str, typer.Option(help="Factors on the mean, with commas.")] = "1",
    vectors: Annotated[
        str | None,
        typer.Option(help="Also steer by differences of means after these layers: 9 or 6,9,12."),
    ] = None,
    text: Texts = None,
    questions: Annotated[
        int | None, typer.Option(help="At most so many a language, of 24.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option(help="Your own questions, as lens_lang.open_questions reads.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(help="At most so many in an answer.")] = 32,
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token.")] = 0.0,
    repetition_penalty: Annotated[float, typer.Option(help="1.1 in Tang et al. (2024).")] = 1.1,
    controls: Annotated[int, typer.Option(help="Random controls per intervention.")] = 1,
    identifier: Annotated[str, typer.Option(help="Of languages: langid or lingua.")] = "langid",
    batch_size: Annotated[int, typer.Option(help="Questions at once.")] = 24,
    seed: Annotated[int, typer.Option(help="Of drawing tokens and random neurons.")] = 0,
    as_json: Json = False,
) -> None:
    """Answer open questions with neurons off, or steered into other languages, and say in which."""
    from lens_lang.decoding import Decoding
    from lens_lang.evaluate.answering import generation_matrix, steerings
    from lens_lang.identification import LangidIdentifier, LinguaIdentifier
    from lens_lang.intervene import Hooks, ablate, steer
    from lens_lang.items import open_questions
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons
    from lens_lang.stats import Activations

    if identifier not in ("langid", "lingua"):
        raise OptionError(f"--identifier must be langid or lingua, got {identifier!r}")
    named = [each.strip() for each in neurons.split(",") if each.strip()]
    levels = [_number(each, "--strengths") for each in strengths.split(",")]
    layers = [int(_number(each, "--vectors")) for each in vectors.split(",")] if vectors else []
    files = text_files(text)
    if files and not layers:
        raise OptionError("--text is what the means of --vectors are taken of")
    if off and (targets or vectors):
        raise OptionError("--off switches neurons off; --targets and --vectors are for steering")
    found = {name: LanguageNeurons.load(run_dir / f"{name}.safetensors") for name in named}
    asked = languages_of(languages) or list(next(iter(found.values())).languages)
    prompts = open_questions(file, languages=asked, limit=questions)
    decoding = Decoding(
        new_tokens=new_tokens,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        stop=("\nQ:", "\nA:"),
        seed=seed,
    )
    means = None if off else Activations.load(run_dir / "activations.safetensors")
    loaded = load_model(model)
    if means is None:
        interventions: dict[str, Any] = {
            f"{name} {lang} off" if len(named) > 1 else f"{lang} off": ablate(some)
            for name, each in found.items()
            for lang, some in each.items()
        }
    else:
        methods: dict[str, SteeringMethod] = {}
        for name, each in found.items():

            def by_neurons(
                source: str, target: str, strength: float, each: LanguageNeurons = each
            ) -> Hooks:
                return steer(each, source=source, target=target, mean=means, strength=strength)

            methods[f"{name} neurons"] = by_neurons
        if layers:
            methods |= _vectors(_residuals(loaded, run_dir, files), layers)
        interventions = dict(
            steerings(methods, list(prompts), levels, targets=languages_of(targets))
        )
    matrix = generation_matrix(
        loaded,
        prompts,
        interventions,
        controls=controls,
        decoding=decoding,
        identify=LangidIdentifier() if identifier == "langid" else LinguaIdentifier(),
        batch_size=batch_size,
        run_dir=run_dir / "answers",
    )
    path = run_dir / ("generation-off.safetensors" if off else "generation.safetensors")
    matrix.save(path)
    frame = matrix.to_frame() if off else matrix.summary()
    if not as_json:
        frame = frame[
            [
                "intervention",
                *(["question"] if off else []),
                "answers",
                "rate",
                "rate_low",
                "rate_high",
                "before",
                "control",
                "p_holm",
                "line_pass",
                "repetition",
                "nll",
            ]
        ].round(3)
    print_rows(frame.to_dict("records"), as_json, f"Answers in the language wanted; {path}")
    say(f"Every answer is in {path}: lens_lang.load")


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"{option} takes numbers with commas between, got {text!r}") from None


def _residuals(model: Any, run_dir: Path, files: "dict[str, str | Path]") -> "Activations":
    """Mean residual streams on the text named, or on the sample; kept beside the statistics."""
    from lens_lang.collection import collect
    from lens_lang.corpora import Corpora
    from lens_lang.stats import MeanActivation

    # Means need no full rows, so any amount of text will do.
    corpora = (
        Corpora.from_files(files, model, ctx_len=512, pack=False)
        if files
        else corpora_of(model, files, 128, None, "text")
    )
    return collect(model, corpora, MeanActivation(space="residual"), run_dir=run_dir / "residual")


def _vectors(means: "Activations", layers: list[int]) -> "dict[str, SteeringMethod]":
    from lens_lang.intervene import Hooks
    from lens_lang.vectors import shift

    def after(layer: int) -> "SteeringMethod":
        def by_vector(source: str, target: str, strength: float) -> Hooks:
            return shift(means, source=source, target=target, layers=layer, strength=strength)

        return by_vector

    return {f"vector after layer {layer}": after(layer) for layer in layers}
