"""One HTML page from a run folder: what was measured, what was found, what it does.

The page is a single file that opens without a network: the plotting script is inside it, once,
whatever the number of figures.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lens_lang.curves import LanguageCurve
from lens_lang.errors import MissingExtraError, StorageError
from lens_lang.evaluate.perplexity import PerplexityMatrix
from lens_lang.heads import HeadAttention
from lens_lang.importance import Importance
from lens_lang.latent import LatentLanguages
from lens_lang.neurons import LanguageNeurons
from lens_lang.plot import effect, layers
from lens_lang.plot import neurons as neuron_figures
from lens_lang.results import Result, load
from lens_lang.stats import Activations, Frequency
from lens_lang.storage import replacing

if TYPE_CHECKING:
    import pandas as pd

FILE_NAME = "report.html"

_FEW = 20
"""Fewer neurons than this are too few to expect an effect of."""


@dataclass(frozen=True)
class Section:
    """One part of the page.

    Attributes:
        title: Its heading.
        text: Paragraphs under the heading.
        columns: The table's heads; empty for no table.
        rows: The table's cells.
        figures: Figures as JSON for plotly.
    """

    title: str
    text: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)


def report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run folder, from whatever results lie there.

    Args:
        run_dir: The folder, with files written by ``save``.

    Returns:
        The page.

    Raises:
        StorageError: The folder holds no result, or the page cannot be written.
        MissingExtraError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtraError("The report", "plot") from None
    from jinja2 import Environment, StrictUndefined

    folder = Path(run_dir)
    results = read_results(folder)
    if not results:
        raise StorageError(
            f"{folder} holds no result to report: run lens_lang.collect(..., run_dir=...) first, "
            "or save results into it"
        )
    template = files("lens_lang").joinpath("templates", "report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    page = environment.from_string(template).render(
        title=f"Language neurons: {folder.name}",
        sections=_sections(results),
        downloads=[path.name for path in results],
        provenance=json.dumps(
            {path.name: result.provenance for path, result in results.items()},
            indent=2,
            ensure_ascii=False,
            default=dict,
        ),
        plotly_js=get_plotlyjs(),
    )
    target = folder / FILE_NAME
    with replacing(target) as part:
        part.write_text(page, encoding="utf-8")
    return target


def read_results(folder: Path) -> dict[Path, Result]:
    """Read every result file in a folder, by name.

    Raises:
        StorageError: There is no such folder, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise StorageError(f"There is no run folder {folder}")
    by_name = sorted(folder.glob("*.safetensors"), key=lambda path: path.stem)
    return {path: load(path) for path in by_name}


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
    few = count is not None and count < _FEW
    reasons = []
    beaten = bool(row["rival"]) and row["rival_change"] >= max(row["own"], 0.005)
    if not row["specific"]:
        reasons.append(
            f"the neurons of {row['rival']} hurt it more ({row['rival_change']:+.2f} nats)"
            if beaten
            else "its own neurons do not hurt it"
        )
    if not row["beyond_chance"]:
        reasons.append("its own effect does not stand out from that of random neurons")
    because = ""
    if few:
        because = (
            f" Plausible: {_method(neurons)} gave it only {count} "
            f"neuron{'' if count == 1 else 's'}."
        )
        if _method(neurons) in ("LAPE", "LAVE"):
            because += (
                " A neuron counts as a language's own only if few other languages use it; a "
                "language that the model uses for all of them has few left."
            )
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


def _method(neurons: LanguageNeurons | None) -> str:
    return str(neurons.provenance.get("method", "it")).upper() if neurons is not None else ""


