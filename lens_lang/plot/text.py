"""Views of text: tokens coloured by what neurons do, by what layers say, and where heads look."""

from collections.abc import Iterable, Sized

from lens_lang.contexts import NeuronContexts
from lens_lang.errors import OptionError, ShapeError
from lens_lang.languages import find_language
from lens_lang.lens import LensTable
from lens_lang.plot.views import View
from lens_lang.single_neurons import NeuronName, neuron_place
from lens_lang.token_readings import AttentionPatterns, TokenActivations
from lens_lang.vocabulary import OTHER

# Both are pale enough at full strength for black text, and told apart by all eyes.
_HIGH, _LOW = "#5ab4ef", "#f4a261"
_MOST_NEURONS = 100


def token_activations(activations: TokenActivations) -> View:
    """Show the tokens of texts, coloured by the activation of a neuron.

    Args:
        activations: From `lens_lang.token_activations`, or its ``share_firing()``.

    Returns:
        A view. Several texts or neurons come with selectors; a text begins with its language
        where there are several.

    Examples:
        >>> import torch
        >>> read = TokenActivations(
        ...     ("fr",), (("Le", " chat"),), (torch.tensor([4, 5]),),
        ...     (torch.tensor([[0.5], [2.0]]),), ("3.7",), None)
        >>> token_activations(read).props["values"]
        [0.5, 2.0]
    """
    several = len(set(activations.languages)) > 1
    texts = len(activations)
    labels = list(activations.labels)
    what = f"neuron {labels[0]}" if activations.site is not None else labels[0]
    if texts == 1 and len(labels) == 1:
        values = _rounded(activations.activations[0][:, 0].tolist())
        limit = max(map(abs, values)) or 1.0
        return View(
            "ColoredTokens",
            {
                "tokens": list(activations.tokens[0]),
                "values": values,
                "minValue": -limit,
                "maxValue": limit,
                "positiveColor": _HIGH,
                "negativeColor": _LOW,
                "paddingBottom": 64,  # room for the note under the pointer
            },
            f"{activations.languages[0]}: {what}",
        )
    tokens: list[list[str]] = []
    rows_of: list[list[list[list[float]]]] = []
    for lang, pieces, rows in zip(
        activations.languages, activations.tokens, activations.activations, strict=True
    ):
        head = [f"{lang} │ "] if several else []
        tokens.append([*head, *pieces])
        nothing = [[[0.0] * len(labels)]] * len(head)
        rows_of.append([*nothing, *([_rounded(row)] for row in rows.tolist())])
    return View(
        "TextNeuronActivations",
        {
            "tokens": tokens,
            "activations": rows_of,
            "firstDimensionName": "Read",
            "secondDimensionName": "Neuron",
            "secondDimensionLabels": labels,
        },
        f"{_count(activations.tokens, 'text')}: "
        + (what if len(labels) == 1 else _count(labels, "neuron")),
    )


def top_contexts(
    contexts: NeuronContexts,
    *,
    lang: str | None = None,
    neurons: Iterable[NeuronName] | None = None,
) -> View:
    """Show the texts in which neurons are most active, around their peaks.

    Args:
        contexts: From `lens_lang.TopContexts`.
        lang: The language; None lets the reader select one.
        neurons: Which of the neurons, at most 100, such as ``["12.1542"]`` or ``[(12, 1542)]``;
            None takes all.

    Returns:
        A view with a selector for the neuron; the highest peak stands first.

    Raises:
        LanguageError: The language was not collected.
        OptionError: There are more neurons than a page can hold, there is none, or one of them was
            not collected.
    """
    languages = contexts.languages
    if lang is not None:
        languages = (languages[find_language(lang, languages)],)
    pairs = [neuron_place(one) for one in neurons or ()]
    if neurons is None:
        pairs = [(layer, index) for layer, index in contexts.neurons.tolist()]
    if not 0 < len(pairs) <= _MOST_NEURONS:
        raise OptionError(
            f"top_contexts shows 1 to {_MOST_NEURONS} neurons, got {len(pairs)}: choose some with "
            "neurons=[(layer, index), ...]"
        )
    found = [[contexts.of(pair, name) for pair in pairs] for name in languages]
    most = max(len(each) for row in found for each in row)
    # The element takes as many samples for all; a language with fewer documents shows dashes.
    nothing = (("-",), (0.0,))
    samples = [
        [
            [*((one.tokens, one.values) for one in each), *[nothing] * (most - len(each))]
            for each in row
        ]
        for row in found
    ]
    return View(
        "TopkSamples",
        {
            "tokens": [[[list(t) for t, _ in each] for each in row] for row in samples],
            "activations": [[[_rounded(v) for _, v in each] for each in row] for row in samples],
            "zerothDimensionName": "Language",
            "firstDimensionName": "Neuron",
            "zerothDimensionLabels": list(languages),
            "firstDimensionLabels": [f"{layer}.{index}" for layer, index in pairs],
        },
        f"Top contexts of {_count(pairs, 'neuron')}"
        + (f" in {languages[0]}" if len(languages) == 1 else ""),
    )


