"""The whole path in one call: find the language neurons of a real model, and prove them.

Loads the packaged model, counts on four fifths of the sample text, finds LAPE neurons, switches
them off on the last fifth beside matched random controls, and writes a report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lens_lang.collection import collect
from lens_lang.corpora import Corpora
from lens_lang.detect.lape import lape
from lens_lang.evaluate.perplexity import PerplexityMatrix, perplexity_matrix
from lens_lang.intervene import ablate
from lens_lang.models import PACKAGED, load_model
from lens_lang.neurons import LanguageNeurons
from lens_lang.page import report
from lens_lang.stats import ActivationFrequency, MeanActivation

_QUICK_TOKENS = 320
"""Held-out tokens per language in the quick demo: the 262,144-wide unembedding is the cost."""


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
            320 tokens a language, with three controls on the language itself.
        say: Called with each line of the story.
        progress: Show bars on stderr when that is a terminal.

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
    return DemoResult(neurons, matrix, report(folder))
