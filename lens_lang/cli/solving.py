"""The commands that solve tasks with neurons off: ``evaluate tasks`` and ``evaluate mwork``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lens_lang.cli.options import Json, Languages, Model, Neurons, RunDir, languages_of
from lens_lang.cli.printing import print_rows, say
from lens_lang.errors import OptionError

if TYPE_CHECKING:
    from lens_lang.evaluate.solving import TaskOptions
    from lens_lang.tasks import TaskItems

_Tasks = Annotated[
    list[str],
    typer.Option("--task", help="xquad, mgsm, xcsqa, xlsum or xnli; once for each."),
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
    neurons: Neurons = "lape",
    languages: Languages = None,
    items: _ItemLimit = None,
    file: _File = None,
    hub: _Hub = False,
    no_cue: _NoCue = False,
    controls: _Controls = 3,
    new_tokens: _NewTokens = None,
    batch_size: _Batch = 16,
    seed: _Seed = 0,
    as_json: Json = False,
) -> None:
    """Solve tasks in every language with its own neurons off, beside random ones."""
    from lens_lang.evaluate.solving import task_matrix
    from lens_lang.intervene import ablate
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons

    options = _options(controls, new_tokens, batch_size, seed)
    found = LanguageNeurons.load(run_dir / f"{neurons}.safetensors")
    read = _read_tasks(task, file, hub, languages, items, no_cue)
    loaded = load_model(model)
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
    print_rows(rows if as_json else [_shown(row) for row in rows], as_json, "Tasks, neurons off")


def mwork(
    run_dir: RunDir,
    task: _Tasks,
    model: Model = "gemma-3-270m",
    neurons: Neurons = "plnd",
    languages: Languages = None,
    items: _ItemLimit = None,
    file: _File = None,
    hub: _Hub = False,
    no_cue: _NoCue = False,
    understanding: Annotated[
        float, typer.Option(help="First layers: how many, or below 1 which share.")
    ] = 0.25,
    generation: Annotated[
        float, typer.Option(help="Last layers: how many, or below 1 which share.")
    ] = 0.06,
    tune: Annotated[
        str | None,
        typer.Option(help="TASK:LANGUAGE to choose the layers on, as the paper: xquad:zh."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Of the table and of --tune, such as log_probability.")
    ] = None,
    controls: _Controls = 1,
    new_tokens: _NewTokens = None,
    batch_size: _Batch = 16,
    seed: _Seed = 0,
    as_json: Json = False,
) -> None:
    """Switch off neurons region by region: English against the others (Zhao et al. 2024)."""
    from lens_lang.evaluate.mwork import mwork as test_story
    from lens_lang.evaluate.mwork import tune_regions
    from lens_lang.models import load_model
    from lens_lang.neurons import LanguageNeurons
    from lens_lang.regions import Regions
    from lens_lang.sites import n_layers

    options = _options(controls, new_tokens, batch_size, seed)
    found = LanguageNeurons.load(run_dir / f"{neurons}.safetensors")
    read = {each.task.name: each for each in _read_tasks(task, file, hub, languages, items, no_cue)}
    on, _, language = (tune or "").partition(":")
    if tune and (on not in read or not language):
        raise OptionError(f"--tune takes TASK:LANGUAGE of a --task, such as xquad:zh, got {tune!r}")
    loaded = load_model(model)
    kept = run_dir / "tasks"
    # Whole numbers of layers are typed as numbers, too.
    regions = Regions(*(int(part) if part >= 1 else part for part in (understanding, generation)))
    if tune:
        whole = n_layers(loaded)
        search = tune_regions(
            loaded,
            found,
            read[on],
            language=language,
            sizes={
                "understanding": sorted({max(whole * share // 8, 1) for share in (1, 2, 3)}),
                "generation": sorted({max(whole * share // 16, 1) for share in (1, 2, 3)}),
            },
            options=options,
            metric=metric,
            run_dir=kept,
        )
        regions = search.regions
        for row in search.table.round(4).to_dict("records"):
            say(" ".join(f"{name} {value}" for name, value in row.items()))
    result = test_story(
        loaded, found, list(read.values()), regions=regions, options=options, run_dir=kept
    )
    result.save(run_dir / "mwork.safetensors")
    rows = result.to_frame(metric).to_dict("records")
    print_rows(
        rows if as_json else [_as_in_paper(row) for row in rows],
        as_json,
        f"U layers 0-{result.regions['understanding'][-1]}, "
        f"G layers {result.regions['generation'][0]}-{result.regions['generation'][-1]}"
        if result.regions["understanding"] and result.regions["generation"]
        else "",
    )


def _options(controls: int, new_tokens: int | None, batch_size: int, seed: int) -> "TaskOptions":
    from lens_lang.evaluate.solving import TaskOptions

    return TaskOptions(controls=controls, new_tokens=new_tokens, batch_size=batch_size, seed=seed)


def _read_tasks(
    names: list[str],
    file: list[str] | None,
    hub: bool,
    languages: str | None,
    items: int | None,
    no_cue: bool,
) -> "list[TaskItems]":
    """The items of the tasks named on the command line: own files, the hub's, or packaged."""
    from lens_lang.tasks import find_task, read_task, stream_task

    files: dict[str, dict[str, str | Path]] = {}
    for each in file or []:
        place, equals, path = each.partition("=")
        name, colon, lang = place.partition(":")
        if not (equals and colon and name in names):
            raise OptionError(f"--file takes TASK:LANGUAGE=FILE of a --task, got {each!r}")
        files.setdefault(name, {})[lang] = path
    if items is not None and items < 1:
        raise OptionError(f"--items must be at least 1, got {items}")
    if files and hub:
        raise OptionError("--file and --hub are two sources of items: give one")
    tags = languages_of(languages)
    found = []
    for name in names:
        task = find_task(name)
        if hub:
            # Not every data set has every language; those it lacks are said, not refused.
            wanted = tags or ["en", "de", "fr", "zh", "es", "ru"]
            missing = [lang for lang in wanted if lang not in task.configs]
            if missing:
                say(f"{task.dataset} is not given in {', '.join(missing)}")
            known = [lang for lang in wanted if lang in task.configs]
            found.append(stream_task(task, known, cue=not no_cue, limit=items))
            continue
        read = read_task(task, files.get(name), languages=tags, cue=not no_cue)
        found.append(read if items is None else read.limit(items))
    return found


def _interval(row: dict[Any, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:+.3f} [{low:+.3f}, {high:+.3f}]"


def _p(value: float) -> str:
    return "" if value != value else f"{value:.3f}"


def _shown(row: dict[Any, Any]) -> dict[str, Any]:
    """A row of a task's table as a person reads it."""
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
    }


def _as_in_paper(row: dict[Any, Any]) -> dict[str, Any]:
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
    }
