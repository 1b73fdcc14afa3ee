"""A card says what the model does, what was measured and no more, and runs nobody's script."""

import dataclasses
import json
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import D_MLP, LAYERS, VOCAB, LetterTokenizer, hf_model, random_documents
from test_cli import done, refused
from torch import Tensor

from lens_lang import results
from lens_lang.attention import widened
from lens_lang.attribute.card import NeuronCard
from lens_lang.attribute.cards import NeuronCards, neuron_card, neuron_cards
from lens_lang.attribute.effect import LanguageEffect
from lens_lang.attribute.markup import STRONGEST, change_text, colour_style, sign_text, visible
from lens_lang.attribute.neighbourhood import NEAREST, Neighbour, Neighbourhood
from lens_lang.attribute.promotion import Item
from lens_lang.attribute.telling import top_neurons
from lens_lang.attribute.writing import Writing, writing
from lens_lang.cli.sharing import _show_cards
from lens_lang.collection import collect
from lens_lang.contexts import Context, NeuronContexts, TopContexts
from lens_lang.corpora import Corpora, sample_sentences
from lens_lang.demo import run_demo
from lens_lang.errors import LanguageError, OptionError, ShapeError, SiteError, StorageError
from lens_lang.evaluate.perplexity import PerplexityMatrix, perplexity_matrix
from lens_lang.intervene import ablate, replace, scale
from lens_lang.models import bridge
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.page import report
from lens_lang.parallel import ParallelCorpora
from lens_lang.plot.cards import neuron_card as draw
from lens_lang.sections.caption import describe
from lens_lang.sections.cards import cards_section
from lens_lang.signs import FiringSign, NeuronSigns
from lens_lang.sites import ATTN_Q, MLP_POST, MLP_PRE, MLP_UP, model_name
from lens_lang.stats import ActivationFrequency, Frequency
from lens_lang.storage import write_tensors
from lens_lang.vocabulary import VocabularyLanguages

WHICH = [(1, 7), (0, 3), (1, 60)]
LANGUAGES = ("en", "fr")


def lettered(architecture: str = "llama") -> Any:
    model = bridge(hf_model(architecture))
    model.tokenizer = LetterTokenizer()
    return model


def vocabulary() -> VocabularyLanguages:
    share = torch.zeros(VOCAB, 3)
    share[torch.arange(VOCAB), torch.arange(VOCAB) % 3] = 1.0
    return VocabularyLanguages(LANGUAGES, share)


def some_of(*places: tuple[int, int]) -> NeuronSet:
    return NeuronSet.from_indices(torch.tensor(places), site=MLP_POST, shape=(LAYERS, D_MLP))


def firing(*places: tuple[int, int]) -> NeuronSet:
    return NeuronSet({MLP_PRE: some_of(*places).masks[MLP_POST]})


@dataclasses.dataclass(frozen=True)
class Measured:
    """A tiny model, and everything a card can show of it."""

    model: Any
    frequency: Frequency
    neurons: LanguageNeurons
    contexts: NeuronContexts
    signs: NeuronSigns
    effect: PerplexityMatrix

    def cards(self) -> NeuronCards:
        return neuron_cards(
            self.model,
            WHICH,
            vocabulary(),
            frequency=self.frequency,
            neurons=self.neurons,
            contexts=self.contexts,
            signs=self.signs,
            effect=self.effect,
            top_k=4,
        )


def effect_of(
    model: Any, corpora: Corpora, hooks: dict[str, Any], controls: int
) -> PerplexityMatrix:
    return perplexity_matrix(model, corpora, hooks, controls=controls, progress=False)


@pytest.fixture(scope="module")
def text() -> Corpora:
    return Corpora.from_tokens(
        {
            "en": random_documents([5, 9, 4, 12, 7]),
            "fr": random_documents([8, 3, 10], seed=1),
        },
        bos_id=1,
    )


@pytest.fixture(scope="module")
def measured(text: Corpora) -> Measured:
    model = lettered()
    frequency = collect(model, text, ActivationFrequency(), progress=False)
    contexts, signs = collect(
        model,
        text,
        TopContexts(some_of(*WHICH), k=2, before=3, after=2),
        FiringSign(some_of(*WHICH)),
        progress=False,
    )
    neurons = LanguageNeurons(
        {"en": some_of((1, 7), (1, 60), (2, 0)), "fr": some_of((1, 7), (0, 1))}, {"method": "lape"}
    )
    hooks = {f"{layer}.{index}": ablate(some_of((layer, index))) for layer, index in WHICH}
    effect = effect_of(model, text, hooks, 3)
    return Measured(model, frequency, neurons, contexts, signs, effect)


@pytest.fixture(scope="module")
def cards(measured: Measured) -> NeuronCards:
    return measured.cards()


# --- what is on a card ---


def written_by_the_model(model: Any, layer: int) -> Tensor:
    """The direction in which each neuron moves the MLP's output, one at a time, at activation 1."""
    seen: dict[str, Tensor] = {}

    def alone(activations: Tensor, hook: Any) -> Tensor:
        return torch.eye(D_MLP)[None]

    def none(activations: Tensor, hook: Any) -> Tensor:
        return torch.zeros_like(activations)

    def read(output: Tensor, hook: Any) -> None:
        seen["out"] = output[0].detach().clone()

    outputs = []
    for edit in (alone, none):
        hooks = [(MLP_POST.at(layer), edit), (f"blocks.{layer}.hook_mlp_out", read)]
        model.run_with_hooks(torch.ones(1, D_MLP, dtype=torch.long), fwd_hooks=hooks)
        outputs.append(seen["out"])
    return outputs[0] - outputs[1]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_neighbours_are_those_that_move_the_output_alike(architecture: str) -> None:
    model = lettered(architecture)
    vectors = written_by_the_model(model, 1).double()
    for index in (0, 7, D_MLP - 1):
        cosines = torch.nn.functional.cosine_similarity(vectors, vectors[index][None], dim=1)
        cosines[index] = -2.0
        best = cosines.topk(NEAREST)
        found = neuron_card(model, (1, index), vocabulary()).neighbourhood
        assert [each.index for each in found.nearest] == best.indices.tolist()
        assert [each.cosine for each in found.nearest] == pytest.approx(
            best.values.tolist(), abs=1e-4
        )
        assert (found.layer, found.width, found.per_layer) == (1, D_MLP, {})


def test_of_neighbours_as_near_the_lower_index_comes_first() -> None:
    plain = hf_model("llama")
    with torch.no_grad():
        down = plain.model.layers[1].mlp.down_proj.weight  # d_model neuron
        down[:, [90, 20, 55]] = down[:, [7]]
    model = bridge(plain)
    model.tokenizer = LetterTokenizer()
    nearest = neuron_card(model, (1, 7), vocabulary()).neighbourhood.nearest
    assert [each.index for each in nearest[:3]] == [20, 55, 90]
    assert [each.cosine for each in nearest[:3]] == pytest.approx([1.0] * 3, abs=1e-5)


def test_the_neighbourhood_counts_the_languages_neurons(
    measured: Measured, cards: NeuronCards
) -> None:
    around = cards["1.7"].neighbourhood
    assert around.per_layer == {"en": (0, 2, 1), "fr": (1, 1, 0)}
    assert around.languages == LANGUAGES
    assert cards["1.60"].neighbourhood.languages == ("en",)
    assert cards["0.3"].neighbourhood.languages == ()
    assert around.method == "lape"
    for card in cards:
        for each in card.neighbourhood.nearest:
            expected = tuple(
                lang for lang, some in measured.neurons.items() if (card.layer, each.index) in some
            )
            assert each.languages == expected


