"""A neuron's card as HTML that needs neither script nor stylesheet.

Colours are translucent and lie on whatever background there is, so that the same fragment is
readable on light and on dark. Strength is said by colour and by a title, and the peak of a context
is bold and underlined.
"""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from lens_lang.attribute.effect import LanguageEffect
from lens_lang.attribute.neighbourhood import Neighbour, Neighbourhood
from lens_lang.attribute.promotion import Item
from lens_lang.contexts import Context
from lens_lang.errors import LanguageError
from lens_lang.languages import language_tag
from lens_lang.signs import Sign, share_positive, usual_sign

SHOWN_CONTEXTS = 3
"""Documents a language that the HTML shows; the card has all of them."""

STRONGEST = 0.5
"""Opacity of the strongest activation: text stays readable on it, on light and on dark."""

_POSITIVE, _NEGATIVE = (86, 180, 233), (230, 159, 0)
_FAINT = 0.02
"""Activations below this share of the strongest are left without colour."""

_NAMED = {"\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d"}


def visible(text: str) -> str:
    r"""Return text whose control characters can be seen, and do nothing to what is around it.

    Args:
        text: Any text, such as a token.

    Examples:
        >>> visible("a\n\x1b[31m\u202eb")
        'a↵\\x1b[31m\\u202eb'
    """
    return "".join(
        letter
        if unicodedata.category(letter) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
        or letter in "\u200c\u200d"  # joiners: letters and emoji need them
        else _NAMED.get(letter, letter.encode("unicode_escape").decode("ascii"))
        for letter in text
    )


def neighbour_text(neighbour: Neighbour, layer: int) -> str:
    """Name a neighbour, how alike it is, and its languages.

    Args:
        neighbour: The neuron.
        layer: Its layer.

    Examples:
        >>> neighbour_text(Neighbour(7, 0.5, ("fr", "es")), 12)
        '12.7 +0.50 (fr, es)'
    """
    of = f" ({', '.join(neighbour.languages)})" if neighbour.languages else ""
    return f"{layer}.{neighbour.index} {neighbour.cosine:+.2f}{of}"


def change_text(value: float | None, low: float | None, high: float | None) -> str:
    """Write a change with its interval, as far as they were measured.

    Args:
        value: The change.
        low: Lower end.
        high: Upper end.

    Examples:
        >>> change_text(0.0123, 0.01, 0.02), change_text(0.1, None, None), change_text(*[None] * 3)
        ('+0.0123 [+0.0100, +0.0200]', '+0.1000', '')
    """
    if value is None:
        return ""
    return f"{value:+.4f}" + ("" if low is None or high is None else f" [{low:+.4f}, {high:+.4f}]")


def sign_of(counts: Mapping[str, tuple[int, int]], gated: bool) -> Sign:
    """Say which sign a neuron's activation has where the neuron fires.

    Args:
        counts: By language at how many firing tokens it is above 0, and how many there are.
        gated: Whether it is a product; what a plain neuron's activation function gives where the
            neuron fires is above 0.
    """
    return usual_sign(counts) if gated else "positive"


def sign_text(counts: Mapping[str, tuple[int, int]], gated: bool) -> str:
    """Say which of its two lists a neuron promotes where it fires, as far as that was measured.

    Args:
        counts: By language at how many firing tokens it is above 0, and how many there are; empty
            where nobody counted.
        gated: Whether its activation is a product.

    Examples:
        >>> sign_text({"fr": (1, 40)}, True)
        'where it fires, its activation is negative (at 98 % of 40 tokens): the second list holds'
        >>> sign_text({}, True)
        "a gated neuron's activation can have either sign; not measured"
    """
    if not gated:
        return "where it fires, a plain neuron's activation is positive: the first list holds"
    if not counts:
        return "a gated neuron's activation can have either sign; not measured"
    share, fires = share_positive(counts), sum(each for _, each in counts.values())
    if share is None:
        return "a gated neuron's activation can have either sign, and it fired at no token read"
    sign = usual_sign(counts)
    if sign == "either":
        return (
            f"where it fires, its activation has either sign (positive at {100 * share:.0f} % of "
            f"{fires:,} tokens): now the one list holds, now the other"
        )
    most, which = (share, "first") if sign == "positive" else (1 - share, "second")
    return (
        f"where it fires, its activation is {sign} (at {100 * most:.0f} % of {fires:,} tokens): "
        f"the {which} list holds"
    )


