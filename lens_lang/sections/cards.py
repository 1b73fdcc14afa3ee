"""The sections of single neurons: one card each."""

from lens_lang.attribute.cards import NeuronCards
from lens_lang.attribute.markup import change_text
from lens_lang.plot.cards import neuron_card
from lens_lang.sections.section import Section


def cards_section(cards: NeuronCards) -> list[Section]:
    """What is known of single neurons: a table of all, then one card after another."""
    rows = []
    for card in cards:
        often = max(card.firing.items(), key=lambda each: each[1], default=None)
        most = max(card.effect, key=lambda each: each.delta_nll, default=None)
        rows.append(
            [
                card.name,
                ", ".join(card.neighbourhood.languages),
                "" if often is None else f"{often[0]} ({100 * often[1]:.1f} %)",
                ", ".join(repr(item.text) for item in card.promoted[:3]),
                ""
                if most is None
                else f"{most.language} {change_text(most.delta_nll, most.ci_low, most.ci_high)}",
            ]
        )
    overview = Section(
        title="Single neurons",
        text=[
            "Each neuron by itself. Promotes: the vocabulary items that what it writes makes "
            "likeliest. The effect is the change in nats per token when it alone is switched off, "
            "for the language that loses most, with a 95 % interval; the cards show random neurons "
            "of the same layer beside it."
        ],
        columns=["neuron", "neuron of", "fires most on", "promotes", "loses most without it"],
        rows=rows,
    )
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