def test_firing_and_contexts_are_those_that_were_collected(
    measured: Measured, cards: NeuronCards
) -> None:
    probability = measured.frequency.probability
    for (layer, index), card in zip(WHICH, cards, strict=True):
        assert (card.layer, card.index) == (layer, index)
        assert list(card.firing.values()) == probability[:, layer, index].tolist()
        assert card.contexts == {
            lang: measured.contexts.of((layer, index), lang) for lang in LANGUAGES
        }
        assert all(len(some) == 2 for some in card.contexts.values())
    assert cards.cards[0].provenance["contexts at"] == "mlp_pre"


def test_the_effect_is_the_neurons_row_of_the_matrix(
    measured: Measured, cards: NeuronCards
) -> None:
    table = measured.effect.to_frame().set_index(["intervention", "language"])
    seen = set()
    for card in cards:
        assert [each.language for each in card.effect] == list(LANGUAGES)
        for each in card.effect:
            row = table.loc[(card.name, each.language)]
            for name in ("delta_nll", "ci_low", "ci_high", "control", "control_low"):
                assert getattr(each, name) == row[name]
            assert each.control_high == row["control_high"]
            assert each.controls == 3
            assert each.tokens == int(measured.effect.documents[each.language].n_tokens.sum())
            seen.add(each.delta_nll)
    assert len(seen) == len(WHICH) * len(LANGUAGES)


@pytest.mark.parametrize("controls", [0, 1])
def test_an_effect_without_enough_controls_says_none(
    measured: Measured, text: Corpora, controls: int
) -> None:
    matrix = effect_of(measured.model, text, {"1.7": ablate(some_of((1, 7)))}, controls)
    card = neuron_card(measured.model, (1, 7), vocabulary(), effect=matrix)
    for each in card.effect:
        assert (each.control is None) == (controls == 0)
        assert each.control_low is None and each.control_high is None
        assert each.controls == controls
    assert ("random" in repr(card)) == ("diamond-open" in draw(card).to_json()) == bool(controls)
    assert json.loads(json.dumps(dataclasses.asdict(card), allow_nan=False))


def test_many_cards_are_the_cards_of_each(measured: Measured, cards: NeuronCards) -> None:
    for neuron, card in zip(WHICH, cards, strict=True):
        alone = neuron_card(
            measured.model,
            neuron,
            vocabulary(),
            frequency=measured.frequency,
            neurons=measured.neurons,
            contexts=measured.contexts,
            signs=measured.signs,
            effect=measured.effect,
            top_k=4,
        )
        assert repr(alone) == repr(card)
        assert alone._repr_html_() == card._repr_html_()
        assert [each.token for each in alone.promoted] == [each.token for each in card.promoted]
    again = neuron_cards(measured.model, [*WHICH, WHICH[0]], vocabulary())
    assert again.names == ("1.7", "0.3", "1.60")
    assert len(neuron_cards(measured.model, [], vocabulary())) == 0


def test_what_was_not_measured_is_said(measured: Measured, cards: NeuronCards) -> None:
    bare = neuron_card(measured.model, (1, 7), vocabulary())
    missing = (
        "firing by language",
        "its sign where it fires",
        "the languages' neurons",
        "contexts",
        "effect on NLL",
    )
    assert bare.missing == missing
    assert f"not measured: {', '.join(missing)}" in repr(bare)
    assert "Not measured: firing by language, its sign where it fires, " in bare._repr_html_()
    texts = [each.text for each in draw(bare).data if getattr(each, "mode", "") == "text"]
    assert texts == [("not measured",)] * 3
    for card in cards:
        assert card.missing == ()
        for shown in (repr(card), card._repr_html_(), draw(card).to_json()):
            assert "not measured" not in shown.lower()


def test_a_neuron_is_named_in_either_way(measured: Measured, cards: NeuronCards) -> None:
    named = neuron_cards(measured.model, ["1.7", (0, 3), "0.3"], vocabulary())
    assert named.names == ("1.7", "0.3")
    word = neuron_card(measured.model, "1.7", vocabulary(), contexts=measured.contexts)
    assert repr(word) == repr(
        neuron_card(measured.model, (1, 7), vocabulary(), contexts=measured.contexts)
    )
    assert cards[1, 7] is cards["1.7"]
    assert (1, 7) in cards and "1.7" in cards and (1, 8) not in cards
    for wrong in ("1", "1.7.2", "seven"):
        with pytest.raises(OptionError, match="A neuron is"):
            neuron_card(measured.model, wrong, vocabulary())
        with pytest.raises(OptionError, match="A neuron is"):
            cards[wrong]
        with pytest.raises(OptionError, match="A neuron is"):
            _ = wrong in cards
    with pytest.raises(OptionError, match="come in a list"):
        neuron_cards(measured.model, "1.7", vocabulary())


def test_where_firing_was_counted_is_said(measured: Measured, cards: NeuronCards) -> None:
    card = cards["1.7"]
    tokens = dict(zip(LANGUAGES, measured.frequency.n_tokens.tolist(), strict=True))
    assert tokens == {"en": 37, "fr": 21} == card.firing_tokens
    digest = measured.frequency.provenance["corpora"]["digest"]
    assert card.provenance["firing corpora"] == digest
    assert card.provenance["firing at"] == "mlp_pre > 0"
    assert {"contexts corpora", "signs corpora"} <= card.provenance.keys()
    assert "(of 21 to 37 tokens a language)" in repr(card)
    text = Marks(card._repr_html_()).text
    for lang, share in card.firing.items():
        assert f"{100 * share:.2f} % of {tokens[lang]} tokens" in text
    assert [str(each) for each in traces(card)["firing"].customdata] == ["37 tokens", "21 tokens"]


def test_one_document_of_a_language_gives_no_interval(measured: Measured) -> None:
    few = Corpora.from_tokens(
        {"en": random_documents([9]), "fr": random_documents([8, 4, 10], seed=1)}
    )
    matrix = effect_of(measured.model, few, {"1.7": ablate(some_of((1, 7)))}, 3)
    card = neuron_card(measured.model, (1, 7), vocabulary(), effect=matrix)
    english, french = card.effect
    ends = (english.ci_low, english.ci_high, english.control_low, english.control_high)
    assert ends == (None,) * 4 and english.control is not None
    assert french.ci_low is not None and french.control_low is not None
    assert f"{english.delta_nll:+.4f}  random {english.control:+.4f}\n" in repr(card)
    assert traces(card)["without it"].error_y.array[0] == 0.0
    assert card._repr_html_().count("[") == 2  # the two intervals of French


class SpecialTokenizer(LetterTokenizer):
    """Spells five items only."""

    all_special_ids = tuple(n for n in range(VOCAB) if not 10 <= n < 15)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return ["<special>" if n in self.all_special_ids else chr(n + 87) for n in ids]


def test_items_that_nothing_spells_are_left_out() -> None:
    model = bridge(hf_model("llama"))
    model.tokenizer = SpecialTokenizer()
    card = neuron_card(model, (1, 7), vocabulary(), top_k=10)
    both = [item.token for item in (*card.promoted, *card.suppressed)]
    assert len(card.promoted) == len(card.suppressed) == 2
    assert len(set(both)) == 4 and set(both) <= set(range(10, 15))
    assert json.dumps(dataclasses.asdict(card), allow_nan=False)


