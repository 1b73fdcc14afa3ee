"""Cards of neurons: what each writes, where it fires, where it stands, and what is lost without it.

What a neuron writes is read as a prediction by itself: the vocabulary items it makes likelier, and
those it makes less likely, with the languages they belong to. Its place among the other neurons is
read from the weights. Firing, contexts and effect are shown where they were measured.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_lang.attribute.card import NeuronCard, card_from_json
from lens_lang.attribute.effect import check_measured_on, neuron_effect
from lens_lang.attribute.markup import visible
from lens_lang.attribute.neighbourhood import Neighbourhood, check_neurons, neighbourhoods
from lens_lang.attribute.promotion import promotions
from lens_lang.attribute.writing import writing
from lens_lang.contexts import NeuronContexts
from lens_lang.errors import OptionError, SiteError, StorageError, near_misses
from lens_lang.evaluate.perplexity import PerplexityMatrix
from lens_lang.fingerprint import weights_digest
from lens_lang.neurons import LanguageNeurons
from lens_lang.signs import NeuronSigns
from lens_lang.single_neurons import NeuronName, neuron_place, neuron_places, neuron_set
from lens_lang.sites import (
    MLP_POST,
    MLP_PRE,
    MLP_UP,
    HookedModel,
    check_layers,
    is_gated,
    model_name,
)
from lens_lang.stats import Frequency, joined_provenance
from lens_lang.storage import read_tensors, versions, write_tensors
from lens_lang.vocabulary import VocabularyLanguages


@dataclass(frozen=True, eq=False, repr=False)
class NeuronCards:
    """The cards of several neurons of one model.

    ``cards["12.1542"]`` or ``cards[12, 1542]`` is one of them, ``(12, 1542) in cards`` asks for it,
    iteration gives all in their order, and ``+`` unites two collections: a card of the right one
    replaces that of the same neuron in the left one.

    Attributes:
        cards: One card a neuron.
        provenance: Model and versions, as JSON values.
    """

    cards: tuple[NeuronCard, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        repeated = [name for name, count in Counter(self.names).items() if count > 1]
        if repeated:
            raise OptionError(f"These neurons have two cards: {', '.join(repeated)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The neurons, such as ``"12.1542"``."""
        return tuple(card.name for card in self.cards)

    def __getitem__(self, neuron: NeuronName) -> NeuronCard:
        names, name = self.names, _name(neuron)
        if name not in names:
            raise OptionError(f"There is no card of neuron {name}{near_misses(name, names)}")
        return self.cards[names.index(name)]

    def __contains__(self, neuron: NeuronName) -> bool:
        return _name(neuron) in self.names

    def __iter__(self) -> Iterator[NeuronCard]:
        return iter(self.cards)

    def __len__(self) -> int:
        return len(self.cards)

    def __add__(self, other: "NeuronCards") -> "NeuronCards":
        if not isinstance(other, NeuronCards):
            return NotImplemented
        both = {card.name: card for card in (*self.cards, *other.cards)}
        return NeuronCards(
            tuple(both.values()), joined_provenance(self.provenance, other.provenance)
        )

    def __repr__(self) -> str:
        model = visible(str(self.provenance.get("model", "a model")))
        return f"NeuronCards({len(self)} of {model}: {', '.join(self.names)})"

    def _repr_html_(self) -> str:
        return "<hr>".join(card._repr_html_() for card in self.cards)

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file.

        Args:
            path: The file.

        Raises:
            StorageError: The file cannot be written.
        """
        # As a tensor of bytes, because a header has an upper limit and contexts have not.
        told = json.dumps([asdict(card) for card in self.cards], ensure_ascii=False)
        tensor = torch.frombuffer(
            bytearray(told.encode("utf-8", errors="replace")), dtype=torch.uint8
        )
        header = {"names": list(self.names), "provenance": dict(self.provenance)}
        write_tensors(path, type(self).__name__, header, {"cards": tensor})

    @classmethod
    def load(cls, path: str | Path) -> "NeuronCards":
        """Read what `save` wrote.

        Args:
            path: The file.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        _, header, tensors = read_tensors(path, cls.__name__)
        try:
            told = json.loads(tensors["cards"].numpy().tobytes().decode("utf-8"))
            cards = cls(tuple(card_from_json(each) for each in told), dict(header["provenance"]))
            if list(cards.names) != header["names"]:
                raise ValueError("a card")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise StorageError(f"{path} is damaged: {error} is missing or malformed") from error
        return cards


