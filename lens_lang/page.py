"""One HTML page from a run folder: what was measured, what was found, what it does.

The page is a single file that opens without a network: the plotting script is inside it, once,
whatever the number of figures.
"""

import json
import warnings
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
from lens_lang.errors import LensLangError, MissingExtraError, StorageError
from lens_lang.evaluate.categories import CategoryEffect
from lens_lang.evaluate.generation import GenerationMatrix
from lens_lang.evaluate.perplexity import PerplexityMatrix
from lens_lang.evaluate.story import MWork
from lens_lang.evaluate.task_scores import TaskMatrix
from lens_lang.heads import HeadAttention
from lens_lang.importance import Importance
from lens_lang.latent import LatentLanguages
from lens_lang.neurons import LanguageNeurons
from lens_lang.page_parts import Part, contents_of, part_of
from lens_lang.patterns import SharingPatterns
from lens_lang.plot.views import page_script
from lens_lang.results import Result, load
from lens_lang.sections.cards import cards_section
from lens_lang.sections.changes import delta_section
from lens_lang.sections.contexts import contexts_section
from lens_lang.sections.effect import effect_section
from lens_lang.sections.generation import generation_sections
from lens_lang.sections.layers import curve_section, heads_section, latent_section
from lens_lang.sections.measured import measured_section
from lens_lang.sections.neurons import neurons_section
from lens_lang.sections.record import caution_of, facts_of, made_by, options_of, texts_section
from lens_lang.sections.scores import scores_section
from lens_lang.sections.section import Section
from lens_lang.sections.sharing import (
    category_effect_section,
    contributions_section,
    sharing_section,
)
from lens_lang.sections.tasks import mwork_sections, tasks_sections
from lens_lang.sections.vocabulary import vocabulary_section
from lens_lang.signs import NeuronSigns
from lens_lang.stats import Activations, Frequency
from lens_lang.storage import replacing
from lens_lang.vocabulary import VocabularyLanguages

FILE_NAME = "report.html"


@dataclass(frozen=True)
class Written:
    """A page, and what is not on it.

    Attributes:
        path: The page.
        unread: The files that could not be read, and why.
    """

    path: Path
    unread: Mapping[Path, str]


def report(run_dir: str | Path) -> Path:
    """Write ``report.html`` into a run folder, from whatever results lie there.

    Files that cannot be read are named on the page and in a warning.

    Args:
        run_dir: The folder, with files written by ``save``.

    Returns:
        The page.

    Raises:
        StorageError: The folder holds no result, or none that can be read, or the page cannot be
            written.
        MissingExtraError: plotly is not installed.
    """
    written = write_page(run_dir)
    for path, why in written.unread.items():
        warnings.warn(f"{path.name} is not on the page: {why}", stacklevel=2)
    return written.path