class First(Tensor):
    """Stands for a tensor on another device: only `cpu` brings it together with a `Second`."""

    def cpu(self, *args: Any) -> Tensor:
        return self.as_subclass(Tensor)


class Second(Tensor):
    cpu = First.cpu


def test_layers_may_lie_on_different_devices(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = neuron_cards(measured.model, WHICH, vocabulary())
    kinds = {0: First, 1: Second}
    with pytest.raises(TypeError):  # as tensors on two devices
        torch.stack([torch.zeros(2).as_subclass(kind) for kind in kinds.values()])

    def elsewhere(model: Any, layer: int) -> Writing:
        found = writing(model, layer)
        return dataclasses.replace(found, matrix=found.matrix.as_subclass(kinds[layer]))

    monkeypatch.setattr("lens_lang.attribute.cards.writing", elsewhere)
    spread = neuron_cards(measured.model, WHICH, vocabulary())
    assert [repr(card) for card in spread] == [repr(card) for card in expected]


def test_a_layer_is_widened_once_however_many_its_cards(
    measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []

    def counted(tensor: Tensor) -> Tensor:
        rows.append(len(tensor))
        return widened(tensor)

    monkeypatch.setattr("lens_lang.attribute.writing.widened", counted)
    neuron_cards(measured.model, [(1, n) for n in range(6)], vocabulary())
    assert sorted(rows) == [6, 48, D_MLP]  # the six, the bias, the layer


# --- what is refused ---


def test_neurons_that_were_not_measured_are_refused(measured: Measured, text: Corpora) -> None:
    model = measured.model
    for wrong in ((LAYERS, 0), (0, D_MLP), (-1, 0), (0, -1)):
        with pytest.raises(OptionError, match="There is no neuron"):
            neuron_card(model, wrong, vocabulary())
    with pytest.raises(OptionError, match="top_k must be between 1 and 48"):
        neuron_card(model, (1, 7), vocabulary(), top_k=49)
    with pytest.raises(OptionError, match=r"Contexts of neuron 1\.8 were not collected"):
        neuron_card(model, (1, 8), vocabulary(), contexts=measured.contexts)
    with pytest.raises(OptionError, match=r"no row for neuron 1\.8"):
        neuron_card(model, (1, 8), vocabulary(), effect=measured.effect)
    with pytest.raises(OptionError, match=r"sign of neuron 1\.8 was not collected"):
        neuron_card(model, (1, 8), vocabulary(), signs=measured.signs)


def test_rows_that_are_not_that_neuron_alone_are_refused(measured: Measured, text: Corpora) -> None:
    for hooks, said in (
        (ablate(some_of((1, 7), (1, 8))), "set 2 of mlp_post layer 1"),
        (ablate(some_of((2, 7))), "set 1 of mlp_post layer 2"),
        (scale(some_of((1, 7)), 3.0), "scale 1 of mlp_post layer 1"),
        ([], "no intervention"),
        (ablate(some_of((1, 3))), r"set 1 of mlp_post layer 1 \(3: 0\)"),
        (replace(some_of((1, 7)), 50.0, space="product"), r"layer 1 \(7: 50\)"),
        (replace(some_of((1, 7)), 0.0), "UpProjection"),
    ):
        matrix = effect_of(measured.model, text, {"1.7": hooks}, 0)
        with pytest.raises(OptionError, match=f"that neuron alone, and it is .*{said}"):
            neuron_card(measured.model, (1, 7), vocabulary(), effect=matrix)


def test_a_row_without_its_record_is_refused(measured: Measured) -> None:
    def told(**changes: Any) -> PerplexityMatrix:
        provenance = {**measured.effect.provenance, **changes}
        return dataclasses.replace(measured.effect, provenance=provenance)

    alone = ablate(some_of((1, 7)), positions="new")  # which `perplexity_matrix` itself refuses
    new = [f"{name}: {hook!r}" for name, hook in alone]
    wrong: list[tuple[dict[str, Any], str]] = [
        ({}, "not recorded"),
        ({"0.3": new}, "not recorded"),
        ({"1.7": new}, "new tokens only"),
    ]
    for record, said in wrong:
        with pytest.raises(OptionError, match=f"that neuron alone, and it is .*{said}"):
            neuron_card(measured.model, (1, 7), vocabulary(), effect=told(interventions=record))
    by_hand = dataclasses.replace(measured.effect, provenance={})
    expected = measured.cards()["1.7"].effect
    assert neuron_card(measured.model, (1, 7), vocabulary(), effect=by_hand).effect == expected


def test_an_edit_of_few_neurons_names_them_and_one_of_many_does_not() -> None:
    few = {
        "set 2 of mlp_post layer 1 (3: 0, 7: 0)": ablate(some_of((1, 7), (1, 3))),
        "scale 1 of mlp_post layer 1 (7: 2.5), new tokens only": scale(
            some_of((1, 7)), 2.5, positions="new"
        ),
        "set 9 of mlp_post layer 2": ablate(some_of(*((2, n) for n in range(9)))),
    }
    for said, ((_, hook),) in few.items():
        assert repr(hook) == said


def test_what_belongs_to_another_model_is_refused(measured: Measured) -> None:
    model = measured.model
    narrow = measured.frequency.count[..., :9]
    few = LanguageNeurons({"en": NeuronSet({MLP_POST: torch.ones(LAYERS, 9, dtype=torch.bool)})})
    elsewhere = {"model": "another model"}
    others: list[tuple[dict[str, Any], str]] = [
        (
            {"frequency": dataclasses.replace(measured.frequency, count=narrow)},
            "These frequencies are for a model with 3 layers of 9",
        ),
        ({"neurons": few}, "These neurons are for a model with 3 layers of 9"),
        (
            {"contexts": dataclasses.replace(measured.contexts, provenance=elsewhere)},
            "The contexts of another model cannot be shown on a card of",
        ),
        (
            {"effect": dataclasses.replace(measured.effect, provenance=elsewhere)},
            "The effect of another model cannot be shown on a card of",
        ),
    ]
    for options, sentence in others:
        with pytest.raises(ShapeError, match=sentence):
            neuron_card(model, (1, 7), vocabulary(), **options)
    queries = LanguageNeurons({"en": NeuronSet({ATTN_Q: torch.ones(LAYERS, 48) > 0})})
    heads = dataclasses.replace(measured.contexts, site=ATTN_Q)
    for wrong in ({"neurons": queries}, {"contexts": heads}):
        with pytest.raises(SiteError, match="this is a neuron of an MLP"):
            neuron_card(model, (1, 7), vocabulary(), **wrong)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "gemma-3-270m-it"}, "gemma-3-270m-it cannot be shown"),
        ({"weights": "0123456789abcdef"}, "with other weights cannot be shown"),
    ],
)
def test_what_is_of_a_model_of_the_same_size_is_refused(
    measured: Measured, changes: dict[str, str], said: str
) -> None:
    record = {**measured.frequency.provenance, **changes}
    found = LanguageNeurons(measured.neurons.sets, {"method": "lape", "statistic": record})
    others: dict[str, dict[str, Any]] = {
        "frequencies": {"frequency": dataclasses.replace(measured.frequency, provenance=record)},
        "neurons": {"neurons": found},
        "contexts": {"contexts": dataclasses.replace(measured.contexts, provenance=record)},
        "signs": {"signs": dataclasses.replace(measured.signs, provenance=record)},
    }
    for what, options in others.items():
        with pytest.raises(ShapeError, match=f"The {what} of .*{said}"):
            neuron_card(measured.model, (1, 7), vocabulary(), **options)


