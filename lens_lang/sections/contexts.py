"""The section of the texts in which neurons are most active."""

from lens_lang.contexts import NeuronContexts
from lens_lang.plot.text import top_contexts
from lens_lang.sections.section import Section


def contexts_section(name: str, contexts: NeuronContexts) -> Section:
    """The text in which each neuron is most active, in every language, and a view of them all.

    Args:
        name: Of the file.
        contexts: The measurement.
    """
    rows = []
    for layer, index in contexts.neurons.tolist():
        for lang in contexts.languages:
            for best in contexts.of((layer, index), lang)[:1]:
                rows.append(
                    [
                        f"{layer}.{index}",
                        lang,
                        f"{best.peak:+.3f}",
                        best.tokens[best.at].strip() or "(blank)",
                        " ".join(best.text.split()),
                    ]
                )
    counted = ", ".join(
        f"{lang} {n:,}"
        for lang, n in zip(contexts.languages, contexts.n_tokens.tolist(), strict=True)
    )
    return Section(
        title=f"Texts with the highest activation ({name})",
        text=[
            f"{len(contexts.neurons)} neurons at {contexts.site.name}. The table has the one "
            f"document of each language where a neuron is most active; the view has up to "
            f"{contexts.k}, with the activation at every token around the peak. Tokens read: "
            f"{counted}."
        ],
        columns=["neuron", "language", "peak", "at", "text"],
        rows=rows,
        views=[top_contexts(contexts)] if rows else [],
    )
