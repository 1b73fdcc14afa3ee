"""The sections of what was answered: in which language, how well, and some answers to read."""

from collections.abc import Hashable, Mapping
from typing import Any

from lens_lang.evaluate.generation import GenerationMatrix
from lens_lang.evaluate.task_scores import WITHOUT
from lens_lang.identification import UNDETERMINED
from lens_lang.plot import generation
from lens_lang.sections.cells import Cell
from lens_lang.sections.floor import at_floor, floor_sentences
from lens_lang.sections.section import Section, p_value

_LONGEST = 160
"""Characters of an answer that are shown."""

_Row = dict[Hashable, Any]


def generation_sections(name: str, matrix: GenerationMatrix) -> list[Section]:
    """In which language answers are under each intervention, then some of the answers.

    Args:
        name: Of the file.
        matrix: The measurement.

    Returns:
        Two sections, each with a table.
    """
    by_language = matrix.to_frame().to_dict("records")
    sweep = bool(matrix.interventions) and set(matrix.interventions) <= set(matrix.steering)
    pooled = matrix.summary().to_dict("records")
    second = "wanted" if sweep else "question"
    figures = [generation.steering_curve(matrix)] if sweep else []
    figures += [generation.generation_matrix(matrix), generation.spoken_languages(matrix)]
    strongest = _strongest(pooled)
    if strongest:
        figures.append(generation.spoken_languages(matrix, intervention=strongest))
    controlled, drawn = matrix.n_controls > 0, matrix.n_controls > 1
    shown = pooled if sweep else by_language
    few = _tested(matrix, shown, sweep=sweep)
    whole = Section(
        title=f"Languages of the answers ({name})",
        text=[
            _asked(matrix),
            _reading(matrix, sweep=sweep),
            *floor_sentences([pair for pair in few if pair], _witnesses(matrix, sweep=sweep)),
        ],
        columns=[
            "intervention",
            "wanted" if sweep else "question in",
            "in the wanted language",
            "before",
            *(["random control"] if controlled else []),
            "p (Holm)",
            *(["p, one more random"] if drawn else []),
            "every line in it",
            "repetition",
            "distinct-2",
            "NLL",
        ],
        rows=[
            [
                str(row["intervention"]),
                str(row[second]),
                _rate(row),
                _share(row["before"]),
                *([_share(row["control"])] if controlled else []),
                p_value(row["p_holm"], at_floor=pair is not None and at_floor(row["p"], *pair)),
                *([p_value(row["p_random_holm"])] if drawn else []),
                _share(row["line_pass"]),
                _share(row["repetition"]),
                _share(row["distinct_2"]),
                _share(row["nll"]),
            ]
            for row, pair in zip(shown, few, strict=True)
        ],
        figures=[figure.to_json() for figure in figures],
    )
    return [whole, _examples(name, matrix, by_language)]


def _tested(
    matrix: GenerationMatrix, rows: list[_Row], *, sweep: bool
) -> list[tuple[int, int] | None]:
    """Of every row how many witnesses its test has, and for how many tests it is corrected."""
    made: list[tuple[int, int] | None] = []
    for row in rows:
        if row["p"] != row["p"]:
            made.append(None)
            continue
        run = 1 + matrix.interventions.index(row["intervention"])
        asked = [
            lang
            for lang, text in zip(matrix.languages, matrix.texts[run], strict=True)
            if text is not None and (sweep or lang == row["question"])
        ]
        # translations of a question count as one
        count = max(asked.count(lang) for lang in asked)
        alike = [
            other
            for other in rows
            if other["p"] == other["p"] and (sweep or other["intervention"] == row["intervention"])
        ]
        made.append((count, len(alike)))
    return made


def _witnesses(matrix: GenerationMatrix, *, sweep: bool) -> str:
    return "aligned questions" if sweep and len(matrix.groups) > 1 else "questions"


def _asked(matrix: GenerationMatrix) -> str:
    counts = ", ".join(f"{lang} {matrix.languages.count(lang)}" for lang in matrix.groups)
    about = matrix.provenance
    model = f" by {about['model']}" if about.get("model") else ""
    judge = str(about.get("identifier") or "")
    number = len(matrix.interventions)
    many = "" if matrix.n_controls == 1 else "s"
    beside = f", each beside {matrix.n_controls} random control{many}" if matrix.n_controls else ""
    under = f" and under {number} intervention{'' if number == 1 else 's'}{beside}"
    return (
        f"{len(matrix.prompts)} open questions ({counts}), answered{model} without"
        f"{under if number else ' intervention'}.{_decoding(about.get('decoding') or {})}"
        + (f" {judge} said in which language each answer is." if judge else "")
    )


