"""The section of what was measured: statistics, tokens, documents."""

from collections.abc import Mapping

from lens_lang.importance import Importance
from lens_lang.sections.section import Section
from lens_lang.signs import NeuronSigns
from lens_lang.stats import Activations, Frequency

Statistic = Frequency | Activations | Importance | NeuronSigns


def measured_section(statistics: Mapping[str, Statistic]) -> Section:
    """Tokens, and documents where they were counted, of each language.

    Args:
        statistics: By the name of the file.

    Returns:
        A section with a column for every distinct count: statistics of one pass have the same.
    """
    counts: dict[tuple[str, tuple[tuple[str, int], ...]], list[str]] = {}
    for name, each in statistics.items():
        totals = [("tokens counted", each.n_tokens)]
        if isinstance(each, Importance):
            totals.append(("documents", each.n_documents))
        for what, total in totals:
            own = tuple(zip(each.languages, total.tolist(), strict=True))
            counts.setdefault((what, own), []).append(name)
    heads = [what for what, _ in counts]
    columns = [
        what if heads.count(what) == 1 else f"{what} ({', '.join(names)})"
        for (what, _), names in counts.items()
    ]
    found = [dict(own) for _, own in counts]
    languages = dict.fromkeys(lang for own in found for lang in own)
    text = [f"{_named(statistics)}."]
    for each in statistics.values():
        corpora = each.provenance.get("corpora", {})
        for what in ("documents cut", "documents left out"):
            if isinstance(corpora, Mapping) and corpora.get(what):
                counted = ", ".join(f"{lang} {n}" for lang, n in corpora[what].items())
                text.append(f"{what.capitalize()}: {counted}.")
    return Section(
        title="What was measured",
        text=list(dict.fromkeys(text)),
        columns=["language", *columns],
        rows=[
            [lang, *(f"{own[lang]:,}" if lang in own else "" for own in found)]
            for lang in languages
        ],
    )


def _named(statistics: Mapping[str, Statistic]) -> str:
    models: dict[str, list[str]] = {}
    for each in statistics.values():
        model = str(each.provenance.get("model", "an unnamed model"))
        models.setdefault(model, []).append(type(each).__name__)
    return "; ".join(f"{', '.join(names)} of {model}" for model, names in models.items())