def _name(neuron: NeuronName) -> str:
    layer, index = neuron_place(neuron)
    return f"{layer}.{index}"


def neuron_card(
    model: Any,
    neuron: NeuronName,
    vocabulary: VocabularyLanguages,
    *,
    frequency: Frequency | None = None,
    neurons: LanguageNeurons | None = None,
    contexts: NeuronContexts | None = None,
    signs: NeuronSigns | None = None,
    effect: PerplexityMatrix | None = None,
    top_k: int = 10,
) -> NeuronCard:
    """Describe one MLP neuron. For several see `neuron_cards`, which is faster.

    Args:
        model: The model.
        neuron: Its layer and index: ``(12, 1542)`` or ``"12.1542"``.
        vocabulary: Which language each item belongs to.
        frequency: How often neurons fire, to say on which languages this one does.
        neurons: The neurons of each language, to say where this one stands among them.
        contexts: In which text neurons are most active; this one among them.
        signs: Which sign neurons' activations have where they fire, this one's among them: a gated
            neuron that is negative there promotes what its output vector suppresses.
        effect: What happens without single neurons: an intervention called ``"12.1542"`` is
            `ablate` of that neuron alone, and its controls are random neurons of its layer.
        top_k: Items to keep at either end of the vocabulary.

    Returns:
        The card; printing it shows it.

    Raises:
        OptionError: There is no such neuron, `contexts`, `signs` or `effect` lack it, or `top_k`
            is out of its range.
        ShapeError: Something was made for another model.
        SiteError: Something is not of MLP neurons.
        ModelError: The weights are offloaded or quantised and cannot be read.
    """
    found = neuron_cards(
        model,
        [neuron],
        vocabulary,
        frequency=frequency,
        neurons=neurons,
        contexts=contexts,
        signs=signs,
        effect=effect,
        top_k=top_k,
    )
    return found.cards[0]


def neuron_cards(
    model: Any,
    which: Iterable[NeuronName],
    vocabulary: VocabularyLanguages,
    *,
    frequency: Frequency | None = None,
    neurons: LanguageNeurons | None = None,
    contexts: NeuronContexts | None = None,
    signs: NeuronSigns | None = None,
    effect: PerplexityMatrix | None = None,
    top_k: int = 10,
) -> NeuronCards:
    """Describe several MLP neurons together.

    Args:
        model: The model.
        which: Each as for `neuron_card`; a repeated one gets one card.
        vocabulary: As for `neuron_card`, and so are all others.
        frequency: How often neurons fire.
        neurons: The neurons of each language.
        contexts: In which text neurons are most active.
        signs: Which sign neurons' activations have where they fire.
        effect: What happens without single neurons; the cards share it.
        top_k: Items to keep at either end of the vocabulary.

    Returns:
        The cards, in the order of `which`.

    Raises:
        OptionError: There is no such neuron, `contexts`, `signs` or `effect` lack one, or `top_k`
            is out of its range.
        ShapeError: Something was made for another model.
        SiteError: Something is not of MLP neurons.
        ModelError: The weights are offloaded or quantised and cannot be read.
    """
    places = list(dict.fromkeys(neuron_places(which)))
    neuron_set(model, places)  # refuses those it does not have
    weights = weights_digest(model)
    for what, measured in (
        ("frequencies", frequency),
        ("neurons", neurons),
        ("contexts", contexts),
        ("signs", signs),
        ("effect", effect),
    ):
        if measured is not None:
            check_measured_on(model, measured.provenance, what, weights=weights)
    _check_kinds(model, frequency, neurons, contexts=contexts)
    vectors: dict[tuple[int, int], Tensor] = {}
    around: dict[tuple[int, int], Neighbourhood] = {}
    for layer in dict.fromkeys(layer for layer, _ in places):
        indices = [index for each, index in places if each == layer]
        written = writing(model, layer)
        rows = written.rows(indices).cpu()  # layers may lie on different devices
        near = neighbourhoods(written, layer, indices, neurons)
        for index, row, place in zip(indices, rows, near, strict=True):
            around[layer, index], vectors[layer, index] = place, row
    provenance = {"model": model_name(model), **_read(frequency, contexts, signs)}
    probability = None if frequency is None else frequency.probability
    stacked = torch.stack([vectors[each] for each in places]) if places else torch.empty(0, 0)
    made = promotions(model, stacked, vocabulary, top_k=top_k) if places else []
    cards = []
    for neuron, ends in zip(places, made, strict=True):
        layer, index = neuron
        firing: dict[str, float] = {}
        if frequency is not None and probability is not None:
            values = probability[:, layer, index].tolist()
            firing = dict(zip(frequency.languages, values, strict=True))
        cards.append(
            NeuronCard(
                layer,
                index,
                ends.promoted,
                ends.suppressed,
                ends.languages,
                around[neuron],
                firing,
                {}
                if contexts is None
                else {lang: contexts.of(neuron, lang) for lang in contexts.languages},
                () if effect is None else neuron_effect(model, neuron, effect),
                provenance,
                ends.suppressed_languages,
                {} if signs is None else signs.of(neuron),
                is_gated(model),
            )
        )
    about = {
        "model": model_name(model),
        "weights": weights,
        "versions": versions(),
    }
    return NeuronCards(tuple(cards), about)


