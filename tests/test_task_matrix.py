"""A task's scores are its metrics of what was said, and of how likely right answers were."""

import dataclasses
import importlib.util
import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import hf_model
from test_generation import Alphabet, Counting, nothing, speaker, toy
from test_intervene import some_neurons
from test_vectors import means

from lens_lang import continuing, results
from lens_lang.decoding import Decoding, generate
from lens_lang.errors import (
    CorpusError,
    LanguageError,
    MissingExtraError,
    OptionError,
    SiteError,
    StorageError,
)
from lens_lang.evaluate import solving
from lens_lang.evaluate.metrics import exact_match, number_match, rouge_l, token_f1
from lens_lang.evaluate.significance import (
    holm,
    mean_interval,
    paired_share_interval,
    prediction_interval,
    prediction_test,
    share_interval,
    sign_flip_test,
)
from lens_lang.evaluate.solving import TaskOptions as Options
from lens_lang.evaluate.solving import task_matrix
from lens_lang.evaluate.task_scores import METRICS, TaskMatrix
from lens_lang.intervene import ablate, matched_control, scale
from lens_lang.models import bridge
from lens_lang.parts import seeded
from lens_lang.sites import MLP_POST
from lens_lang.tasks import MGSM, XCSQA, XLSUM, XNLI, XQUAD, Item, Task, TaskItems
from lens_lang.vectors import shift

NEW = 4
GENERATED = {"xquad": XQUAD, "mgsm": MGSM, "xlsum": XLSUM}
PROMPTS = {
    "en": ("who was it?", "A house: is it 7?", "the end."),
    "fr": ("qui est la?", "un chat:"),
    "zh": ("日本。", "東京：日"),
}
OPTIONS = {
    "en": (("ab", "c", "long one"), ("no", "yes"), ("A", "B", "C")),
    "fr": (("été", "hiver"), ("ça va".replace("ç", "é"), "a", "bb", "ccc")),
    "zh": (("日本", "東京", "b"), ("日", "東京日本")),
}
needs_rouge = pytest.mark.skipif(
    importlib.util.find_spec("rouge_score") is None, reason="rouge-score is not installed"
)


def hooks(seed: int = 0, factor: float = -3.0) -> Any:
    return scale(some_neurons(toy(), seed=seed), factor)


def separator(prompt: str) -> str:
    return "" if prompt in PROMPTS["zh"] else " "


def said(prompts: Sequence[str], stop: Sequence[str], fwd_hooks: Any = ()) -> list[str]:
    options = Decoding(new_tokens=NEW, stop=tuple(stop), skip_blank=True)
    return [each.text.strip() for each in generate(toy(), prompts, options, fwd_hooks=fwd_hooks)]


def generated_items(task: Task) -> TaskItems:
    """References of which the model, as it is, gets some."""
    items = {}
    for lang, prompts in PROMPTS.items():
        found = []
        for number, (prompt, answer) in enumerate(zip(prompts, said(prompts, ()), strict=True)):
            right = answer.split("\n")[0].strip() or "7"
            if task.metric == "number":
                right = next((letter for letter in answer if letter.isdigit()), "7")
            references = ((right,), ("7", right + " 7"), ("12 b", "7"))[number]
            found.append(Item(f"{number}", prompt, references))
        items[lang] = tuple(found)
    return TaskItems(task, items, "here")


def chosen_items(task: Task = XCSQA) -> TaskItems:
    items = {
        lang: tuple(
            Item(f"{number}", prompt, (options[-1],), options)
            for number, (prompt, options) in enumerate(
                zip(PROMPTS[lang], OPTIONS[lang], strict=True)
            )
        )
        for lang in PROMPTS
    }
    return TaskItems(task, items, "here")


def log_p(model: Any, prompt: str, answer: str, fwd_hooks: Any = ()) -> list[float]:
    """Of every token of an answer behind a prompt, by one forward pass without a cache."""
    (first, ids) = Alphabet()([prompt + separator(prompt), answer])["input_ids"]
    own = len(first) - len(separator(prompt))  # the space belongs to what is scored
    tokens = [1, *first, *ids]
    with torch.inference_mode():
        logits = model.run_with_hooks(torch.tensor([tokens]), fwd_hooks=list(fwd_hooks))[0]
    probability = logits.double().log_softmax(-1)
    return [float(probability[place - 1, tokens[place]]) for place in range(1 + own, len(tokens))]


def solve(
    items: TaskItems, interventions: Any, model: Any = None, controls: int = 0, **more: Any
) -> TaskMatrix:
    run_dir = more.pop("run_dir", None)
    options = Options(controls=controls, new_tokens=NEW, **more)
    return task_matrix(
        toy() if model is None else model,
        items,
        interventions,
        options=options,
        run_dir=run_dir,
        progress=False,
    )