def write_page(run_dir: str | Path) -> Written:
    """Write the page as `report` does, and say which files are not on it.

    Args:
        run_dir: The folder.

    Returns:
        The page, and the files that could not be read.

    Raises:
        StorageError: As for `report`.
        MissingExtraError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise MissingExtraError("The report", "plot") from None
    from jinja2 import Environment, StrictUndefined

    folder = Path(run_dir)
    results, unread = _read(folder)
    if not results and unread:
        raise StorageError(next(iter(unread.values())))
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
    parts = [
        *(part_of(number, each) for number, each in enumerate(sections, 1)),
        _data_part(results, unread),
    ]
    cautions = [caution_of(records), _ABLATION if any(map(_ablates, results.values())) else ""]
    page = environment.from_string(_template("report.html")).render(
        title=f"Language neurons: {folder.resolve().name}",
        cautions=[each for each in cautions if each],
        facts=facts_of(records),
        contents=contents_of(parts),
        sections=parts,
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
    return Written(target, unread)


def read_results(folder: Path) -> dict[Path, Result]:
    """Read every result file in a folder, by name.

    Raises:
        StorageError: There is no such folder, or a file in it is damaged.
    """
    results, unread = _read(folder)
    if unread:
        raise StorageError(next(iter(unread.values())))
    return results


def _read(folder: Path) -> tuple[dict[Path, Result], dict[Path, str]]:
    """The results in a folder, by name, and why files could not be read."""
    if not folder.is_dir():
        raise StorageError(f"There is no run folder {folder}")
    results: dict[Path, Result] = {}
    unread: dict[Path, str] = {}
    for path in sorted(folder.glob("*.safetensors"), key=lambda path: path.stem):
        try:
            results[path] = load(path)
        except LensLangError as error:
            unread[path] = str(error)
    return results, unread


def _template(name: str) -> str:
    return files("lens_lang").joinpath("templates", name).read_text(encoding="utf-8")


# --- which sections, in which order ---

_Maker = Callable[[str, Any, Mapping[Path, Result]], list[Section]]


def _sections(results: Mapping[Path, Result]) -> list[Section]:
    made: list[tuple[str, Section]] = []
    for group, kinds, maker in _MAKERS:
        for path, result in results.items():
            if isinstance(result, kinds):
                sections = maker(path.stem, result, results)
                options = [("file", path.name), *options_of(result.provenance)]
                sections[:1] = [replace(each, options=options) for each in sections[:1]]
                made += [(path.stem, replace(each, group=group)) for each in sections]
    statistics = {
        path.stem: result
        for path, result in results.items()
        if isinstance(result, Frequency | Activations | Importance | NeuronSigns)
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


_MAKERS: tuple[tuple[str, Any, _Maker], ...] = (
    ("Neurons", LanguageNeurons, _neurons),
    ("Effects", PerplexityMatrix, _effect),
    ("Single neurons", NeuronCards, lambda name, result, _: cards_section(result)),  # noqa: ARG005
    ("Contexts", NeuronContexts, lambda name, result, _: [contexts_section(name, result)]),
    ("Answers", GenerationMatrix, lambda name, result, _: generation_sections(name, result)),
    ("Tasks", TaskMatrix, lambda name, result, _: tasks_sections(name, result)),
    ("Regions and tasks", MWork, lambda name, result, _: mwork_sections(name, result)),
    ("Language of each layer", LanguageCurve, _curve),
    ("Latent language", LatentLanguages, lambda name, result, _: [latent_section(name, result)]),
    ("Attention heads", HeadAttention, lambda name, result, _: [heads_section(name, result)]),
    ("Shared neurons", SharingPatterns, lambda name, result, _: [sharing_section(name, result)]),
    (
        "Shared neurons",
        CategoryContributions,
        lambda name, result, _: [contributions_section(name, result)],
    ),
    (
        "Shared neurons",
        CategoryEffect,
        lambda name, result, _: [category_effect_section(name, result)],
    ),
    ("Scores", NeuronScores, lambda name, result, _: [scores_section(name, result)]),
    ("Changed weights", Delta, lambda name, result, _: [delta_section(name, result)]),
    ("Vocabulary", VocabularyLanguages, lambda name, result, _: [vocabulary_section(name, result)]),
)

_ABLATION = (
    "Ablation shows what a model cannot do without; it does not show where a language is stored. "
    "Compare every effect with its control."
)


def _ablates(result: Result) -> bool:
    """Whether a result shows what becomes of a model without neurons."""
    match result:
        case PerplexityMatrix():
            return result.interventions != ("tuned",)
        case GenerationMatrix():
            return not set(result.interventions) <= set(result.steering)
        case TaskMatrix():
            return bool(result.interventions)
        case NeuronCards():
            return any(card.effect for card in result)
        case LanguageCurve() | LatentLanguages():
            hooks = result.provenance.get("fwd_hooks") or ()
            return any(hooks.values()) if isinstance(hooks, Mapping) else bool(hooks)
        case _:
            return isinstance(result, MWork | CategoryEffect)


def _data_part(results: Mapping[Path, Result], unread: Mapping[Path, str]) -> Part:
    """The files beside the page: what they hold, and what made them."""
    shared = ("lens_lang", "torch", "transformer_lens")
    rows = []
    for path, result in results.items():
        about = made_by(result.provenance)
        own = (about.get(name, "") for name in ("model", "weights", *shared))
        rows.append([path.name, type(result).__name__, *own, f"{path.stat().st_size:,}"])
    part = part_of(
        0,
        Section(
            title="Data",
            text=[
                "The files beside this page; lens_lang.load(path) reads each.",
                *(
                    f"Not shown: {path.name}, written by another version of lens_lang, or damaged."
                    for path in unread
                ),
            ],
            columns=["file", "holds", "model", "weights", *shared, "bytes"],
            rows=rows,
        ),
    )
    linked = [
        [replace(row[0], text=path.name, interval="", link=quote(path.name)), *row[1:]]
        for path, row in zip(results, part.rows, strict=True)
    ]
    return replace(part, id="data", rows=linked)