def _read(
    frequency: Frequency | None, contexts: NeuronContexts | None, signs: NeuronSigns | None
) -> dict[str, Any]:
    """Where activations were read, on how many tokens, and of which corpora."""
    told: dict[str, Any] = {}
    if contexts is not None:
        told["contexts at"] = contexts.site.name
    if frequency is not None:
        told["firing at"] = f"{frequency.site.name} > {frequency.threshold:g}"
    for what, measured in (("firing", frequency), ("contexts", contexts), ("signs", signs)):
        if measured is not None:
            counts = measured.n_tokens.tolist()
            told[f"{what} tokens"] = dict(zip(measured.languages, counts, strict=True))
            corpora = measured.provenance.get("corpora")
            if isinstance(corpora, Mapping) and "digest" in corpora:
                told[f"{what} corpora"] = corpora["digest"]
    return told


def _check_kinds(
    model: HookedModel,
    frequency: Frequency | None,
    neurons: LanguageNeurons | None,
    *,
    contexts: NeuronContexts | None,
) -> None:
    """Refuse what was measured elsewhere than at the neurons of an MLP of this size."""
    if frequency is not None:
        _check_firing(model, frequency)
        shape = (frequency.count.shape[1], frequency.count.shape[2])
        check_layers(model, MLP_POST, shape, what="frequencies")
    if neurons is not None:
        check_neurons(model, neurons)
    if contexts is not None and contexts.site not in (MLP_PRE, MLP_UP, MLP_POST):
        raise SiteError(f"The contexts are of {contexts.site.name}, and this is a neuron of an MLP")


def _check_firing(model: HookedModel, frequency: Frequency) -> None:
    """Refuse what a card would call firing and is not."""
    site = frequency.site
    if site not in (MLP_PRE, MLP_UP, MLP_POST):
        raise SiteError(
            f"The frequencies are of {site.name}, and no neuron of an MLP: collect them at MLP_PRE"
        )
    # a product is above 0 as well where both its factors are below
    if site == MLP_UP or (site == MLP_POST and is_gated(model)):
        raise SiteError(
            f"The frequencies are of {site.name}, and above 0 there is not firing: collect them at "
            "MLP_PRE"
        )
    if frequency.threshold != 0:
        raise OptionError(
            f"A card says where neurons fire, above 0, and the frequencies are of values above "
            f"{frequency.threshold:g}: collect them with ActivationFrequency()"
        )
