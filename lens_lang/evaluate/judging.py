"""Whether the first token that a model would say begins the right answer.

Scored is the log-probability of all vocabulary items with which the answer could begin, Start(w) of
Wendler et al. (2024). An open answer is right if the likeliest item is one of them; of several
options the right one must be likelier than each of the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_lang.attribute.scores import check_tokens
from lens_lang.errors import ActivationError, CorpusError
from lens_lang.latent import start_items
from lens_lang.questions import Question
from lens_lang.readout import read_logits
from lens_lang.sites import HookedModel, model_name
from lens_lang.spelling import spell_vocabulary


@dataclass(frozen=True, eq=False)
class Judge:
    """Which vocabulary items begin each answer, and each of the options.

    Attributes:
        answers: For each answer, the items with which it could begin.
        options: For each answer, the same of the options it is one of; none for an open question.
        right: For each answer, which of the options it is.
    """

    answers: Sequence[Sequence[int]]
    options: Sequence[Sequence[Sequence[int]]]
    right: Sequence[int]

    @classmethod
    def of_tokens(cls, model: HookedModel, tokens: Int[Tensor, "answer"]) -> "Judge":
        """Take one token for each answer.

        Raises:
            OptionError: A token lies outside the vocabulary.
        """
        answers = [[token] for token in check_tokens(tokens, model).tolist()]
        return cls(answers, [()] * len(answers), [0] * len(answers))

    @classmethod
    def of_words(cls, model: Any, words: Sequence[str]) -> "Judge":
        """Take all items that could begin each word.

        Raises:
            CorpusError: No item begins a word.
        """
        starts = start_items(spell_vocabulary(model), words)
        silent = [word for word, items in starts.items() if not items]
        if silent:
            raise CorpusError(
                f"No item of the vocabulary begins {silent[0]!r}: leave its prompt out"
            )
        return cls([starts[word] for word in words], [()] * len(words), [0] * len(words))

    @classmethod
    def of_questions(cls, model: Any, asked: Sequence[tuple[Question, str]]) -> "Judge":
        """Take all items that could begin each answer, and the options it is chosen from.

        Args:
            model: Whose vocabulary.
            asked: Questions, each with the language in which it is asked.

        Raises:
            CorpusError: No item begins an answer, or an option and no other.
        """
        words = {
            word
            for each, lang in asked
            for word in (each.answers[lang], *each.options.get(lang, ()))
        }
        starts = start_items(spell_vocabulary(model), words)
        answers: list[Sequence[int]] = []
        options: list[Sequence[Sequence[int]]] = []
        right = []
        for each, lang in asked:
            offered = each.options.get(lang, ())
            sets = [set(starts[word]) for word in offered]
            # An item that could begin two options says nothing of either.
            alone = [
                sorted(mine - set().union(*(s for s in sets if s is not mine))) for mine in sets
            ]
            place = offered.index(each.answers[lang]) if offered else 0
            answers.append(alone[place] if offered else starts[each.answers[lang]])
            options.append(alone)
            right.append(place)
            words_and_items = [(each.answers[lang], answers[-1]), *zip(offered, alone, strict=True)]
            silent = [word for word, items in words_and_items if not items]
            if silent:
                raise CorpusError(
                    f"No item of the vocabulary begins {silent[0]!r} alone ({each.name!r} in "
                    f"{lang!r}): leave the question out, or offer other options"
                )
        return cls(answers, options, right)

    def scores(
        self, model: HookedModel, resid: Float[Tensor, "row d_model"], places: Sequence[int]
    ) -> tuple[Float[Tensor, "row"], Bool[Tensor, "row"]]:
        """Score what a model would say next.

        Args:
            model: The model.
            resid: The residual stream behind the last block, where an answer is expected.
            places: Which answer is expected in each row.

        Returns:
            Each answer's log-probability in nats, and whether it is the one the model gives.

        Raises:
            ActivationError: NaN or infinity.
        """
        # The answer first, then the options; padded, so that one gather reads them all.
        sets = [[self.answers[place], *self.options[place]] for place in places]
        many, longest = max(map(len, sets)), max(len(some) for row in sets for some in row)
        items = torch.full((len(sets), many, longest), -1)
        for row, each in enumerate(sets):
            for number, some in enumerate(each):
                items[row, number, : len(some)] = torch.tensor(list(some))
        with torch.inference_mode():
            logits = read_logits(model, resid)
            whole = logits.logsumexp(1).cpu().double()
            likeliest = logits.argmax(1).cpu()
            index = items.clamp(min=0).flatten(1).to(logits.device)
            read = logits.gather(1, index).cpu().double().view(items.shape)
        if not bool(torch.isfinite(whole).all()):
            raise ActivationError(f"{model_name(model)} gave NaN or infinite logits on a prompt")
        scores = read.masked_fill(items < 0, -torch.inf).logsumexp(-1)
        right = []
        for row, place in enumerate(places):
            if self.options[place]:
                offered = scores[row, 1 : len(self.options[place]) + 1].tolist()
                best = max(offered)
                # A tie, which half precision makes likely, is no answer.
                right.append(offered[self.right[place]] == best and offered.count(best) == 1)
            else:
                right.append(int(likeliest[row]) in self.answers[place])
        return scores[:, 0] - whole, torch.tensor(right)
