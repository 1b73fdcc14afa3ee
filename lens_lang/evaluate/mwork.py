"""The MWork story, tested: understand, solve the task, generate (Zhao et al. 2024, section 4).

A language's neurons of some regions are switched off, and the task is tested in that language and
in English; then as many random neurons of the same layers. If the story holds, switching off
understanding hurts other languages at reading comprehension and not English, generation at
summaries, and so on. Tables have the paper's layout: English, the others, their changes, and the
difference of the changes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lens_lang.errors import LanguageError, OptionError, near_misses
from lens_lang.evaluate.runs import HooksByLanguage
from lens_lang.evaluate.solving import TaskOptions, task_matrix
from lens_lang.evaluate.story import PIVOT, MWork
from lens_lang.evaluate.task_scores import METRICS
from lens_lang.intervene import ablate
from lens_lang.languages import find_language
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.regions import Regions
from lens_lang.sites import HookedModel, check_layers, n_layers
from lens_lang.tasks import TaskItems

if TYPE_CHECKING:
    import pandas as pd

PARTS: Mapping[str, str] = {
    "U": "understanding",
    "A": "task_attention",
    "F": "task_mlp",
    "G": "generation",
}
"""The regions of `Regions.split` by the letter that stands for them in settings."""

SETTINGS: Mapping[str, tuple[str, ...]] = {
    "xquad": ("U", "A+F", "G", "U+A+F+G"),
    "mgsm": ("A", "A+F", "U+G", "U+F+G", "U+A+F+G"),
    "xcsqa": ("F", "A", "A+F", "U+A+F+G"),
    "xlsum": ("G", "U+A+F+G"),
    "xnli": ("U", "A+F", "G", "U+A+F+G"),
}
"""What the paper's tables 2 to 5 switch off for each task, and for inferences as for XQuAD."""


@dataclass(frozen=True, eq=False)
class RegionSearch:
    """How many layers understand and generate, judged by one task in one language.

    Attributes:
        regions: The choice.
        table: What was tried: ``region``, ``layers``, scores of English and of the language under
            the language's neurons there, and their difference.
        task: The task's name.
        language: The language beside English.
        metric: What the scores are.
        items: The items, as `TaskItems.describe` has them.
    """

    regions: Regions
    table: "pd.DataFrame"
    task: str = ""
    language: str = ""
    metric: str = ""
    items: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return everything but the choice as JSON values, for a result's provenance."""
        return {
            "task": self.task,
            "language": self.language,
            "metric": self.metric,
            "items": dict(self.items),
            "tried": [
                {str(name): value for name, value in row.items()}
                for row in self.table.to_dict("records")
            ],
        }


