"""Can the model find the word? A task that small base models can do, in every language.

A prompt ends where one word is expected (`lens_lang.cloze_prompts`, `translation_prompts`).
Scored is the first token: the probability of all vocabulary items with which the right word could
begin, and whether the likeliest item is one of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_lang.concepts import Prompt
from lens_lang.errors import OptionError, ShapeError
from lens_lang.evaluate.judging import Judge
from lens_lang.evaluate.significance import holm, mean_interval, sign_flip_test
from lens_lang.languages import find_language
from lens_lang.lens import as_corpora, last_residuals, prepare
from lens_lang.sites import FwdHooks, HookedModel, hooked_names, model_name

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class AnswerScores:
    """How well a model begins the right words.

    Attributes:
        languages: The language of each prompt's answer.
        log_probability: Of the items with which the right word could begin, in nats.
        correct: Whether the likeliest item is one of them.
        provenance: Model and hooks, as JSON values.
    """

    languages: tuple[str, ...]
    log_probability: Float[Tensor, "prompt"]
    correct: Bool[Tensor, "prompt"]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.languages) == len(self.log_probability) == len(self.correct):
            raise ShapeError(
                f"{len(self.languages)} languages, {len(self.log_probability)} probabilities and "
                f"{len(self.correct)} judgements must be as many"
            )

    def change_from(self, before: "AnswerScores") -> "pd.DataFrame":
        """Compare with the same prompts before an intervention, prompt by prompt.

        Args:
            before: The scores before, or without.

        Returns:
            One row per language: ``prompts``, ``accuracy_before`` and ``accuracy``, the change
            of log-probability in nats, ``delta``, and of accuracy, ``delta_accuracy``, each with
            a 95 % interval by paired bootstrap over prompts (NaN for fewer than two); ``p``, how
            likely such a ``delta`` is if prompts change either way as easily, by a sign-flip
            test, and ``p_holm``, corrected over the languages by Holm's method.

        Raises:
            ShapeError: The prompts are not the same.
        """
        import pandas as pd

        if before.languages != self.languages:
            raise ShapeError("Only scores of the same prompts can be compared")
        places = {
            lang: [n for n, each in enumerate(self.languages) if each == lang]
            for lang in dict.fromkeys(self.languages)
        }
        gained = self.log_probability - before.log_probability
        tests = [sign_flip_test(gained[mine]) for mine in places.values()]
        p = torch.stack(tests) if tests else torch.zeros(0)
        rows = []
        for (lang, mine), found, corrected in zip(
            places.items(), p.tolist(), holm(p).tolist(), strict=True
        ):
            gains = gained[mine]
            hits = self.correct[mine].double() - before.correct[mine].double()
            (low, high), (hits_low, hits_high) = mean_interval(torch.stack([gains, hits])).tolist()
            rows.append(
                {
                    "language": lang,
                    "prompts": len(mine),
                    "accuracy_before": float(before.correct[mine].double().mean()),
                    "accuracy": float(self.correct[mine].double().mean()),
                    "delta": float(gains.mean()),
                    "ci_low": low,
                    "ci_high": high,
                    "p": found,
                    "p_holm": corrected,
                    "delta_accuracy": float(hits.mean()),
                    "accuracy_low": hits_low,
                    "accuracy_high": hits_high,
                }
            )
        return pd.DataFrame(rows)


def answer_scores(
    model: HookedModel,
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    fwd_hooks: FwdHooks = (),
    batch_size: int = 8,
) -> AnswerScores:
    """Score the first token of every answer.

    Args:
        model: The model; tune or edit it between two calls, and compare.
        prompts: By language of the answer, which must be among each prompt's answers.
        fwd_hooks: Interventions under which to answer.
        batch_size: Prompts per forward pass.

    Returns:
        Scores, language by language in the order given.

    Raises:
        LanguageError: A prompt has no answer in its language.
        OptionError: There are no prompts.
        CorpusError: No vocabulary item begins an answer.
        SiteError: A hook point does not exist, or comes after the last block.
        ModelError: The model's logits are not read this way.
        ActivationError: NaN or infinity.
    """
    texts, languages, words = [], [], []
    for lang, each in prompts.items():
        for prompt in each:
            known = [*prompt.answers]
            texts.append(prompt.text)
            languages.append(lang)
            words.append(prompt.answers[known[find_language(lang, known)]])
    if not texts:
        raise OptionError("answer_scores needs at least one prompt")
    corpora = as_corpora(model, texts)
    prepare(model, corpora, fwd_hooks)
    judge = Judge.of_words(model, words)
    scores = torch.zeros(len(texts), dtype=torch.float64)
    correct = torch.zeros(len(texts), dtype=torch.bool)
    for batch in corpora.batches(batch_size):
        resid = last_residuals(model, batch, fwd_hooks=fwd_hooks)[-1]
        found, right = judge.scores(model, resid, batch.documents.tolist())
        scores[batch.documents], correct[batch.documents] = found, right
    about = {"model": model_name(model), "fwd_hooks": hooked_names(model, fwd_hooks)}
    return AnswerScores(tuple(languages), scores, correct, about)
