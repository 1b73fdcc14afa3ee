"""The section of the texts in which neurons are most active."""

from lens_lang.contexts import NeuronContexts
from lens_lang.plot.text import top_contexts
from lens_lang.sections.cells import Cell
from lens_lang.sections.section import Section

_SHOWN = 20  # as many as can be looked through, and as a page can hold


def contexts_section(name: str, contexts: NeuronContexts) -> Section:
    """The text in which each neuron is most active, in every language, and a view of more of them.

    Of the first 20 neurons, in the order of the measurement.

    Args:
        name: Of the file.
        contexts: The measurement.
    """
    rows = []
    chosen = [(layer, index) for layer, index in contexts.neurons[:_SHOWN].tolist()]
    for layer, index in chosen:
        for lang in contexts.languages:
            for best in contexts.of((layer, index), lang)[:1]:
                rows.append(
                    [
                        f"{layer}.{index}",
                        lang,
                        f"{best.peak:+.3f}",
                        Cell(best.tokens[best.at].strip() or "(blank)", lang=lang),
                        Cell(" ".join(best.text.split()), lang=lang),
                    ]
                )
    counted = ", ".join(
        f"{lang} {n:,}"
        for lang, n in zip(contexts.languages, contexts.n_tokens.tolist(), strict=True)
    )
    shown = f", of which the first {_SHOWN} are shown" if len(contexts.neurons) > _SHOWN else ""
    return Section(
        title=f"Texts with the highest activation ({name})",
        text=[
            f"{len(contexts.neurons)} neurons at {contexts.site.name}{shown}. The table has the "
            f"one document of each language where a neuron is most active; the view has up to "
            f"{contexts.k}, with the activation at every token around the peak. Tokens read: "
            f"{counted}."
        ],
        columns=["neuron", "language", "peak", "at", "text"],
        rows=rows,
        views=[top_contexts(contexts, neurons=chosen)] if rows else [],
    )