def test_contexts_of_the_up_projection_are_shown_and_its_frequencies_are_no_firing(
    measured: Measured, text: Corpora
) -> None:
    up = collect(measured.model, text, TopContexts(some_of((1, 7)), read_at=MLP_UP), progress=False)
    card = neuron_card(measured.model, (1, 7), vocabulary(), contexts=up)
    assert card.contexts["en"] == up.of((1, 7), "en")
    for shown in (repr(card), card._repr_html_()):
        assert "activation at mlp_up" in shown
    for site in (MLP_UP, MLP_POST):  # this model is gated
        counted = collect(measured.model, text, ActivationFrequency(site=site), progress=False)
        with pytest.raises(SiteError, match=f"{site.name}, and above 0 there is not firing"):
            neuron_card(measured.model, (1, 7), vocabulary(), frequency=counted)


def test_frequencies_above_another_threshold_are_no_firing(
    measured: Measured, text: Corpora
) -> None:
    counted = collect(measured.model, text, ActivationFrequency(threshold=0.5), progress=False)
    with pytest.raises(OptionError, match="above 0, and the frequencies are of values above 0.5"):
        neuron_card(measured.model, (1, 7), vocabulary(), frequency=counted)


def test_neurons_may_come_from_an_iterator(measured: Measured) -> None:
    places = [(1, 7), (0, 3)]
    found = neuron_cards(measured.model, iter(places), vocabulary())
    assert found.names == neuron_cards(measured.model, places, vocabulary()).names == ("1.7", "0.3")


# --- which sign ---


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_signs_are_counted_where_neurons_fire(architecture: str, text: Corpora) -> None:
    model = lettered(architecture)
    places = [(0, 3), (1, 7), (1, 60), (2, 111)]
    signs = collect(model, text, FiringSign(some_of(*places)), progress=False, batch_size=2)
    assert signs.neurons == tuple(f"{layer}.{index}" for layer, index in places)
    expected: dict[str, dict[str, list[int]]] = {
        name: {lang: [0, 0] for lang in LANGUAGES} for name in signs.neurons
    }
    for lang, lengths, seed in (("en", [5, 9, 4, 12, 7], 0), ("fr", [8, 3, 10], 1)):
        for document in random_documents(lengths, seed=seed):
            _, cache = model.run_with_cache(torch.tensor([[1, *document]]))
            for layer, index in places:
                fires = cache[MLP_PRE.at(layer)][0, 1:, index] > 0
                above = cache[MLP_POST.at(layer)][0, 1:, index] > 0
                counts = expected[f"{layer}.{index}"][lang]
                counts[0] += int((fires & above).sum())
                counts[1] += int(fires.sum())
    for name in signs.neurons:
        assert {lang: list(both) for lang, both in signs.of(name).items()} == expected[name]
    both = [counts for name in signs.neurons for counts in signs.of(name).values()]
    if architecture == "gpt2":
        assert all(above == fires for above, fires in both) and any(above for above, _ in both)
    else:  # a gate alone says nothing of the sign
        assert any(0 < above < fires for above, fires in both)


def test_signs_add_and_are_kept(measured: Measured, text: Corpora, tmp_path: Path) -> None:
    spec = FiringSign(some_of(*WHICH))
    halves = [
        collect(measured.model, text.sharded(n, 2), spec, progress=False, batch_size=1)
        for n in (0, 1)
    ]
    both = halves[0] + halves[1]
    for name in measured.signs.neurons:
        assert both.of(name) == measured.signs.of(name)
    collect(measured.model, text, spec, progress=False, run_dir=tmp_path)
    kept = results.load(tmp_path / "neuronsigns.safetensors")
    assert isinstance(kept, NeuronSigns)
    assert kept.of((1, 60)) == measured.signs.of("1.60")
    assert kept.n_tokens.tolist() == [37, 21]
    assert "NeuronSigns of" in report(tmp_path).read_text(encoding="utf-8")
    with pytest.raises(ShapeError, match="differ in neurons"):
        both + dataclasses.replace(both, neurons=("0.3", "1.7", "1.61"))
    with pytest.raises(ShapeError, match="more often than it fires"):
        dataclasses.replace(both, positive=both.fires + 1)
    with pytest.raises(ShapeError, match="as many columns"):
        dataclasses.replace(both, neurons=("0.3",))


def test_signs_of_what_does_not_fire_are_refused(measured: Measured) -> None:
    heads = NeuronSet({ATTN_Q: torch.ones(LAYERS, 48) > 0})
    with pytest.raises(SiteError, match="Only neurons of an MLP fire"):
        FiringSign(heads)
    with pytest.raises(OptionError, match="max_tokens must be at least 1"):
        FiringSign(some_of((1, 7)), max_tokens=0)
    wide = NeuronSet({MLP_POST: torch.ones(LAYERS, 9, dtype=torch.bool)})
    with pytest.raises(ShapeError, match="for a model with 3 layers of 9"):
        FiringSign(wide).bind(measured.model)


def turned_round() -> Any:
    """A gated model whose neuron 1.7 is below 0 wherever it fires."""
    plain = hf_model("llama")
    with torch.no_grad():
        mlp = plain.model.layers[1].mlp
        mlp.up_proj.weight[7] = -mlp.gate_proj.weight[7]
    model = bridge(plain)
    model.tokenizer = LetterTokenizer()
    return model


def test_a_neuron_below_0_where_it_fires_promotes_the_other_list(text: Corpora) -> None:
    model = turned_round()
    signs = collect(model, text, FiringSign(some_of((1, 7))), progress=False)
    card = neuron_card(model, (1, 7), vocabulary(), signs=signs, top_k=5)
    fired = sum(fires for _, fires in card.signs.values())
    assert fired > 5 and all(above == 0 for above, _ in card.signs.values())
    # what the model itself makes of the neuron at a token at which it fires
    tokens = torch.tensor([[1, *random_documents([40])[0]]])
    _, cache = model.run_with_cache(tokens)
    at = int(cache[MLP_PRE.at(1)][0, :, 7].argmax())
    assert float(cache[MLP_PRE.at(1)][0, at, 7]) > 0
    written = written_by_the_model(model, 1)[7] * cache[MLP_POST.at(1)][0, at, 7]
    resid = torch.randn(1, 1, 48)
    moved = [model.unembed(model.ln_final(resid + sign * 1e5 * written))[0, 0] for sign in (1, -1)]
    change = moved[0] - moved[1]
    change[:3] = -torch.inf  # special tokens are left out
    best = change.topk(5).indices.tolist()
    assert card.sign == "negative"
    assert [item.token for item in card.likelier] == best
    assert card.likelier == card.suppressed
    said = f"where it fires, its activation is negative (at 100 % of {fired} tokens)"
    assert f"{said}: the second list holds" in repr(card)
    html = Marks(card._repr_html_()).text
    assert f"W{said[1:]}" in html and "Promotes where its activation is negative: " in html
    # languages are those of the end that it pushes, and no others
    shares = card.suppressed_languages
    counts = [item.language for item in card.suppressed]
    assert shares == pytest.approx({lang: counts.count(lang) / 5 for lang in (*LANGUAGES, "other")})
    for shown in (repr(card).lower(), html.lower()):
        assert "languages of the second list" in shown
        assert "languages of the first list" not in shown
    assert "where it fires it is below 0" in draw(card).to_json()
    (row,) = cards_section(NeuronCards((card,)))[0].rows
    assert row[3] == ", ".join(repr(item.text) for item in card.suppressed[:3])


