"""Shared neurons on the packaged Gemma 3 270M: the claim is the test."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lens_lang.attribute.cards import neuron_card
from lens_lang.attribute.gradients import gradient_attribution
from lens_lang.attribute.scores import contribution, effective_score
from lens_lang.collection import collect_parallel
from lens_lang.corpora import Corpora
from lens_lang.detect.sharing import sharing
from lens_lang.evaluate.per_example import category_effect
from lens_lang.items import read_facts
from lens_lang.parallel import ParallelCorpora
from lens_lang.patterns import CATEGORIES, SharingPattern
from lens_lang.questions import demonstrated
from lens_lang.vocabulary import VocabularyLanguages

pytestmark = pytest.mark.real
GOLDEN = Path(__file__).parent / "golden" / "sharing_gemma_sample.json"


@pytest.mark.lane
def test_the_kinds_are_the_same_on_every_lane(gemma: Any) -> None:
    """Found on TransformerLens 4.3.0; a pre-activation near 0 may round to the other side."""
    some = ParallelCorpora.sample(gemma).select(range(4))
    patterns = collect_parallel(gemma, some, SharingPattern(), progress=False)
    golden = json.loads(GOLDEN.read_text())
    assert golden["languages"] == list(patterns.languages)
    difference = patterns.members[0] - torch.tensor(golden["members"])
    assert difference.abs().max() <= 2
    assert difference.abs().sum() <= 12


def test_shared_neurons_are_in_the_middle(gemma: Any) -> None:
    """Layers 8 to 11 share most, the first two and the last five least."""
    some = ParallelCorpora.sample(gemma).select(range(6))
    patterns = collect_parallel(gemma, some, SharingPattern(), progress=False)
    shared = sharing(patterns).share[:, CATEGORIES.index("all_shared")]
    middle, ends = shared[8:12].min(), torch.cat([shared[:2], shared[13:]]).max()
    assert middle > 1.5 * ends, shared.tolist()


def test_answers_need_what_all_languages_share(gemma: Any) -> None:
    facts = demonstrated(read_facts(), 2)[::24]
    examples = ParallelCorpora.from_questions(facts, gemma, languages=["en", "de", "fr", "ru"])
    effect = category_effect(gemma, examples, controls=1, progress=False)
    table = effect.summary().query("language == 'all'").set_index("category")
    assert table["delta"].idxmin() == "all_shared", table.to_string()
    assert table.loc["all_shared", "beyond_high"] < -1
    # and they are few
    assert table.loc["all_shared", "neurons"] < 0.3


def test_integrated_gradients_are_complete_to_a_hundredth(gemma: Any) -> None:
    prompts, answers = ["The capital of France is"], [" Paris"]
    found = gradient_attribution(gemma, prompts, answers, method="integrated_gradients", steps=64)
    assert float(found.completeness_error.max()) < 0.01, found.completeness_error


def test_the_neurons_that_say_paris_act_on_the_names_of_cities(gemma: Any) -> None:
    """Of the ten that add most to " Paris" directly; at negative activation what is suppressed."""
    prompts, answers = ["The capital of France is"], [" Paris"]
    scores = effective_score(gemma, prompts, answers, final_norm=True)
    vocabulary = VocabularyLanguages.from_corpora(Corpora.sample(gemma), gemma)
    cities = {" Nairobi", " Madrid", " Amman", " Kampala", " Sarajevo", " Seattle", " Mumbai"}
    named = []
    for _, row in scores.top(10).iterrows():
        card = neuron_card(gemma, (int(row["layer"]), int(row["neuron"])), vocabulary)
        items = {item.text for item in (*card.promoted, *card.suppressed)}
        named.append(len(items & cities))
    assert max(named) >= 3, named
    assert contribution(gemma, prompts).values.shape == (1, 18, 2048)
