"""What reading layers by language costs, beside the passes and products it cannot do without.

    python tests/benchmarks/bench_lens.py              all, as tables
    python tests/benchmarks/bench_lens.py memory 4     peak memory of one run over 4 prompts

Time: medians of five in one process, Gemma 3 270M, rows of 64 tokens. `necessary` is a plain
forward pass with logits, plus one product with the unembedding for every layer at the positions
that are read, in chunks of the same size. Memory is the peak of a fresh process.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lens_lang.batches import TokenBatch
from lens_lang.corpora import Corpora
from lens_lang.identification import LangidIdentifier, LinguaIdentifier
from lens_lang.lens import language_curve
from lens_lang.models import PACKAGED, load_model
from lens_lang.readout import chunks
from lens_lang.sites import n_layers
from lens_lang.vocabulary import VocabularyLanguages

ROUNDS = 5
LANGUAGES = ["en", "de", "es", "fr", "id", "ja", "ru", "vi", "zh"]


def medians(functions: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Seconds of each, alternating; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def prompts_of(model: Any, count: int) -> Corpora:
    """Prompts of 63 tokens and BOS."""
    text = Corpora.sample(model, languages=["fr"]).documents["fr"].tokens.tolist()
    rows = [text[63 * number : 63 * (number + 1)] for number in range(count)]
    return Corpora.from_tokens({"fr": rows}, bos_id=2)


def some_vocabulary(model: Any) -> VocabularyLanguages:
    """Nine languages, by counts and script."""
    sample = Corpora.sample(model)
    return VocabularyLanguages.combine(
        VocabularyLanguages.from_corpora(sample, model),
        VocabularyLanguages.from_script(model, LANGUAGES),
    )


def plain_pass(model: Any, batch: TokenBatch) -> None:
    """One forward pass with logits."""
    with torch.inference_mode():
        model(batch.tokens)


def products(model: Any, rows: int) -> None:
    """One product of so many vectors with the unembedding, per layer and the embeddings."""
    vectors = torch.randn(rows * (n_layers(model) + 1), int(model.cfg.d_model))
    with torch.inference_mode():
        for some in chunks(model, len(vectors)):
            model.unembed(vectors[some][None])


def times() -> None:
    """Curves at all positions and at the last, beside what they cannot do without."""
    model = load_model(PACKAGED)
    vocabulary = some_vocabulary(model)
    prompts = prompts_of(model, 4)
    (batch,) = prompts.batches(4)
    positions = int(batch.mask.sum())
    found = medians(
        {
            "forward pass with logits": lambda: plain_pass(model, batch),
            "a product per layer": lambda: products(model, positions),
            "curve, all positions": lambda: language_curve(model, prompts, vocabulary),
            "curve, ten likeliest items": lambda: language_curve(
                model, prompts, vocabulary, top_k=10
            ),
            "curve, last position": lambda: language_curve(
                model, prompts, vocabulary, positions="last"
            ),
        }
    )
    for name, seconds in found.items():
        print(f"{name:30} {seconds:7.3f} s")
    plain = found["forward pass with logits"]
    necessary = plain + found["a product per layer"]
    print(f"all positions / necessary      {found['curve, all positions'] / necessary:7.3f}")
    print(f"ten likeliest / necessary      {found['curve, ten likeliest items'] / necessary:7.3f}")
    print(f"last position / forward pass   {found['curve, last position'] / plain:7.3f}")


def makers() -> None:
    """Seconds to make a vocabulary's languages, identifiers asked anew."""
    model = load_model(PACKAGED)
    sample = Corpora.sample(model)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LENS_LANG_CACHE"] = folder
        for name, make in (
            ("corpora", lambda: VocabularyLanguages.from_corpora(sample, model)),
            ("script", lambda: VocabularyLanguages.from_script(model, LANGUAGES)),
            (
                "lingua",
                lambda: VocabularyLanguages.from_identifier(model, LANGUAGES, LinguaIdentifier()),
            ),
            (
                "py3langid",
                lambda: VocabularyLanguages.from_identifier(model, LANGUAGES, LangidIdentifier()),
            ),
        ):
            start = time.perf_counter()
            made = make()
            seconds = time.perf_counter() - start
            certain = made.coverage()["items"].iloc[:-1].sum()
            print(f"{name:10} {seconds:6.1f} s, certain of {certain:,} of {len(made):,} items")


def peak_memory(count: int) -> float:
    """Peak resident memory, in GiB, of a curve over so many prompts; 0 only loads the model."""
    model = load_model(PACKAGED)
    vocabulary = some_vocabulary(model)
    if count:
        language_curve(model, prompts_of(model, count), vocabulary, batch_size=4)
    # not getrusage, which also remembers the process that started this one
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def memory() -> None:
    """Peaks of fresh processes as the text grows."""
    for count in (0, 1, 4, 16):
        done = subprocess.run(
            [sys.executable, __file__, "memory", str(count)],
            capture_output=True,
            text=True,
            check=True,
        )
        print(f"{count:3} prompts of 64 tokens: peak {json.loads(done.stdout):.2f} GiB")


def main() -> None:
    """Print everything, or one peak."""
    torch.set_num_threads(2)
    if sys.argv[1:2] == ["memory"]:
        print(json.dumps(peak_memory(int(sys.argv[2]))))
        return
    memory()
    times()
    makers()


if __name__ == "__main__":
    main()