def same(one: TaskMatrix, other: TaskMatrix) -> None:
    for name in ("task", "interventions", "languages", "names", "answers", "n_controls"):
        assert getattr(one, name) == getattr(other, name)
    assert list(one.scores) == list(other.scores)
    for lang in one.languages:
        torch.testing.assert_close(
            one.scores[lang], other.scores[lang], rtol=0, atol=0, equal_nan=True
        )


class CountingTasks(Counting):
    """Counts how often items are solved: their likelihoods are always asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch)
        sound = solving.log_likelihoods

        def counted(model: Any, pairs: Any, **options: Any) -> Any:
            self.calls.append(pairs)
            return sound(model, pairs, **options)

        monkeypatch.setattr(solving, "log_likelihoods", counted)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingTasks:
    return CountingTasks(monkeypatch)


# --- answers in words ---


@pytest.mark.lane
@pytest.mark.parametrize("name", ["xquad", "mgsm", pytest.param("xlsum", marks=needs_rouge)])
def test_scores_are_metrics_of_what_is_generated(name: str) -> None:
    items = generated_items(GENERATED[name])
    edits = hooks()
    found = solve(items, {"louder": edits}, batch_size=2)
    judges: dict[str, Any] = {
        "xquad": {"f1": token_f1, "exact_match": exact_match},
        "mgsm": {"accuracy": number_match},
        "xlsum": {"rouge_l": rouge_l},
    }
    assert found.metrics == (*judges[name], "log_probability")
    assert found.languages == ("en", "fr", "zh")
    assert found.names["fr"] == ("0", "1")
    values = set()
    for lang, prompts in PROMPTS.items():
        for run, fwd_hooks in enumerate([(), edits]):
            answers = said(prompts, items.task.stop, fwd_hooks)
            assert found.answers[lang][run] == tuple(answers)
            for metric, judge in judges[name].items():
                for number, (answer, item) in enumerate(
                    zip(answers, items.items[lang], strict=True)
                ):
                    score = float(found.of(lang, metric)[run, number])
                    assert score == pytest.approx(judge(answer, item.references, lang))
                    values.add(score)
            for number, item in enumerate(items.items[lang]):
                each = log_p(toy(), item.prompt, item.references[0], fwd_hooks)
                score = float(found.of(lang, "log_probability")[run, number])
                assert score == pytest.approx(sum(each) / len(each), abs=1e-4)
    assert len(values) > 1
    assert torch.equal(found.of("French"), found.of("fr", found.metrics[0]))


def test_each_language_ends_answers_in_its_own_way() -> None:
    plain = said(PROMPTS["en"], ())
    stop = next(letter for letter in plain[0][1:] if letter.strip())
    items = generated_items(XQUAD)
    changed = dataclasses.replace(items, stops={"en": (stop,), "fr": ("\n",)})
    found = solve(changed, {})
    assert found.answers["en"][0] == tuple(said(PROMPTS["en"], (stop,)))
    assert found.answers["en"][0][0] == plain[0][: 1 + plain[0][1:].index(stop)].strip()
    assert found.answers["fr"][0] == tuple(said(PROMPTS["fr"], ("\n",)))


def test_an_answer_is_as_long_as_the_task_or_the_test_says() -> None:
    short = dataclasses.replace(XQUAD, new_tokens=2, stop=())
    items = dataclasses.replace(generated_items(XQUAD), task=short, stops={})
    assert [len(each) for each in task_matrix(toy(), items, {}).answers["fr"][0]] == [2, 2]
    longer = task_matrix(toy(), items, {}, options=Options(new_tokens=3))
    assert [len(each) for each in longer.answers["fr"][0]] == [3, 3]


def test_the_best_reference_counts_and_the_first_is_likely_or_not() -> None:
    (answer,) = said(["who"], ("\n",))
    items = TaskItems(XQUAD, {"en": (Item("x", "who", ("zzz", answer)),)}, "here")
    found = solve(items, {})
    assert found.of("en", "exact_match").tolist() == [[1.0]]
    each = log_p(toy(), "who", "zzz")
    assert found.of("en", "log_probability").item() == pytest.approx(sum(each) / len(each))


def test_a_task_may_be_judged_otherwise() -> None:
    items = dataclasses.replace(
        generated_items(XQUAD), task=dataclasses.replace(XQUAD, metric="number")
    )
    found = solve(items, {})
    assert found.metrics == METRICS["number"]
    assert found.of("en", "log_probability").shape == (1, 3)


# --- options ---


def choose(values: Sequence[float]) -> int | None:
    best = [place for place, value in enumerate(values) if value == max(values)]
    return best[0] if len(best) == 1 else None


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_the_likeliest_option_is_taken(architecture: str) -> None:
    model = speaker(architecture)
    edits = scale(some_neurons(model), -3.0)
    items = chosen_items()
    found = solve(items, {"louder": edits}, model=model)
    assert found.metrics == ("accuracy", "accuracy_by_byte", "log_probability")
    differ = set()
    for lang, some in items.items.items():
        for run, fwd_hooks in enumerate([(), edits]):
            for number, item in enumerate(some):
                each = [log_p(model, item.prompt, option, fwd_hooks) for option in item.options]
                whole = [sum(one) for one in each]
                spread = [
                    total / len(option.encode("utf-8"))
                    for total, option in zip(whole, item.options, strict=True)
                ]
                right = item.options.index(item.references[0])
                mean = whole[right] / len(each[right])
                mine = found.scores[lang][:, run, number].tolist()
                assert mine[:2] == [choose(whole) == right, choose(spread) == right]
                assert mine[2] == pytest.approx(mean, abs=1e-4)
                assert found.answers[lang][run][number] == item.options[choose(whole) or 0]
                differ.add((choose(whole) == choose(spread), mine[0]))
    assert len(differ) > 1


def test_a_tie_is_no_answer_and_bytes_are_counted() -> None:
    """A model to which all letters are as likely: fewer tokens are likelier, ties are not."""
    flat = hf_model("llama")
    with torch.no_grad():
        flat.lm_head.weight.zero_()
    model = bridge(flat)
    model.tokenizer = Alphabet()
    items = TaskItems(
        XNLI,
        {
            "en": (
                Item("tie", "who:", ("a",), ("a", "b", "ccc")),
                Item("short", "who:", ("a",), ("bb", "a", "ccc")),
                Item("long", "who:", ("ccc",), ("bb", "a", "ccc")),
            ),
            "zh": (
                # a space belongs to English only: two letters here have three bytes each
                Item("bytes", "日", ("日本",), ("a", "日本")),
                Item("tie", "日", ("日本",), ("日本", "東京", "bb")),
            ),
        },
        "here",
    )
    found = solve(items, {"off": ablate(some_neurons(model))}, model=model)
    for run in (0, 1):
        assert found.of("en")[run].tolist() == [0.0, 1.0, 0.0]
        # with the space before it, a letter of three costs 4/3
        assert found.of("en", "accuracy_by_byte")[run].tolist() == [0.0, 0.0, 1.0]
        assert found.of("zh")[run].tolist() == [0.0, 0.0]
        assert found.of("zh", "accuracy_by_byte")[run].tolist() == [1.0, 0.0]
        for lang in ("en", "zh"):
            uniform = torch.full_like(found.of(lang)[run], -math.log(97))
            torch.testing.assert_close(found.of(lang, "log_probability")[run], uniform)


@pytest.mark.parametrize("mixed", [False, True])
def test_items_to_choose_from_must_have_options(mixed: bool) -> None:
    some = (Item("x", "who", ("a",)), *[Item("y", "who", ("a",), ("a", "b"))] * mixed)
    with pytest.raises(CorpusError, match="option"):
        solve(TaskItems(XCSQA, {"en": some}, "here"), {})


# --- who is tested, and beside what ---


def test_no_hooks_change_nothing_and_cost_nothing(counting: CountingTasks) -> None:
    items = chosen_items()
    found = solve(items, {"nothing": [], "neither": {"en": [], "fr": []}}, controls=2)
    assert len(counting.calls) == 3
    for lang in ("en", "fr"):
        assert bool((found.scores[lang] == found.scores[lang][:, :1]).all())
        assert set(found.answers[lang]) == {found.answers[lang][0]}
    assert found.scores["zh"][0, :, 0].isnan().tolist() == [0, 0, 1, 0, 0, 1, 1]


def test_hooks_by_language_leave_other_languages_untested(counting: CountingTasks) -> None:
    items = chosen_items()
    found = solve(items, {"own": {"French": hooks(), "de": hooks(1)}, "all": hooks(2)}, controls=1)
    assert len(counting.calls) == 3 + 1 + 3 + 1 + 3
    for lang in ("en", "zh"):
        untested = [1, 3]
        for run in range(5):
            gone = run in untested
            assert bool(found.scores[lang][:, run].isnan().all()) == gone
            assert bool(found.scores[lang][:, run].isnan().any()) == gone
            assert (found.answers[lang][run] == (None,) * len(items.items[lang])) == gone
    assert bool(found.scores["fr"].isfinite().all())
    assert "de" not in found.languages
    rows = found.to_frame()[["intervention", "language"]].to_numpy().tolist()
    everywhere = ["en", "fr", "zh"]
    assert rows == [
        *(["none", lang] for lang in everywhere), ["own", "fr"], *(["all", x] for x in everywhere),
    ]  # fmt: skip
    alone = solve(items, {"own": {"fr": hooks()}}, controls=1)
    assert torch.equal(alone.scores["fr"], found.scores["fr"][:, [0, 1, 3]])


def test_controls_are_matched_ones_seeded_by_name_and_draw() -> None:
    items = chosen_items()
    found = solve(items, {"b": hooks(1), "a": hooks()}, controls=2)
    for lang in items.languages:
        one = TaskItems(XCSQA, {lang: items.items[lang]}, "here")
        for draw in range(2):
            # the same neurons in every language
            drawn = matched_control(hooks(), generator=seeded(0, "a", draw))
            expected = solve(one, {"x": drawn}).of(lang, "log_probability")[1]
            assert torch.equal(found.controls(2, lang, "log_probability")[draw], expected)
    alone = solve(items, {"a": hooks()}, controls=1)
    other = solve(items, {"a": hooks()}, controls=1, seed=1)
    for lang in items.languages:
        first = found.controls(2, lang, "log_probability")[:1]
        assert torch.equal(alone.controls(1, lang, "log_probability"), first)
        assert not torch.equal(other.controls(1, lang, "log_probability"), first)
        assert found.controls(1, lang).shape == (2, len(items.items[lang]))


@pytest.mark.lane
def test_vectors_are_tested_like_neurons() -> None:
    edits = shift(means(), source="en", target="fr", layers=1, strength=0.5)
    items = chosen_items().limit(1)
    found = solve(items, {"shift": edits}, controls=1)
    item = items.items["en"][0]
    each = log_p(toy(), item.prompt, item.references[0], edits)
    score = float(found.of("en", "log_probability")[1, 0])
    assert score == pytest.approx(sum(each) / len(each), abs=1e-4)
    assert float(found.controls(1, "en", "log_probability")) != score


# --- numbers by hand ---


def handmade() -> TaskMatrix:
    """XQuAD in two languages; French was not tested under the second of two interventions."""
    generator = torch.Generator().manual_seed(0)
    scores = {
        lang: torch.rand((3, 7, n), generator=generator, dtype=torch.float64)
        for lang, n in (("en", 4), ("fr", 3))
    }
    for each in scores.values():
        each[1] = each[1].round()
    scores["fr"][:, [2, 5, 6]] = torch.nan
    answers = {
        lang: tuple(
            tuple(None if bool(row.isnan().any()) else f"é\n{value}" for value in row.tolist())
            for row in each[0]
        )
        for lang, each in scores.items()
    }
    names = {"en": ("a", "b", "c", "d"), "fr": ("a", "b", "x")}
    about = {"items": {"task": "xquad"}, "é": None}
    return TaskMatrix(
        "xquad", ("one", "two"), ("en", "fr"), names, scores, answers, 2, about
    )  # fmt: skip


@pytest.mark.parametrize("metric", [None, "f1", "exact_match", "log_probability"])
def test_the_frame_by_hand(metric: str | None) -> None:
    matrix = handmade()
    frame = matrix.to_frame(metric)
    keys = ["task", "metric", "intervention", "language", "items"]
    name = metric or "f1"
    assert frame[keys].to_numpy().tolist() == [
        ["xquad", name, "none", "en", 4],
        ["xquad", name, "none", "fr", 3],
        ["xquad", name, "one", "en", 4],
        ["xquad", name, "one", "fr", 3],
        ["xquad", name, "two", "en", 4],
    ]
    columns = ["change", "change_low", "change_high", "p", "control", "control_low"]
    columns += ["control_high", "p_random", "p_holm", "p_random_holm"]
    assert list(frame)[8:] == columns
    place = ["f1", "exact_match", "log_probability"].index(name)
    tests: dict[str, list[float]] = {"p": [], "p_random": []}
    for row in frame.to_dict("records"):
        scores = matrix.scores[row["language"]][place]
        run = ["none", "one", "two"].index(row["intervention"])
        mine, before = scores[run], scores[0]
        assert row["score"] == pytest.approx(float(mine.mean()))
        if name == "exact_match":
            ends = share_interval(int(mine.sum()), len(mine))
        else:
            ends = tuple(mean_interval(mine).tolist())
        assert (row["score_low"], row["score_high"]) == ends
        assert row["score_low"] <= row["score"] + 1e-12
        assert row["change"] == pytest.approx(float(mine.mean() - before.mean()))
        paired = (
            paired_share_interval(before, mine)
            if name == "exact_match"
            else tuple(mean_interval(mine - before).tolist())
        )
        if run == 0:
            unknown = ("control", "control_low", "control_high", *tests)
            assert all(math.isnan(row[each]) for each in unknown)
            assert all(math.isnan(row[f"{each}_holm"]) for each in tests)
            assert row["change"] == 0
            assert math.isnan(row["change_low"]) and math.isnan(row["change_high"])
            continue
        assert (row["change_low"], row["change_high"]) == pytest.approx(paired)
        first, second = scores[1 + 2 * run] - before, scores[2 + 2 * run] - before
        control = (first + second) / 2
        assert row["control"] == pytest.approx(float(control.mean()))
        error = control.std() / math.sqrt(len(control))
        draws = torch.stack([first.mean(), second.mean()])
        expected = prediction_interval(draws, error).tolist()
        assert [row["control_low"], row["control_high"]] == pytest.approx(expected)
        change = mine - before
        apart = float((change - control).std()) / math.sqrt(len(change))
        tests["p"].append(float(sign_flip_test(change)))
        tests["p_random"].append(prediction_test(float(change.mean()), draws, apart))
        for each, values in tests.items():
            assert row[each] == pytest.approx(values[-1])
    for each, values in tests.items():
        adjusted = [*holm(torch.tensor(values[:2]).double()).tolist(), values[2]]
        assert frame[f"{each}_holm"].tolist()[2:] == pytest.approx(adjusted)


def test_without_controls_a_change_is_tested_against_none() -> None:
    whole = handmade()
    matrix = dataclasses.replace(
        whole, n_controls=0, scores={lang: each[:, :3] for lang, each in whole.scores.items()}
    )
    for row in matrix.to_frame().to_dict("records")[2:]:
        scores = matrix.of(row["language"])
        run = 1 + matrix.interventions.index(row["intervention"])
        assert math.isnan(row["control"])
        assert math.isnan(row["control_low"])
        assert row["p"] == float(sign_flip_test(scores[run] - scores[0]))
        assert math.isnan(row["p_random"]) and math.isnan(row["p_random_holm"])


@pytest.mark.parametrize("controls", [1, 2])
def test_what_it_does_is_tested_whatever_random_sets_do(controls: int) -> None:
    whole = handmade()
    runs = [0, 1, 2, *range(3, 3 + controls), *range(5, 5 + controls)]
    found = dataclasses.replace(
        whole, n_controls=controls, scores={x: each[:, runs] for x, each in whole.scores.items()}
    ).to_frame()
    bare = dataclasses.replace(
        whole, n_controls=0, scores={x: each[:, :3] for x, each in whole.scores.items()}
    ).to_frame()
    same_columns = ["score", "score_low", "change", "change_low", "change_high", "p", "p_holm"]
    assert found[same_columns].equals(bare[same_columns])
    assert found["control"][2:].notna().all()
    assert bool(found["p_random"][2:].notna().all()) == (controls > 1)  # one draw says nothing


def drawn_alike(
    kind: str, *, interventions: int = 6, draws: int = 3, items: int = 30, seed: int = 0
) -> TaskMatrix:
    """Interventions that are themselves random sets: all effects from one distribution."""
    generator = torch.Generator().manual_seed(seed)
    runs = interventions * (1 + draws)
    effects = torch.randn(runs, 1, generator=generator, dtype=torch.float64) * 0.3
    before = torch.rand(1, items, generator=generator, dtype=torch.float64)
    noise = torch.rand(runs, items, generator=generator, dtype=torch.float64)
    if kind == "accuracy":  # an item turns wrong with a probability that is the set's own
        scores = torch.cat([(before < 0.8).double(), (before < 0.8) * (noise > effects.abs())])
    else:
        scores = torch.cat([before, before + effects + 0.2 * (noise - 0.5)])
    return TaskMatrix(
        "xnli",
        tuple(f"set {number}" for number in range(interventions)),
        ("en",),
        {"en": tuple(map(str, range(items)))},
        {"en": scores.repeat(3, 1, 1)},
        {"en": (("a",) * items,) * len(scores)},
        draws,
    )


@pytest.mark.parametrize("kind", ["accuracy", "log_probability"])
@pytest.mark.parametrize("draws", [2, 4])
def test_a_set_that_is_a_random_one_is_seldom_beyond_random_ones(kind: str, draws: int) -> None:
    frames = [drawn_alike(kind, draws=draws, seed=seed).to_frame(kind) for seed in range(50)]
    p = torch.tensor([each for frame in frames for each in frame["p_random"][1:]]).double()
    assert len(p) == 300 and not p.isnan().any()
    assert float((p < 0.05).double().mean()) <= 0.1
    # while all of them do something, which is another question
    changed = [each for frame in frames for each in frame["p"][1:]]
    assert sum(each < 0.05 for each in changed) / 300 > 0.4


def test_a_set_far_beyond_random_ones_is_found() -> None:
    matrix = drawn_alike("log_probability", draws=6)
    matrix.scores["en"][:, 1] = matrix.scores["en"][:, 0] - 3
    frame = matrix.to_frame("log_probability")
    assert frame["p_random"][1] < 0.001
    # one language, one test
    assert frame["p_random_holm"][1] == pytest.approx(frame["p_random"][1], rel=1e-6)


def test_a_planted_change_is_found_and_none_is_not() -> None:
    zeros, ones = torch.zeros(20), torch.ones(20)
    runs = torch.stack([ones, zeros, ones, ones, ones]).double()
    matrix = TaskMatrix(
        "xnli",
        ("hurts", "helps not"),
        ("en",),
        {"en": tuple(map(str, range(20)))},
        {"en": torch.stack([runs, runs, -runs])},
        {"en": (("a",) * 20,) * 5},
        1,
    )
    _, hurts, harmless = matrix.to_frame().to_dict("records")
    assert (hurts["change"], hurts["control"], harmless["change"]) == (-1.0, 0.0, 0.0)
    assert hurts["p"] < 1e-3 < harmless["p"] == 1.0
    # where no item changed, one more may
    assert harmless["change_low"] < 0 < harmless["change_high"]
    assert hurts["change_low"] == -1.0 < hurts["change_high"] < -0.75
    assert (hurts["score_low"], harmless["score_high"]) == (0.0, 1.0)


def test_one_item_says_nothing_of_others() -> None:
    found = solve(chosen_items().limit(1), {"x": hooks()})
    frame = found.to_frame("log_probability")
    assert frame[["score_low", "score_high"]].isna().all().all()
    assert frame["p"][3:].tolist() == [1.0] * 3
    assert not frame["score"].isna().any()


def test_what_was_not_measured_is_not_given() -> None:
    matrix = handmade()
    assert torch.equal(matrix.of("eng_Latn"), matrix.scores["en"][0])
    with pytest.raises(LanguageError, match="There is no language 'de'"):
        matrix.of("de")
    with pytest.raises(OptionError, match="xquad was not judged by 'exact'; did you mean"):
        matrix.of("en", "exact")
    with pytest.raises(OptionError, match="was not judged by 'accuracy'"):
        matrix.to_frame("accuracy")
    assert (
        repr(matrix) == "TaskMatrix(xquad: 2 interventions with 2 controls each; items: en 4, fr 3)"
    )


# --- parts ---

INTERVENTIONS = {"own": {"fr": hooks()}, "all": hooks(1)}
CALLS = 3 + 1 + 3 + 1 + 3


@pytest.mark.parametrize("done", [0, 5, CALLS - 1])
def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, counting: CountingTasks, done: int
) -> None:
    items = chosen_items()
    uninterrupted = solve(items, INTERVENTIONS, controls=1)
    assert len(counting.calls) == CALLS
    counting.calls.clear()
    counting.last = done
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("lens_lang.likelihood.read_on", interrupted(counting))
        solve(items, INTERVENTIONS, controls=1, run_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == done
    counting.calls.clear()
    counting.last = None
    resumed = solve(items, INTERVENTIONS, controls=1, run_dir=tmp_path)
    assert len(counting.calls) == CALLS - done
    same(resumed, uninterrupted)
    assert resumed.provenance == uninterrupted.provenance
    same(solve(items, INTERVENTIONS, controls=1, run_dir=tmp_path), uninterrupted)
    assert len(counting.calls) == CALLS - done


def interrupted(counting: Counting) -> Any:
    def read_on(*rest: Any, **options: Any) -> Any:
        if counting.last is not None and len(counting.calls) > counting.last:
            raise KeyboardInterrupt
        return continuing.read_on(*rest, **options)

    return read_on


def test_generated_answers_are_kept_too(tmp_path: Path, counting: CountingTasks) -> None:
    items = generated_items(XQUAD)
    counting.calls.clear()
    first = solve(items, {"x": hooks()}, run_dir=tmp_path)
    calls = len(counting.calls)
    same(solve(items, {"x": hooks()}, run_dir=tmp_path, batch_size=1), first)
    assert len(counting.calls) == calls


def reworded(items: TaskItems, **changes: Any) -> TaskItems:
    some = {
        lang: tuple(dataclasses.replace(each, **changes) for each in rows[:1])
        for lang, rows in items.items.items()
    }
    return dataclasses.replace(items, items=some)


@pytest.mark.parametrize(
    "change",
    [
        partial(reworded, prompt="what"),
        partial(reworded, options=("a", "b", "c")),
        partial(reworded, options=("b", "a")),
        partial(reworded, options=("a", "d")),
    ],
)
def test_what_was_measured_otherwise_is_measured_anew(tmp_path: Path, change: Any) -> None:
    items = TaskItems(XCSQA, {"en": (Item("x", "who", ("a",), ("a", "b")),)}, "here")
    solve(items, {}, run_dir=tmp_path)
    other = change(items)
    same(solve(other, {}, run_dir=tmp_path), solve(other, {}))
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "change",
    [
        partial(reworded, references=("b",)),
        partial(reworded, references=("b", "a")),
        partial(reworded, name="y"),
        lambda items: dataclasses.replace(items, task=XNLI),
    ],
)
def test_other_right_answers_and_names_are_judged_from_what_was_measured(
    tmp_path: Path, counting: CountingTasks, change: Any
) -> None:
    items = TaskItems(XCSQA, {"en": (Item("x", "who", ("a",), ("a", "b")),)}, "here")
    solve(items, {"off": hooks()}, run_dir=tmp_path)
    other = change(items)
    counting.calls.clear()
    reads = counting.reads
    found = solve(other, {"off": hooks()}, run_dir=tmp_path)
    assert counting.calls == [] and counting.reads == reads
    same(found, solve(other, {"off": hooks()}))


# What is kept is what the model did: a mended metric has to reach what was measured before.
def test_generated_answers_are_judged_anew_each_time(
    tmp_path: Path, counting: CountingTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = generated_items(XQUAD)
    before = solve(items, {"x": hooks()}, controls=1, run_dir=tmp_path)
    counting.calls.clear()
    reads = counting.reads
    # other references behind the first, whose likelihood was measured
    more = {
        lang: tuple(
            dataclasses.replace(item, references=(item.references[0], answer or "7"))
            for item, answer in zip(some, before.answers[lang][0], strict=True)
        )
        for lang, some in items.items.items()
    }
    others = dataclasses.replace(items, items=more)
    found = solve(others, {"x": hooks()}, controls=1, run_dir=tmp_path)
    for lang, said in before.answers.items():
        expected = [1.0 if exact_match(x or "", (x or "",), lang) else 0.0 for x in said[0]]
        assert found.of(lang, "exact_match")[0].tolist() == expected
    # another metric of the same answers
    number = dataclasses.replace(items, task=dataclasses.replace(XQUAD, metric="number"))
    solved = solve(number, {"x": hooks()}, controls=1, run_dir=tmp_path)
    assert solved.metrics == METRICS["number"]
    assert solved.answers == before.answers
    assert solved.of("fr", "log_probability").equal(before.of("fr", "log_probability"))
    # and a metric that was mended
    monkeypatch.setitem(solving._JUDGES, "f1", {"f1": lambda *_: 0.25, "exact_match": exact_match})
    mended = solve(items, {"x": hooks()}, controls=1, run_dir=tmp_path)
    assert bool((mended.of("en") == 0.25).all())
    assert mended.of("en", "exact_match").equal(before.of("en", "exact_match"))
    assert counting.calls == [] and counting.reads == reads


def test_parts_hold_answers_and_log_probabilities_and_no_scores(tmp_path: Path) -> None:
    items = generated_items(XQUAD)
    found = solve(items, {}, run_dir=tmp_path)
    parts = [json.loads(file.read_text())["part"] for file in tmp_path.iterdir()]
    assert {frozenset(each) for each in parts} == {
        frozenset({"answers", "log_probabilities", "n_tokens"})
    }
    assert sorted(tuple(each["answers"]) for each in parts) == sorted(
        rows[0] for rows in found.answers.values()
    )
    solve(chosen_items(), {}, run_dir=tmp_path / "chosen")
    for file in (tmp_path / "chosen").iterdir():
        assert set(json.loads(file.read_text())["part"]) == {"log_probabilities", "n_tokens"}


def test_other_first_references_are_measured_anew(tmp_path: Path) -> None:
    items = TaskItems(XQUAD, {"en": (Item("x", "who", ("a", "b")),)}, "here")
    solve(items, {}, run_dir=tmp_path)
    other = reworded(items, references=("b", "a"))
    same(solve(other, {}, run_dir=tmp_path), solve(other, {}))
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_attached_to_the_model_is_measured_and_not_kept(tmp_path: Path) -> None:
    items = chosen_items()
    expected = solve(items, {"x": hooks()}).scores
    with toy().hooks(fwd_hooks=hooks()):
        found = solve(items, {}).scores
        with pytest.raises(OptionError, match="Hooks are attached .*leave out run_dir"):
            solve(items, {}, run_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    for lang in items.languages:
        torch.testing.assert_close(found[lang][:, 0], expected[lang][:, 1])
    solve(items, {}, run_dir=tmp_path)  # nothing is left on it


def test_hooks_length_and_stops_are_not_mixed_up(tmp_path: Path) -> None:
    items = TaskItems(XQUAD, {"en": (Item("x", "who", ("a",)),)}, "here")
    other = dataclasses.replace(items, stops={"en": ("a",)})
    for number, (some, edits, new) in enumerate(
        [
            (items, [], 3),
            (items, [], 2),
            (other, [], 3),
            (items, hooks(), 3),
            (items, hooks(1), 3),
            (items, hooks(0, -3.1), 3),
        ]
    ):
        options = Options(new_tokens=new)
        kept = task_matrix(toy(), some, {"x": edits}, options=options, run_dir=tmp_path)
        same(kept, task_matrix(toy(), some, {"x": edits}, options=options))
        assert len(list(tmp_path.iterdir())) == number + 1


# --- files ---


@pytest.mark.parametrize(
    "make",
    [handmade, lambda: solve(chosen_items(), INTERVENTIONS, controls=1),
     lambda: solve(generated_items(MGSM), {"one": {"fr": hooks()}})],
)  # fmt: skip
def test_saving_and_loading_is_the_identity(make: Any, tmp_path: Path) -> None:
    matrix = make()
    matrix.save(tmp_path / "x")
    found = TaskMatrix.load(tmp_path / "x")
    same(found, matrix)
    assert found.provenance == matrix.provenance
    assert found.to_frame().equals(matrix.to_frame())
    assert repr(found) == repr(matrix)
    found.save(tmp_path / "y")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    again: Any = results.load(tmp_path / "x")
    same(again, matrix)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    handmade().save(tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-8])
    (tmp_path / "answers").write_bytes(whole.replace(b"answers", b"replies"))
    (tmp_path / "names").write_bytes(whole.replace(rb"names\": {\"en", rb"names\": {\"de"))
    means().save(tmp_path / "other")
    for name, message in [
        ("cut", "not a readable safetensors file"),
        ("answers", "is damaged: 'answers' is missing"),
        ("names", "is damaged: 'en' is missing"),
        ("other", "holds a Activations, not a TaskMatrix"),
        ("missing", "There is no file"),
    ]:
        with pytest.raises(StorageError, match=message):
            TaskMatrix.load(tmp_path / name)


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controls": -1}, "controls must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"new_tokens": 0}, "new_tokens must be at least 1, got 0"),
    ],
)
def test_impossible_tests_are_refused(options: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Options(**options)


@pytest.mark.parametrize(
    ("interventions", "error", "message"),
    [
        (
            {"x": {"de": hooks()}},
            LanguageError,
            "'x' has hooks for de, and xcsqa is tested in en, fr, zh",
        ),
        ({"x": {}}, LanguageError, "'x' has hooks for no language"),
        ({"x": {"fr": [], "French": []}}, LanguageError, "given twice: fr"),
        ({"x": {"nonsense": hooks()}}, LanguageError, "No language is called 'nonsense'"),
        (
            {"x": [("blocks.0.mlp.hook_pots", nothing)]},
            SiteError,
            "no hook point 'blocks.0.mlp.hook_pots'; did you mean",
        ),
        ({"x": {"fr": [("blocks.9.hook_out", nothing)]}}, SiteError, "no hook point 'blocks.9"),
        ({"none": hooks()}, OptionError, "No intervention can be called 'none'"),
        ({"none": {"fr": []}}, OptionError, "that is the run without any"),
        (
            {"x": {"fr": ablate(some_neurons(toy()), positions="new")}},
            OptionError,
            "make them with positions='all'",
        ),
    ],
)
def test_what_cannot_be_tested_is_refused_before_anything_is_measured(
    counting: CountingTasks, interventions: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        solve(chosen_items(), {"fine": hooks(), **interventions})
    assert counting.reads == 0


def test_hooks_that_would_have_no_effect_are_refused() -> None:
    behind = next(name for name in toy().hook_dict if name.startswith("ln_final"))
    with pytest.raises(SiteError, match="comes after the last block"):
        solve(chosen_items(), {"x": [(behind, nothing)]})
    for where in ("prompt", "new"):
        with pytest.raises(OptionError, match="make them with positions='all'"):
            solve(chosen_items(), {"x": ablate(some_neurons(toy()), positions=where)})


def test_a_users_own_hook_is_free_without_run_dir_and_controls(tmp_path: Path) -> None:
    mine = [(MLP_POST.at(1), lambda values, hook: values * -2)]
    items = chosen_items()
    found = solve(items, {"mine": mine})
    item = items.items["en"][0]
    each = log_p(toy(), item.prompt, item.references[0], mine)
    score = float(found.of("en", "log_probability")[1, 0])
    assert score == pytest.approx(sum(each) / len(each), abs=1e-4)
    with pytest.raises(OptionError, match="leave out run_dir, or the hook"):
        solve(items, {"mine": mine}, run_dir=tmp_path)
    with pytest.raises(OptionError, match="use controls=0, or leave it out"):
        solve(items, {"mine": mine}, controls=1)


def test_a_missing_library_costs_nothing(
    counting: CountingTasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = TaskItems(XLSUM, {"en": (Item("x", "who", ("a",)),)}, "here")
    for name in ("rouge_score", "rouge_score.rouge_scorer"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="ROUGE-L needs packages"):
        solve(items, {"x": hooks()})
    assert counting.reads == 0


@pytest.mark.lane
def test_a_prompt_that_is_too_long_is_refused() -> None:
    model = speaker("gpt2")
    items = TaskItems(XQUAD, {"en": (Item("x", "a" * 127, ("b",)),)}, "here")
    with pytest.raises(CorpusError, match="only 128 positions"):
        solve(items, {}, model=model)
