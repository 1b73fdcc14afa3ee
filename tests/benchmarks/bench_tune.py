"""What tuning chosen neurons does and costs, on the packaged Gemma and the sample text.

    python tests/benchmarks/bench_tune.py            both tables
    python tests/benchmarks/bench_tune.py enhance    held-out NLL by number of documents
    python tests/benchmarks/bench_tune.py cost       seconds per step and peak memory, beside
                                                     training all matrices of all blocks

*enhance*: LAPE neurons of one language trained on 24, 48 and 96 of its sentences, beside as many
random neurons of the same layers, judged on all languages' held-out sentences. The paper's
experiment (Zhao et al. 2024, table 6) has 100 to 800 documents; the sample has 96 to train on.
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch

from lens_lang.collection import collect
from lens_lang.corpora import Corpora
from lens_lang.detect.lape import lape
from lens_lang.models import PACKAGED, load_model
from lens_lang.neurons import NeuronSet
from lens_lang.scoring import SCORED
from lens_lang.sites import MLP_POST, n_layers, site_width
from lens_lang.stats import ActivationFrequency
from lens_lang.tuning import Recipe, tune

LANGUAGE = "id"
STEPS, LR = 24, 1e-4
QUIET = Recipe(batch_size=8, progress=False)


def enhance() -> None:
    """Train on more and more documents."""
    model = load_model(PACKAGED)
    sample = Corpora.sample(model)
    train, test = sample.split(0.8, seed=0)
    neurons = lape(collect(model, train, ActivationFrequency(), progress=False))[LANGUAGE]
    judged = test.truncate(tokens=160)
    print(f"{len(neurons)} LAPE neurons of {LANGUAGE}, {STEPS} steps, lr {LR:g}")
    for fraction in (0.25, 0.5, 1.0):
        text = train[LANGUAGE].laid_out(pack=False)
        if fraction < 1:
            text, _ = text.split(fraction, seed=0)
        tuned = tune(
            model, neurons, text, steps=STEPS, lr=LR, held_out=judged, controls=1, recipe=QUIET
        )
        tuned.delta.remove(model)
        assert tuned.held_out is not None
        frame = tuned.held_out.to_frame().set_index("language")
        print(f"{len(text.documents[LANGUAGE])} documents:")
        print(frame[["delta_nll", "ci_low", "ci_high", "control"]].round(3).T.to_string())


def cost(kind: str) -> dict[str, float]:
    """Seconds per step and peak memory of one kind of training, in this process."""
    model = load_model(PACKAGED)
    text = Corpora.sample(model, languages=[LANGUAGE]).laid_out(pack=False)
    masks = {}
    for site in SCORED if kind == "all" else (MLP_POST,):
        masks[site] = torch.zeros(n_layers(model), site_width(model, site), dtype=torch.bool)
        masks[site][:, : None if kind == "all" else 3] = True
    start = time.perf_counter()
    tuned = tune(model, NeuronSet(masks), text, steps=5, lr=1e-5, recipe=QUIET)
    return {
        "seconds": (time.perf_counter() - start) / 5,
        "GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "entries": tuned.delta.n_entries,
    }


def costs() -> None:
    """Each kind in a process of its own."""
    for kind in ("neurons", "all"):
        command = [sys.executable, __file__, "cost", kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{kind:8s} {found['entries']:>12,} entries trained: {found['seconds']:.2f} s a step, "
            f"peak {found['GiB']:.2f} GiB"
        )


def main() -> None:
    """Print what was asked for."""
    if sys.argv[1:2] == ["cost"] and len(sys.argv) > 2:
        print(json.dumps(cost(sys.argv[2])))
        return
    tables = {"enhance": enhance, "cost": costs}
    for name in sys.argv[1:] or tables:
        tables[name]()


if __name__ == "__main__":
    main()
