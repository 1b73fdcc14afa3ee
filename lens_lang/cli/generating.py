"""The command that lets a model answer open questions: ``generate``."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_lang.cli.options import (
    Device,
    Dtype,
    Json,
    Model,
    RunDir,
    Texts,
    corpora_of,
    dtype_of,
    languages_of,
    text_files,
)
from lens_lang.cli.printing import print_rows, say
from lens_lang.errors import OptionError

if TYPE_CHECKING:
    from lens_lang.evaluate.answering import SteeringMethod
    from lens_lang.neurons import LanguageNeurons
    from lens_lang.positions import Positions
    from lens_lang.stats import Activations

_WHERE = {"all": "", "prompt": ", prompt only", "new": ", new tokens only"}


def generate(
    run_dir: RunDir,
    model: Model = "gemma-3-270m",
    device: Device = None,
    neurons: Annotated[
        str, typer.Option(help="Neuron files in the run folder, with commas; '' for vectors only.")
    ] = "lape",
    languages: Annotated[
        str | None,
        typer.Option(help="Of the questions, with commas; without, those that have neurons."),
    ] = None,
    off: Annotated[
        bool, typer.Option("--off", help="Switch neurons off instead of steering with them.")
    ] = False,
    targets: Annotated[
        str | None, typer.Option(help="Steer into these, with commas; without, into all.")
    ] = None,
    strengths: Annotated[
        str | None, typer.Option(help="Factors on the mean, with commas; without, 1.")
    ] = None,
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
    how: Annotated[
        str | None,
        typer.Option(help="Target neurons: replace their values by the mean, as without, or add."),
    ] = None,
    positions: Annotated[
        str, typer.Option(help="Intervene on all tokens, the prompt only, or new ones only.")
    ] = "all",
    controls: Annotated[int, typer.Option(help="Random controls per intervention.")] = 3,
    identifier: Annotated[str, typer.Option(help="Of languages: langid or lingua.")] = "langid",
    batch_size: Annotated[int, typer.Option(help="Questions at once.")] = 24,
    seed: Annotated[int, typer.Option(help="Of drawing tokens and random neurons.")] = 0,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Answer open questions with neurons off, or steered into other languages, and say in which."""
    from lens_lang.evaluate.answering import ANSWER, generation_matrix, steerings
    from lens_lang.identification import LangidIdentifier, LinguaIdentifier
    from lens_lang.intervene import ablate
    from lens_lang.items import open_questions
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons
    from lens_lang.sites import n_layers
    from lens_lang.stats import Activations

    if identifier not in ("langid", "lingua"):
        raise OptionError(f"--identifier must be langid or lingua, got {identifier!r}")
    named = [each.strip() for each in neurons.split(",") if each.strip()]
    levels = [_number(each, "--strengths") for each in (strengths or "1").split(",")]
    layers = [] if vectors is None else _layers(vectors)
    if positions not in _WHERE:
        raise OptionError(f"--positions must be all, prompt or new, got {positions!r}")
    if how not in (None, "replace", "add"):
        raise OptionError(f"--how must be replace or add, got {how!r}")
    where: Positions = positions  # type: ignore[assignment]
    files = text_files(text)
    if files and not layers:
        raise OptionError("--text is what the means of --vectors are taken of")
    if off and any(each is not None for each in (targets, vectors, strengths, how)):
        raise OptionError(
            "--off switches neurons off; --targets, --strengths, --how and --vectors are for "
            "steering"
        )
    if not named and not layers:
        raise OptionError("--neurons names none: give some, or steer with --vectors")
    if not named and how is not None:
        raise OptionError("--how says what becomes of neurons, and --neurons names none")
    if not named and languages is None:
        raise OptionError("--languages is needed where --neurons names none")
    weights = dtype_of(dtype)
    found = {name: LanguageNeurons.load(run_dir / f"{name}.safetensors") for name in named}
    asked = languages_of(languages) or list(next(iter(found.values())).languages)
    prompts = open_questions(file, languages=asked, limit=questions)
    decoding = replace(
        ANSWER,
        new_tokens=new_tokens,
        temperature=temperature,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    mean = Activations.load(run_dir / "activations.safetensors") if named and not off else None
    loaded = load_model(model, device=device, **weights)
    _check_layers(layers, n_layers(loaded))
    at = _WHERE[positions]
    if off:
        interventions: dict[str, Any] = {
            f"{f'{name} {lang}' if len(named) > 1 else lang} off{at}": ablate(some, positions=where)
            for name, each in found.items()
            for lang, some in each.items()
        }
    else:
        methods: dict[str, SteeringMethod] = {}
        if mean is not None:
            added = " added" if how == "add" else ""
            methods = {
                f"{name} neurons{added}{at}": _by_neurons(each, mean, how or "replace", where)
                for name, each in found.items()
            }
        if layers:
            methods |= _vectors(_residuals(loaded, run_dir, files), layers, where)
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
    path = run_dir / _file_name(named, off=off, added=how == "add", positions=positions)
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
                *(["p_random_holm"] if controls > 1 else []),
                "line_pass",
                "repetition",
                "nll",
            ]
        ].round(3)
    print_rows(frame.to_dict("records"), as_json, f"Answers in the language wanted; {path}")
    say(f"Every answer is in {path}: lens_lang.load")