def test_a_sign_that_nobody_measured_leaves_both_lists(measured: Measured) -> None:
    card = neuron_card(measured.model, (1, 7), vocabulary())
    assert card.sign == "unknown" and card.likelier == ()
    unsaid = "a gated neuron's activation can have either sign; not measured"
    assert unsaid in repr(card)
    for shown in (repr(card).lower(), Marks(card._repr_html_()).text.lower()):
        assert unsaid in shown
        assert "languages of the first list" in shown and "languages of the second list" in shown
    assert "its sign where it fires is not known" in draw(card).to_json()


def test_a_plain_neuron_has_the_sign_of_its_firing() -> None:
    card = neuron_card(lettered("gpt2"), (1, 7), vocabulary())
    assert card.sign == "positive" and card.likelier == card.promoted
    assert "its sign where it fires" not in card.missing
    assert "a plain neuron's activation is positive: the first list holds" in repr(card)
    assert "second list" not in repr(card)


def test_what_is_said_of_a_sign() -> None:
    mixed = {"en": (30, 40), "fr": (10, 40)}
    assert "either sign (positive at 50 % of 80 tokens)" in sign_text(mixed, True)
    assert "fired at no token read" in sign_text({"en": (0, 0)}, True)
    assert "is positive (at 75 % of 40 tokens): the first" in sign_text({"en": (30, 40)}, True)
    assert "is negative (at 75 % of 40 tokens): the second" in sign_text({"en": (10, 40)}, True)


# --- many cards ---


def test_what_is_saved_is_loaded(cards: NeuronCards, tmp_path: Path) -> None:
    cards.save(tmp_path / "cards.safetensors")
    again = results.load(tmp_path / "cards.safetensors")
    assert isinstance(again, NeuronCards)
    assert again.provenance == cards.provenance
    for mine, theirs in zip(cards, again, strict=True):
        assert dataclasses.asdict(mine) == dataclasses.asdict(theirs)
        assert repr(mine) == repr(theirs)
        assert mine._repr_html_() == theirs._repr_html_()
        assert draw(mine).to_json() == draw(theirs).to_json()
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (
        tmp_path / "cards.safetensors"
    ).read_bytes()
    none = NeuronCards(())
    none.save(tmp_path / "none.safetensors")
    assert len(NeuronCards.load(tmp_path / "none.safetensors")) == 0


def test_a_damaged_file_is_refused(cards: NeuronCards, tmp_path: Path) -> None:
    path = tmp_path / "cards.safetensors"
    for told in (b"[", b"[1]", b'[{"layer": 1}]', b"\xff", b"{}"):
        tensor = torch.frombuffer(bytearray(told), dtype=torch.uint8)
        header = {"names": ["1.7"], "provenance": {}}
        write_tensors(path, "NeuronCards", header, {"cards": tensor})
        with pytest.raises(StorageError, match="damaged"):
            NeuronCards.load(path)
    path.write_bytes(b"\0" * 64)
    with pytest.raises(StorageError):
        NeuronCards.load(path)


def test_collections_unite_and_the_right_one_wins(measured: Measured, cards: NeuronCards) -> None:
    other = neuron_cards(measured.model, [(2, 1), (1, 7)], vocabulary())
    both = cards + other
    assert both.names == ("1.7", "0.3", "1.60", "2.1")
    assert both["1.7"] is other["1.7"]
    assert both["0.3"] is cards["0.3"]
    assert (cards + cards).names == cards.names
    assert [card.name for card in both] == list(both.names) and len(both) == 4
    assert "1.60" in repr(both) and "1.60" in both and "1.61" not in both
    with pytest.raises(OptionError, match=r"no card of neuron 1\.8"):
        both["1.8"]
    with pytest.raises(OptionError, match=r"two cards: 1\.7"):
        NeuronCards((cards["1.7"], other["1.7"]))
    with pytest.raises(ShapeError, match="different models: .* and another"):
        cards + NeuronCards((), {"model": "another"})
    with pytest.raises(TypeError):
        cards + 1  # type: ignore[operator]


# --- a card by hand ---

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"&\u202e\x1b[31m\n"


def by_hand(word: str = "ville", model: str = "m", lang: str = "fr") -> NeuronCard:
    item, low = Item(5, word, 0.5, lang), Item(6, " x", -0.25, "other")
    context = Context(lang, 3, 2.0, ("la ", word, " de\n"), (0.01, 2.0, -1.0), 1)
    return NeuronCard(
        2,
        7,
        (item,),
        (low,),
        {lang: 0.75, "other": 0.25, "de": 0.0},
        Neighbourhood(
            2,
            112,
            (Neighbour(3, 0.5, (lang,)), Neighbour(9, -0.125, ())),
            (lang,),
            {lang: (0, 1, 4), "de": (2, 0, 1)},
            "lape",
        ),
        {lang: 0.5, "de": 0.125},
        {lang: (context, context, context, context), "de": ()},
        (
            LanguageEffect(lang, 0.25, 0.125, 0.5, 0.01, -0.01, 0.03, 3, 100),
            LanguageEffect("de", -0.01, -0.02, 0.0, None, None, None, 0, 90),
        ),
        {"model": model, "contexts at": "mlp_post", "firing tokens": {lang: 80, "de": 96}},
        {"other": 1.0},
        {lang: (10, 40), "de": (7, 12)},
    )


def test_the_text_is_stable() -> None:
    assert repr(by_hand()) == "\n".join(
        [
            "neuron 2.7 of m",
            "  promotes where its activation is positive:",
            "    'ville' (fr)",
            "  promotes where its activation is negative:",
            "    ' x' (other)",
            "  where it fires, its activation has either sign (positive at 33 % of 52 tokens): now "
            "the one list holds, now the other",
            "    positive there: fr 25 % of 40, de 58 % of 12",
            "  languages of the first list: fr 75 %, other 25 %",
            "  languages of the second list: other 100 %",
            "  fires on   fr 50 %, de 12 % (of 80 to 96 tokens a language)",
            "  belongs to fr (lape)",
            "  layer 2    fr 4, de 1 of 112 neurons",
            "  near it    2.3 +0.50 (fr), 2.9 -0.12",
            "  without it, nats per token:",
            "    fr      +0.2500 [+0.1250, +0.5000]  random +0.0100 [-0.0100, +0.0300]",
            "    de      -0.0100 [-0.0200, +0.0000]",
            "  most active in (activation at mlp_post):",
            "    fr             2  la «ville» de↵",
        ]
    )