def attention_patterns(
    patterns: AttentionPatterns, *, lang: str | None = None, text: int = 0
) -> View:
    """Show what heads look at in one text.

    Args:
        patterns: From `lens_lang.attention_patterns`.
        lang: Of the texts of this language; None takes all.
        text: Which of them.

    Returns:
        A view: a small map per head; the one under the pointer is drawn large. Rows are the
        tokens that look, columns those looked at.

    Raises:
        LanguageError: There is no text in that language.
        OptionError: There are fewer texts.

    Examples:
        >>> import torch
        >>> looks = AttentionPatterns(
        ...     ("en",), (("a", "b"),), (torch.tensor([4, 5]),),
        ...     (torch.tensor([[[1.0, 0.0], [0.25, 0.75]]]),), ("3.1",))
        >>> attention_patterns(looks)
        View(AttentionHeads: Attention of 1 head, text 0 of en)
    """
    if lang is not None:
        patterns = patterns.in_language(lang)
    if not 0 <= text < len(patterns):
        raise OptionError(f"text must be below {len(patterns)}, got {text}")
    return View(
        "AttentionHeads",
        {
            "tokens": list(patterns.tokens[text]),
            "attention": [
                [_rounded(row) for row in head] for head in patterns.patterns[text].tolist()
            ],
            "attentionHeadNames": list(patterns.labels),
            "minValue": 0.0,
            "maxValue": 1.0,
            "positiveColor": "#08519c",
        },
        f"Attention of {_count(patterns.labels, 'head')}, "
        f"text {text} of {patterns.languages[text]}",
    )


def lens_tokens(table: LensTable) -> View:
    """Show what every layer would say next, as text: the logit lens line by line.

    The interactive counterpart of `lens_lang.plot.lens_table`. A selector chooses what colours
    the tokens: the probability of the guess shown, or how much of the layer's prediction belongs
    to a language.

    Args:
        table: From `lens_lang.lens_table`.

    Returns:
        A view. The first line is the prompt; below it stands each layer's first guess after each
        of the prompt's tokens, the last layer first. It begins with five lines; "samples per page"
        shows more.
    """
    labels = [*table.languages, OTHER]
    if not table.pieces:
        raise ShapeError("This table has no token to show")
    # One number per colour: the guess's probability, then the share of each language.
    shown = ["the guess's probability", *(f"share of {label}" for label in labels)]
    nothing = [[0.0] * len(shown)]
    tokens = [["prompt │ ", *table.pieces]]
    values = [[nothing] * (1 + len(table.pieces))]
    for layer in reversed(range(len(table.top_text))):
        share = table.share[layer].tolist()
        first = table.probability[layer, :, 0].tolist()
        tokens.append([f"layer {layer} │ ", *(cell[0] for cell in table.top_text[layer])])
        rows = [[_rounded([one, *some])] for one, some in zip(first, share, strict=True)]
        values.append([nothing, *rows])
    return View(
        "TextNeuronActivations",
        {
            "tokens": tokens,
            "activations": values,
            "firstDimensionName": "Read",
            "secondDimensionName": "Colour",
            "secondDimensionLabels": shown,
        },
        f"What each layer would say next: {''.join(table.pieces)}",
    )


def _count(things: Sized, name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _rounded(values: "list[float] | tuple[float, ...]") -> list[float]:
    """Four digits are more than a colour shows, and keep pages small."""
    return [float(f"{value:.4g}") for value in values]
