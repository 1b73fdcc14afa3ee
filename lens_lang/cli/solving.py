"""The commands that solve tasks with neurons off: ``evaluate tasks`` and ``evaluate mwork``."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from lens_lang.cli.options import (
    Device,
    Dtype,
    Json,
    Model,
    Neurons,
    RunDir,
    dtype_of,
    languages_of,
)
from lens_lang.cli.printing import print_rows, say
from lens_lang.errors import OptionError, near_misses

if TYPE_CHECKING:
    from lens_lang.evaluate.solving import TaskOptions
    from lens_lang.regions import Regions
    from lens_lang.tasks import Task, TaskItems

_Tasks = Annotated[
    list[str],
    typer.Option("--task", help="xquad, mgsm, xcsqa, xlsum or xnli; once for each."),
]
_Languages = Annotated[
    str | None,
    typer.Option(
        "--languages",
        help="To test in, with commas; without, all of the items', from the hub en,de,fr,zh,es,ru.",
    ),
]
_File = Annotated[
    list[str] | None,
    typer.Option("--file", help="TASK:LANGUAGE=FILE, with the rows of the task's data set."),
]
_Hub = Annotated[
    bool, typer.Option("--hub", help="Stream the data sets from the hub, not the packaged sets.")
]
_NoCue = Annotated[
    bool, typer.Option("--no-cue", help="The paper's prompts as they are, without 'Answer:'.")
]
_ItemLimit = Annotated[int | None, typer.Option(help="At most so many items a language.")]
_Controls = Annotated[int, typer.Option(help="Random controls for each set of neurons.")]
_NewTokens = Annotated[
    int | None, typer.Option(help="At most so many in an answer; without, the task's own.")
]
_Batch = Annotated[int, typer.Option(help="Prompts at once.")]
_Seed = Annotated[int, typer.Option(help="Of the random neurons.")]


def tasks(
    run_dir: RunDir,
    task: _Tasks,
    model: Model = "gemma-3-270m",
    device: Device = None,
    neurons: Neurons = "lape",
    languages: _Languages = None,
    items: _ItemLimit = None,
    file: _File = None,
    hub: _Hub = False,
    no_cue: _NoCue = False,
    controls: _Controls = 3,
    new_tokens: _NewTokens = None,
    batch_size: _Batch = 16,
    seed: _Seed = 0,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Solve tasks in every language with its own neurons off, beside random ones."""
    from lens_lang.evaluate.solving import task_matrix
    from lens_lang.intervene import ablate
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons

    options = _options(controls, new_tokens, batch_size, seed)
    weights = dtype_of(dtype)
    asked = _asked(task)
    source = _source(asked, file, hub, items, no_cue)
    found = LanguageNeurons.load(run_dir / f"{neurons}.safetensors")
    read = [source.read(each, languages_of(languages)) for each in asked]
    loaded = load_model(model, device=device, **weights)
    for each in read:
        _say_items(each)
    rows: list[dict[Any, Any]] = []
    for each in read:
        matrix = task_matrix(
            loaded,
            each,
            {"own neurons off": {lang: ablate(some) for lang, some in found.items()}},
            options=options,
            run_dir=run_dir / "tasks",
        )
        method = "" if neurons == "lape" else f"-{neurons}"
        matrix.save(run_dir / f"task-{each.task.name}{method}.safetensors")
        for metric in matrix.metrics:
            rows += matrix.to_frame(metric).to_dict("records")
    shown = rows if as_json else [_shown(row, controls > 1) for row in rows]
    print_rows(shown, as_json, "Tasks, neurons off")


