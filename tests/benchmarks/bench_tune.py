"""What tuning chosen neurons does and costs, on the packaged Gemma and the sample text.

    python tests/benchmarks/bench_tune.py            both tables
    python tests/benchmarks/bench_tune.py enhance    held-out NLL by number of documents
    python tests/benchmarks/bench_tune.py cost       seconds per step and peak memory, beside
                                                     training all matrices, and everything

*enhance*: the LAPE neurons of Indonesian, trained once over 100, 200 and 400 Indonesian documents,
beside as many random neurons of the same layers (Zhao et al. 2024, table 6). Documents are the 96
training sentences of the sample, the 142 filled cloze sentences of lens_lang's concepts without
the ones asked for below, and `indonesian.txt`, 190 sentences written for this benchmark. Judged on
the held-out sentences of all languages; and on a task in all languages, where a word must be found
for a sentence (cloze): log-probability of the items with which the right word could begin, and
whether the likeliest item is one of them.
"""

import json
import random
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lens_lang.collection import collect
from lens_lang.concepts import BLANK, cloze_prompts, read_concepts
from lens_lang.corpora import Corpora, sample_sentences
from lens_lang.detect.lape import lape
from lens_lang.evaluate.answers import AnswerScores, answer_scores
from lens_lang.evaluate.nll import scored_positions
from lens_lang.models import PACKAGED, load_model
from lens_lang.neurons import NeuronSet, random_like
from lens_lang.scoring import SCORED
from lens_lang.sites import MLP_POST, n_layers, site_width
from lens_lang.stats import ActivationFrequency
from lens_lang.tuning import Recipe, tune

LANGUAGE = "id"
LR = 1e-4
DOCUMENTS = (100, 200, 400)
BATCH = 8
ASKED = 28
QUIET = Recipe(batch_size=BATCH, progress=False)


def documents() -> list[str]:
    """Indonesian text to train on, in a random order that is always the same."""
    sentences = sample_sentences()[LANGUAGE]
    order = torch.randperm(len(sentences), generator=torch.Generator().manual_seed(0)).tolist()
    kept = sorted(order[: round(0.8 * len(sentences))])  # as Corpora.split(0.8, seed=0)
    texts = [sentences[number] for number in kept]
    for concept in read_concepts()[ASKED:]:
        texts.append(concept.cloze[LANGUAGE].replace(BLANK, concept.words[LANGUAGE]))
    written = Path(__file__).with_name("indonesian.txt").read_text(encoding="utf-8")
    texts += written.splitlines()
    random.Random(0).shuffle(texts)
    return texts


def cloze(model: Any) -> AnswerScores:
    """In every language, how well the model fills in the word that a sentence asks for."""
    concepts = read_concepts()[:ASKED]
    return answer_scores(
        model, {lang: cloze_prompts(concepts, lang, pivot=lang) for lang in sample_sentences()}
    )


def enhance() -> None:
    """Train on more and more documents."""
    model = load_model(PACKAGED)
    train, test = Corpora.sample(model).split(0.8, seed=0)
    neurons = lape(collect(model, train, ActivationFrequency(), progress=False))[LANGUAGE]
    judged = test.truncate(tokens=160)
    texts = documents()
    before = cloze(model)
    print(f"{len(neurons)} LAPE neurons of {LANGUAGE}, lr {LR:g}, {len(texts)} documents at hand")
    for count in DOCUMENTS:
        text = Corpora.from_texts({LANGUAGE: texts[:count]}, model, pack=False)
        rows = []
        for seed, chosen in enumerate(
            (neurons, random_like(neurons, generator=torch.Generator().manual_seed(0)))
        ):
            start = time.perf_counter()
            tuned = tune(
                model, chosen, text, steps=-(-count // BATCH), lr=LR, held_out=judged, recipe=QUIET
            )
            seconds = time.perf_counter() - start
            assert tuned.held_out is not None
            frame = tuned.held_out.to_frame().set_index("language")
            name = "random" if seed else "own"
            for column in ("delta_nll", "ci_low", "ci_high"):
                rows.append(frame[column].rename(f"{name} {column}"))
            answers = cloze(model).change_from(before).set_index("language")
            for column in ("delta", "ci_low", "ci_high", "accuracy_before", "accuracy"):
                rows.append(answers[column].rename(f"{name} cloze {column}"))
            tuned.delta.remove(model)
            print(f"{count} documents, {name}: {seconds:.0f} s", flush=True)
        print(pd.DataFrame(rows).round(3).to_string(), flush=True)


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


def everything() -> dict[str, float]:
    """The same of all parameters, embeddings included, with torch's own AdamW."""
    model = load_model(PACKAGED)
    text = Corpora.sample(model, languages=[LANGUAGE]).laid_out(pack=False)
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=1e-6)
    batches = list(text.batches(BATCH))
    start = time.perf_counter()
    for batch in batches[:5]:
        scored = scored_positions(batch)[:, 1:]
        mask = None if batch.attention_mask is None else batch.attention_mask.long()
        logits = model(batch.tokens, attention_mask=mask)[:, :-1][scored]
        loss = torch.nn.functional.cross_entropy(logits, batch.tokens[:, 1:][scored])
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return {
        "seconds": (time.perf_counter() - start) / 5,
        "GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "entries": sum(parameter.numel() for parameter in parameters),
    }


def costs() -> None:
    """Each kind in a process of its own."""
    for kind in ("neurons", "all", "everything"):
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
        kind = sys.argv[2]
        print(json.dumps(everything() if kind == "everything" else cost(kind)))
        return
    tables = {"enhance": enhance, "cost": costs}
    for name in sys.argv[1:] or tables:
        tables[name]()


if __name__ == "__main__":
    main()
