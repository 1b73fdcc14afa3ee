"""The command that shows what is known of single neurons: ``card``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_lang.cli.options import (
    Column,
    Device,
    Json,
    Model,
    Neurons,
    Texts,
    corpora_of,
    text_files,
    vocabulary_of,
)
from lens_lang.cli.printing import print_line, say
from lens_lang.errors import OptionError, ShapeError

if TYPE_CHECKING:
    from lens_lang.corpora import Corpora
    from lens_lang.evaluate.perplexity import PerplexityMatrix
    from lens_lang.neurons import LanguageNeurons
    from lens_lang.stats import Frequency

_FILE = "cards.safetensors"


def card(
    which: Annotated[
        list[str],
        typer.Argument(metavar="LAYER.INDEX...", help="Neurons of the MLPs, such as 12.1542."),
    ],
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Run folder, as `collect` made it: use its results, keep the cards."),
    ] = None,
    model: Model = "gemma-3-270m",
    device: Device = None,
    text: Texts = None,
    neurons: Neurons = "lape",
    effect: Annotated[
        bool,
        typer.Option(
            "--effect/--no-effect", help="Switch each off, too, on text not searched for contexts."
        ),
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option(help="At most so many tokens a language; of the effect 320, without."),
    ] = None,
    controls: Annotated[int, typer.Option(help="Random neurons beside each, for the effect.")] = 3,
    text_column: Column = "text",
    as_json: Json = False,
) -> None:
    """Show what a neuron writes, where it fires, what it answers to, and what is lost without it.

    Without --run-dir the sample text is counted first, and nothing is kept.
    """
    from lens_lang.attribute.cards import NeuronCards, neuron_cards
    from lens_lang.attribute.effect import other_model
    from lens_lang.collection import collect
    from lens_lang.contexts import TopContexts
    from lens_lang.detect.lape import lape
    from lens_lang.models import load_model
    from lens_lang.signs import FiringSign
    from lens_lang.single_neurons import neuron_place, neuron_set
    from lens_lang.stats import ActivationFrequency

    # Before the model: a typo should cost no minute.
    places, files = list(dict.fromkeys(map(neuron_place, which))), text_files(text)
    if controls < 0:
        raise OptionError(f"--controls must be at least 0, got {controls}")
    kept = None if run_dir is None else run_dir / _FILE
    earlier = NeuronCards.load(kept) if kept is not None and kept.exists() else None
    frequency, found = _counted(run_dir, neurons)
    loaded = load_model(model, device=device)
    chosen = neuron_set(loaded, places)
    _check_model(loaded, frequency, found)
    other = None if earlier is None else other_model(loaded, earlier.provenance)
    if other is not None:
        raise ShapeError(
            f"{kept} holds cards of {other}, and {model} is another model: give its own --run-dir"
        )
    train, held_out = _corpora(loaded, files, text_column)
    train = train if tokens is None else train.truncate(tokens=tokens)
    if frequency is None:
        whole = train.laid_out(pack=False)  # short text, too
        say(f"Counting on {sum(whole.n_tokens.values()):,} tokens, for want of a frequency")
        frequency = collect(loaded, whole, ActivationFrequency())
        if run_dir is None and len(whole.languages) > 1:  # of one there is no entropy
            found = lape(frequency)
    elif _other_text(frequency, train):
        say("Contexts come from other text, or other rows, than the folder's frequency; see --text")
    contexts, signs = collect(loaded, train, TopContexts(chosen), FiringSign(chosen))
    cards = neuron_cards(
        loaded,
        places,
        _vocabulary(loaded, train, run_dir),
        frequency=frequency,
        neurons=found,
        contexts=contexts,
        signs=signs,
        effect=_effect(loaded, held_out.truncate(tokens=tokens or 320), places, controls)
        if effect
        else None,
    )
    if kept is not None:
        (cards if earlier is None else earlier + cards).save(kept)
        say(f"{'Kept' if earlier is None else 'Added'} in {kept}")
    if as_json:
        print_line(json.dumps([asdict(each) for each in cards], ensure_ascii=False))
        return
    for each in cards:
        print_line(str(each))


def _counted(
    run_dir: Path | None, neurons: str
) -> "tuple[Frequency | None, LanguageNeurons | None]":
    """What a run folder knows already."""
    from lens_lang.errors import StorageError
    from lens_lang.neurons import LanguageNeurons
    from lens_lang.stats import Frequency

    if run_dir is None:
        return None, None
    if not run_dir.is_dir():
        raise StorageError(f"There is no run folder {run_dir}")
    counted, sets = run_dir / "frequency.safetensors", run_dir / f"{neurons}.safetensors"
    if neurons != "lape" and not sets.exists():  # it was asked for by name
        raise StorageError(f"There is no file {sets}")
    return (
        Frequency.load(counted) if counted.exists() else None,
        LanguageNeurons.load(sets) if sets.exists() else None,
    )


def _check_model(
    model: Any, frequency: "Frequency | None", neurons: "LanguageNeurons | None"
) -> None:
    """Refuse a run folder of another model, before anything is collected."""
    from lens_lang.attribute.effect import check_measured_on

    for what, result in (("frequencies", frequency), ("neurons", neurons)):
        if result is not None:
            check_measured_on(model, result.provenance, what)


def _corpora(
    model: Any, files: dict[str, str | Path], text_column: str
) -> "tuple[Corpora, Corpora]":
    """Text to search, and text to judge on."""
    if files:
        return corpora_of(model, files, None, None, text_column).split(0.8, seed=0)
    return (
        corpora_of(model, files, None, None, text_column),
        corpora_of(model, files, 512, None, text_column, part=1),
    )


def _vocabulary(model: Any, corpora: "Corpora", run_dir: Path | None) -> Any:
    """The one that `lens` left in the run folder, or a new one, which can take minutes."""
    from lens_lang.vocabulary import VocabularyLanguages

    path = None if run_dir is None else run_dir / "vocabulary.safetensors"
    if path is not None and path.exists():
        return VocabularyLanguages.load(path)
    return vocabulary_of(model, corpora)


def _other_text(frequency: "Frequency", corpora: "Corpora") -> bool:
    counted = frequency.provenance.get("corpora", {})
    return isinstance(counted, dict) and counted.get("digest") != corpora.digest


def _effect(
    model: Any, held_out: "Corpora", places: list[tuple[int, int]], controls: int
) -> "PerplexityMatrix":
    from lens_lang.evaluate.perplexity import perplexity_matrix
    from lens_lang.intervene import ablate
    from lens_lang.single_neurons import neuron_set

    hooks = {
        f"{layer}.{index}": ablate(neuron_set(model, [(layer, index)])) for layer, index in places
    }
    return perplexity_matrix(model, held_out, hooks, controls=controls)
