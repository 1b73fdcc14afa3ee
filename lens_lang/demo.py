"""The whole path in one call: find the language neurons of a real model, and prove them.

Loads the packaged model, counts on four fifths of the sample text, finds LAPE neurons, switches
them off on the last fifth beside matched random controls, makes a card of each language's first
neuron, and writes a report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_lang.attribute.cards import NeuronCards, neuron_cards
from lens_lang.attribute.telling import top_neurons
from lens_lang.collection import collect
from lens_lang.contexts import TopContexts
from lens_lang.corpora import Corpora
from lens_lang.detect.lape import lape
from lens_lang.evaluate.perplexity import PerplexityMatrix, perplexity_matrix
from lens_lang.intervene import ablate
from lens_lang.models import PACKAGED, load_model
from lens_lang.neurons import LanguageNeurons
from lens_lang.page import report
from lens_lang.signs import FiringSign
from lens_lang.single_neurons import neuron_set
from lens_lang.stats import ActivationFrequency, Frequency, MeanActivation
from lens_lang.vocabulary import VocabularyLanguages

_QUICK_TOKENS = 320
"""Held-out tokens per language in the quick demo: the 262,144-wide unembedding is the cost."""

_CONTEXT_TOKENS = 1000
"""Tokens per language in which the quick demo looks for contexts."""

_SINGLE_CONTROLS = 3
"""Random neurons beside each single one that is switched off."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        neurons: The LAPE neurons of each language.
        matrix: What switching them off does to held-out text.
        page: The report.
    """

    neurons: LanguageNeurons
    matrix: PerplexityMatrix
    page: Path


def run_demo(
    run_dir: str | Path,
    *,
    model: Any = None,
    full: bool = False,
    say: Callable[[str], None] = lambda line: None,  # noqa: ARG005
    progress: bool = True,
) -> DemoResult:
    """Find the language neurons of a model on the sample text, and measure their effect.

    Args:
        run_dir: Folder for the results and the report.
        model: The model; None loads the packaged one.
        full: Judge on all held-out text, with five controls on every language, rather than on
            320 tokens a language, with three controls on the language itself; and measure on 320
            tokens a language what single neurons do, which takes minutes more.
        say: Called with each line of the story.
        progress: Show bars on stderr, in a terminal or a notebook.

    Returns:
        Neurons, measurement and the report's path.
    """
    if model is None:
        say(f"Loading {PACKAGED} (the first time takes about a minute) ...")
        model = load_model(PACKAGED)
    folder = Path(run_dir)
    train, test = Corpora.sample(model).split(0.8, seed=0)
    counted = sum(train.n_tokens.values())
    say(
        f"Counting which of its neurons fire on {counted:,} tokens of {len(train.languages)} "
        "languages ..."
    )
    freq, _ = collect(
        model, train, ActivationFrequency(), MeanActivation(), run_dir=folder, progress=progress
    )
    neurons = lape(freq)
    neurons.save(folder / "lape.safetensors")
    say(f"LAPE chose {len(neurons.union())} of {freq.count[0].numel():,} neurons.")
    controls = 5 if full else 3
    if not full:
        test = test.truncate(tokens=_QUICK_TOKENS)
    scored = sum(len(docs.tokens) for docs in test.documents.values())
    say(
        f"Switching each language's neurons off, and {controls} random sets of the same size, on "
        f"{scored:,} held-out tokens"
        + (" ..." if full else " (--full takes all of them, and more controls) ...")
    )
    matrix = perplexity_matrix(
        model,
        test,
        {lang: ablate(found) for lang, found in neurons.items()},
        controls=controls,
        control_on="all" if full else "own",
        progress=progress,
    )
    matrix.save(folder / "perplexity.safetensors")
    if neurons.union():
        say("Making a card of the neuron that tells each language best ...")
        cards = _cards(
            model,
            train if full else train.truncate(tokens=_CONTEXT_TOKENS),
            test.truncate(tokens=_QUICK_TOKENS) if full else None,
            frequency=freq,
            neurons=neurons,
            progress=progress,
        )
        cards.save(folder / "cards.safetensors")
    return DemoResult(neurons, matrix, report(folder))


def _cards(
    model: Any,
    searched: Corpora,
    test: Corpora | None,
    *,
    frequency: Frequency,
    neurons: LanguageNeurons,
    progress: bool,
) -> NeuronCards:
    """Cards of each language's first neuron with its contexts, and with its effect on `test`."""
    # Two languages may have the same one, and a language may have none.
    best = top_neurons(frequency, neurons=neurons)
    which = list(dict.fromkeys(neuron for some in best.values() for neuron in some))
    chosen = neuron_set(model, which)
    contexts, signs = collect(
        model, searched, TopContexts(chosen), FiringSign(chosen), progress=progress
    )
    effect = None
    if test is not None:
        effect = perplexity_matrix(
            model,
            test,
            {
                f"{layer}.{index}": ablate(neuron_set(model, [(layer, index)]))
                for layer, index in which
            },
            controls=_SINGLE_CONTROLS,
            progress=progress,
        )
    vocabulary = VocabularyLanguages.from_corpora(searched, model)
    if "en" in searched.languages:  # else a script would call English words another language's
        by_script = VocabularyLanguages.from_script(model, searched.languages)
        vocabulary = VocabularyLanguages.combine(vocabulary, by_script)
    return neuron_cards(
        model,
        which,
        vocabulary,
        frequency=frequency,
        neurons=neurons,
        contexts=contexts,
        signs=signs,
        effect=effect,
    )