def heading_html(name: str, model: str, missing: Sequence[str]) -> str:
    """Write which neuron this is, and what was not measured of it.

    Args:
        name: The neuron's.
        model: The model's.
        missing: What was not measured.
    """
    line = f"<p><strong>Neuron {escape(name)}</strong> of {escape(visible(model))}</p>"
    if missing:
        line += f"<p>Not measured: {escape(', '.join(missing))}.</p>"
    return line


def items_html(
    promoted: Sequence[Item],
    suppressed: Sequence[Item],
    said: str,
    *,
    languages: Mapping[str, Mapping[str, float]],
) -> str:
    """Write what a neuron makes likelier at either sign of its activation.

    Args:
        promoted: Items, most of all first.
        suppressed: The same at the other end.
        said: Which of the two holds where it fires.
        languages: Share of each language, by which of the two it is of.
    """
    lines = [
        ("Promotes where its activation is positive", _items(promoted)),
        ("Promotes where its activation is negative", _items(suppressed)),
    ]
    for which, shares in languages.items():
        found = [(lang, x) for lang, x in sorted(shares.items(), key=_by_value) if x > 0]
        lines.append((f"Languages of the {which} list", _shares(found)))
    shown = [f"<p>{what}: {each}</p>" for what, each in lines]
    return "".join([*shown[:2], f"<p>{escape(said[:1].upper() + said[1:])}.</p>", *shown[2:]])


def languages_html(
    firing: Mapping[str, float],
    around: Neighbourhood,
    effect: Sequence[LanguageEffect],
    *,
    tokens: Mapping[str, int],
    signs: Mapping[str, tuple[int, int]],
) -> str:
    """Write a table of what is known language by language; "" where nothing is.

    Args:
        firing: Share of tokens at which the neuron fires.
        around: Its neighbourhood.
        effect: What each language loses without it.
        tokens: Of how many tokens `firing` is the share, where that is known.
        signs: At how many firing tokens its activation is above 0, and how many there are.
    """
    columns: dict[str, dict[str, str]] = {}
    if firing:
        columns["fires on"] = {
            lang: f"{100 * x:.2f} %" + (f" of {tokens[lang]:,} tokens" if lang in tokens else "")
            for lang, x in firing.items()
        }
    if signs:
        columns["activation above 0 where it fires"] = {
            lang: f"{100 * above / fires:.0f} % of {fires:,} tokens" if fires else ""
            for lang, (above, fires) in signs.items()
        }
    if around.per_layer:
        columns[f"neurons in layer {around.layer}"] = {
            lang: str(counts[around.layer]) for lang, counts in around.per_layer.items()
        }
    if effect:
        columns["change of NLL without it, nats per token"] = {
            each.language: change_text(each.delta_nll, each.ci_low, each.ci_high) for each in effect
        }
    if drawn := max((each.controls for each in effect), default=0):
        columns[f"without a random one of its layer ({drawn} drawn)"] = {
            each.language: change_text(each.control, each.control_low, each.control_high)
            for each in effect
        }
    if not columns:
        return ""
    rows = [
        [
            f"{lang} \u2713" if lang in around.languages else lang,
            *(column.get(lang, "") for column in columns.values()),
        ]
        for lang in dict.fromkeys(lang for column in columns.values() for lang in column)
    ]
    found = escape(visible(around.method or "as given"))
    note = f"<p>\u2713 it is a neuron of this language ({found})</p>"
    table = _table("Language by language", ["language", *columns], rows)
    return table + (note if around.languages else "")


def neighbourhood_html(around: Neighbourhood) -> str:
    """Write where a neuron stands: its nearest ones, and the languages' neurons by layer.

    Args:
        around: The neighbourhood.
    """
    near = ", ".join(neighbour_text(each, around.layer) for each in around.nearest)
    said = f"<p>Most alike in its layer (cosine of what they write): {escape(visible(near))}</p>"
    if not around.per_layer:
        return said
    layers = range(len(next(iter(around.per_layer.values()))))
    heads = ["language", *(f"{n} \u25c0" if n == around.layer else str(n) for n in layers)]
    rows = [[lang, *(str(n) if n else "" for n in each)] for lang, each in around.per_layer.items()]
    table = _table("Neurons of each language by layer", heads, rows)
    return (
        f"{said}<details><summary>Neurons of each language by layer, of {around.width} in each; "
        f"\u25c0 marks this neuron's layer</summary>{table}</details>"
    )


