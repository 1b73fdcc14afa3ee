"""Answers are scored by their first token, and compared prompt by prompt."""

from typing import Any

import pytest
import torch
from conftest import LetterTokenizer, hf_model
from test_lens import some_neurons

from lens_lang.concepts import Prompt
from lens_lang.errors import ActivationError, CorpusError, LanguageError, OptionError, ShapeError
from lens_lang.evaluate.answers import AnswerScores, answer_scores
from lens_lang.intervene import ablate
from lens_lang.models import bridge
from lens_lang.sites import RESID_POST

PROMPTS = {
    "fr": [Prompt('un "', {"fr": "chat", "en": "cat"}), Prompt("longer text", {"fr": "a"})],
    "en": [Prompt('un "', {"fr": "chat", "en": "cat"})],
}


@pytest.fixture
def speller() -> Any:
    model = bridge(hf_model("llama"))
    model.tokenizer = LetterTokenizer()
    return model


@pytest.mark.lane
@pytest.mark.parametrize("batch_size", [1, 8])
def test_scores_are_the_models_own_log_probabilities(speller: Any, batch_size: int) -> None:
    hooks = ablate(some_neurons(speller))
    found = answer_scores(speller, PROMPTS, fwd_hooks=hooks, batch_size=batch_size)
    assert found.languages == ("fr", "fr", "en")
    letters = LetterTokenizer()
    asked = [('un "', "c"), ("longer text", "a"), ('un "', "c")]  # letters are the only beginnings
    for number, (text, first) in enumerate(asked):
        ids, (item,) = (letters([each])["input_ids"][0] for each in (text, first))
        with torch.inference_mode():
            logits = speller.run_with_hooks(torch.tensor([[1, *ids]]), fwd_hooks=hooks)[0, -1]
        expected = float(logits.double().log_softmax(-1)[item])
        assert float(found.log_probability[number]) == pytest.approx(expected, abs=1e-5)
        assert bool(found.correct[number]) == (int(logits.argmax()) == item)


def test_a_sure_answer_is_correct(speller: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    item = LetterTokenizer()(["c"])["input_ids"][0][0]

    def sure(model: Any, resid: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(torch.full((len(resid),), item), 97).float() * 50

    monkeypatch.setattr("lens_lang.evaluate.judging.read_logits", sure)
    found = answer_scores(speller, PROMPTS)
    assert found.correct.tolist() == [True, False, True]
    assert found.log_probability[[0, 2]].abs().max() < 1e-6


def test_changes_are_paired_and_by_language() -> None:
    languages = ("fr",) * 4 + ("en",)
    before = AnswerScores(
        languages,
        torch.tensor([-3.0, -2.0, -4.0, -1.0, -1.0]),
        torch.tensor([0, 0, 0, 1, 1]).bool(),
    )
    after = AnswerScores(
        languages, torch.tensor([-2.0, -1, -3, 0, -1.5]), torch.tensor([1, 0, 0, 1, 1]).bool()
    )
    french, english = after.change_from(before).to_dict("records")
    assert (french["language"], french["prompts"]) == ("fr", 4)
    assert (french["accuracy_before"], french["accuracy"]) == (0.25, 0.5)
    # every prompt gains one nat, so the paired interval has no width
    assert (french["delta"], french["ci_low"], french["ci_high"]) == (1.0, 1.0, 1.0)
    assert french["accuracy_low"] <= french["delta_accuracy"] == 0.25 <= french["accuracy_high"]
    assert english["delta"] == -0.5
    assert english["ci_low"] != english["ci_low"]  # one prompt has no interval
    with pytest.raises(ShapeError, match="same prompts"):
        after.change_from(AnswerScores(("fr",), torch.zeros(1), torch.zeros(1).bool()))


def test_what_cannot_be_scored_is_refused(speller: Any) -> None:
    with pytest.raises(OptionError, match="at least one prompt"):
        answer_scores(speller, {"fr": []})
    with pytest.raises(LanguageError, match="'de'"):
        answer_scores(speller, {"de": PROMPTS["fr"]})
    with pytest.raises(CorpusError, match="begins '花'"):
        answer_scores(speller, {"zh": [Prompt("a", {"zh": "花"})]})
    nan = [(RESID_POST.at(1), lambda values, hook: values * float("nan"))]
    with pytest.raises(ActivationError, match="NaN"):
        answer_scores(speller, PROMPTS, fwd_hooks=nan)
