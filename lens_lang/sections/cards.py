"""The sections of single neurons: one card each."""

from collections.abc import Mapping, Sequence

from lens_lang.attribute.card import NeuronCard
from lens_lang.attribute.cards import NeuronCards
from lens_lang.attribute.markup import change_text
from lens_lang.attribute.promotion import Item
from lens_lang.plot.cards import neuron_card
from lens_lang.sections.section import Section


def cards_section(cards: NeuronCards) -> list[Section]:
    """What is known of single neurons: a table of all, then one card after another."""
    columns = ["neuron", "neuron of", "fires most on", "promotes"]
    text = [
        "Each neuron by itself. Promotes: the vocabulary items that what it writes where it fires "
        "makes likeliest; where the sign of its activation there is mixed or was not measured, "
        "those of either sign."
    ]
    measured = any(card.effect for card in cards)
    if measured:
        columns += ["change on its own language without it", "without a random one"]
        text.append(
            "The effect is the change in nats per token when it alone is switched off, on the "
            "languages that it is a neuron of, with a 95 % interval; beside it that of random "
            "neurons of the same layer. The cards show all languages."
        )
    rows = []
    for card in cards:
        often = max(card.firing.items(), key=lambda each: each[1], default=None)
        row = [
            card.name,
            ", ".join(card.neighbourhood.languages),
            "" if often is None else f"{often[0]} ({100 * often[1]:.1f} %)",
            _promotes(card),
        ]
        rows.append([*row, *_changes(card)] if measured else row)
    overview = Section(title="Single neurons", text=text, columns=columns, rows=rows)
    return [
        overview,
        *(
            Section(
                title=f"Neuron {card.name}",
                figures=[neuron_card(card).to_json()],
                fragments=[card._repr_html_()],
            )
            for card in cards
        ),
    ]


def _changes(card: NeuronCard) -> list[str]:
    """What the languages lose that the neuron is of: chosen beforehand, not for what they lose."""
    own = card.neighbourhood.languages
    some = [each for lang in own for each in card.effect if each.language == lang]
    return [
        _joined({each.language: (each.delta_nll, each.ci_low, each.ci_high) for each in some}),
        _joined(
            {each.language: (each.control, each.control_low, each.control_high) for each in some}
        ),
    ]


def _joined(changes: Mapping[str, tuple[float | None, float | None, float | None]]) -> str:
    said = [(lang, change_text(*change)) for lang, change in changes.items()]
    return "; ".join(f"{lang} {change}" for lang, change in said if change)


def _promotes(card: NeuronCard) -> str:
    if card.likelier:
        return _named(card.likelier)
    both = {"positive": card.promoted, "negative": card.suppressed}
    return "; ".join(f"{sign}: {_named(items)}" for sign, items in both.items())


def _named(items: Sequence[Item]) -> str:
    return ", ".join(repr(item.text) for item in items[:3])