def _decoding(options: Mapping[str, Any]) -> str:
    """How answers were chosen, as a sentence; nothing if it is not known."""
    if "new_tokens" not in options:
        return ""
    said = f" At most {options['new_tokens']} tokens, "
    if options.get("temperature"):
        said += f"drawn at temperature {options['temperature']:g}"
        if options.get("top_p", 1) < 1:
            said += f" among the likeliest {options['top_p']:g}"
    else:
        said += "the likeliest each time"
    if options.get("repetition_penalty", 1) != 1:
        said += f", repetition penalty {options['repetition_penalty']:g}"
    return said + "."


def _reading(matrix: GenerationMatrix, *, sweep: bool) -> str:
    wanted = (
        "the target of the steering (without intervention, the question's own)"
        if sweep
        else "the target where an intervention steers, or else the question's own"
    )
    beyond = (
        " p, one more random: how probable it is that another set of as many random neurons would "
        f"do as much, from the {matrix.n_controls} that were drawn."
        if matrix.n_controls > 1
        else " One random control shows what is possible, and is too few for a test."
        if matrix.n_controls
        else ""
    )
    over = "interventions" if sweep else "the languages of an intervention"
    return (
        f"The wanted language is {wanted}. Shares of answers with Wilson's 95 % interval; before: "
        "the share in that language without intervention. p: that the intervention changes "
        f"nothing, by a sign-flip test over questions, corrected over {over} (Holm).{beyond} "
        "Translations of a question count as one. Babble in the right language is not "
        "an answer in it: repetition is the share of an answer's 4-grams of tokens that it has had "
        "before, distinct-2 that of different 2-grams among all, NLL the nats per token that the "
        "model gave its own answer."
    )


def _examples(name: str, matrix: GenerationMatrix, rows: list[_Row]) -> Section:
    each = 3 if len(matrix.groups) < 5 else 2
    names = (WITHOUT, *matrix.interventions)
    compared = bool(matrix.interventions)
    cells = []
    for lang in matrix.groups:
        chosen = _strongest([row for row in rows if row["question"] == lang])
        places = [place for place, own in enumerate(matrix.languages) if own == lang][:each]
        for place in places:
            row = [lang, Cell(_cut(matrix.prompts[place]), lang=lang)]
            if compared:
                row.append(chosen)
            row.append(_answer(matrix, 0, place))
            if compared:
                row.append(_answer(matrix, names.index(chosen), place) if chosen else "")
            cells.append(row)
    text = f"The first {each} questions of each language, not chosen by their answers"
    if compared:
        text += (
            "; without intervention, and with the one that changed the share of the wanted "
            "language most"
        )
    return Section(
        title=f"Some of the answers ({name})",
        text=[f"{text}. In front of each the language it is in, und for none."],
        columns=["question in", "question", "intervention", "without it", "with it"]
        if compared
        else ["question in", "question", "answer"],
        rows=cells,
    )


def _strongest(rows: list[_Row]) -> str:
    """The intervention that moved the share furthest; empty if there is none."""
    moved = [row for row in rows if row["intervention"] != WITHOUT and row["gain"] == row["gain"]]
    return str(max(moved, key=lambda row: abs(row["gain"]))["intervention"]) if moved else ""


def _answer(matrix: GenerationMatrix, run: int, place: int) -> str:
    text = matrix.texts[run][place]
    if text is None:
        return ""
    spoken = matrix.spoken[run][place]
    said = f"{spoken}: {_cut(text) or '(nothing)'}"
    return Cell(said, lang="" if spoken == UNDETERMINED else spoken)


def _cut(text: str) -> str:
    """On one line, and not too long."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def _share(value: float) -> str:
    """To two places; empty where it was not measured."""
    return "" if value != value else Cell(f"{value:.2f}", value=value)


def _rate(row: _Row) -> str:
    value, low, high = row["rate"], row["rate_low"], row["rate_high"]
    ends = "" if low != low else f" [{low:.2f}, {high:.2f}]"
    said = "" if value != value else f"{value:.2f}"
    return Cell(said + ends, value=value, low=low, high=high)
