"""Figures and sections of tasks show the numbers of their result."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from lens_lang import plot
from lens_lang.errors import OptionError
from lens_lang.evaluate.story import MWork
from lens_lang.evaluate.task_scores import METRICS, TaskMatrix
from lens_lang.sections.cells import Cell
from lens_lang.sections.section import p_value
from lens_lang.sections.tasks import floor, mwork_sections, tasks_sections
from lens_lang.tasks import find_task

LANGUAGES = ("en", "fr", "de")
ITEMS = 12
CONTROL = "random control, and where one more would lie"


def solved(
    scores: Mapping[str, Mapping[str, float]],
    *,
    task: str = "xquad",
    languages: Sequence[str] = LANGUAGES,
    controls: int = 0,
    count: int = ITEMS,
    **provenance: Any,
) -> TaskMatrix:
    """A matrix with these mean scores by run (``none`` first) and language.

    What is not named was not tested. The first control loses a tenth of what its intervention
    does, the second twice that. Log-probabilities are the scores less 3.
    """
    names = list(scores)
    metrics = METRICS[find_task(task).metric]
    hits = metrics[0] == "accuracy"
    made, answers = {}, {}
    for number, lang in enumerate(languages):
        rows = [scores[name].get(lang, math.nan) for name in names]
        for row in list(rows[1:]):
            rows += [rows[0] + (row - rows[0]) * 0.1 * (draw + 1) for draw in range(controls)]
        means = torch.tensor(rows, dtype=torch.float64)[:, None]
        noise = torch.rand(count, generator=torch.Generator().manual_seed(number)).double() - 0.5
        noise = 0.1 * (noise - noise.mean())
        place = torch.arange(count).double()[None]
        main = (place < (means * count).round()).double() if hits else means + noise * (means != 0)
        main = torch.where(means.isnan(), math.nan, main)
        log_p = means - 3 + noise
        made[lang] = torch.stack([main] * (len(metrics) - 1) + [log_p])
        answers[lang] = tuple(tuple(None if x != x else "so" for _ in range(count)) for x in rows)
    return TaskMatrix(
        task=task,
        interventions=tuple(names[1:]),
        languages=tuple(languages),
        names={lang: tuple(f"item {n}" for n in range(count)) for lang in languages},
        scores=made,
        answers=answers,
        n_controls=controls,
        provenance=provenance,
    )


BEFORE = {"en": 0.8, "fr": 0.6, "de": 0.5}
OFF = {
    "none": BEFORE,
    "fr off": {"en": 0.75, "fr": 0.1, "de": 0.45},
    "de off": {"en": 0.7, "de": 0.2},
}


def story(*, controls: int = 1, tasks: Sequence[str] = ("xquad", "xcsqa")) -> MWork:
    settings = {"xquad": ("U", "U+G"), "xcsqa": ("F",), "mgsm": ("A",), "xlsum": ("G",)}
    matrices = {}
    for task in tasks:
        runs = {"none": BEFORE}
        for number, setting in enumerate(settings[task]):
            for lang in ("fr", "de"):
                runs[f"{setting} {lang}"] = {"en": 0.75 - 0.1 * number, lang: 0.2}
        matrices[task] = solved(runs, task=task, controls=controls, count=20)
    return MWork(
        matrices,
        {task: settings[task] for task in tasks},
        {"understanding": (0, 1, 2), "task": (3, 4), "generation": (5,)},
        {
            "counts": {
                "fr": {"understanding": 30, "task_attention": 0, "task_mlp": 7, "generation": 5},
                "de": {"understanding": 20, "task_attention": 2, "task_mlp": 9, "generation": 1},
            }
        },
    )


def serialised(figure: Any) -> Any:
    """What a browser reads: JSON has no NaN."""
    return json.loads(figure.to_json(), parse_constant=pytest.fail)


def traces(figure: Any, name: str) -> list[Any]:
    return [trace for trace in figure.data if trace.name == name]


# --- one task ---


def test_every_intervention_has_a_panel_with_the_scores_of_the_frame() -> None:
    matrix = solved(OFF, controls=2)
    figure = plot.task_matrix(matrix)
    assert [note.text for note in figure.layout.annotations] == ["fr off", "de off"]
    frame = matrix.to_frame()
    for number, name in enumerate(matrix.interventions):
        rows = frame[frame["intervention"] == name].set_index("language")
        before = frame[frame["intervention"] == "none"].set_index("language").loc[rows.index]
        under = traces(figure, "under the intervention")[number]
        assert list(under.x) == rows.index.tolist()
        assert list(under.y) == rows["score"].tolist()
        ends = [*(rows["score_high"] - rows["score"])], [*(rows["score"] - rows["score_low"])]
        assert (list(under.error_y.array), list(under.error_y.arrayminus)) == ends
        assert list(traces(figure, "before")[number].y) == before["score"].tolist()
        control = traces(figure, CONTROL)[number]
        assert list(control.y) == (before["score"] + rows["control"]).tolist()
        assert list(control.error_y.array) == (rows["control_high"] - rows["control"]).tolist()
    assert figure.layout.yaxis.title.text == "F1"
    assert list(figure.layout.xaxis.categoryarray) == list(LANGUAGES)
    serialised(figure)


def test_hovering_over_a_score_gives_its_change_and_test() -> None:
    matrix = solved(OFF, controls=2)
    row = matrix.to_frame().query("intervention == 'fr off' and language == 'fr'").iloc[0]
    note = traces(plot.task_matrix(matrix), "under the intervention")[0].customdata[1]
    assert note.startswith("fr, fr off: 0.100 [")
    assert "12 items<br>change -0.500 [-0.500, -0.500]<br>random control -0.075 [" in note
    assert note.endswith(f"p (Holm) {row['p_holm']:.3g}")


def test_a_figure_of_another_metric_does_not_begin_at_zero() -> None:
    figure = plot.task_matrix(solved(OFF), metric="log_probability")
    assert figure.layout.yaxis.title.text == "nats per token"
    assert figure.layout.title.text == "xquad: log-probability (nats per token) by language"
    low, high = figure.layout.yaxis.range
    assert -3 < low < -2.9  # the worst is 0.1 - 3
    assert -2.2 < high < -2
    assert plot.task_matrix(solved(OFF)).layout.yaxis.range[0] == 0
    assert traces(figure, "before")[0].y[0] == pytest.approx(-2.2)
    with pytest.raises(OptionError, match="not judged by 'f2'"):
        plot.task_matrix(solved(OFF), metric="f2")


def test_a_figure_without_controls_or_interventions_or_of_one_item() -> None:
    assert traces(plot.task_matrix(solved(OFF)), CONTROL) == []
    bare = plot.task_matrix(solved({"none": {"fr": 0.5}}, languages=("fr",)))
    assert [note.text for note in bare.layout.annotations] == ["without intervention"]
    assert list(traces(bare, "before")[0].y) == [pytest.approx(0.5)]
    one = plot.task_matrix(solved(OFF, count=1, controls=1))
    assert serialised(one)["data"][0]["error_y"]["array"] == [None] * 3


def test_the_tables_of_a_task_have_the_rows_of_the_frame() -> None:
    matrix = solved(OFF, controls=2, model="gemma", items={"source": "packaged"})
    main, log_p = tasks_sections("taskmatrix", matrix)
    assert main.title == "Task xquad (taskmatrix): F1"
    assert log_p.title == "Task xquad (taskmatrix): log-probability (nats per token)"
    assert main.text[0] == "Items: en 12, fr 12, de 12 (packaged), solved by gemma."
    assert "random control: their mean change" in main.text[-1]
    assert "p: that the intervention changes nothing, by a sign-flip test" in main.text[-1]
    assert "p, one more random: how probable it is" in main.text[-1]
    frame = matrix.to_frame()
    assert len(main.rows) == len(frame) == 8
    row = frame.iloc[4]
    cells = dict(zip(main.columns, main.rows[4], strict=True))
    assert (cells["intervention"], cells["language"]) == ("fr off", "fr")
    ends = f"[{row['score_low']:.3f}, {row['score_high']:.3f}]"
    assert cells["score"].replace("\xa0", " ") == f"0.100 {ends}"
    assert cells["change"].replace("\xa0", " ") == "-0.500 [-0.500, -0.500]"
    assert cells["random control"].startswith("-0.075")
    assert cells["p (Holm)"] == p_value(row["p_holm"])
    assert cells["p, one more random"] == p_value(row["p_random_holm"])
    assert {len(each) for each in main.rows} == {len(main.columns)}
    assert main.rows[0][3:6] == ["", "", ""]
    assert log_p.rows[0][2].startswith("-2.200")
    assert not any("nan" in cell for s in (main, log_p) for row in s.rows for cell in row)


def test_the_table_of_a_task_without_controls_has_no_column_for_them() -> None:
    main = tasks_sections("t", solved({"none": {"fr": 0.5}}, languages=("fr",)))[0]
    assert "random control" not in main.columns
    assert len(main.rows) == 1
    assert len(main.rows[0]) == len(main.columns)
    one = tasks_sections("t", solved(OFF, count=1, controls=1))[0]
    assert one.rows[4][2:5] == ["0.100", "-0.500", "-0.050"]  # one item has no interval
    assert "p, one more random" not in one.columns  # nor is one draw enough for a test
    assert "one more random" not in one.text[-1]


# --- floor and chance ---


def test_a_task_at_its_floor_or_at_chance_is_said_to_be() -> None:
    never = solved({"none": {"en": 0.5, "fr": 0.0, "de": 0.0}}, task="mgsm")
    (said,) = floor(never)
    assert said.startswith("mgsm is at its floor in fr, de: accuracy is 0 without intervention")
    assert "only log-probabilities say something" in said
    guessed = solved({"none": {"en": 1.0, "fr": 0.25, "de": 0.0}}, task="xcsqa")
    first, second = floor(guessed)
    assert "at its floor in de" in first
    assert second.startswith("xcsqa is not solved above chance (1 of 5) in fr 0.25")
    assert first in tasks_sections("t", guessed)[0].text
    assert floor(solved({"none": BEFORE})) == []


def test_above_chance_is_judged_by_wilsons_interval_and_by_the_number_of_options() -> None:
    half = {"none": {"fr": 0.5}}
    for task, few, many in (("xcsqa", 6, 8), ("xnli", 20, 100)):
        assert floor(solved(half, task=task, languages=("fr",), count=few))
        assert not floor(solved(half, task=task, languages=("fr",), count=many))
    below = solved({"none": {"fr": 0.1}}, task="xnli", languages=("fr",), count=100)
    assert "chance (1 of 3)" in floor(below)[0]


# --- the story ---


def test_every_task_has_a_panel_with_its_settings_own_and_random() -> None:
    result = story()
    figure = plot.mwork(result)
    assert [note.text for note in figure.layout.annotations] == ["xquad (F1)", "xcsqa (accuracy)"]
    frame = result.to_frame()
    for kind in ("own", "random"):
        drawn = traces(figure, f"{kind} neurons")
        assert [trace.showlegend for trace in drawn] == [True, False]
        for task, trace in zip(("xquad", "xcsqa"), drawn, strict=True):
            rows = frame[(frame["task"] == task) & (frame["neurons"] == kind)]
            assert list(trace.x) == list(result.settings[task])
            assert list(trace.y) == rows["delta"].tolist()
            assert list(trace.error_y.array) == (rows["delta_high"] - rows["delta"]).tolist()
    row = frame.iloc[0]
    note = traces(figure, "own neurons")[0].customdata[0]
    assert note.startswith("xquad, U off, own neurons<br>English 0.750, others 0.200<br>ΔEnglish -")
    assert f"p (Holm): Δ {row['p_holm']:.3g}, Δothers {row['p_others_holm']:.3g}" in note
    assert {shape.y0 for shape in figure.layout.shapes} == {0}
    serialised(figure)


def test_the_story_without_controls_and_of_many_tasks() -> None:
    figure = plot.mwork(story(controls=0, tasks=("xquad", "mgsm", "xcsqa", "xlsum")))
    assert traces(figure, "random neurons") == []
    assert len(traces(figure, "own neurons")) == 4
    log_p = plot.mwork(story(), metric="log_probability")
    assert log_p.layout.annotations[0].text == "xquad (log-probability (nats per token))"
    with pytest.raises(OptionError):
        plot.mwork(story(), metric="f1")  # which xcsqa has not


def test_the_papers_table_is_shown_with_the_scores_before() -> None:
    result = story()
    main, log_p = mwork_sections("mwork", result)
    assert main.title == "Regions and tasks (mwork): main metrics"
    assert [row[:3] for row in main.rows] == [
        ["xquad", "none", ""],
        ["xquad", "U", "own"],
        ["xquad", "U", "random"],
        ["xquad", "U+G", "own"],
        ["xquad", "U+G", "random"],
        ["xcsqa", "none", ""],
        ["xcsqa", "F", "own"],
        ["xcsqa", "F", "random"],
    ]
    assert main.rows[0][3:] == ["0.800", "0.550", "", "", "", "", ""]
    row = result.to_frame().iloc[0]
    own = [cell.replace("\xa0", " ") for cell in main.rows[1]]
    assert own[3:5] == ["0.750", "0.200"]
    for cell, key in zip(own[5:8], ("d_english", "d_others", "delta"), strict=True):
        low, high = row[f"{key}_low"], row[f"{key}_high"]
        # where no item changed there is no interval
        ends = "" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"
        assert cell == f"{row[key]:+.3f}{ends}"
    assert any("[" in cell for row in main.rows for cell in row)
    assert not any("nan" in cell for s in (main, log_p) for row in s.rows for cell in row)
    assert main.rows[2][8:] == ["", ""]
    assert [row[:3] for row in log_p.rows][0] == ["xquad", "none", ""]
    assert log_p.rows[0][3] == "-2.200"
    assert all(len(row) == len(main.columns) for s in (main, log_p) for row in s.rows)


def test_what_does_not_change_has_no_interval() -> None:
    still = {"none": BEFORE, "U fr": {"en": 0.8, "fr": 0.6}, "U de": {"en": 0.8, "de": 0.2}}
    matrix = solved(still, task="xcsqa", controls=2, count=20)
    result = MWork({"xcsqa": matrix}, {"xcsqa": ("U",)}, {"task": (0,)}, {})
    main = mwork_sections("mwork", result)[0]
    cells = dict(zip(main.columns, main.rows[1], strict=True))
    assert (cells["ΔEnglish"], "[" in cells["Δothers"]) == ("0.000", True)
    serialised(plot.mwork(result))


def test_regions_neurons_and_tests_are_said() -> None:
    text = mwork_sections("mwork", story())[0].text
    assert text[0] == (
        "Items: 20 per task and language. Others: fr, de. Layers of the regions: understanding 0 "
        "to 2, task 3 to 4, generation 5."
    )
    assert text[-1].startswith("Judged by: xquad F1, xcsqa accuracy. A language's neurons")
    assert "p of Δ and of Δothers: that they are 0, by a sign-flip test over items" in text[-1]
    assert "one random set for each language" in text[-1]
    bare, several = (mwork_sections("m", story(controls=n))[0].text[-1] for n in (0, 3))
    assert "one more random" not in bare and "one random set" not in bare
    assert "p, one more random: how probable it is that other random sets" in several


def test_items_that_differ_between_tasks_are_said_of_each() -> None:
    runs = {"none": BEFORE, "U fr": {"en": 0.7, "fr": 0.2}}
    matrices = {
        task: solved(runs, task=task, languages=("en", "fr"), count=count)
        for task, count in (("xquad", 8), ("mgsm", 6))
    }
    result = MWork(matrices, dict.fromkeys(matrices, ("U",)), {"task": (0,)})
    assert (
        mwork_sections("m", result)[0]
        .text[0]
        .startswith("Items: xquad 8, mgsm 6 per language. Others: fr. Layers")
    )


def test_a_p_that_cannot_be_small_is_marked_and_said_to_be() -> None:
    few = mwork_sections("m", small(6))[0]
    assert few.text[-1] == (
        "†: with 6 aligned items the smallest p this test can give is .031, and .062 after "
        "correction over 2; a p with † is at it, and says only that all moved the same way. None "
        "of these can be small: read the intervals."
    )
    marked = [row[9] for row in few.rows if row[2] == "own"]
    assert marked == [".062 †", ".062 †"]
    assert [cell.value for cell in marked if isinstance(cell, Cell)] == [0.0625, 0.0625]
    many = mwork_sections("m", small(12))[0]
    assert not any("†" in said for said in (*many.text, *(c for row in many.rows for c in row)))
    single = tasks_sections("t", solved(OFF, count=4))[0]
    assert single.text[-1].startswith("†: with 4 items the smallest p this test can give is .125")
    assert single.rows[4][4].endswith(" †")


def small(count: int) -> MWork:
    """Two settings of one task, each of which takes as much from every item."""
    off = {f"{setting} fr": {"en": 0.7, "fr": 0.2} for setting in ("U", "G")}
    matrix = solved({"none": BEFORE, **off}, languages=("en", "fr"), count=count)
    return MWork({"xquad": matrix}, {"xquad": ("U", "G")}, {"task": (0,)})


def test_rows_where_nothing_is_ever_right_are_one_sentence() -> None:
    never = dict.fromkeys(("en", "fr"), 0.0)
    runs = {"none": never, "A fr": never, "G fr": {"en": 0.5, "fr": 0.0}}
    matrix = solved(runs, task="mgsm", languages=("en", "fr"))
    main, log_p = mwork_sections("m", MWork({"mgsm": matrix}, {"mgsm": ("A", "G")}, {"task": (0,)}))
    assert [row[1] for row in main.rows] == ["none", "G"]
    assert (
        "mgsm: 1 of 2 rows are left out, where nothing is ever right, before or after." in main.text
    )
    assert [row[1] for row in log_p.rows] == ["none", "A", "G"]


def test_marks_of_the_story_are_not_cut_by_the_panels_edge() -> None:
    result = story(tasks=("xquad", "mgsm", "xcsqa", "xlsum"))
    figure = plot.mwork(result)
    frame = result.to_frame()
    for number, task in enumerate(result.matrices):
        low, high = figure.layout[f"yaxis{number + 1 if number else ''}"].range
        mine = frame[frame["task"] == task]
        assert low < min(0, mine["delta_low"].min()) and high > max(0, mine["delta_high"].max())
    columns = {figure.layout[f"xaxis{n}"].domain for n in ("", 2, 3, 4)}
    assert len(columns) == 2  # two beside each other


def test_the_papers_table_has_a_test_against_random_sets_if_there_are_several() -> None:
    result = story(controls=3)
    for section, metric in zip(mwork_sections("m", result), (None, "log_probability"), strict=True):
        assert section.columns[-1] == "p(Δ), one more random"
        assert {len(row) for row in section.rows} == {len(section.columns)}
        shown = [row[-1] for row in section.rows if row[1] != "none"]
        assert shown == [p_value(p) for p in result.to_frame(metric)["p_random_holm"]]
        assert any(shown)
    assert mwork_sections("m", story())[0].columns[-1] == "p(Δothers)"
