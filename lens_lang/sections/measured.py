"""The section of what was measured: statistics, tokens, documents."""

from lens_lang.importance import Importance
from lens_lang.sections.section import Section
from lens_lang.stats import Activations, Frequency


def measured_section(statistics: list[Frequency | Activations | Importance]) -> Section:
    """Tokens, and documents where they were counted, of each language."""
    first = statistics[0]
    documents = first.n_documents.tolist() if isinstance(first, Importance) else None
    rows = [
        [lang, f"{int(n):,}", *([] if documents is None else [f"{documents[position]:,}"])]
        for position, (lang, n) in enumerate(
            zip(first.languages, first.n_tokens.tolist(), strict=True)
        )
    ]
    model = first.provenance.get("model", "an unnamed model")
    names = ", ".join(type(result).__name__ for result in statistics)
    text = [f"{names} of {model}."]
    corpora = first.provenance.get("corpora", {})
    for what in ("documents cut", "documents left out"):
        if isinstance(corpora, dict) and corpora.get(what):
            counted = ", ".join(f"{lang} {n}" for lang, n in corpora[what].items())
            text.append(f"{what.capitalize()}: {counted}.")
    return Section(
        title="What was measured",
        text=text,
        columns=["language", "tokens counted", *([] if documents is None else ["documents"])],
        rows=rows,
    )
