"""A neuron's card: what it writes, in which languages it fires, how strongly.

What a neuron writes is read as a prediction by itself, through the final norm's gain and the
unembedding: the vocabulary items it makes likelier, and those it makes less likely, with the
languages they belong to.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_lang.attention import widened
from lens_lang.attribute.writing import writing
from lens_lang.errors import OptionError, SiteError
from lens_lang.readout import CHUNK_LOGITS, final_scale
from lens_lang.sites import MLP_POST, MLP_PRE, HookedModel, check_layers, model_name, n_layers
from lens_lang.spelling import as_text, spell_vocabulary
from lens_lang.stats import Frequency
from lens_lang.vocabulary import OTHER, VocabularyLanguages


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


@dataclass(frozen=True, eq=False, repr=False)
class NeuronCard:
    """What is known of one MLP neuron.

    Attributes:
        layer: Its layer.
        index: Its place in the layer.
        promoted: The items it makes likelier, most of all first.
        suppressed: The items it makes less likely, most of all first.
        promoted_languages: Of the items promoted, the share of each language and of *other*.
        firing: By language the share of tokens at which it fires; empty where nobody counted.
        provenance: The model.
    """

    layer: int
    index: int
    promoted: tuple[Item, ...]
    suppressed: tuple[Item, ...]
    promoted_languages: Mapping[str, float]
    firing: Mapping[str, float] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        """The card as text."""
        lines = [f"neuron {self.layer}.{self.index} of {self.provenance.get('model', 'a model')}"]
        for what, items in (("promotes", self.promoted), ("suppresses", self.suppressed)):
            shown = "  ".join(f"{item.text!r} ({item.language})" for item in items)
            lines.append(f"  {what:<11}{shown}")
        shares = sorted(self.promoted_languages.items(), key=lambda each: -each[1])
        lines.append(
            "  languages  " + ", ".join(f"{lang} {100 * x:.0f} %" for lang, x in shares if x > 0)
        )
        if self.firing:
            often = sorted(self.firing.items(), key=lambda each: -each[1])
            lines.append(
                "  fires on   " + ", ".join(f"{lang} {100 * x:.0f} %" for lang, x in often)
            )
        return "\n".join(lines)


def neuron_card(
    model: Any,
    neuron: tuple[int, int],
    vocabulary: VocabularyLanguages,
    *,
    frequency: Frequency | None = None,
    top_k: int = 10,
) -> NeuronCard:
    """Describe one MLP neuron by the vocabulary it promotes.

    Args:
        model: The model.
        neuron: Its layer and index.
        vocabulary: Which language each item belongs to.
        frequency: How often neurons fire, to say on which languages this one does.
        top_k: Items to keep at either end.

    Returns:
        The card; printing it shows it.

    Raises:
        OptionError: There is no such neuron, or `top_k` is out of its range.
        ShapeError: `vocabulary` or `frequency` was made for another model.
        SiteError: `frequency` is not of MLP neurons.
        ModelError: The weights are quantised and cannot be read.
    """
    layer, index = neuron
    if not 0 <= layer < n_layers(model):
        raise OptionError(f"layer must be below {n_layers(model)}, got {layer}")
    each = writing(model, layer)
    if not 0 <= index < len(each.matrix):
        raise OptionError(f"Layer {layer} has {len(each.matrix)} neurons, none number {index}")
    d_vocab = int(model.cfg.d_vocab)
    if not 1 <= top_k <= d_vocab // 2:
        raise OptionError(f"top_k must be between 1 and {d_vocab // 2}, got {top_k}")
    share = vocabulary.padded(d_vocab).share
    labels = (*vocabulary.languages, OTHER)
    row = widened(each.matrix[index])
    scores = _promotion(model, row if each.gain is None else row * each.gain)
    spelled = spell_vocabulary(model)
    # What no text spells (padding rows, special tokens) would win by its odd vector.
    silent = torch.tensor([not piece for piece in spelled] + [True] * (d_vocab - len(spelled)))
    ends = []
    for sign in (1.0, -1.0):
        found = (sign * scores).masked_fill(silent, -torch.inf).topk(top_k)
        ends.append(
            tuple(
                Item(
                    token,
                    as_text(spelled[token]) or repr(spelled[token]),
                    sign * score,
                    labels[int(share[token].argmax())],
                )
                for token, score in zip(found.indices.tolist(), found.values.tolist(), strict=True)
            )
        )
    mean = share[[item.token for item in ends[0]]].mean(0).tolist()
    firing = {}
    if frequency is not None:
        shape = (frequency.count.shape[1], frequency.count.shape[2])
        check_layers(model, MLP_POST, shape, what="frequencies")
        if frequency.site not in (MLP_PRE, MLP_POST):
            raise SiteError(
                f"The frequencies are of {frequency.site.name}, and this is a neuron of an MLP"
            )
        probability = frequency.probability[:, layer, index].tolist()
        firing = dict(zip(frequency.languages, probability, strict=True))
    return NeuronCard(
        layer,
        index,
        ends[0],
        ends[1],
        dict(zip(labels, mean, strict=True)),
        firing,
        {"model": model_name(model)},
    )


def _promotion(model: HookedModel, vector: Float[Tensor, "d_model"]) -> Float[Tensor, "item"]:
    """What a vector of the residual stream adds to every item, relative to its length."""
    weight: Tensor = model.W_U  # type: ignore[attr-defined]
    gain, centred = final_scale(model, len(weight), weight)
    vector = vector.to(weight.device)
    vector = vector - vector.mean() if centred else vector
    vector = vector * gain.to(vector) / vector.norm().clamp(min=1e-20)
    step = max(1, CHUNK_LOGITS // len(weight))
    parts = [vector @ widened(part.detach()) for part in torch.split(weight, step, dim=1)]
    return torch.cat(parts).cpu()
