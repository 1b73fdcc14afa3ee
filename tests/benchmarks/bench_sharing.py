"""What dividing neurons by the languages that share them costs.

    python tests/benchmarks/bench_sharing.py

First against sets, at the size of the paper's model: one example in 10 languages, 30 layers of
16,384 neurons, in one process on the same activations. Then on Gemma 3 270M: a pass that counts
patterns, and one that adds up contributions as well, beside a plain forward pass without logits
over the same padded batches; medians of five.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from lens_lang.attribute.categories import CategoryContribution
from lens_lang.collection import collect_parallel
from lens_lang.models import PACKAGED, load_model
from lens_lang.parallel import ParallelCorpora
from lens_lang.patterns import SharingPattern, SharingPatterns
from lens_lang.sites import RESID_POST, n_layers, run_until

ROUNDS = 5
EXAMPLES = 6


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def by_sets(rows: list[list[list[float]]]) -> list[tuple[int, int, int, int]]:
    """`layer lang neuron`, with one Python set per language: sizes of the four kinds."""
    found = []
    for layer in rows:
        active = [{j for j, act in enumerate(acts) if act > 0} for acts in layer]
        everywhere, somewhere = set.intersection(*active), set.union(*active)
        once = set()
        for mine in active:
            once |= mine - set().union(*(other for other in active if other is not mine))
        some = somewhere - everywhere - once
        found.append((len(everywhere), len(some), len(once), len(layer[0]) - len(somewhere)))
    return found


def against_sets() -> None:
    acts = torch.randn(1, 10, 30, 16384, generator=torch.Generator().manual_seed(0))
    names = [f"l{n}" for n in range(10)]
    rows = acts[0].transpose(0, 1).tolist()  # not timed: the oracle gets plain numbers
    slow = seconds(lambda: by_sets(rows))
    patterns = SharingPatterns.from_activations(acts, names)
    assert patterns.members[0, 0].tolist() == [list(sizes) for sizes in by_sets(rows)]
    fast = statistics.median(
        seconds(lambda: SharingPatterns.from_activations(acts, names)) for _ in range(ROUNDS)
    )
    kinds = statistics.median(seconds(lambda: members_only(acts)) for _ in range(ROUNDS))
    print(f"sets {slow:.2f} s; kinds {1000 * kinds:.1f} ms, {slow / kinds:.0f} x faster;")
    print(f"with all sums that patterns keep {1000 * fast:.1f} ms, {slow / fast:.0f} x faster")


def members_only(acts: torch.Tensor) -> torch.Tensor:
    """What the oracle computes, vectorised."""
    from lens_lang.patterns import categories

    return categories(acts[0] > 0).sum(-1)


def on_gemma() -> None:
    model = load_model(PACKAGED)
    examples = ParallelCorpora.sample(model).select(range(EXAMPLES))
    end = RESID_POST.at(n_layers(model) - 1)

    def plain() -> None:
        for batch in examples.batches(2):
            readers = [(end, lambda values, hook: None)]
            run_until(model, batch.tokens, attention_mask=batch.attention_mask, readers=readers)

    functions: dict[str, Callable[[], Any]] = {
        "plain": plain,
        "patterns": lambda: collect_parallel(model, examples, SharingPattern(), progress=False),
        "six thresholds": lambda: collect_parallel(
            model, examples, SharingPattern((0.0, 0.1, 0.2, 0.3, 0.4, 0.5)), progress=False
        ),
        "and contributions": lambda: collect_parallel(
            model, examples, SharingPattern(), CategoryContribution(), progress=False
        ),
    }
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS + 1):
        for name, function in functions.items():
            taken[name].append(seconds(function))
    medians = {name: statistics.median(values[1:]) for name, values in taken.items()}
    for name, value in medians.items():
        print(f"{name:>18}: {value:.2f} s, {value / medians['plain']:.3f} x plain")


if __name__ == "__main__":
    torch.set_num_threads(2)
    against_sets()
    on_gemma()