def mwork(
    model: HookedModel,
    neurons: LanguageNeurons,
    tasks: Sequence[TaskItems],
    *,
    regions: Regions | RegionSearch = Regions(),  # noqa: B008  frozen
    settings: Mapping[str, Sequence[str]] | None = None,
    options: TaskOptions = TaskOptions(controls=3),  # noqa: B008  frozen
    run_dir: str | Path | None = None,
    progress: bool = True,
) -> MWork:
    """Switch off languages' neurons region by region, and test tasks in them and in English.

    Args:
        model: The model.
        neurons: Found by any method; one without attention neurons has no region A. The paper
            takes from each language what all languages have in common: ``plnd(...,
            without="common")``.
        tasks: Items of one or several tasks, English and at least one language that has neurons.
        regions: Which layers understand, solve and generate; or what `tune_regions` found, which
            is then kept in the provenance.
        settings: By task what to switch off, letters of `PARTS` joined by ``+``; None takes
            `SETTINGS`. Without attention neurons, A is left out.
        options: Controls, length of answers, batch size, seed.
        run_dir: Folder that keeps every run as soon as it is done; the same call goes on.
        progress: Show a bar on stderr, in a terminal or a notebook.

    Returns:
        Scores of every item; `MWork.to_frame` is the paper's table. Where a language has no
        neurons in a setting, that language is left out of it, and the setting where no language
        has any: ``provenance["left out"]`` says which, by task and setting.

    Raises:
        OptionError: A setting is none, or asks for attention neurons and there are none; there is
            nothing to switch off for a task; a task is given twice; or the regions leave no layer
            for the task.
        LanguageError: A task is not in English, or in no other language that has neurons.
        ShapeError: The neurons belong to another model.
        CorpusError: A prompt is too long for the model.
        ActivationError: The model produced NaN or infinity.
    """
    names = [items.task.name for items in tasks]
    if not names or len(set(names)) < len(names):
        raise OptionError(f"mwork needs each task once, got {', '.join(names) or 'none'}")
    _check_neurons(model, neurons)
    chosen = regions.regions if isinstance(regions, RegionSearch) else regions
    layers = chosen.layers(n_layers(model))
    split = {lang: chosen.split(some) for lang, some in neurons.items()}
    plans = {items.task.name: _plan(items, split, settings) for items in tasks}
    matrices = {
        items.task.name: task_matrix(
            model,
            items,
            plans[items.task.name].hooks,
            options=options,
            run_dir=run_dir,
            progress=progress,
        )
        for items in tasks
    }
    return MWork(
        matrices,
        {name: plan.settings for name, plan in plans.items()},
        {name: tuple(each) for name, each in layers.items()},
        {
            "model": next(iter(matrices.values())).provenance["model"],
            "neurons": dict(neurons.provenance),
            "counts": {
                lang: {name: len(some) for name, some in each.items()}
                for lang, each in split.items()
            },
            "regions": {
                "understanding": chosen.understanding,
                "generation": chosen.generation,
                **({"search": regions.describe()} if isinstance(regions, RegionSearch) else {}),
            },
            "left out": {name: plan.left_out for name, plan in plans.items() if plan.left_out},
        },
    )


def tune_regions(
    model: HookedModel,
    neurons: LanguageNeurons,
    items: TaskItems,
    *,
    language: str,
    sizes: Mapping[str, Sequence[int]],
    options: TaskOptions = TaskOptions(),  # noqa: B008  frozen
    metric: str | None = None,
    run_dir: str | Path | None = None,
) -> RegionSearch:
    """Choose the regions' layers on one task and one language, as the paper does (tables 12, 13).

    Of each region the number of layers is taken whose neurons, switched off, hurt the language
    most beside English: the greatest score of English minus the language's. Judge on other
    items, languages or tasks than you tune on.

    Args:
        model: The model.
        neurons: As for `mwork`.
        items: The task, in English and in the language; the paper takes XQuAD.
        language: The language; the paper takes Chinese.
        sizes: Numbers of layers to try, for ``understanding`` and ``generation``.
        options: Length of answers, batch size. There are no controls here, whatever they say.
        metric: As in `MWork.to_frame`.
        run_dir: As for `mwork`.

    Returns:
        The regions, and everything that was tried; `mwork` takes it as it is.

    Raises:
        OptionError: `sizes` name another region, are not whole numbers from 0 on, or none of them
            leaves a layer for the task; or the task is not judged by the metric.
        LanguageError: The task is not in English and the language.
    """
    import pandas as pd

    if set(sizes) != {"understanding", "generation"} or not all(sizes.values()):
        raise OptionError(
            "sizes must give numbers of layers for understanding and for generation, got "
            f"{ {name: list(each) for name, each in sizes.items()} }"
        )
    for name, numbers in sizes.items():
        for number in numbers:
            if not isinstance(number, int) or isinstance(number, bool) or number < 0:
                raise OptionError(
                    f"sizes must be whole numbers of layers from 0 on, got {number!r} for {name}"
                )
    metrics = METRICS[items.task.metric]
    if metric is not None and metric not in metrics:
        raise OptionError(
            f"{items.task.name} is not judged by {metric!r}{near_misses(metric, metrics)}"
        )
    tag = neurons.languages[find_language(language, neurons.languages)]
    if tag == PIVOT:
        raise LanguageError("Regions are tuned on another language beside English, not on English")
    # Nothing is asked in any other language, not even without neurons off.
    places = [find_language(each, items.languages) for each in (PIVOT, tag)]
    read = [items.languages[place] for place in places]
    items = replace(items, items={lang: items.items[lang] for lang in read})
    _check_neurons(model, neurons)
    pairs = [
        (first, last)
        for first in sizes["understanding"]
        for last in sizes["generation"]
        if first + last < n_layers(model)
    ]
    if not pairs:  # says why
        Regions(min(sizes["understanding"]), min(sizes["generation"])).layers(n_layers(model))
    tried: dict[str, HooksByLanguage] = {}
    for name, numbers in sizes.items():
        for number in numbers:
            alone = dict.fromkeys(sizes, 0) | {name: number}
            some = Regions(**alone).split(neurons[tag])[name]
            hooks = ablate(some)
            tried[f"{name} {number}"] = {tag: hooks, PIVOT: hooks}
    matrix = task_matrix(model, items, tried, options=replace(options, controls=0), run_dir=run_dir)
    rows = []
    for run, label in enumerate(tried, 1):
        name, _, layers = label.partition(" ")
        english, other = (float(matrix.of(x, metric)[run].mean()) for x in (PIVOT, tag))
        rows.append(
            {
                "region": name,
                "layers": int(layers),
                "english": english,
                "language": other,
                "difference": english - other,
            }
        )
    table = pd.DataFrame(rows)
    gain = {
        (str(row["region"]), int(row["layers"])): float(row["difference"])
        for row in table.to_dict("records")
    }
    first, last = max(
        pairs, key=lambda pair: gain["understanding", pair[0]] + gain["generation", pair[1]]
    )
    return RegionSearch(
        Regions(first, last), table, items.task.name, tag, metric or metrics[0], items.describe()
    )


