"""The sections of tasks: how well they are solved, and what each region's neurons do to them."""

from collections.abc import Hashable
from typing import Any

from lens_lang.evaluate.significance import share_interval
from lens_lang.evaluate.story import PIVOT, MWork
from lens_lang.evaluate.task_scores import HITS, TaskMatrix
from lens_lang.plot import tasks as figures
from lens_lang.sections.cells import Cell
from lens_lang.sections.floor import at_floor, floor_sentences
from lens_lang.sections.section import Section, change_with_interval, p_value

_OPTIONS = {"xcsqa": 5, "xnli": 3}
"""Of how many options one is right."""

_KEPT = "\N{NO-BREAK SPACE}"

_Row = dict[Hashable, Any]


def tasks_sections(name: str, matrix: TaskMatrix) -> list[Section]:
    """How well a task is solved in every language, by its main metric and by log-probability.

    Args:
        name: Of the file.
        matrix: The measurement.

    Returns:
        A section for each of the two.
    """
    made = []
    for metric in _metrics(matrix):
        first = metric == matrix.metrics[0]
        found = matrix.to_frame(metric).to_dict("records")
        few = [(int(row["items"]), _alike(row, found)) for row in found]
        tested = [pair for row, pair in zip(found, few, strict=True) if row["p"] == row["p"]]
        made.append(
            Section(
                title=f"Task {matrix.task} ({name}): {figures.unit(metric)}",
                text=[
                    *([*_tested(matrix), *floor(matrix)] if first else []),
                    _how(matrix, metric),
                    *floor_sentences(tested, "items"),
                ],
                columns=[
                    "intervention",
                    "language",
                    "score",
                    "change",
                    *(["random control"] if matrix.n_controls else []),
                    "p (Holm)",
                    *(["p, one more random"] if matrix.n_controls > 1 else []),
                ],
                rows=[
                    _task_row(row, pair, controls=matrix.n_controls)
                    for row, pair in zip(found, few, strict=True)
                ],
                figures=[figures.task_matrix(matrix, metric=metric).to_json()],
            )
        )
    return made


def mwork_sections(name: str, result: MWork) -> list[Section]:
    """The paper's tables, by each task's main metric and by log-probability.

    Args:
        name: Of the file.
        result: The measurement.

    Returns:
        A section for each of the two.
    """
    lines = [line for matrix in result.matrices.values() for line in floor(matrix)]
    made = []
    few = _few(result)
    for metric, title in ((None, "main metrics"), (figures.LOG_PROBABILITY, "log-probability")):
        rows, left_out = _paper_rows(result, metric, few)
        made.append(
            Section(
                title=f"Regions and tasks ({name}): {title}",
                text=[
                    *(
                        [_regions(result), *lines, *left_out, _story(result)]
                        if metric is None
                        else [
                            "The same by the right answer's log-probability in nats per token, "
                            "which also says something of tasks that are never solved.",
                            *left_out,
                        ]
                    ),
                    *floor_sentences(
                        [pair for pairs in few.values() for pair in pairs],
                        "aligned items"
                        if all(map(_aligned, result.matrices.values()))
                        else "items",
                    ),
                ],
                columns=[
                    "task",
                    "off",
                    "neurons",
                    "English",
                    "others",
                    "ΔEnglish",
                    "Δothers",
                    "Δ",
                    "p(Δ)",
                    "p(Δothers)",
                    *(["p(Δ), one more random"] if _drawn(result) else []),
                ],
                rows=rows,
                figures=[figures.mwork(result, metric=metric).to_json()],
            )
        )
    return made


