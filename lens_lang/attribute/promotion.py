"""Which vocabulary items a neuron makes likelier, and which less likely.

What a neuron writes is read as a prediction by itself, through the final norm's gain and the
unembedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.attention import widened
from lens_lang.errors import OptionError
from lens_lang.readout import CHUNK_LOGITS, final_scale
from lens_lang.sites import HookedModel
from lens_lang.spelling import as_text, spell_vocabulary
from lens_lang.vocabulary import VocabularyLanguages


@dataclass(frozen=True)
class Item:
    """A vocabulary item that a neuron acts on.

    Attributes:
        token: Its number.
        text: How it is spelled.
        score: How much the neuron adds to its score at activation 1, relative to the length of
            what it writes.
        language: The language it most likely belongs to; ``other`` for none or several.
    """

    token: int
    text: str
    score: float
    language: str


@dataclass(frozen=True)
class Promotion:
    """The ends of the vocabulary as one neuron orders it where its activation is positive.

    Attributes:
        promoted: The items it makes likelier, most of all first.
        suppressed: The items it makes less likely, most of all first.
        languages: Of the items promoted, the share of each language and of *other*.
        suppressed_languages: The same of the items suppressed.
    """

    promoted: tuple[Item, ...]
    suppressed: tuple[Item, ...]
    languages: dict[str, float]
    suppressed_languages: dict[str, float]


def promotions(
    model: Any,
    vectors: Float[Tensor, "neuron d_model"],
    vocabulary: VocabularyLanguages,
    *,
    top_k: int = 10,
) -> list[Promotion]:
    """Read what neurons write as predictions, for all of them together.

    Args:
        model: The model.
        vectors: What each neuron writes, the gain of a norm behind the MLP included.
        vocabulary: Which language each item belongs to.
        top_k: Items to keep at either end; fewer where the vocabulary has not twice as many that
            text can spell.

    Returns:
        One for each neuron.

    Raises:
        OptionError: `top_k` is out of its range.
        ShapeError: `vocabulary` was made for another model.
    """
    d_vocab = int(model.cfg.d_vocab)
    if not 1 <= top_k <= d_vocab // 2:
        raise OptionError(f"top_k must be between 1 and {d_vocab // 2}, got {top_k}")
    vocabulary = vocabulary.padded(d_vocab)
    spelled = spell_vocabulary(model)
    # What no text spells (padding rows, special tokens) would win by its odd vector.
    silent = torch.tensor([not piece for piece in spelled] + [True] * (d_vocab - len(spelled)))
    # No item stands at both ends, and none that is silent at either.
    top_k = min(top_k, int((~silent).sum()) // 2)
    found = []
    for some in torch.split(vectors, max(1, CHUNK_LOGITS // d_vocab)):
        scores = _scores(model, some)
        ends = []
        for sign in (1.0, -1.0):
            best = (sign * scores).masked_fill(silent, -torch.inf).topk(top_k)
            ends.append(
                [
                    tuple(
                        Item(
                            token,
                            as_text(spelled[token]) or repr(spelled[token]),
                            sign * score,
                            vocabulary.language_of(token),
                        )
                        for token, score in zip(tokens, values, strict=True)
                    )
                    for tokens, values in zip(
                        best.indices.tolist(), best.values.tolist(), strict=True
                    )
                ]
            )
        for promoted, suppressed in zip(*ends, strict=True):
            languages = [_languages(vocabulary, items) for items in (promoted, suppressed)]
            found.append(Promotion(promoted, suppressed, *languages))
    return found


def _languages(vocabulary: VocabularyLanguages, items: Sequence[Item]) -> dict[str, float]:
    """Of some items, the share of each language and of *other*."""
    if not items:
        return {}
    mean = vocabulary.share[[item.token for item in items]].mean(0).tolist()
    return dict(zip(vocabulary.labels, mean, strict=True))


def _scores(
    model: HookedModel, vectors: Float[Tensor, "neuron d_model"]
) -> Float[Tensor, "neuron item"]:
    """What vectors of the residual stream add to every item, relative to their length."""
    weight: Tensor = model.W_U  # type: ignore[attr-defined]
    gain, centred = final_scale(model, len(weight), weight)
    rows = vectors.to(weight.device)
    rows = rows - rows.mean(1, keepdim=True) if centred else rows
    rows = rows * gain.to(rows) / rows.norm(dim=1, keepdim=True).clamp(min=1e-20)
    step = max(1, CHUNK_LOGITS // len(weight))
    parts = [rows @ widened(part.detach()) for part in torch.split(weight, step, dim=1)]
    return torch.cat(parts, dim=1).cpu()