def _check_neurons(model: HookedModel, neurons: LanguageNeurons) -> None:
    for some in neurons.values():
        for site, mask in some.masks.items():
            check_layers(model, site, (mask.shape[0], mask.shape[1]))


class _Plan(NamedTuple):
    """What is switched off for a task: in settings, as hooks, and where there was nothing."""

    settings: tuple[str, ...]
    hooks: dict[str, HooksByLanguage]
    left_out: dict[str, list[str]]


def _plan(
    items: TaskItems,
    split: Mapping[str, Mapping[str, NeuronSet]],
    settings: Mapping[str, Sequence[str]] | None,
) -> _Plan:
    task = items.task.name
    others = [lang for lang in items.languages if lang != PIVOT and lang in split]
    if PIVOT not in items.languages or not others:
        raise LanguageError(
            f"{task} must be in English and in a language that has neurons "
            f"({', '.join(split)}), but is in {', '.join(items.languages)}"
        )
    asked = SETTINGS[task] if settings is None else tuple(settings.get(task, ()))
    has_attention = any(len(split[lang]["task_attention"]) for lang in others)
    wanted: dict[str, None] = {}
    left_out: dict[str, list[str]] = {}
    for setting in asked:
        letters = setting.split("+")
        if not set(letters) <= set(PARTS) or len(set(letters)) < len(letters):
            raise OptionError(
                f"A setting is made of {', '.join(PARTS)} joined by +, such as U+G; got {setting!r}"
            )
        if settings is not None and "A" in letters and not has_attention:
            raise OptionError(
                f"The setting {setting!r} of {task} asks for attention neurons, and "
                f"{', '.join(others)} have none in the layers that solve the task: leave out A"
            )
        left = [each for each in letters if each != "A" or has_attention]
        if left:
            wanted["+".join(left)] = None
        else:
            left_out[setting] = list(others)
    if not wanted:
        raise OptionError(f"There is nothing to switch off for {task}: give it settings")
    plan: dict[str, HooksByLanguage] = {}
    kept: dict[str, None] = {}
    for setting in wanted:
        for lang in others:
            parts = [split[lang][PARTS[letter]] for letter in setting.split("+")]
            union = parts[0]
            for each in parts[1:]:
                union = union | each
            if not len(union):  # what changes nothing would look as if it had been measured
                left_out.setdefault(setting, []).append(lang)
                continue
            hooks = ablate(union)
            plan[f"{setting} {lang}"] = {lang: hooks, PIVOT: hooks}
            kept[setting] = None
    if not kept:
        raise OptionError(
            f"There is nothing to switch off for {task}: {', '.join(others)} have no neurons in "
            f"{', '.join(wanted)}"
        )
    return _Plan(tuple(kept), plan, left_out)
