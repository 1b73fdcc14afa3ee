"""One HTML page from a run folder: what was measured, what was found, what it does.

The page is a single file that opens without a network: the plotting script is inside it, once,
whatever the number of figures.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lens_lang.attribute.cards import NeuronCards
from lens_lang.attribute.categories import CategoryContributions
from lens_lang.attribute.scores import NeuronScores
from lens_lang.contexts import NeuronContexts
from lens_lang.curves import LanguageCurve
from lens_lang.delta import Delta
from lens_lang.errors import MissingExtraError, StorageError
from lens_lang.evaluate.categories import CategoryEffect
from lens_lang.evaluate.generation import GenerationMatrix
from lens_lang.evaluate.perplexity import PerplexityMatrix
from lens_lang.evaluate.story import MWork
from lens_lang.evaluate.task_scores import TaskMatrix
from lens_lang.heads import HeadAttention
from lens_lang.importance import Importance
from lens_lang.latent import LatentLanguages
from lens_lang.neurons import LanguageNeurons
from lens_lang.patterns import SharingPatterns
from lens_lang.plot.views import page_script
from lens_lang.results import Result, load
from lens_lang.sections.caption import Caption, describe
from lens_lang.sections.cards import cards_section
from lens_lang.sections.cells import cell_value, column_kinds, split_interval
from lens_lang.sections.changes import delta_section
from lens_lang.sections.contexts import contexts_section
from lens_lang.sections.effect import effect_section
from lens_lang.sections.generation import generation_sections
from lens_lang.sections.layers import curve_section, heads_section, latent_section
from lens_lang.sections.measured import measured_section
from lens_lang.sections.neurons import neurons_section
from lens_lang.sections.record import facts_of, made_by, options_of, texts_section
from lens_lang.sections.scores import scores_section
from lens_lang.sections.section import Section
from lens_lang.sections.sharing import (
    category_effect_section,
    contributions_section,
    sharing_section,
)
from lens_lang.sections.tasks import mwork_sections, tasks_sections
from lens_lang.sections.vocabulary import vocabulary_section
from lens_lang.stats import Activations, Frequency
from lens_lang.storage import replacing
from lens_lang.vocabulary import VocabularyLanguages

FILE_NAME = "report.html"

_LONG_NAME = 14
"""Longer names of rows than this are wrapped on a small screen, where they stay in sight."""

_STACKED = 3
"""With so many columns that have intervals, these stand below their values."""


@dataclass(frozen=True)
class _Cell:
    """A cell as the page writes it."""

    text: str
    interval: str
    value: float | None
    link: str = ""


@dataclass(frozen=True)
class _Figure:
    """A figure as the page holds it, until it is drawn."""

    json: str
    caption: Caption
    height: int


@dataclass(frozen=True)
class _Part:
    """A section with all that its place on the page needs."""

    id: str
    title: str
    text: list[str]
    columns: list[str]
    kinds: list[str]
    stacked: bool
    long_names: bool
    rows: list[list[_Cell]]
    figures: list[_Figure]
    fragments: list[str]
    views: list[str]
    options: list[tuple[str, str]]


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
    records = {path.stem: result.provenance for path, result in results.items()}
    sections = _sections(results)
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(_template("report.html")).render(
        title=f"Language neurons: {folder.resolve().name}",
        facts=facts_of(records),
        sections=[
            *(_part(number, each) for number, each in enumerate(sections, 1)),
            _data_part(results),
        ],
        provenance=json.dumps(
            {path.name: result.provenance for path, result in results.items()},
            indent=2,
            ensure_ascii=False,
            default=dict,
        ),
        style=_template("report.css"),
        script=_template("report.js"),
        plotly_js=get_plotlyjs(),
        views_js=page_script() if any(each.views for each in sections) else "",
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


def _template(name: str) -> str:
    return files("lens_lang").joinpath("templates", name).read_text(encoding="utf-8")


# --- which sections, in which order ---

_Maker = Callable[[str, Any, Mapping[Path, Result]], list[Section]]


def _sections(results: Mapping[Path, Result]) -> list[Section]:
    made: list[tuple[str, Section]] = []
    for kinds, maker in _MAKERS:
        for path, result in results.items():
            if isinstance(result, kinds):
                sections = maker(path.stem, result, results)
                options = [("file", path.name), *options_of(result.provenance)]
                sections[:1] = [replace(each, options=options) for each in sections[:1]]
                made += [(path.stem, each) for each in sections]
    statistics = {
        path.stem: result
        for path, result in results.items()
        if isinstance(result, Frequency | Activations | Importance)
    }
    if statistics:
        made.append(("", measured_section(statistics)))
    texts = texts_section({path.stem: result.provenance for path, result in results.items()})
    return [*_told_apart(made), *([texts] if texts else [])]


def _told_apart(made: list[tuple[str, Section]]) -> list[Section]:
    """Sections of one title say which file they are of."""
    titles = [section.title for _, section in made]
    return [
        replace(section, title=f"{section.title} ({name})")
        if titles.count(section.title) > 1
        else section
        for name, section in made
    ]


def _neurons(name: str, neurons: LanguageNeurons, results: Mapping[Path, Result]) -> list[Section]:
    # what `sharing` finds has a section of its own, where its patterns are
    shared = any(isinstance(result, SharingPatterns) for result in results.values())
    if shared and neurons.provenance.get("method") == "sharing":
        return []
    return [neurons_section(name, neurons)]


def _effect(name: str, matrix: PerplexityMatrix, results: Mapping[Path, Result]) -> list[Section]:
    found = {
        path.stem: result for path, result in results.items() if isinstance(result, LanguageNeurons)
    }
    # perplexity-plnd.safetensors is the effect of plnd.safetensors
    method = name.partition("-")[2]
    if method:
        return [effect_section(matrix, found.get(method))]
    only = next(iter(found.values())) if len(found) == 1 else None
    return [effect_section(matrix, found.get("lape", only))]


def _curve(name: str, curve: LanguageCurve, results: Mapping[Path, Result]) -> list[Section]:
    made = [curve_section(name, curve)]
    plain = next((r for p, r in results.items() if p.stem == "curve"), None)
    if isinstance(plain, LanguageCurve) and curve is not plain and curve.comparable(plain):
        made.append(curve_section(f"{name} minus curve", curve - plain))
    return made


_MAKERS: tuple[tuple[Any, _Maker], ...] = (
    (LanguageNeurons, _neurons),
    (PerplexityMatrix, _effect),
    (NeuronCards, lambda name, result, _: cards_section(result)),  # noqa: ARG005
    (NeuronContexts, lambda name, result, _: [contexts_section(name, result)]),
    (GenerationMatrix, lambda name, result, _: generation_sections(name, result)),
    (TaskMatrix, lambda name, result, _: tasks_sections(name, result)),
    (MWork, lambda name, result, _: mwork_sections(name, result)),
    (LanguageCurve, _curve),
    (LatentLanguages, lambda name, result, _: [latent_section(name, result)]),
    (HeadAttention, lambda name, result, _: [heads_section(name, result)]),
    (SharingPatterns, lambda name, result, _: [sharing_section(name, result)]),
    (CategoryContributions, lambda name, result, _: [contributions_section(name, result)]),
    (CategoryEffect, lambda name, result, _: [category_effect_section(name, result)]),
    (NeuronScores, lambda name, result, _: [scores_section(name, result)]),
    (Delta, lambda name, result, _: [delta_section(name, result)]),
    (VocabularyLanguages, lambda name, result, _: [vocabulary_section(name, result)]),
)


# --- how they stand on the page ---


def _part(number: int, section: Section) -> _Part:
    kinds = column_kinds(section.columns, section.rows)
    return _Part(
        id=f"s{number}",
        title=section.title,
        text=section.text,
        columns=section.columns,
        kinds=kinds,
        long_names=any(len(row[0]) > _LONG_NAME for row in section.rows if row),
        stacked=_intervals(section.rows) >= _STACKED,
        rows=[
            [_cell(cell, kind) for cell, kind in zip(row, kinds, strict=True)]
            for row in section.rows
        ],
        figures=[_figure(figure) for figure in section.figures],
        fragments=section.fragments,
        views=[view.to_html() for view in section.views],
        options=section.options,
    )


def _intervals(rows: list[list[str]]) -> int:
    """How many columns have intervals."""
    return sum(
        any(split_interval(cell)[1] for cell in column) for column in zip(*rows, strict=True)
    )


def _cell(text: str, kind: str) -> _Cell:
    if kind == "name":
        return _Cell(text, "", None)
    said, interval = split_interval(text)
    return _Cell(said, interval, cell_value(text))


def _figure(text: str) -> _Figure:
    figure = json.loads(text)
    return _Figure(text, describe(figure), int(figure["layout"].get("height") or 450))


def _data_part(results: Mapping[Path, Result]) -> _Part:
    """The files beside the page: what they hold, and what made them."""
    shared = ("lens_lang", "torch", "transformer_lens")
    rows = []
    for path, result in results.items():
        about = made_by(result.provenance)
        own = (about.get(name, "") for name in ("model", "weights", *shared))
        rows.append([path.name, type(result).__name__, *own, f"{path.stat().st_size:,}"])
    part = _part(
        0,
        Section(
            title="Data",
            text=["The files beside this page; lens_lang.load(path) reads each."],
            columns=["file", "holds", "model", "weights", *shared, "bytes"],
            rows=rows,
        ),
    )
    linked = [
        [replace(row[0], text=path.name, interval="", link=quote(path.name)), *row[1:]]
        for path, row in zip(results, part.rows, strict=True)
    ]
    return replace(part, id="data", rows=linked)