def _sections(results: Mapping[Path, Result]) -> list[Section]:
    neurons = {
        path.stem: result for path, result in results.items() if isinstance(result, LanguageNeurons)
    }
    made: list[Section] = []
    for path, result in results.items():
        if isinstance(result, LanguageNeurons):
            made.append(_neurons(path.stem, result))
    for path, result in results.items():
        if isinstance(result, PerplexityMatrix):
            # perplexity-plnd.safetensors is the effect of plnd.safetensors
            method = path.stem.partition("-")[2] or "lape"
            made.append(_effect(result, neurons.get(method) or next(iter(neurons.values()), None)))
    plain = next((r for p, r in results.items() if p.stem == "curve"), None)
    for path, result in results.items():
        if isinstance(result, LanguageCurve):
            made.append(_curve(path.stem, result))
            if (
                isinstance(plain, LanguageCurve)
                and result is not plain
                and result.comparable(plain)
            ):
                made.append(_curve(f"{path.stem} minus curve", result - plain))
        elif isinstance(result, LatentLanguages):
            made.append(_latent(path.stem, result))
        elif isinstance(result, HeadAttention):
            made.append(_heads(result))
    statistics = [
        r for r in results.values() if isinstance(r, Frequency | Activations | Importance)
    ]
    return [*made, *([_measured(statistics)] if statistics else [])]


def _neurons(name: str, neurons: LanguageNeurons) -> Section:
    union = neurons.union()
    total = sum(mask.numel() for mask in union.masks.values())
    counts, expected = neurons.overlap("count"), neurons.overlap("expected")
    rows = []
    for lang, some in neurons.items():
        alone = some
        for other, theirs in neurons.items():
            alone = alone if other == lang else alone - theirs
        per_layer = torch.stack([some.per_layer(site) for site in neurons.sites]).sum(0)
        busiest = int(per_layer.argmax()) if len(some) else None
        others = counts.loc[lang].drop(lang)
        nearest = str(others.idxmax()) if len(others) and others.max() > 0 else None
        rows.append(
            [
                lang,
                str(len(some)),
                f"{100 * len(some) / total:.3f} %",
                str(len(alone)),
                "" if busiest is None else f"layer {busiest} ({int(per_layer[busiest])})",
                ""
                if nearest is None
                else f"{nearest} {others[nearest]:.0f} (by chance "
                f"{expected.loc[lang].to_numpy()[list(expected).index(nearest)]:.1f})",
                *(
                    [str(int(some.masks[site].sum())) for site in neurons.sites]
                    if len(neurons.sites) > 1
                    else []
                ),
            ]
        )
    shared = ", ".join(
        f"{count} serve {n} language{'' if n == 1 else 's'}"
        for n, count in neurons.membership().items()
        if count
    )
    where = f" at {neurons.sites[0].name}"
    if len(neurons.sites) > 1:
        found = (f"{int(m.sum()):,} of {m.numel():,} at {s.name}" for s, m in union.masks.items())
        where = f" ({', '.join(found)})"
    figures = [
        *([neuron_figures.depth_profile(neurons)] if len(neurons.sites) > 1 else []),
        *(neuron_figures.neurons_per_layer(neurons, site=site) for site in neurons.sites),
        neuron_figures.overlap(neurons),
    ]
    return Section(
        title=f"Neurons found by {neurons.provenance.get('method', name)}",
        text=[
            f"{len(union):,} distinct neurons of {total:,}{where}"
            + (f": {shared}." if shared else ".")
        ],
        columns=[
            "language",
            "neurons",
            "of all",
            "of no other language",
            "most in",
            "most in common with",
            *([site.name for site in neurons.sites] if len(neurons.sites) > 1 else []),
        ],
        rows=rows,
        figures=[figure.to_json() for figure in figures],
    )


