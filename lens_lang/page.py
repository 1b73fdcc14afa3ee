"""One HTML page from a run folder: what was measured, what was found, what it does.

The page is a single file that opens without a network: the plotting script is inside it, once,
whatever the number of figures.
"""

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from lens_lang.attribute.categories import CategoryContributions
from lens_lang.curves import LanguageCurve
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
from lens_lang.results import Result, load
from lens_lang.sections.effect import effect_section
from lens_lang.sections.generation import generation_sections
from lens_lang.sections.layers import curve_section, heads_section, latent_section
from lens_lang.sections.measured import measured_section
from lens_lang.sections.neurons import neurons_section
from lens_lang.sections.section import Section
from lens_lang.sections.sharing import (
    category_effect_section,
    contributions_section,
    sharing_section,
)
from lens_lang.sections.tasks import mwork_sections, tasks_sections
from lens_lang.stats import Activations, Frequency
from lens_lang.storage import replacing

FILE_NAME = "report.html"


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


def _sections(results: Mapping[Path, Result]) -> list[Section]:
    neurons = {
        path.stem: result for path, result in results.items() if isinstance(result, LanguageNeurons)
    }
    made: list[Section] = []
    shared = any(isinstance(result, SharingPatterns) for result in results.values())
    for path, result in results.items():
        # what `sharing` finds has a section of its own, where its patterns are
        if isinstance(result, LanguageNeurons) and not (
            shared and result.provenance.get("method") == "sharing"
        ):
            made.append(neurons_section(path.stem, result))
    for path, result in results.items():
        if isinstance(result, PerplexityMatrix):
            # perplexity-plnd.safetensors is the effect of plnd.safetensors
            method = path.stem.partition("-")[2] or "lape"
            made.append(
                effect_section(result, neurons.get(method) or next(iter(neurons.values()), None))
            )
    for path, result in results.items():
        if isinstance(result, GenerationMatrix):
            made += generation_sections(path.stem, result)
    for path, result in results.items():
        if isinstance(result, TaskMatrix):
            made += tasks_sections(path.stem, result)
    for path, result in results.items():
        if isinstance(result, MWork):
            made += mwork_sections(path.stem, result)
    plain = next((r for p, r in results.items() if p.stem == "curve"), None)
    for path, result in results.items():
        if isinstance(result, LanguageCurve):
            made.append(curve_section(path.stem, result))
            if (
                isinstance(plain, LanguageCurve)
                and result is not plain
                and result.comparable(plain)
            ):
                made.append(curve_section(f"{path.stem} minus curve", result - plain))
        elif isinstance(result, LatentLanguages):
            made.append(latent_section(path.stem, result))
        elif isinstance(result, HeadAttention):
            made.append(heads_section(result))
    made += [
        sharing_section(path.stem, result)
        for path, result in results.items()
        if isinstance(result, SharingPatterns)
    ]
    for path, result in results.items():
        if isinstance(result, CategoryContributions):
            made.append(contributions_section(path.stem, result))
        elif isinstance(result, CategoryEffect):
            made.append(category_effect_section(path.stem, result))
    statistics = [
        r for r in results.values() if isinstance(r, Frequency | Activations | Importance)
    ]
    return [*made, *([measured_section(statistics)] if statistics else [])]