class Marks(HTMLParser):
    """Elements, attributes and text of a fragment."""

    VOID = ("hr",)

    def __init__(self, fragment: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.elements: list[list[tuple[str, str, str]]] = []
        self.text = ""
        self.strong: list[str] = []
        self.open: list[str] = []
        self.feed(fragment)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.elements.append([(tag, name, value or "") for name, value in attrs])
        self.attributes += self.elements[-1]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "strong":
            self.strong.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "strong" in self.open:
            self.strong[-1] += data


def test_html_is_a_fragment_without_script_whatever_the_tokens() -> None:
    plain, hostile = by_hand(), by_hand(HOSTILE, HOSTILE, HOSTILE)
    both = [Marks(card._repr_html_()) for card in (plain, hostile)]
    assert both[0].tags == both[1].tags
    allowed = {"div", "p", "strong", "span", "code", "details", "summary"}
    assert set(both[0].tags) == allowed | {"table", "thead", "tbody", "tr", "th", "td"}
    for marks in both:
        names = {name for _, name, _ in marks.attributes}
        assert names <= {
            *("style", "title", "scope", "dir", "lang", "open"),
            *("tabindex", "role", "aria-label"),
        }
        for _, name, value in marks.attributes:
            assert "<" not in value and not (name == "style" and "url" in value)
        assert not set(marks.text) & set("\u202e\x1b\n")
    assert "\\u202e\\x1b[31m↵" in both[1].text
    assert "<script>alert(1)</script>" in both[1].text  # as text
    assert both[0].strong == ["Neuron 2.7", "ville", "ville", "ville"]
    assert ("p", "lang", "fr") in both[0].attributes
    assert not any(name == "lang" for _, name, _ in both[1].attributes)
    united = NeuronCards((plain, dataclasses.replace(hostile, index=8)))
    assert set(Marks(united._repr_html_()).tags) == {*both[0].tags, "hr"}


def test_text_shows_the_controls_of_a_hostile_label() -> None:
    for shown in repr(by_hand(HOSTILE, HOSTILE, HOSTILE)).splitlines():
        assert not set(shown) & set("\u202e\x1b\r")
    assert len(repr(by_hand(HOSTILE, HOSTILE, HOSTILE)).splitlines()) == len(
        repr(by_hand()).splitlines()
    )
    assert "\\x1b[31m" in repr(by_hand(lang=HOSTILE))


def test_what_scrolls_can_be_reached_by_the_keyboard_and_has_a_name() -> None:
    found = [
        {name: value for tag, name, value in group if tag == "div"}
        for group in Marks(by_hand()._repr_html_()).elements
        if any("overflow" in value for _, _, value in group)
    ]
    assert [(each["tabindex"], each["role"]) for each in found] == [("0", "group")] * 2
    names = [each["aria-label"] for each in found]
    assert names == ["Language by language", "Neurons of each language by layer"]


def test_html_holds_the_numbers_of_the_card() -> None:
    text = Marks(by_hand()._repr_html_()).text
    for said in (
        "Neuron 2.7 of m",
        "50.00 % of 80 tokens",
        "+0.2500 [+0.1250, +0.5000]",
        "+0.0100 [-0.0100, +0.0300]",
        "(3 drawn)",
        "'ville' (fr)",
        "fr 75 %, other 25 %",
        "2.3 +0.50 (fr), 2.9 -0.12",
        "la ville de↵",
        "1 more in card.contexts",
        "activation above 0 where it fires",
        "25 % of 40 tokens",
        "Promotes where its activation is negative: ' x' (other)",
        "2 ◀",
        "it is a neuron of this language (lape)",
    ):
        assert said in text


def luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    ("ink", "paper"),
    [
        ("#1a1a1a", "#ffffff"),
        ("#e8eaed", "#15181c"),
        ("#000000", "#ffffff"),
        ("#e0e0e0", "#111111"),
    ],
)
@pytest.mark.parametrize("value", [1.0, -1.0])
def test_colours_are_readable_on_light_and_on_dark(ink: str, paper: str, value: float) -> None:
    style = colour_style(value, 1.0)
    *channels, alpha = (float(x) for x in style.split("(")[1].rstrip(")").split(","))
    assert alpha == STRONGEST

    def of(text: str) -> tuple[float, ...]:
        return tuple(int(text[n : n + 2], 16) / 255 for n in (1, 3, 5))

    mixed = tuple(
        alpha * over / 255 + (1 - alpha) * under
        for over, under in zip(channels, of(paper), strict=True)
    )
    low, high = sorted((luminance(of(ink)), luminance(mixed)))
    assert (high + 0.05) / (low + 0.05) >= 4.5


def test_colour_grows_with_the_activation_and_tells_its_sign() -> None:
    up = [colour_style(x, 4.0) for x in (0.0, 1.0, 2.0, 4.0)]
    opacities = [float(each.rstrip(")").split(",")[-1]) if each else 0.0 for each in up]
    assert opacities == [0.0, 0.12, 0.25, 0.5]
    assert all(low < high for low, high in pairwise(opacities))
    assert colour_style(-4.0, 4.0) != up[-1]
    assert colour_style(1.0, 0.0) == ""


def test_joiners_stay_and_controls_are_shown() -> None:
    assert visible("क्\u200dष \u200c") == "क्\u200dष \u200c"
    assert visible("a\u2028b\x00") == "a\\u2028b\\x00"


@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_the_card_and_runs_nothing(browse: Any, tmp_path: Path, dark: bool) -> None:
    page = tmp_path / "card.html"
    fragment = by_hand(HOSTILE, HOSTILE, HOSTILE)._repr_html_()
    page.write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>card</title>'
        f'<link rel="icon" href="data:,"><style>:root {{ color-scheme: light dark }}</style>'
        f"<main>{fragment}</main></html>",
        encoding="utf-8",
    )
    opened = browse(page, dark=dark)
    assert opened.errors == [] and opened.requests == []
    assert opened.page.locator("script, img").count() == 0
    peak = opened.page.locator("details p strong").first
    assert "underline" in peak.evaluate("e => getComputedStyle(e).textDecorationLine")
    assert "Neuron 2.7" in opened.page.inner_text("main")


# --- figure and report ---


def traces(card: NeuronCard) -> dict[str, Any]:
    return {trace.name: trace for trace in draw(card).data}


def test_the_figures_numbers_are_the_cards(cards: NeuronCards) -> None:
    for card in cards:
        found = traces(card)
        assert list(found["firing"].y) == [100 * x for x in card.firing.values()]
        assert [list(row) for row in found["neurons"].customdata] == [
            list(row) for row in card.neighbourhood.per_layer.values()
        ]
        assert list(found["items"].x) == [item.score for item in (*card.promoted, *card.suppressed)]
        own = found["without it"]
        assert list(own.y) == [each.delta_nll for each in card.effect]
        for n, each in enumerate(card.effect):
            assert own.y[n] + own.error_y.array[n] == pytest.approx(each.ci_high)
            assert own.y[n] - own.error_y.arrayminus[n] == pytest.approx(each.ci_low)
        random = found["without a random neuron of its layer (3 drawn)"]
        assert list(random.y) == [each.control for each in card.effect]
        for n, each in enumerate(card.effect):
            assert random.y[n] + random.error_y.array[n] == pytest.approx(each.control_high)
            assert random.y[n] - random.error_y.arrayminus[n] == pytest.approx(each.control_low)
        (frame,) = draw(card).layout.shapes
        assert (frame.x0, frame.x1) == (card.layer - 0.5, card.layer + 0.5)
        assert card.name in draw(card).layout.title.text


