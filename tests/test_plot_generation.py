"""Figures and sections of answers show the numbers of their matrix."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from lens_lang import plot
from lens_lang.errors import OptionError
from lens_lang.evaluate.generation import GenerationMatrix
from lens_lang.sections.cells import Cell
from lens_lang.sections.generation import generation_sections
from lens_lang.sections.section import p_value

QUESTIONS = ("en", "fr", "fr", "de", "de", "en")  # not in blocks


def answered(
    spoken: Mapping[str, Sequence[str | None]],
    *,
    languages: Sequence[str] = QUESTIONS,
    controls: Sequence[Sequence[str | None]] = (),
    steering: Mapping[str, Mapping[str, Any]] | None = None,
    babble: Sequence[str] = (),
    text: str = "an answer in",
    **provenance: Any,
) -> GenerationMatrix:
    """A matrix of answers in these languages, ``none`` first; None where nothing was asked."""
    runs = [*spoken.values(), *controls]
    named = [*spoken, *[""] * len(controls)]
    tokens, lengths = [], []
    for name, row in zip(named, runs, strict=True):
        for said in row:
            mine = [] if said is None else [7] * 8 if name in babble else list(range(8))
            tokens += mine
            lengths.append(len(mine))
    shape = (len(runs), len(languages))
    asked = torch.tensor(lengths).view(shape) > 0
    interventions = tuple(spoken)[1:]
    return GenerationMatrix(
        interventions=interventions,
        prompts=tuple(f"question {n}?" for n in range(len(languages))),
        languages=tuple(languages),
        texts=tuple(tuple(None if x is None else f"{text} {x}" for x in row) for row in runs),
        spoken=tuple(tuple(x or "und" for x in row) for row in runs),
        lines=tuple(tuple(() if x in (None, "und") else (x,) for x in row) for row in runs),
        nll=torch.where(asked, 1.5, math.nan).double(),
        tokens=torch.tensor(tokens, dtype=torch.int64),
        n_tokens=torch.tensor(lengths).view(shape),
        steering=steering or {},
        n_controls=len(controls) // len(interventions) if interventions else 0,
        provenance=provenance,
    )


@pytest.fixture
def matrix() -> GenerationMatrix:
    """French turns into English without its neurons; German was not asked without its own."""
    return answered(
        {
            "none": ["en", "fr", "fr", "de", "und", "en"],
            "fr off": ["en", "en", "en", "de", "de", "en"],
            "de off": ["en", "fr", "it", None, None, "en"],
        },
        controls=[
            ["en", "fr", "fr", "de", "und", "en"],
            ["en", "fr", "en", "de", "de", "en"],
            ["en", "fr", "fr", None, None, "en"],
            ["en", "fr", "fr", None, None, "fr"],
        ],
    )


def swept(
    targets: Sequence[str] = ("en", "fr"),
    strengths: Sequence[float] = (1, 2, 16),
    methods: Sequence[str] = ("LAPE", "mean"),
    **kwargs: Any,
) -> GenerationMatrix:
    """More strength, more answers in the target; at the last strength babble."""
    languages = [lang for lang in ("en", "fr", "de") for _ in range(3)]
    spoken: dict[str, list[str | None]] = {"none": [*languages]}
    steering = {}
    for method in methods:
        for target in targets:
            for rank, strength in enumerate(strengths):
                name = f"{method} {target} x{strength:g}"
                steering[name] = {"method": method, "target": target, "strength": strength}
                spoken[name] = [
                    None if lang == target else target if place % 3 <= rank else lang
                    for place, lang in enumerate(languages)
                ]
    return answered(
        spoken,
        languages=languages,
        steering=steering,
        babble=[name for name in steering if name.endswith(f"x{strengths[-1]:g}")],
        **kwargs,
    )


def with_controls(matrix: GenerationMatrix) -> GenerationMatrix:
    """The same with one control each, that changes nothing."""
    asked = [[text is not None for text in row] for row in matrix.texts[1:]]
    again = [
        [lang if was else None for lang, was in zip(matrix.languages, row, strict=True)]
        for row in asked
    ]
    spoken: dict[str, list[str | None]] = {
        name: [
            said if text is not None else None
            for said, text in zip(matrix.spoken[run], matrix.texts[run], strict=True)
        ]
        for run, name in enumerate(("none", *matrix.interventions))
    }
    return answered(spoken, languages=matrix.languages, controls=again, steering=matrix.steering)


def serialised(figure: Any) -> Any:
    """What a browser reads: JSON has no NaN."""
    return json.loads(figure.to_json(), parse_constant=pytest.fail)


# --- the map ---


def test_the_map_shows_the_shares_of_the_frame_and_nothing_where_nothing_was_asked(
    matrix: GenerationMatrix,
) -> None:
    figure = plot.generation_matrix(matrix)
    (trace,) = figure.data
    assert list(trace.x) == ["en", "fr", "de"]
    assert list(trace.y) == ["none", "fr off", "de off", "random control"]
    assert [list(row) for row in trace.text[:3]] == [
        ["1.00", "1.00", "0.50"],
        ["1.00", "0.00", "1.00"],
        ["1.00", "0.50", ""],
    ]
    frame = matrix.to_frame().set_index(["intervention", "question"])
    for row, name in enumerate(trace.y[:3]):
        for column, lang in enumerate(trace.x):
            if (name, lang) in frame.index:
                assert trace.z[row][column] == frame.loc[(name, lang), "rate"]
            else:
                assert math.isnan(trace.z[row][column])
                assert trace.customdata[row][column] == ""
    assert (trace.zmin, trace.zmax) == (0, 1)
    assert serialised(figure)["data"][0]["z"][2][2] is None


def test_the_last_row_is_the_mean_of_the_interventions_controls(matrix: GenerationMatrix) -> None:
    (trace,) = plot.generation_matrix(matrix).data
    # fr: 1 and 1/2 for fr off, 1 and 1 for de off; de: only fr off was asked
    assert list(trace.text[3]) == ["0.88", "0.88", "0.75"]
    assert "2 random sets for each of 2 interventions" in trace.customdata[3][1]
    assert "0.88 on average, 0.75 to 1.00" in trace.customdata[3][1]


def test_hovering_over_the_map_gives_what_the_frame_has(matrix: GenerationMatrix) -> None:
    (trace,) = plot.generation_matrix(matrix).data
    row = matrix.to_frame().query("intervention == 'fr off' and question == 'fr'").iloc[0]
    note = trace.customdata[1][1]
    assert note.startswith("fr asked, fr off: 0.00 of 2 answers in fr [0.00, ")
    assert f", {row['rate_high']:.2f}]<br>before 1.00, random control 0.75" in note
    assert f"p (Holm) {row['p_holm']:.3g}" in note
    assert note.endswith("repetition 0.00, distinct-2 0.50, NLL 1.50 nats per token")
    assert "before" not in trace.customdata[0][0]


def test_a_map_of_many_interventions_has_lower_rows_that_all_have_a_label() -> None:
    few, many = (plot.generation_matrix(swept(strengths=range(1, n))) for n in (3, 20))
    assert len(many.data[0].y) == 1 + 2 * 2 * 19
    assert many.layout.height == 130 + 20 * 77
    assert few.layout.height == 110 + 32 * 9
    assert many.layout.yaxis.dtick == 1


def test_maps_without_controls_with_one_language_and_one_intervention_or_none() -> None:
    alone = {"none": ["fr", "en"], "off": ["en", "en"]}
    figure = plot.generation_matrix(answered(alone, languages=("fr", "fr")))
    assert [list(row) for row in figure.data[0].text] == [["0.50"], ["0.00"]]
    bare = answered({"none": ["fr"]}, languages=("fr",))
    assert [list(row) for row in plot.generation_matrix(bare).data[0].text] == [["1.00"]]
    serialised(figure)


# --- which languages ---


def test_bars_divide_the_answers_among_their_languages(matrix: GenerationMatrix) -> None:
    figure = plot.spoken_languages(matrix)
    shares = {bar.name: dict(zip(bar.x, bar.y, strict=True)) for bar in figure.data}
    assert shares == {
        "en": {"en": 100, "fr": 0, "de": 0},
        "fr": {"en": 0, "fr": 100, "de": 0},
        "de": {"en": 0, "fr": 0, "de": 50},
        "und": {"en": 0, "fr": 0, "de": 50},
    }
    assert figure.layout.barmode == "stack"
    assert figure.data[3].customdata[2] == "de asked: 1 of 2 answers in no language"
    assert "without intervention" in figure.layout.title.text


def test_a_language_keeps_its_colour_and_no_language_is_grey(matrix: GenerationMatrix) -> None:
    found: dict[str, set[str]] = {}
    for name in ("none", *matrix.interventions):
        for bar in plot.spoken_languages(matrix, intervention=name).data:
            found.setdefault(bar.name, set()).add(bar.marker.color)
    assert set(found) == {"en", "fr", "de", "it", "und"}
    assert all(len(colours) == 1 for colours in found.values())
    assert len(set.union(*found.values())) == 5
    assert found["und"] == {"#8a8f98"}


def test_bars_leave_out_languages_that_were_not_asked(matrix: GenerationMatrix) -> None:
    figure = plot.spoken_languages(matrix, intervention="de off")
    assert list(figure.data[0].x) == ["en", "fr"]
    with pytest.raises(OptionError, match=r"no intervention 'de of'.*de off"):
        plot.spoken_languages(matrix, intervention="de of")


def test_rare_languages_share_a_bar_and_no_answer_is_lost() -> None:
    tags = [f"x{n:02}" for n in range(30)]
    figure = plot.spoken_languages(answered({"none": [*tags, "fr"]}, languages=["fr"] * 31))
    assert sum(bar.y[0] for bar in figure.data) == pytest.approx(100)
    assert len(figure.data) == 13
    assert figure.data[-1].name == "other languages"
    assert figure.data[-1].customdata == ("fr asked: 19 of 31 answers in other languages",)


# --- the dose ---


def lines(figure: Any, name: str, axis: str = "y") -> list[Any]:
    return [
        trace
        for trace in figure.data
        if trace.name == name and (trace.yaxis or "y") == axis and trace.x != (None,)
    ]


def test_the_curve_shows_shares_above_and_repetition_below() -> None:
    matrix = with_controls(swept())
    figure = plot.steering_curve(matrix)
    assert [note.text for note in figure.layout.annotations] == ["into en", "into fr"]
    table = matrix.summary().set_index("intervention")
    for panel, target in enumerate(("en", "fr"), 1):
        above, below = (f"y{panel}" if panel > 1 else "y"), f"y{panel + 2}"
        for method in ("LAPE", "mean"):
            names = [f"{method} {target} x{strength}" for strength in (1, 2, 16)]
            (line,) = lines(figure, method, above)
            assert list(line.x) == [1, 2, 16]
            assert list(line.y) == table.loc[names, "rate"].tolist()
            (calm,) = lines(figure, method, below)
            assert list(calm.y) == table.loc[names, "repetition"].tolist()
            (control,) = lines(figure, f"{method}, random control", above)
            assert list(control.y) == table.loc[names, "control"].tolist()
            assert control.line.dash == "dot"
            assert f"{method} {target} x16: 1.00 of 6 answers in {target}" in line.customdata[2]
    assert figure.layout.xaxis.type == "log"  # 16 times the least
    assert list(figure.layout.xaxis.tickvals) == [1, 2, 16]
    serialised(figure)


def test_the_curves_band_is_the_interval_of_the_frame() -> None:
    matrix = swept(methods=("LAPE",), targets=("fr",))
    figure = plot.steering_curve(matrix)
    (band,) = [trace for trace in figure.data if trace.fill == "toself"]
    rows = matrix.summary().iloc[1:]
    assert list(band.y) == [*rows["rate_high"], *rows["rate_low"][::-1]]
    assert not any("random control" in (trace.name or "") for trace in figure.data)


def test_dashed_lines_are_the_answers_without_intervention() -> None:
    figure = plot.steering_curve(swept(targets=("fr",)))
    levels = [shape.y0 for shape in figure.layout.shapes]
    assert levels == [0.0, 0.0]  # nobody answered in French unasked, or repeated anything
    assert max(lines(figure, "LAPE", "y2")[0].y) == pytest.approx(0.8)


def test_strengths_that_lie_close_have_a_straight_scale_and_stand_in_order() -> None:
    figure = plot.steering_curve(swept(strengths=(3, 1, 2)))
    assert figure.layout.xaxis.type == "linear"
    assert list(lines(figure, "mean")[0].x) == [1, 2, 3]


def test_many_targets_share_a_panel_as_their_mean() -> None:
    targets = ("en", "fr", "de", "es", "it", "ru", "zh")
    matrix = swept(targets=targets)
    figure = plot.steering_curve(matrix)
    assert [note.text for note in figure.layout.annotations] == ["into 7 target languages (mean)"]
    table = matrix.summary()
    rows = table[(table["method"] == "LAPE") & (table["strength"] == 2)]
    (line,) = lines(figure, "LAPE")
    assert line.y[1] == pytest.approx(rows["rate"].mean())
    assert f"of {rows['answers'].sum()} answers in the target" in line.customdata[1]
    five = plot.steering_curve(swept(targets=targets[:5]))
    assert len(five.layout.annotations) == 5
    assert five.layout.xaxis8.visible is None
    assert five.layout.xaxis9.visible is five.layout.yaxis12.visible is False
    serialised(figure)


def test_methods_with_one_strength_stand_side_by_side_with_their_intervals() -> None:
    matrix = swept(strengths=(1,), targets=("fr",))
    figure = plot.steering_curve(matrix)
    (mark,) = lines(figure, "mean")
    row = matrix.summary().iloc[2]
    assert list(mark.x) == ["mean"]
    assert list(mark.error_y.array) == [row["rate_high"] - row["rate"]]
    assert figure.layout.xaxis.type == "category"
    assert mark.mode == "markers"


def test_only_steering_has_a_curve(matrix: GenerationMatrix) -> None:
    with pytest.raises(OptionError, match="steers into a language: see lens_lang.steerings"):
        plot.steering_curve(matrix)


# --- sections ---


def test_the_table_has_the_rows_of_the_frame(matrix: GenerationMatrix) -> None:
    section = generation_sections("generation", matrix)[0]
    assert section.title == "Languages of the answers (generation)"
    frame = matrix.to_frame()
    assert len(section.rows) == len(frame) == 8
    row = frame.query("intervention == 'fr off' and question == 'fr'").iloc[0]
    cells = next(row for row in section.rows if row[:2] == ["fr off", "fr"])
    assert dict(zip(section.columns, cells, strict=True)) == {
        "intervention": "fr off",
        "question in": "fr",
        "in the wanted language": f"0.00 [0.00, {row['rate_high']:.2f}]",
        "before": "1.00",
        "random control": "0.75",
        "p (Holm)": "1 †",  # of two questions
        "p, one more random": p_value(row["p_random_holm"]),
        "every line in it": "0.00",
        "repetition": "0.00",
        "distinct-2": "0.50",
        "NLL": "1.50",
    }
    assert len(section.figures) == 3
    assert "under de off" in section.figures[2]  # a quarter of all its answers, not a sixth
    assert not any("nan" in cell for row in section.rows for cell in row)
    assert "p: that the intervention changes nothing, by a sign-flip test" in section.text[1]
    assert "do as much, from the 2 that were drawn" in section.text[1]


def test_one_random_set_is_shown_and_not_tested() -> None:
    one = generation_sections("g", with_controls(swept()))[0]
    assert "random control" in one.columns
    assert "p, one more random" not in one.columns
    assert "too few for a test" in one.text[1]
    assert {len(row) for row in one.rows} == {len(one.columns)}
    bare = generation_sections("g", swept())[0]
    assert "random" not in bare.text[1]


def test_the_table_of_a_sweep_has_a_row_for_each_intervention() -> None:
    matrix = swept()
    section = generation_sections("sweep", matrix)[0]
    assert len(section.rows) == 1 + len(matrix.interventions)
    assert section.columns[1] == "wanted"
    assert "random control" not in section.columns
    assert [row[1] for row in section.rows[:4]] == ["own", "en", "en", "en"]
    assert len(section.figures) == 4
    assert "target of the steering" in section.text[1]
    assert "corrected over interventions" in section.text[1]


def test_what_was_asked_and_how_is_said(matrix: GenerationMatrix) -> None:
    about = {
        "model": "gemma",
        "identifier": "py3langid 0.3",
        "decoding": {"new_tokens": 32, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.1},
    }
    first = generation_sections("g", dataclasses.replace(matrix, provenance=about))[0].text[0]
    assert first == (
        "6 open questions (en 2, fr 2, de 2), answered by gemma without and under 2 interventions, "
        "each beside 2 random controls. At most 32 tokens, drawn at temperature 0.7 among the "
        "likeliest 0.9, repetition penalty 1.1. py3langid 0.3 said in which language each "
        "answer is."
    )
    about["decoding"] = {"new_tokens": 8, "temperature": 0.0, "top_p": 1.0}
    greedy = generation_sections("g", dataclasses.replace(matrix, provenance=about))[0].text[0]
    assert "At most 8 tokens, the likeliest each time. py3" in greedy


def test_examples_are_the_first_answers_without_and_with_the_strongest_intervention(
    matrix: GenerationMatrix,
) -> None:
    section = generation_sections("generation", matrix)[1]
    assert section.title == "Some of the answers (generation)"
    assert [row[:3] for row in section.rows] == [
        ["en", "question 0?", "fr off"],  # which changes as much, and comes first
        ["en", "question 5?", "fr off"],
        ["fr", "question 1?", "fr off"],
        ["fr", "question 2?", "fr off"],
        ["de", "question 3?", "fr off"],
        ["de", "question 4?", "fr off"],
    ]
    assert section.rows[2][3:] == ["fr: an answer in fr", "en: an answer in en"]
    assert section.figures == []


def test_answers_are_cut_and_stand_on_one_line() -> None:
    long = answered(
        {"none": ["fr"] * 5, "off": ["en"] * 5}, languages=["fr"] * 5, text="a\n\nb " * 80
    )
    rows = generation_sections("g", long)[1].rows
    assert len(rows) == 3
    assert rows[0][3].startswith("fr: a b a b")
    assert len(rows[0][3]) == len("fr: ") + 160
    assert rows[0][3].endswith("…")
    empty = dataclasses.replace(long, texts=(("",) * 5, ("",) * 5))
    assert generation_sections("g", empty)[1].rows[0][3] == "fr: (nothing)"


def test_answers_without_any_intervention_have_sections_too() -> None:
    whole, examples = generation_sections("g", answered({"none": ["fr"]}, languages=["fr"]))
    assert whole.rows == [
        ["none", "fr", "1.00 [0.21, 1.00]", "1.00", "", "1.00", *whole.rows[0][6:]]
    ]
    assert "without intervention." in whole.text[0]
    assert examples.columns == ["question in", "question", "answer"]
    assert examples.rows == [["fr", "question 0?", "fr: an answer in fr"]]


def test_a_p_of_few_questions_is_marked_where_it_cannot_be_smaller() -> None:
    languages = [lang for lang in ("en", "fr", "de") for _ in range(3)]
    spoken = {"none": languages, "to en": ["en"] * 9, "to fr": ["fr", *languages[1:]]}
    steering = {f"to {x}": {"method": "m", "target": x, "strength": 1.0} for x in ("en", "fr")}
    section = generation_sections("g", answered(spoken, languages=languages, steering=steering))[0]
    place = section.columns.index("p (Holm)")
    assert [row[place] for row in section.rows] == ["", ".500 †", "1"]
    assert section.text[-1].startswith(
        "†: with 3 aligned questions the smallest p this test can give is .250, and .500 after "
        "correction over 2;"
    )


def test_a_curve_says_over_what_its_intervals_are() -> None:
    few = plot.steering_curve(swept())
    assert few.layout.meta["note"] == "Intervals are 95 %, over questions."
    targets = ("en", "fr", "de", "es", "it", "pt", "nl")
    many = plot.steering_curve(swept(targets))
    assert many.layout.meta["note"].startswith("Each mark is the mean over 7 target languages;")


def test_texts_of_a_known_language_are_marked_as_such(matrix: GenerationMatrix) -> None:
    rows = generation_sections("g", matrix)[1].rows
    for row in rows:
        question, *_, without, under = (cell for cell in row if isinstance(cell, Cell))
        assert question.lang == row[0]
        spoken = [str(cell).partition(":")[0] for cell in (without, under)]
        assert [without.lang, under.lang] == ["" if x == "und" else x for x in spoken]
    assert {cell.lang for row in rows for cell in row if isinstance(cell, Cell)} >= {"", "en", "fr"}