def mwork(
    run_dir: RunDir,
    task: _Tasks,
    model: Model = "gemma-3-270m",
    device: Device = None,
    neurons: Neurons = "plnd",
    languages: _Languages = None,
    items: _ItemLimit = None,
    file: _File = None,
    hub: _Hub = False,
    no_cue: _NoCue = False,
    understanding: Annotated[
        float | None,
        typer.Option(help="First layers: how many, or below 1 which share; without, 0.25."),
    ] = None,
    generation: Annotated[
        float | None,
        typer.Option(help="Last layers: how many, or below 1 which share; without, 0.06."),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(
            help="TASK:LANGUAGE to choose the layers on, as the paper: xquad:zh. If the task is "
            "tested too, every second item serves for the choice, the others for the test."
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Of the table and of --tune, such as log_probability.")
    ] = None,
    controls: _Controls = 3,
    new_tokens: _NewTokens = None,
    batch_size: _Batch = 16,
    seed: _Seed = 0,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Switch off neurons region by region: English against the others (Zhao et al. 2024)."""
    from lens_lang.evaluate.mwork import RegionSearch, tune_regions
    from lens_lang.evaluate.mwork import mwork as test_story
    from lens_lang.languages import find_language
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons
    from lens_lang.regions import Regions
    from lens_lang.sites import n_layers

    options = _options(controls, new_tokens, batch_size, seed)
    weights = dtype_of(dtype)
    if tune is not None and (understanding is not None or generation is not None):
        raise OptionError("--tune chooses what --understanding and --generation say: give one")
    given = _regions(understanding, generation)
    asked = _asked(task)
    on = None if tune is None else _tuned(tune)
    tried = asked if on is None or on.task in asked else [*asked, on.task]
    _check_metric(metric, tried)
    source = _source(tried, file, hub, items, no_cue)
    found = LanguageNeurons.load(run_dir / f"{neurons}.safetensors")
    if on is not None:
        find_language(on.language, found.languages)  # refuses one without neurons
    read = {each.name: source.read(each, languages_of(languages)) for each in asked}
    tuning: TaskItems | None = None
    if on is not None:
        tuning = source.read(on.task, ["en", on.language])
        if on.task in asked:
            tuning, read[on.task.name] = _apart(tuning, read[on.task.name])
    loaded = load_model(model, device=device, **weights)
    whole, kept = n_layers(loaded), run_dir / "tasks"
    given.layers(whole)  # refuses what leaves no layer for the task
    for each in read.values():
        _say_items(each, " to test on" if tune else "")
    regions: Regions | RegionSearch = given
    if on is not None and tuning is not None:
        _say_items(tuning, " to choose the layers on")
        regions = search = tune_regions(
            loaded,
            found,
            tuning,
            language=on.language,
            sizes={
                "understanding": sorted({max(whole * share // 8, 1) for share in (1, 2, 3)}),
                "generation": sorted({max(whole * share // 16, 1) for share in (1, 2, 3)}),
            },
            options=options,
            metric=metric,
            run_dir=kept,
        )
        for row in search.table.round(4).to_dict("records"):
            say(" ".join(f"{name} {value}" for name, value in row.items()))
    result = test_story(
        loaded, found, list(read.values()), regions=regions, options=options, run_dir=kept
    )
    for name, settings in result.provenance["left out"].items():
        for setting, without in settings.items():
            say(f"{name}: {', '.join(without)} left out of {setting}, having no neurons there")
    method = "" if neurons == "plnd" else f"-{neurons}"
    result.save(run_dir / f"mwork{method}.safetensors")
    rows = result.to_frame(metric).to_dict("records")
    print_rows(
        rows if as_json else [_as_in_paper(row, controls > 1) for row in rows],
        as_json,
        f"U layers 0-{result.regions['understanding'][-1]}, "
        f"G layers {result.regions['generation'][0]}-{result.regions['generation'][-1]}"
        if result.regions["understanding"] and result.regions["generation"]
        else "",
    )


def _options(controls: int, new_tokens: int | None, batch_size: int, seed: int) -> "TaskOptions":
    from lens_lang.evaluate.solving import TaskOptions

    return TaskOptions(controls=controls, new_tokens=new_tokens, batch_size=batch_size, seed=seed)


def _regions(understanding: float | None, generation: float | None) -> "Regions":
    """The regions asked for; whole numbers of layers are typed as numbers, too."""
    from lens_lang.regions import Regions

    parts: dict[str, int | float] = {}
    for name, part in (("understanding", understanding), ("generation", generation)):
        if part is None:
            continue
        if not (0 <= part < 1 or (part >= 1 and part.is_integer())):
            raise OptionError(
                f"--{name} takes a whole number of layers, or a share below 1, got {part:g}"
            )
        parts[name] = part if part < 1 else int(part)
    return Regions(**parts)


class _Tuned(NamedTuple):
    """What layers are chosen on."""

    task: "Task"
    language: str


def _tuned(tune: str) -> _Tuned:
    from lens_lang.languages import language_tag
    from lens_lang.tasks import find_task

    name, _, language = tune.partition(":")
    if not (name and language):
        raise OptionError(f"--tune takes TASK:LANGUAGE, such as xquad:zh, got {tune!r}")
    tag = language_tag(language)
    if tag == "en":
        raise OptionError("--tune takes a language to compare with English, not English itself")
    return _Tuned(find_task(name), tag)


def _asked(names: list[str]) -> "list[Task]":
    """The tasks named on the command line, each once however it is written."""
    from lens_lang.tasks import find_task

    return list(dict.fromkeys(find_task(name) for name in names))


def _check_metric(metric: str | None, asked: "list[Task]") -> None:
    from lens_lang.evaluate.task_scores import METRICS

    for task in asked:
        known = METRICS[task.metric]
        if metric is not None and metric not in known:
            raise OptionError(
                f"--metric {metric!r} is not measured for {task.name}{near_misses(metric, known)}"
            )


class _Source(NamedTuple):
    """Where items are from: own files, the hub, or the packaged sets."""

    files: dict[str, dict[str, str | Path]]
    hub: bool
    limit: int | None
    cue: bool

    def read(self, task: "Task", languages: list[str] | None) -> "TaskItems":
        """The items of a task in these languages, or in all there are."""
        from lens_lang.languages import language_tag
        from lens_lang.task_reading import read_task, stream_task

        if not self.hub:
            read = read_task(task, self.files.get(task.name), languages=languages, cue=self.cue)
            return read if self.limit is None else read.limit(self.limit)
        # Not every data set has every language; those it lacks are said, not refused.
        wanted = list(map(language_tag, languages or ["en", "de", "fr", "zh", "es", "ru"]))
        missing = [lang for lang in wanted if lang not in task.configs]
        if missing:
            say(f"{task.dataset} is not given in {', '.join(missing)}")
        known = [lang for lang in wanted if lang in task.configs]
        return stream_task(task, known, cue=self.cue, limit=self.limit)


def _source(
    asked: "list[Task]", file: list[str] | None, hub: bool, items: int | None, no_cue: bool
) -> _Source:
    """The source of items named on the command line, checked as far as nothing is read."""
    from lens_lang.tasks import find_task

    files: dict[str, dict[str, str | Path]] = {}
    for each in file or []:
        place, equals, path = each.partition("=")
        name, _, lang = place.partition(":")
        if not (equals and lang):
            raise OptionError(f"--file takes TASK:LANGUAGE=FILE, got {each!r}")
        task = find_task(name)
        if task not in asked:
            raise OptionError(
                f"--file is for {', '.join(some.name for some in asked)}, got one for {task.name}"
            )
        if lang in files.setdefault(task.name, {}):
            raise OptionError(f"--file names two files of {task.name} in {lang}")
        files[task.name][lang] = path
    if items is not None and items < 1:
        raise OptionError(f"--items must be at least 1, got {items}")
    if files and hub:
        raise OptionError("--file and --hub are two sources of items: give one")
    return _Source(files, hub, items, not no_cue)


def _apart(tuning: "TaskItems", tested: "TaskItems") -> "tuple[TaskItems, TaskItems]":
    """Every second item to choose on, and the others to test on, alike in all languages."""
    names = dict.fromkeys(item.name for some in tuning.items.values() for item in some)
    chosen = set(list(names)[::2])
    halves = [
        {
            lang: tuple(item for item in some if (item.name in chosen) == taken)
            for lang, some in whole.items.items()
        }
        for whole, taken in ((tuning, True), (tested, False))
    ]
    if not all(some for half in halves for some in half.values()):
        raise OptionError(
            f"--tune {tuning.task.name} needs items to choose the layers on and others to test on "
            "in every language: two at least"
        )
    return replace(tuning, items=halves[0]), replace(tested, items=halves[1])


def _say_items(items: "TaskItems", purpose: str = "") -> None:
    counts = ", ".join(f"{lang} {len(some)}" for lang, some in items.items.items())
    say(f"Items of {items.task.name}{purpose} ({items.source}): {counts}")


def _interval(row: dict[Any, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    ends = f" [{low:+.3f}, {high:+.3f}]" if low == low else ""
    return f"{row[name]:+.3f}{ends}"


def _p(value: float) -> str:
    return "" if value != value else f"{value:.3f}"


def _shown(row: dict[Any, Any], drawn: bool) -> dict[str, Any]:
    """A row of a task's table as a person reads it; `drawn`: enough random sets for a test."""
    first = row["intervention"] == "none"
    return {
        "task": row["task"],
        "metric": row["metric"],
        "neurons": "none" if first else "own off",
        "language": row["language"],
        "items": row["items"],
        "score": f"{row['score']:.3f} [{row['score_low']:.3f}, {row['score_high']:.3f}]",
        "change": "" if first else _interval(row, "change"),
        "random": "" if first or row["control"] != row["control"] else _interval(row, "control"),
        "p (Holm)": _p(row["p_holm"]),
        **({"p one more random": _p(row["p_random_holm"])} if drawn else {}),
    }


def _as_in_paper(row: dict[Any, Any], drawn: bool) -> dict[str, Any]:
    """A row of the paper's tables 2 to 5, with intervals."""
    return {
        "task": row["task"],
        "off": row["off"],
        "neurons": row["neurons"],
        "en": f"{row['english']:.3f}",
        "others": f"{row['others']:.3f}",
        "change en": _interval(row, "d_english"),
        "change others": _interval(row, "d_others"),
        "en - others": _interval(row, "delta"),
        "p (Holm)": _p(row["p_holm"]),
        "p others": _p(row["p_others_holm"]),
        **({"p one more random": _p(row["p_random_holm"])} if drawn else {}),
    }