def test_a_language_has_one_colour_in_the_whole_figure() -> None:
    found = traces(by_hand())
    fr, de = found["firing"].marker.color
    assert fr != de
    assert list(found["without it"].marker.color) == [fr, de]
    assert found["items"].marker.color[0] == fr
    assert found["items"].marker.color[1] not in (fr, de)
    ticks = [list(each.ticktext or ()) for each in draw(by_hand()).select_yaxes()]
    assert ticks[3] == ["'ville' (fr)", "' x'"]  # colour is not the only sign


def test_the_figure_shows_tags_as_text() -> None:
    told = json.loads(draw(by_hand(HOSTILE, HOSTILE, HOSTILE)).to_json())

    def texts(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        inner = value.values() if isinstance(value, dict) else value
        return [t for each in inner for t in texts(each)] if isinstance(value, dict | list) else []

    shown = [t for t in [*texts(told["data"]), *texts(told["layout"])] if "script" in t]
    assert len(shown) >= 6
    assert not any("<script" in t or "<img" in t for t in shown)


def test_the_report_has_a_table_and_every_card(cards: NeuronCards) -> None:
    overview, *single = cards_section(cards)
    assert [row[0] for row in overview.rows] == list(cards.names)
    assert all(len(row) == len(overview.columns) for row in overview.rows)
    first = cards.cards[0]
    lang = max(first.firing, key=lambda each: first.firing[each])
    assert overview.rows[0][1:3] == ["en, fr", f"{lang} ({100 * first.firing[lang]:.1f} %)"]
    assert [each.title for each in single] == [f"Neuron {name}" for name in cards.names]
    for section, card in zip(single, cards, strict=True):
        assert section.fragments == [card._repr_html_()]
        assert [json.loads(each) for each in section.figures] == [json.loads(draw(card).to_json())]


def test_the_report_shows_the_effect_on_a_neurons_own_languages(cards: NeuronCards) -> None:
    overview, *_ = cards_section(cards)
    for row, card in zip(overview.rows, cards, strict=True):
        own = [each for each in card.effect if each.language in card.neighbourhood.languages]
        changes = [change_text(each.delta_nll, each.ci_low, each.ci_high) for each in own]
        controls = [change_text(each.control, each.control_low, each.control_high) for each in own]
        langs = [each.language for each in own]
        for cell, said in ((row[4], changes), (row[5], controls)):
            both = zip(langs, said, strict=True)
            assert cell == "; ".join(f"{lang} {change}" for lang, change in both)
            assert (cell == "") == (card.name == "0.3")  # which is of no language
    assert not any("loses most" in column for column in overview.columns)
    # however much another language loses
    most = LanguageEffect("de", 9.0, 8.0, 9.5, 0.0, -0.1, 0.1, 3, 90)
    card = dataclasses.replace(by_hand(), effect=(most, by_hand().effect[0]))
    (row,) = cards_section(NeuronCards((card,)))[0].rows
    assert row[4:] == ["fr +0.2500 [+0.1250, +0.5000]", "fr +0.0100 [-0.0100, +0.0300]"]


def test_a_report_of_bare_cards_has_no_column_of_what_was_not_measured(measured: Measured) -> None:
    overview, _ = cards_section(neuron_cards(measured.model, [(1, 7)], vocabulary()))
    (row,) = overview.rows
    assert len(row) == len(overview.columns) == 4
    assert not any("without" in column for column in overview.columns)
    assert "switched off" not in " ".join(overview.text)
    assert (row[1], row[2]) == ("", "")
    assert row[3].startswith("positive: '") and "; negative: '" in row[3]


def test_a_caption_has_letters_and_not_their_escapes() -> None:
    card = by_hand(model="a<b & c", lang="x<y")
    caption = describe(draw(card).to_plotly_json())
    assert caption.title == "Neuron 2.7 of a<b & c"
    heat = {"type": "heatmap", "x": ["a&lt;b"], "y": ["&amp;lt;"]}
    titled = {"title": {"text": "a&lt;b"}}
    text = describe({"data": [heat], "layout": {"xaxis": titled}}).text
    assert text == "Map. Rows: &lt;. Columns, a<b: a<b."


# --- which neurons ---


def frequency_of(rows: list[list[list[int]]]) -> Frequency:
    names = ("en", "fr", "de")[: len(rows)]
    return Frequency(names, torch.tensor(rows), torch.full((len(rows),), 10))


def test_the_neurons_that_tell_a_language_best_are_found() -> None:
    count = torch.randint(0, 11, (3, 4, 9), generator=torch.Generator().manual_seed(3))
    frequency = Frequency(("en", "fr", "de"), count, torch.tensor([10, 10, 10]))
    found = top_neurons(frequency, k=5)
    for place, lang in enumerate(frequency.languages):
        scores = {}
        for layer in range(4):
            for index in range(9):
                values = (count[:, layer, index].double() / 10).tolist()
                own = values.pop(place)
                scores[layer, index] = own - max(values)
        best = sorted(scores, key=lambda each: (-scores[each], each))[:5]
        assert list(found[lang]) == best


def test_of_neurons_that_tell_as_well_the_first_is_taken() -> None:
    frequency = frequency_of([[[1, 9, 0], [9, 9, 0]], [[0, 0, 7], [0, 0, 7]]])
    found = top_neurons(frequency, k=4)
    assert found == {
        "en": ((0, 1), (1, 0), (1, 1), (0, 0)),
        "fr": ((0, 2), (1, 2), (0, 0), (0, 1)),
    }


def test_only_a_languages_own_neurons_are_taken_if_given() -> None:
    frequency = frequency_of([[[5, 9, 0]], [[0, 0, 7]]])
    mask = {"en": [[True, False, False]], "fr": [[False, False, False]]}
    own = LanguageNeurons({k: NeuronSet({MLP_POST: torch.tensor(v)}) for k, v in mask.items()})
    assert top_neurons(frequency, k=2, neurons=own) == {"en": ((0, 0),), "fr": ()}
    english = LanguageNeurons({"en": own["en"]})
    with pytest.raises(LanguageError):
        top_neurons(frequency, neurons=english)
    wide = LanguageNeurons(
        {lang: NeuronSet({MLP_POST: torch.ones(1, 4) > 0}) for lang in ("en", "fr")}
    )
    with pytest.raises(ShapeError, match="different models"):
        top_neurons(frequency, neurons=wide)


def test_impossible_choices_are_refused() -> None:
    with pytest.raises(OptionError, match="two or more"):
        top_neurons(frequency_of([[[1, 2]]]))
    for k in (0, 4):
        with pytest.raises(OptionError, match="k must be between 1 and 3"):
            top_neurons(frequency_of([[[5, 9, 0]], [[0, 0, 7]]]), k=k)


# --- the command ---


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name two small text files."""
    folder = tmp_path_factory.mktemp("texts")
    english, french = folder / "en.txt", folder / "fr.txt"
    english.write_text("\n".join(f"the quick brown fox {n} jumps" for n in range(12)))
    french.write_text("\n".join(f"le renard rapide {n} saute" for n in range(12)))
    return ["--text", f"en={english}", "--text", f"fr={french}"]


@pytest.fixture
def loading(measured: Measured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_lang.models.load_model", lambda name, device=None: measured.model)


@pytest.fixture
def run_dir(loading: None, files: list[str], tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    done("collect", folder, *files, "--ctx-len", 64)
    done("detect", "lape", folder, "--top", 0.1)
    return folder


def test_the_command_shows_cards_and_keeps_them(
    measured: Measured, files: list[str], run_dir: Path
) -> None:
    out = done("card", "1.7", "0.3", "1.7", "--run-dir", run_dir, *files)
    path = run_dir / "cards.safetensors"
    kept = NeuronCards.load(path)
    assert kept.names == ("1.7", "0.3")
    assert out == "".join(f"{card!r}\n" for card in kept)
    frequency = Frequency.load(run_dir / "frequency.safetensors")
    neurons = LanguageNeurons.load(run_dir / "lape.safetensors")
    expected = neuron_cards(
        measured.model, [(1, 7), (0, 3)], vocabulary(), frequency=frequency, neurons=neurons
    )
    for mine, theirs in zip(kept, expected, strict=True):
        assert mine.firing == theirs.firing
        assert mine.neighbourhood == theirs.neighbourhood
        assert set(mine.contexts) == {"en", "fr"} and all(mine.contexts.values())
        assert mine.missing == ("effect on NLL",)
    done("card", "2.1", "1.7", "--run-dir", run_dir, *files, "--tokens", 60, "--effect")
    more = NeuronCards.load(path)
    assert more.names == ("1.7", "0.3", "2.1")
    assert dataclasses.asdict(more["0.3"]) == dataclasses.asdict(kept["0.3"])
    assert more["1.7"].missing == ()


def test_the_command_measures_the_effect_on_other_text(
    measured: Measured, files: list[str], run_dir: Path
) -> None:
    vocabulary().save(run_dir / "vocabulary.safetensors")
    options = ("--run-dir", run_dir, *files, "--effect", "--controls", 2, "--json")
    (told,) = json.loads(done("card", "1.7", *options))
    sources = {option.split("=")[0]: option.split("=")[1] for option in files[1::2]}
    corpora = Corpora.from_files(sources, measured.model, ctx_len=128)
    train, held_out = corpora.split(0.8, seed=0)
    matrix = effect_of(measured.model, held_out, {"1.7": ablate(some_of((1, 7)))}, 2)
    card = neuron_card(measured.model, (1, 7), vocabulary(), effect=matrix)
    assert told["effect"] == [dataclasses.asdict(each) for each in card.effect]
    assert told["promoted"] == [dataclasses.asdict(each) for each in card.promoted]
    contexts = collect(measured.model, train, TopContexts(firing((1, 7))), progress=False)
    best = [contexts.of((1, 7), lang)[0].peak for lang in LANGUAGES]
    assert [told["contexts"][lang][0]["peak"] for lang in LANGUAGES] == best


@pytest.mark.usefixtures("loading")
def test_without_a_folder_the_sample_is_counted_and_nothing_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = {lang: lines[:10] for lang, lines in sample_sentences().items() if lang in LANGUAGES}
    monkeypatch.setattr("lens_lang.corpora.sample_sentences", lambda: few)
    monkeypatch.chdir(tmp_path)
    (told,) = json.loads(done("card", "1.7", "--json"))
    assert set(told["firing"]) == {"en", "fr"}
    assert told["neighbourhood"]["method"] == "lape"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("loading")
def test_without_a_folder_short_text_of_one_language_will_do(files: list[str]) -> None:
    (told,) = json.loads(done("card", "1.7", *files[2:], "--tokens", 30, "--json"))
    assert set(told["firing"]) == {"fr"}
    assert told["provenance"]["firing tokens"] == {"fr": 30}
    assert told["neighbourhood"]["languages"] == []


@pytest.mark.usefixtures("loading")
def test_bad_input_to_the_command_is_one_sentence(
    run_dir: Path, files: list[str], tmp_path: Path
) -> None:
    for wrong in ("12", "a.b", "1.", ".7", "1.7.2", "1,7", "१.७", "1.7x", ""):
        assert f"such as (12, 1542), got {wrong!r}" in refused("card", wrong)
    assert "There is no neuron 99.1 at mlp_post" in refused("card", "1.7", "99.1")
    assert f"3 layers of {D_MLP} neurons" in refused("card", "1.999")
    assert "There is no run folder" in refused("card", "1.7", "--run-dir", tmp_path / "nowhere")
    other = ("--run-dir", run_dir, "--neurons", "plnd")
    assert "plnd.safetensors" in refused("card", "1.7", *other)
    assert "--controls must be at least 0" in refused("card", "1.7", "--controls", -1)
    assert "--text takes LANGUAGE=FILE" in refused("card", "1.7", "--text", "en")
    (run_dir / "cards.safetensors").write_bytes(b"\0" * 64)
    assert "cards.safetensors" in refused("card", "1.7", "--run-dir", run_dir, *files)


def test_the_command_refuses_a_folder_of_another_model_before_it_reads_a_word(
    measured: Measured, run_dir: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done("card", "1.7", "--run-dir", run_dir, *files, "--tokens", 60)

    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("text was read")

    monkeypatch.setattr("lens_lang.collection.collect", never)
    for file, what in (
        ("frequency", "The frequencies of another cannot"),
        ("lape", "The neurons of another cannot"),
        ("cards", "holds cards of another, and"),
    ):
        path = run_dir / f"{file}.safetensors"
        kept = results.load(path)
        record = dict(kept.provenance)
        told = record["statistic"] if file == "lape" else record
        assert told["model"] != "another"
        told["model"] = "another"
        before = path.read_bytes()
        dataclasses.replace(kept, provenance=record).save(path)
        assert what in refused("card", "1.7", "--run-dir", run_dir, *files)
        told["model"], told["weights"] = model_name(measured.model), "0" * 16
        dataclasses.replace(kept, provenance=record).save(path)
        assert "with other weights" in refused("card", "1.7", "--run-dir", run_dir, *files)
        path.write_bytes(before)


def test_attribute_makes_its_cards_together(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[NeuronCards] = []

    def counted(*args: Any, **options: Any) -> NeuronCards:
        made.append(neuron_cards(*args, **options))
        return made[-1]

    monkeypatch.setattr("lens_lang.attribute.cards.neuron_cards", counted)
    monkeypatch.setattr("lens_lang.cli.sharing.vocabulary_of", lambda *args: vocabulary())
    examples = ParallelCorpora.from_tokens({"en": [[5, 6]], "fr": [[6, 7]]})
    _show_cards(measured.model, examples, 3)
    (cards,) = made
    assert len(cards) == 3
    assert all(repr(card) in capsys.readouterr().err for card in list(cards)[:1])


# --- the demo ---


def test_the_demo_makes_a_card_of_each_languages_first_neuron(
    measured: Measured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    few = {lang: lines[:12] for lang, lines in sample_sentences().items() if lang in LANGUAGES}
    monkeypatch.setattr("lens_lang.corpora.sample_sentences", lambda: few)
    for full in (False, True):
        folder = tmp_path / str(full)
        found = run_demo(folder, model=measured.model, full=full, progress=False)
        frequency = Frequency.load(folder / "frequency.safetensors")
        best = top_neurons(frequency, neurons=found.neurons)
        made = NeuronCards.load(folder / "cards.safetensors")
        places = dict.fromkeys(each for some in best.values() for each in some)
        assert [(card.layer, card.index) for card in made] == list(places)
        for card in made:
            assert card.provenance["contexts at"] == "mlp_pre"
            assert card.sign != "unknown"
            assert card.missing == (() if full else ("effect on NLL",))
            assert all(each.controls == 3 for each in card.effect)