def _by_neurons(
    neurons: "LanguageNeurons", mean: "Activations", how: Any, where: "Positions"
) -> "SteeringMethod":
    from lens_lang.intervene import Hooks, steer

    def turned(source: str, target: str, strength: float) -> Hooks:
        return steer(
            neurons,
            source=source,
            target=target,
            mean=mean,
            strength=strength,
            how=how,
            positions=where,
        )

    return turned


def _number(text: str, option: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise OptionError(f"{option} takes numbers with commas between, got {text!r}")
    return number


def _layers(vectors: str) -> list[int]:
    parts = [each.strip() for each in vectors.split(",")]
    if not all(each.isascii() and each.isdecimal() for each in parts):
        raise OptionError(f"--vectors takes layers, such as 9 or 6,9,12, got {vectors!r}")
    return [int(each) for each in parts]


def _check_layers(layers: list[int], n_layers: int) -> None:
    beyond = [str(layer) for layer in layers if layer >= n_layers]
    if beyond:
        raise OptionError(
            f"--vectors takes layers from 0 to {n_layers - 1} of this model, got "
            f"{', '.join(beyond)}"
        )


def _file_name(named: list[str], *, off: bool, added: bool, positions: str) -> str:
    """What says in what a run differs from the default: which neurons, what is done, and where."""
    parts = ["generation", *(["off"] if off else [])]
    parts += ["vectors"] if not named else [] if named == ["lape"] else named
    parts += ["add"] if added else []
    parts += [] if positions == "all" else [positions]
    return f"{'-'.join(parts)}.safetensors"


def _residuals(model: Any, run_dir: Path, files: "dict[str, str | Path]") -> "Activations":
    """Mean residual streams on the text named, or on the sample; kept beside the statistics."""
    from lens_lang.collection import collect
    from lens_lang.corpora import Corpora
    from lens_lang.stats import MeanActivation

    # Neurons' means may be of other text, so it is said which this is.
    told = ", ".join(f"{lang}={file}" for lang, file in files.items())
    say(f"The means of --vectors are of {told or 'the packaged sample; --text names other text'}")
    # Means need no full rows, so any amount of text will do.
    corpora = (
        Corpora.from_files(files, model, ctx_len=512, pack=False)
        if files
        else corpora_of(model, files, None, None, "text")
    )
    return collect(model, corpora, MeanActivation(space="residual"), run_dir=run_dir / "residual")


def _vectors(
    means: "Activations", layers: list[int], where: "Positions"
) -> "dict[str, SteeringMethod]":
    """Steering by each layer's vector, called so that its rows say what was done."""
    from lens_lang.intervene import Hooks
    from lens_lang.vectors import shift

    def after(layer: int) -> "SteeringMethod":
        def by_vector(source: str, target: str, strength: float) -> Hooks:
            return shift(
                means,
                source=source,
                target=target,
                layers=layer,
                strength=strength,
                positions=where,
            )

        return by_vector

    return {f"vector after layer {layer}{_WHERE[where]}": after(layer) for layer in layers}
