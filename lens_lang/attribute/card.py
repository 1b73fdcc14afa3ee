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
    sign_of,
    sign_text,
    visible,
)
from lens_lang.attribute.neighbourhood import Neighbour, Neighbourhood
from lens_lang.attribute.promotion import Item
from lens_lang.contexts import Context
from lens_lang.signs import Sign
from lens_lang.sites import MLP_POST


@dataclass(frozen=True, eq=False, repr=False)
class NeuronCard:
    """What is known of one MLP neuron.

    Printing it shows it as text, and Jupyter as HTML.

    Attributes:
        layer: Its layer.
        index: Its place in the layer.
        promoted: The items it makes likelier where its activation is positive, most of all first.
        suppressed: The items it makes less likely there, most of all first: those that it makes
            likelier where its activation is negative.
        promoted_languages: Of the items promoted, the share of each language and of *other*.
        neighbourhood: Where it stands in its layer, and to which languages it belongs.
        firing: By language the share of tokens at which it fires; empty where nobody counted.
        contexts: By language the documents in which it is most active; empty where nobody looked.
        effect: What each language loses without it; empty where nobody measured.
        provenance: The model, where activations of contexts were read, and on how many tokens of
            which corpora firing, signs and contexts stand.
        suppressed_languages: Of the items suppressed, the share of each language and of *other*.
        signs: By language at how many of the tokens at which it fires its activation is positive,
            and at how many it fires; empty where nobody counted.
        gated: Whether its activation is a product, which can be negative where it fires.
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
    suppressed_languages: Mapping[str, float] = field(default_factory=dict)
    signs: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    gated: bool = True

    @property
    def name(self) -> str:
        """Layer and index, such as ``"12.1542"``."""
        return f"{self.layer}.{self.index}"

    @property
    def missing(self) -> tuple[str, ...]:
        """What was not measured of the neuron."""
        parts = {
            "firing by language": self.firing,
            "its sign where it fires": self.signs or not self.gated,
            "the languages' neurons": self.neighbourhood.per_layer,
            "contexts": self.contexts,
            "effect on NLL": self.effect,
        }
        return tuple(what for what, measured in parts.items() if not measured)

    @property
    def sign(self) -> Sign:
        """The sign its activation mostly has where it fires."""
        return sign_of(self.signs, self.gated)

    @property
    def likelier(self) -> tuple[Item, ...]:
        """The items it makes likelier where it fires; none where that is not known, or is mixed."""
        if self.sign in ("either", "unknown"):
            return ()
        return self.promoted if self.sign == "positive" else self.suppressed

    def __repr__(self) -> str:
        """The card as text."""
        lines = [f"neuron {self.name} of {self._model}"]
        for sign, items in (("positive", self.promoted), ("negative", self.suppressed)):
            lines.append(f"  promotes where its activation is {sign}:")
            lines.append(f"    {'  '.join(f'{item.text!r} ({item.language})' for item in items)}")
        lines.append(f"  {sign_text(self.signs, self.gated)}")
        above = {lang: each for lang, each in self.signs.items() if each[1]}
        if above:
            often = sorted(above.items(), key=lambda each: -each[1][1])
            said = ", ".join(f"{lang} {100 * x / n:.0f} % of {n:,}" for lang, (x, n) in often)
            lines.append(f"    positive there: {said}")
        for which, shares in self._languages.items():
            lines.append(f"  languages of the {which} list: {_percent(shares, above=0.0)}")
        if self.firing:
            lines.append(f"  fires on   {_percent(self.firing)}{self._counted}")
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
        return "\n".join(map(visible, lines))

    def _repr_html_(self) -> str:
        return card_html(
            [
                heading_html(self.name, self._model, self.missing),
                languages_html(
                    self.firing,
                    self.neighbourhood,
                    self.effect,
                    tokens=self.firing_tokens,
                    signs=self.signs,
                ),
                items_html(
                    self.promoted,
                    self.suppressed,
                    sign_text(self.signs, self.gated),
                    languages=self._languages,
                ),
                neighbourhood_html(self.neighbourhood),
                contexts_html(self.contexts, self._site),
            ]
        )

    @property
    def firing_tokens(self) -> dict[str, int]:
        """Of how many tokens of each language `firing` is the share, where that is known."""
        return dict(self.provenance.get("firing tokens", {}))

    @property
    def _counted(self) -> str:
        """On how many tokens firing stands, at the end of its line."""
        tokens = self.firing_tokens.values()
        if not tokens:
            return ""
        least, most = min(tokens), max(tokens)
        return f" (of {least:,}{f' to {most:,}' if most > least else ''} tokens a language)"

    @property
    def _languages(self) -> dict[str, Mapping[str, float]]:
        """Languages of the list that holds where it fires, or of both, by which it is."""
        both = {"first": self.promoted_languages, "second": self.suppressed_languages}
        unlike = {"positive": "second", "negative": "first"}.get(self.sign)
        return {which: shares for which, shares in both.items() if which != unlike}

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
            "signs": {lang: (above, fires) for lang, (above, fires) in told["signs"].items()},
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