def floor(matrix: TaskMatrix) -> list[str]:
    """Say in which languages a task cannot show a loss, because there is nothing to lose.

    Args:
        matrix: The measurement.

    Returns:
        Sentences: of languages whose main score without intervention is 0, and of those where it
        is not above chance.
    """
    metric = matrix.metrics[0]
    options = _OPTIONS.get(matrix.task)
    never, guessed = [], []
    for lang in matrix.languages:
        scores = matrix.of(lang)[0]
        if not bool(scores.isfinite().all()) or not len(scores):
            continue
        if float(scores.sum()) == 0:
            never.append(lang)
        elif options and metric in HITS:
            low, high = share_interval(int(scores.sum()), len(scores))
            if low <= 1 / options:
                guessed.append(f"{lang} {float(scores.mean()):.2f}{_KEPT}[{low:.2f}, {high:.2f}]")
    said = []
    if never:
        said.append(
            f"{matrix.task} is at its floor in {', '.join(never)}: {figures.unit(metric)} is 0 "
            "without intervention, so there is nothing to lose, and only log-probabilities say "
            "something."
        )
    if guessed:
        said.append(
            f"{matrix.task} is not solved above chance (1 of {options}) in {', '.join(guessed)}: "
            "only log-probabilities say something."
        )
    return said


def _metrics(matrix: TaskMatrix) -> tuple[str, ...]:
    return tuple(dict.fromkeys((matrix.metrics[0], figures.LOG_PROBABILITY)))


def _tested(matrix: TaskMatrix) -> list[str]:
    counts = ", ".join(f"{lang} {len(names)}" for lang, names in matrix.names.items())
    about = matrix.provenance
    source = (about.get("items") or {}).get("source")
    model = f", solved by {about['model']}" if about.get("model") else ""
    return [f"Items: {counts}{f' ({source})' if source else ''}{model}."]


def _how(matrix: TaskMatrix, metric: str) -> str:
    control = "; random control: their mean change, with a 95 % interval for one more random draw"
    beyond = (
        "; p, one more random: how probable it is that another set of as many random neurons would "
        "do as much"
        if matrix.n_controls > 1
        else ""
    )
    unit = (
        "The right answer's log-probability in nats per token. "
        if metric == figures.LOG_PROBABILITY
        else ""
    )
    return (
        f"{unit}Scores and paired changes with 95 % intervals"
        f"{control if matrix.n_controls else ''}. p: that the intervention changes nothing, by a "
        f"sign-flip test over items{beyond}; corrected over its languages (Holm)."
    )


def _alike(row: _Row, rows: list[_Row]) -> int:
    """For how many tests a row's p is corrected: the languages of its intervention."""
    return sum(
        each["intervention"] == row["intervention"] and each["p"] == each["p"] for each in rows
    )


def _task_row(row: _Row, pair: tuple[int, int], *, controls: int) -> list[str]:
    before = row["intervention"] == "none"
    score = f"{row['score']:.3f}"
    if row["score_low"] == row["score_low"]:
        score += f"{_KEPT}[{row['score_low']:.3f}, {row['score_high']:.3f}]"
    return [
        str(row["intervention"]),
        str(row["language"]),
        Cell(score, value=row["score"], low=row["score_low"], high=row["score_high"]),
        "" if before else _change(row, "change"),
        *([_change(row, "control")] if controls else []),
        p_value(row["p_holm"], at_floor=at_floor(row["p"], *pair)),
        *([p_value(row["p_random_holm"])] if controls > 1 else []),
    ]


def _change(row: _Row, key: str) -> str:
    """A change with its interval if it has one, whose ends stay on one line."""
    value, low, high = row[key], row[f"{key}_low"], row[f"{key}_high"]
    said = change_with_interval(value, low, high)
    return Cell(said.replace(", ", f",{_KEPT}"), value=value, low=low, high=high)


def _few(result: MWork) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """Of Δ and of Δothers: how many items its test has, and for how many tests it is corrected."""
    settings = [(task, off) for task, some in result.settings.items() for off in some]
    found = {}
    for task, off in settings:
        matrix = result.matrices[task]
        others = [lang for lang in matrix.languages if f"{off} {lang}" in matrix.interventions]
        counts = []
        for languages in ((PIVOT, *others), others):
            items = [len(set(matrix.names[lang])) for lang in languages]
            counts.append(max(items) if _aligned(matrix) else sum(items))
        found[task, off] = [(count, len(settings)) for count in counts]
    return found


def _aligned(matrix: TaskMatrix) -> bool:
    """Whether every language has the same items: translations count as one."""
    return len(set(matrix.names.values())) == 1


