"""The section of what switching neurons off does, and why a language fails the test of its own."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lens_lang.evaluate.perplexity import PerplexityMatrix
from lens_lang.neurons import LanguageNeurons
from lens_lang.plot import effect
from lens_lang.sections.cells import Cell
from lens_lang.sections.section import Section, change_with_interval, p_value, signed

if TYPE_CHECKING:
    import pandas as pd

_FEW = 20
"""Fewer neurons than this are too few to expect an effect of."""


def effect_section(matrix: PerplexityMatrix, neurons: LanguageNeurons | None) -> Section:
    """What each language loses, beside random neurons and the others', and whether it passes."""
    table = matrix.selectivity()
    rows, text = [], []
    for lang, row in table.iterrows():
        rows.append(
            [
                str(lang),
                change_with_interval(row["own"], row["own_low"], row["own_high"]),
                change_with_interval(row["control"], row["control_low"], row["control_high"]),
                p_value(row["p_holm"]),
                Cell(f"{row['rival']} {signed(row['rival_change'])}", order=row["rival_change"])
                if row["rival"]
                else "",
                change_with_interval(
                    row["selectivity"], row["selectivity_low"], row["selectivity_high"]
                ),
                "yes" if row["specific"] and row["beyond_chance"] else "no",
                why_not(row, neurons),
            ]
        )
    if len(table):
        passed = int((table["specific"] & table["beyond_chance"]).sum())
        text.append(
            f"{passed} of {len(table)} languages pass: no other language's neurons hurt them as "
            "much as their own do, and their own hurt them at least five times more than as many "
            "random neurons of the same layers, beyond where one more random set is expected."
        )
    scored = ", ".join(
        f"{lang} {int(docs.n_tokens.sum())} in {len(docs.n_tokens)}"
        for lang, docs in matrix.documents.items()
    )
    tested = "own less the mean random control" if matrix.n_controls else "own"
    text.append(
        "Changes of negative log-likelihood in nats per token, with 95 % intervals from a paired "
        f"bootstrap over documents; for the {matrix.n_controls} random controls per intervention, "
        f"a 95 % interval for one more random draw. p: of {tested}, by a sign-flip test over "
        f"documents, corrected over languages (Holm). Tokens scored, and documents: {scored}."
    )
    return Section(
        title="Effect of training them"
        if matrix.interventions == ("tuned",)
        else "Effect of switching them off",
        text=text,
        columns=[
            "language",
            "own neurons",
            "random control",
            "p (Holm)",
            "strongest rival",
            "own minus mean of others",
            "passes",
            "why",
        ]
        if rows
        else [],
        rows=rows,
        figures=[effect.perplexity_matrix(matrix).to_json()],
    )


def why_not(row: "pd.Series[Any]", neurons: LanguageNeurons | None) -> str:
    """Say why a language failed the test of its neurons, or that it passed.

    Args:
        row: A row of `PerplexityMatrix.selectivity`.
        neurons: The neurons that were switched off, if they are known.

    Returns:
        One sentence.
    """
    lang = str(row.name)
    if row["specific"] and row["beyond_chance"]:
        return "Its own neurons hurt it most, and far more than random ones."
    count = len(neurons[lang]) if neurons is not None and lang in neurons.languages else None
    reasons = []
    beaten = bool(row["rival"]) and row["rival_change"] >= max(row["own"], 0.005)
    if not row["specific"]:
        reasons.append(
            f"the neurons of {row['rival']} hurt it more ({row['rival_change']:+.2f} nats)"
            if beaten
            else "its own neurons do not hurt it"
        )
    if row["own_low"] != row["own_low"]:
        reasons.append("only one document was scored, which says nothing of others")
    elif not row["beyond_chance"]:
        reasons.append("its own effect does not stand out from that of random neurons")
    because = ""
    if neurons is not None and count is not None and count < _FEW:
        because = f" Plausible: {_gave(neurons)} only {count} neuron{'' if count == 1 else 's'}."
        because += _rule(neurons.provenance)
    elif neurons is not None and count is not None and beaten and row["rival"] in neurons.languages:
        common = len(neurons[lang] & neurons[str(row["rival"])])
        because = (
            f" Plausible: {common} of its {count} neurons are also among the "
            f"{len(neurons[str(row['rival'])])} of {row['rival']}."
            if common
            else f" They have no neuron in common, so {row['rival']} takes something away that "
            f"{lang} needs although it is not among its own."
        )
    sentence = " and ".join(reasons)
    return sentence[0].upper() + sentence[1:] + "." + because


def _gave(neurons: LanguageNeurons) -> str:
    method = str(neurons.provenance.get("method", ""))
    if method == "random":
        return "it was given, at random,"
    if method == "read from file":
        return "the file gives it"
    return f"{method.upper() or 'the method'} gave it"


def _rule(record: Mapping[str, Any]) -> str:
    """Why a method can leave a language with few neurons, as a sentence; "" if there is no why."""
    options = record.get("options") or {}
    match record.get("method"):
        case "lape" | "lave":
            return (
                " A neuron counts as a language's own only if few other languages use it; a "
                "language that the model uses for all of them has few left."
            )
        case "plnd":
            share = float(options.get("min_share", 1.0))
            often = "all" if share == 1 else f"at least {100 * share:g} %"
            without = options.get("without")
            taken = {
                None: "",
                "common": ", and those that all languages have are taken away",
            }.get(without, f", and those that {without} has are taken away")
            top = options.get("top")
            kept = f"; at most {top} of a layer are kept" if top else ""
            return (
                f" A neuron counts only if its removal changed much in {often} of the language's "
                f"documents{taken}{kept}."
            )
        case "lap":
            return (
                " A neuron counts only if it fires on more than "
                f"{100 * float(options.get('threshold', 0.95)):g} % of the language's tokens."
            )
        case "sharing":
            return (
                " A neuron counts as a language's own only if it fires in that language of an "
                "example and in no other."
            )
    return ""
