"""What counting costs: time over a plain forward pass, and memory as the text grows.

    python tests/benchmarks/bench_collect.py            both measurements, as a table
    python tests/benchmarks/bench_collect.py memory 8   peak memory of one run over 8 times the text

Time: `collect` with frequency and mean, over the same batches through the same model to the same
last layer with a hook that does nothing there; same process, alternating, median of five.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

from lens_lang.collection import collect
from lens_lang.corpora import Corpora
from lens_lang.models import PACKAGED, load_model
from lens_lang.sites import MLP_PRE, n_layers, run_until
from lens_lang.stats import ActivationFrequency, MeanActivation

ROUNDS = 5
BATCH_SIZE = 8


def plain_passes(model: Any, corpora: Corpora) -> None:
    """Every batch through the model, as far as the last layer's pre-activation."""
    last = MLP_PRE.at(n_layers(model) - 1)
    for batch in corpora.batches(BATCH_SIZE):
        run_until(
            model,
            batch.tokens,
            attention_mask=batch.attention_mask,
            readers=[(last, lambda values, hook: None)],
        )


def counted_passes(model: Any, corpora: Corpora) -> None:
    """The same, with every layer's firing counted and its mean taken."""
    collect(
        model,
        corpora,
        ActivationFrequency(),
        MeanActivation(),
        batch_size=BATCH_SIZE,
        progress=False,
    )


def overhead() -> dict[str, float]:
    """Seconds of both, and their ratio."""
    model = load_model(PACKAGED)
    corpora = Corpora.sample(model, languages=["en", "ja"]).truncate(tokens=2 * 8 * 127)
    seconds: dict[str, list[float]] = {"plain": [], "collect": []}
    for _ in range(ROUNDS + 1):
        for name, passes in (("plain", plain_passes), ("collect", counted_passes)):
            start = time.perf_counter()
            passes(model, corpora)
            seconds[name].append(time.perf_counter() - start)
    # the first round warms up
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    return {**medians, "ratio": medians["collect"] / medians["plain"]}


def peak_memory(times: int) -> float:
    """Peak resident memory, in GiB, of collecting over the text `times` over."""
    model = load_model(PACKAGED)
    docs = Corpora.sample(model, languages=["en"]).truncate(tokens=8 * 127).documents["en"]
    rows = [docs[number].tolist() for number in range(len(docs))] * times
    corpora = Corpora.from_tokens({"en": rows}, ctx_len=128, bos_id=2)
    counted_passes(model, corpora)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Print both measurements."""
    if sys.argv[1:2] == ["memory"]:
        print(json.dumps(peak_memory(int(sys.argv[2]))))
        return
    print(f"threads: {torch.get_num_threads()}")
    time_ = overhead()
    print(f"plain forward pass {time_['plain']:6.2f} s   (median of {ROUNDS})")
    print(f"collect            {time_['collect']:6.2f} s")
    print(f"ratio              {time_['ratio']:6.3f}")
    for times in (1, 8):
        command = [sys.executable, __file__, "memory", str(times)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"peak memory, text x{times}: {json.loads(done.stdout):.2f} GiB")


if __name__ == "__main__":
    main()