def _effect(matrix: PerplexityMatrix, neurons: LanguageNeurons | None) -> Section:
    table = matrix.selectivity()
    rows, text = [], []
    for lang, row in table.iterrows():
        rows.append(
            [
                str(lang),
                _interval(row["own"], row["own_low"], row["own_high"]),
                _interval(row["control"], row["control_low"], row["control_high"]),
                f"{row['rival']} {row['rival_change']:+.3f}" if row["rival"] else "",
                _interval(row["selectivity"], row["selectivity_low"], row["selectivity_high"]),
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
    text.append(
        "Changes of negative log-likelihood in nats per token, with 95 % intervals from a paired "
        f"bootstrap over documents; for the {matrix.n_controls} random controls per intervention, "
        f"where one more would lie. Tokens scored, and documents: {scored}."
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


def _curve(name: str, curve: LanguageCurve) -> Section:
    if curve.is_difference:
        change = curve.story() if _has_story(curve) else curve
        return Section(
            title=f"Change of the language of each layer ({name})",
            text=["Of the same prompts, with paired 95 % intervals."],
            figures=[layers.language_curve(change).to_json()],
        )
    known = _has_story(curve)
    shown = curve.story() if known else curve
    mean, ci = shown.mean, shown.ci
    rows = []
    if known:
        peaks = curve.summary()["layer"].tolist()
        for group, (lang, peak) in enumerate(zip(curve.groups, peaks, strict=True)):
            own = 0 if lang == "en" else 1
            rows.append(
                [
                    lang,
                    _share(mean[group, 0, own], ci[group, 0, own]),
                    str(peak),
                    _share(mean[group, peak, 0], ci[group, peak, 0]),
                    _share(mean[group, peak, own], ci[group, peak, own]),
                    _share(mean[group, -1, own], ci[group, -1, own]),
                ]
            )
    prompts = ", ".join(f"{lang} {curve.prompt_languages.count(lang)}" for lang in curve.groups)
    return Section(
        title=f"Language of each layer ({name})",
        text=[
            "The residual stream after each layer, read as a prediction; its probability summed "
            "by the language of the vocabulary items. What belongs to no language, to several, or "
            f"to one that was not asked for is other. Prompts: {prompts}. Means over prompts with "
            "95 % intervals by bootstrap over prompts."
        ],
        columns=[
            "prompts in",
            "own language at the embeddings",
            "layer with most English",
            "English there",
            "own language there",
            "own language at the end",
        ]
        if rows
        else [],
        rows=rows,
        figures=[
            layers.language_curve(shown).to_json(),
            *(layers.layer_languages(curve, prompts=lang).to_json() for lang in curve.groups[:1]),
        ],
    )


def _has_story(curve: LanguageCurve) -> bool:
    """Whether English and every prompt's own language are among its columns."""
    return {"en", *curve.groups} <= set(curve.languages)


def _latent(name: str, latent: LatentLanguages) -> Section:
    mean, ci = latent.mean, latent.ci
    rows = []
    for column, lang in enumerate(latent.languages):
        peak = int(mean[:, column].argmax())
        rows.append(
            [
                lang,
                str(peak),
                _share(mean[peak, column], ci[peak, column]),
                _share(mean[-1, column], ci[-1, column]),
            ]
        )
    return Section(
        title=f"Latent language ({name})",
        text=[
            f"{len(latent.probability)} prompts that ask for one word. The probability, at the "
            "last token, of all vocabulary items with which that word could begin, in the language "
            "asked for and in English; beside it the entropy of the prediction and the token "
            "energy of the residual stream."
        ],
        columns=["language", "layer where it is likeliest", "there", "at the end"],
        rows=rows,
        figures=[layers.latent_language(latent).to_json()],
    )


def _heads(attention: HeadAttention) -> Section:
    return Section(
        title="Attention heads",
        text=[
            "What each head looks at, on average over the tokens of all languages: the first "
            "position, the token before, the token itself, tokens of the text's own language; and "
            "the entropy of its pattern."
        ],
        figures=[
            layers.head_attention(attention, measure=measure).to_json()
            for measure in attention.measures
        ],
    )


def _share(value: Any, ci: Any) -> str:
    low, high = ci.tolist()
    return f"{float(value):.2f} [{low:.2f}, {high:.2f}]"


def _measured(statistics: list[Frequency | Activations | Importance]) -> Section:
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


def _interval(value: float, low: float, high: float) -> str:
    if value != value:  # not measured
        return ""
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"