def contexts_html(contexts: Mapping[str, Sequence[Context]], site: str) -> str:
    """Write in which text a neuron is most active, language by language.

    Args:
        contexts: Its contexts by language.
        site: Where its activation was read.
    """
    if not any(contexts.values()):
        return ""
    strongest = max(abs(x) for some in contexts.values() for each in some for x in each.values)
    parts: list[str] = []
    for lang, some in sorted(contexts.items(), key=lambda each: -_peak(each[1])):
        if not some:
            continue
        lines = "".join(_context(each, strongest) for each in some[:SHOWN_CONTEXTS])
        more = len(some) - SHOWN_CONTEXTS
        rest = f"<p>{more} more in card.contexts</p>" if more > 0 else ""
        opened = " open" if len(parts) < 2 else ""
        parts.append(
            f"<details{opened}><summary>{escape(visible(lang))}: peak {_peak(some):.3g}</summary>"
            f"{lines}{rest}</details>"
        )
    return (
        f"<p>Text in which it is most active (activation at {escape(visible(site))}; blue above "
        f"0, orange below, the peak underlined)</p>{''.join(parts)}"
    )


def card_html(parts: Iterable[str]) -> str:
    """Put the parts of a card together.

    Args:
        parts: HTML of each; empty ones are left out.
    """
    inner = "".join(parts)
    return f'<div style="font:14px/1.5 system-ui,sans-serif;max-width:64rem">{inner}</div>'


def colour_style(value: float, strongest: float) -> str:
    """Return the style of a token by its activation; "" for one that is next to nothing.

    Args:
        value: Its activation.
        strongest: The largest absolute activation shown.

    Examples:
        >>> colour_style(2.0, 4.0), colour_style(-4.0, 4.0), colour_style(0.01, 4.0)
        ('background:rgba(86,180,233,0.25)', 'background:rgba(230,159,0,0.50)', '')
    """
    share = min(1.0, abs(value) / strongest) if strongest > 0 else 0.0
    if share < _FAINT:
        return ""
    red, green, blue = _POSITIVE if value > 0 else _NEGATIVE
    return f"background:rgba({red},{green},{blue},{STRONGEST * share:.2f})"


def _context(context: Context, strongest: float) -> str:
    spans = []
    for place, (token, value) in enumerate(zip(context.tokens, context.values, strict=True)):
        shown, style = visible(token), colour_style(value, strongest)
        said = escape(shown)
        if place == context.at:
            word = shown.lstrip(" ") or shown
            space = shown[: len(shown) - len(word)]
            said = f'{space}<strong style="text-decoration:underline">{escape(word)}</strong>'
        spans.append(
            f'<span style="{style}" title="{value:.3g}">{said}</span>'
            if style or place == context.at
            else said
        )
    return (
        f'<p dir="auto"{_lang(context.language)} style="white-space:pre-wrap;margin:.3em 0">'
        f"{''.join(spans)}</p>"
    )


def _lang(name: str) -> str:
    try:
        return f' lang="{escape(language_tag(name))}"'
    except LanguageError:  # a label that is no language, such as a topic
        return ""


def _items(items: Sequence[Item]) -> str:
    return ", ".join(
        f'<span style="white-space:pre-wrap" title="{item.score:+.3f}">'
        f"<code>{escape(repr(item.text))}</code></span> ({escape(visible(item.language))})"
        for item in items
    )


def _shares(shares: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{escape(visible(lang))} {100 * x:.0f} %" for lang, x in shares)


def _by_value(each: tuple[str, float]) -> float:
    return -each[1]


def _peak(some: Sequence[Context]) -> float:
    return max((each.peak for each in some), default=float("-inf"))


def _table(name: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that scrolls sideways, for the keyboard too: it can be reached and has a name."""
    cell = "padding:.2em .6em;text-align:left;white-space:nowrap"
    head = "".join(
        f'<th scope="col" style="{cell};white-space:normal">{escape(visible(each))}</th>'
        for each in heads
    )
    body = "".join(
        f'<tr><th scope="row" style="{cell}">{escape(visible(row[0]))}</th>'
        + "".join(f'<td style="{cell}">{escape(visible(each))}</td>' for each in row[1:])
        + "</tr>"
        for row in rows
    )
    return (
        f'<div tabindex="0" role="group" aria-label="{escape(name)}" style="overflow-x:auto">'
        '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )
