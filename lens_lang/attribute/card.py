"""One neuron's card: everything that is known of it, as data, as text and as HTML."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lens_lang.attribute.effect import LanguageEffect
from lens_lang.attribute.markup import (
    card_html,
    change_text,
    contexts_html,
    heading_html,
    items_html,
    languages_html,
    neighbour_text,
    neighbourhood_html,
    visible,
)
from lens_lang.attribute.neighbourhood import Neighbour, Neighbourhood
from lens_lang.attribute.promotion import Item
from lens_lang.contexts import Context
from lens_lang.sites import MLP_POST


@dataclass(frozen=True, eq=False, repr=False)
class NeuronCard:
    """What is known of one MLP neuron.

    Printing it shows it as text, and Jupyter as HTML.

    Attributes:
        layer: Its layer.
        index: Its place in the layer.
        promoted: The items it makes likelier, most of all first.
        suppressed: The items it makes less likely, most of all first.
        promoted_languages: Of the items promoted, the share of each language and of *other*.
        neighbourhood: Where it stands in its layer, and to which languages it belongs.
        firing: By language the share of tokens at which it fires; empty where nobody counted.
        contexts: By language the documents in which it is most active; empty where nobody looked.
        effect: What each language loses without it; empty where nobody measured.
        provenance: The model, and where activations of contexts were read.
    """

    layer: int
    index: int
    promoted: tuple[Item, ...]
    suppressed: tuple[Item, ...]
    promoted_languages: Mapping[str, float]
    neighbourhood: Neighbourhood
    firing: Mapping[str, float] = field(default_factory=dict)
    contexts: Mapping[str, tuple[Context, ...]] = field(default_factory=dict)
    effect: tuple[LanguageEffect, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Layer and index, such as ``"12.1542"``."""
        return f"{self.layer}.{self.index}"

    @property
    def missing(self) -> tuple[str, ...]:
        """What was not measured of the neuron."""
        parts = {
            "firing by language": self.firing,
            "the languages' neurons": self.neighbourhood.per_layer,
            "contexts": self.contexts,
            "effect on NLL": self.effect,
        }
        return tuple(what for what, measured in parts.items() if not measured)

    def __repr__(self) -> str:
        """The card as text."""
        lines = [f"neuron {self.name} of {visible(self._model)}"]
        for what, items in (("promotes", self.promoted), ("suppresses", self.suppressed)):
            shown = "  ".join(f"{item.text!r} ({item.language})" for item in items)
            lines.append(f"  {what:<11}{shown}")
        lines.append(f"  languages  {_percent(self.promoted_languages, above=0.0)}")
        if self.firing:
            lines.append(f"  fires on   {_percent(self.firing)}")
        lines += self._around()
        if self.effect:
            lines.append("  without it, nats per token:")
            for each in self.effect:
                said = change_text(each.delta_nll, each.ci_low, each.ci_high)
                beside = change_text(each.control, each.control_low, each.control_high)
                lines.append(
                    f"    {each.language:<8}{said}" + (f"  random {beside}" if beside else "")
                )
        if self.contexts:
            lines.append(f"  most active in (activation at {self._site}):")
            for lang, some in self.contexts.items():
                lines += [f"    {lang:<8}{each.peak:8.3g}  {_marked(each)}" for each in some[:1]]
        if self.missing:
            lines.append(f"  not measured: {', '.join(self.missing)}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return card_html(
            [
                heading_html(self.name, self._model, self.missing),
                languages_html(self.firing, self.neighbourhood, self.effect),
                items_html(self.promoted, self.suppressed, self.promoted_languages),
                neighbourhood_html(self.neighbourhood),
                contexts_html(self.contexts, self._site),
            ]
        )

    @property
    def _model(self) -> str:
        return str(self.provenance.get("model", "a model"))

    @property
    def _site(self) -> str:
        return str(self.provenance.get("contexts at", MLP_POST.name))

    def _around(self) -> list[str]:
        around = self.neighbourhood
        lines = []
        if around.per_layer:
            found = f" ({around.method})" if around.method else ""
            of = ", ".join(around.languages) or "no language"
            lines.append(f"  belongs to {of}{found}")
            counts = [f"{lang} {n[self.layer]}" for lang, n in around.per_layer.items()]
            lines.append(f"  layer {self.layer:<4} {', '.join(counts)} of {around.width} neurons")
        near = ", ".join(neighbour_text(each, self.layer) for each in around.nearest)
        return [*lines, f"  near it    {near}"]


def card_from_json(told: Mapping[str, Any]) -> NeuronCard:
    """Build a card from what ``dataclasses.asdict`` made of it, as JSON gives it back.

    Args:
        told: The card's fields, with lists for tuples.
    """
    around = told["neighbourhood"]
    nearest = tuple(
        Neighbour(each["index"], each["cosine"], tuple(each["languages"]))
        for each in around["nearest"]
    )
    per_layer = {lang: tuple(counts) for lang, counts in around["per_layer"].items()}
    tuples = {"nearest": nearest, "languages": tuple(around["languages"]), "per_layer": per_layer}
    contexts = {
        lang: tuple(
            Context(**{**each, "tokens": tuple(each["tokens"]), "values": tuple(each["values"])})
            for each in some
        )
        for lang, some in told["contexts"].items()
    }
    return NeuronCard(
        **{
            **told,
            "promoted": tuple(Item(**each) for each in told["promoted"]),
            "suppressed": tuple(Item(**each) for each in told["suppressed"]),
            "neighbourhood": Neighbourhood(**{**around, **tuples}),
            "contexts": contexts,
            "effect": tuple(LanguageEffect(**each) for each in told["effect"]),
        }
    )


def _marked(context: Context) -> str:
    """The context as a line, its peak in guillemets."""
    tokens = [visible(token) for token in context.tokens]
    peak = tokens[context.at]
    word = peak.lstrip(" ")
    tokens[context.at] = f"{peak[: len(peak) - len(word)]}\u00ab{word}\u00bb"
    return "".join(tokens).strip()


def _percent(shares: Mapping[str, float], *, above: float = -1.0) -> str:
    often = sorted(shares.items(), key=lambda each: -each[1])
    return ", ".join(f"{lang} {100 * x:.0f} %" for lang, x in often if x > above)