def _regions(result: MWork) -> str:
    layers = ", ".join(f"{name} {_span(each)}" for name, each in result.regions.items())
    counts = {
        task: sorted({len(names) for names in matrix.names.values()})
        for task, matrix in result.matrices.items()
    }
    said = {" to ".join(map(str, dict.fromkeys((each[0], each[-1])))) for each in counts.values()}
    items = (
        f"{said.pop()} per task and language"
        if len(said) == 1
        else ", ".join(
            f"{task} {' to '.join(map(str, dict.fromkeys((each[0], each[-1]))))}"
            for task, each in counts.items()
        )
        + " per language"
    )
    others = dict.fromkeys(
        lang for matrix in result.matrices.values() for lang in matrix.languages if lang != PIVOT
    )
    return f"Items: {items}. Others: {', '.join(others)}. Layers of the regions: {layers}."


def _span(layers: tuple[int, ...]) -> str:
    if not layers:
        return "none"
    return f"{layers[0]}" if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"


def _story(result: MWork) -> str:
    controls = max((matrix.n_controls for matrix in result.matrices.values()), default=0)
    beyond = (
        "; p, one more random: how probable it is that other random sets would give such a Δ"
        if controls > 1
        else "; one random set for each language shows what is possible, and is too few for a test"
        if controls
        else ""
    )
    judged = ", ".join(
        f"{task} {figures.unit(matrix.metrics[0])}" for task, matrix in result.matrices.items()
    )
    return (
        f"Judged by: {judged}. A language's neurons of some regions are switched off: U, all of "
        "the first layers, of understanding; A and F, attention and MLPs of the layers between, "
        "of the task; G, all of the last layers, of generation. English: its mean score "
        "under each other language's neurons; others: the mean score of each under its own. "
        "Δ = ΔEnglish \N{MINUS SIGN} Δothers is above 0 if English is spared. 95 % intervals by "
        "bootstrap over items, empty where no item changed; p of Δ and of Δothers: that they are "
        f"0, by a sign-flip test over items{beyond}; corrected over tasks and settings (Holm)."
    )


def _drawn(result: MWork) -> bool:
    """Whether there are enough random sets for a test."""
    return max((matrix.n_controls for matrix in result.matrices.values()), default=0) > 1


def _paper_rows(
    result: MWork, metric: str | None, few: dict[tuple[str, str], list[tuple[int, int]]]
) -> tuple[list[list[str]], list[str]]:
    """The rows, and sentences about those that are left out since nothing was ever right."""
    table, single = result.to_frame(metric), result.by_language(metric)
    drawn = _drawn(result)
    rows, said = [], []
    for task in result.matrices:
        mine = table[table["task"] == task].to_dict("records")
        own = single[(single["task"] == task) & (single["neurons"] == "own")]
        once = own.drop_duplicates("language")
        before = (once["english_before"].mean(), once["before"].mean())
        rows.append([task, "none", "", *map(_score, before), *[""] * (6 if drawn else 5)])
        kept = [row for row in mine if any((*before, *_numbers(row)))]
        if len(kept) < len(mine):
            said.append(
                f"{task}: {len(mine) - len(kept)} of {len(mine)} rows are left out, where nothing "
                "is ever right, before or after."
            )
        for row in kept:
            of_delta, of_others = few[task, str(row["off"])]
            rows.append(
                [
                    task,
                    str(row["off"]),
                    str(row["neurons"]),
                    _score(row["english"]),
                    _score(row["others"]),
                    *(_change(row, key) for key in ("d_english", "d_others", "delta")),
                    p_value(row["p_holm"], at_floor=at_floor(row["p"], *of_delta)),
                    p_value(row["p_others_holm"], at_floor=at_floor(row["p_others"], *of_others)),
                    *([p_value(row["p_random_holm"])] if drawn else []),
                ]
            )
    return rows, said


def _numbers(row: _Row) -> tuple[float, ...]:
    return tuple(row[key] for key in ("english", "others", "d_english", "d_others"))


def _score(value: float) -> str:
    return "" if value != value else Cell(f"{value:.3f}", value=value)
