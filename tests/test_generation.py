"""Who is steered into which language: every number by hand, and every part measured once."""

import copy
import dataclasses
import inspect
import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import D_MODEL, LAYERS, VOCAB, hf_model
from hypothesis import given, settings
from hypothesis import strategies as st
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
from lens_lang.evaluate import answering
from lens_lang.evaluate.answering import Steering, generation_matrix, steerings
from lens_lang.evaluate.generation import (
    GenerationMatrix,
    by_cluster,
    distinct,
    judged,
    repetition,
)
from lens_lang.evaluate.significance import (
    holm,
    paired_share_interval,
    prediction_test,
    share_interval,
    sign_flip_test,
)
from lens_lang.identification import is_spoken, spoken_languages
from lens_lang.intervene import ablate, add, matched_control, scale
from lens_lang.languages import language_tag
from lens_lang.models import bridge
from lens_lang.parts import seeded
from lens_lang.sites import MLP_POST, RESID_POST
from lens_lang.stats import Activations
from lens_lang.vectors import shift

# --- a model that reads and says letters, and an identifier that reads the first ---


class Alphabet:
    """Every letter is a token, and every token but the special ones is a letter."""

    bos_token_id = 1
    eos_token_id = 2
    all_special_ids = (0, 1, 2)
    letters = (
        "abcdefghijklmnopqrstuvwxyz .,:?!\n-'0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        "éèñüßøабвгд日本語東京。："
    )

    def __call__(self, texts: Sequence[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[3 + self.letters.index(letter) for letter in t] for t in texts]}

    def __len__(self) -> int:
        return VOCAB

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(self.letters[i - 3] if i >= 3 else "<s>"[skip_special_tokens * 3 :]
                       for i in ids)  # fmt: skip


assert len(set(Alphabet.letters)) <= VOCAB - 3
SPARE = VOCAB - 3 - len(Alphabet.letters)
Alphabet.letters += "".join(chr(0x4E00 + number) for number in range(SPARE))


def speaker(architecture: str = "llama", *, seed: int = 0) -> Any:
    model = bridge(hf_model(architecture, seed=seed), name="toy")
    model.tokenizer = Alphabet()
    return model


@cache
def toy() -> Any:
    """Made once: no test changes it."""
    return speaker()


def by_first_letter(texts: Sequence[str]) -> list[Any]:
    """French up to m, English up to z, Russian and Chinese by script."""
    return [language_of(text) for text in texts]


def language_of(text: str) -> str | None:
    first = next((letter.lower() for letter in text if letter.isalpha()), "")
    for lang, last in (("fr", "m"), ("en", "ÿ"), ("ru", "я"), ("zh", "\uffff")):
        if first and first <= last:
            return lang
    return None


PROMPTS = {"en": ["what is it?", "who", "A house."], "fr": ["qui est la?", "un chat"]}
SHORT = Decoding(new_tokens=3, repetition_penalty=1.3)


def hooks(seed: int = 0, factor: float = -3.0) -> Any:
    return scale(some_neurons(toy(), seed=seed), factor)


def run(
    interventions: Any, prompts: Any = None, model: Any = None, **options: Any
) -> GenerationMatrix:
    options = {"decoding": SHORT, "identify": by_first_letter, "progress": False} | options
    return generation_matrix(
        toy() if model is None else model,
        PROMPTS if prompts is None else prompts,
        interventions,
        **options,
    )


def same(one: GenerationMatrix, other: GenerationMatrix) -> None:
    for name in ("interventions", "prompts", "languages", "texts", "spoken", "lines", "n_controls"):
        assert getattr(one, name) == getattr(other, name)
    assert {**one.steering} == {**other.steering}
    for name in ("nll", "tokens", "n_tokens"):
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), rtol=0, atol=0, equal_nan=True
        )


class Counting:
    """Counts what is generated, and may be interrupted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[list[str]] = []
        self.last: int | None = None
        self.reads = 0
        sound, sound_pass = answering.generate, continuing.run_until

        def counted(model: Any, prompts: Any, *rest: Any, **options: Any) -> Any:
            self.calls.append(list(prompts))
            return sound(model, prompts, *rest, **options)

        def counted_pass(*rest: Any, **options: Any) -> Any:
            self.reads += 1
            if self.last is not None and len(self.calls) > self.last and options.get("past"):
                raise KeyboardInterrupt
            return sound_pass(*rest, **options)

        monkeypatch.setattr(answering, "generate", counted)
        monkeypatch.setattr(continuing, "run_until", counted_pass)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


# --- what is asked and what is said ---


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2"])
def test_answers_are_what_the_model_generates(architecture: str) -> None:
    model = speaker(architecture)
    neurons = some_neurons(model)
    interventions = {"off": ablate(neurons), "louder": scale(neurons, 3.0)}
    found = run(interventions, model=model, batch_size=2)
    assert found.interventions == ("off", "louder")
    assert found.prompts == ("what is it?", "who", "A house.", "qui est la?", "un chat")
    assert found.languages == ("en", "en", "en", "fr", "fr")
    all_tokens = []
    for number, each in enumerate([[], ablate(neurons), scale(neurons, 3.0)]):
        expected = [
            continuation
            for texts in PROMPTS.values()
            for continuation in generate(model, texts, SHORT, fwd_hooks=each)
        ]
        assert found.texts[number] == tuple(each.text.strip() for each in expected)
        assert found.n_tokens[number].tolist() == [len(each.tokens) for each in expected]
        all_tokens += [token for each in expected for token in each.tokens]
        per_token = [each.nll / len(each.tokens) for each in expected]
        assert found.nll[number].tolist() == pytest.approx(per_token, abs=1e-4)
    assert found.tokens.tolist() == all_tokens
    assert len(set(found.texts)) == 3
    said = [[language_of(text or "") or "und" for text in texts] for texts in found.texts]
    assert [list(each) for each in found.spoken] == said


def test_no_hooks_change_nothing_and_cost_nothing(counting: Counting) -> None:
    run({})  # whatever is proved of a model but once
    before = counting.reads
    alone = run({})
    reads = counting.reads - before
    assert len(counting.calls) == 4
    found = run({"nothing": [], "empty": ablate(some_neurons(toy()) & ~some_neurons(toy()))},
                controls=2)  # fmt: skip
    assert counting.reads - before == 2 * reads
    assert len(counting.calls) == 6
    assert set(found.texts) == set(alone.texts)
    assert len(found.texts) == 7
    frame = found.to_frame()
    assert (frame["gain"] == 0).all()
    assert (frame["control"][2:] == frame["rate"][2:]).all()
    assert (frame["p"][2:] == 1).all()


def test_steering_asks_only_the_questions_it_has_hooks_for(counting: Counting) -> None:
    interventions = {
        "to English": Steering("en", {"French": hooks()}, "some", 2),
        "to Russian": Steering("Russian", {"en": hooks(1), "fr": []}),
    }
    found = run(interventions, controls=1)
    # baselines; French; English; and a control of each: [] is the baseline
    assert [len(each) for each in counting.calls] == [3, 2, 2, 3, 2, 3]
    assert [[text is None for text in texts] for texts in found.texts] == [
        [False] * 5,
        [True] * 3 + [False] * 2,
        [False] * 5,
        [True] * 3 + [False] * 2,
        [False] * 5,
    ]
    for run_number, texts in enumerate(found.texts):
        missing = torch.tensor([text is None for text in texts])
        assert torch.equal(found.nll[run_number].isnan(), missing)
        assert torch.equal(found.n_tokens[run_number] == 0, missing)
        assert all(found.lines[run_number][place] == () for place in missing.nonzero())
    assert found.texts[2][3:] == found.texts[0][3:]
    assert int(found.n_tokens.sum()) == len(found.tokens)
    assert found.steering == {
        "to English": {"target": "en", "method": "some", "strength": 2},
        "to Russian": {"target": "ru", "method": "", "strength": 1.0},
    }
    assert found.rate[0].isnan().tolist() == [True, False]
    rows = found.to_frame()[["intervention", "question", "wanted", "answers"]].to_numpy().tolist()
    assert rows == [
        ["none", "en", "en", 3],
        ["none", "fr", "fr", 2],
        ["to English", "fr", "en", 2],
        ["to Russian", "en", "ru", 3],
        ["to Russian", "fr", "ru", 2],
    ]
    totals = found.summary()[["intervention", "wanted", "answers"]].to_numpy().tolist()
    assert totals == [["none", "own", 5], ["to English", "en", 2], ["to Russian", "ru", 5]]


def test_hooks_for_languages_nobody_asks_in_are_left_out(counting: Counting) -> None:
    found = run({"x": Steering("en", {"de": hooks(), "fr": hooks(), "en": hooks(1)})})
    assert len(counting.calls) == 4
    assert None not in found.texts[1]


def test_a_sweep_is_every_method_target_and_strength_from_everywhere_else() -> None:
    asked: list[tuple[str, str, str, float]] = []

    def method(name: str) -> Callable[[str, str, float], Any]:
        def make(source: str, target: str, strength: float) -> Any:
            asked.append((name, source, target, strength))
            return add(some_neurons(toy()), strength)

        return make

    languages, strengths = ["English", "fr", "de"], [0.5, 2]
    sweep = steerings({"a": method("a"), "b": method("b")}, languages, strengths)
    assert list(sweep) == [
        f"{name} {target} x{strength}"
        for name in "ab"
        for target in ("en", "fr", "de")
        for strength in ("0.5", "2")
    ]
    assert len(asked) == len(set(asked)) == 2 * 3 * 2 * 2
    for name, each in sweep.items():
        assert name == f"{each.method} {each.target} x{each.strength:g}"
        assert set(each.hooks) == {"en", "fr", "de"} - {each.target}
    narrow = steerings({"a": method("a")}, ["en", "fr"], targets=["Chinese"])
    assert list(narrow) == ["a zh x1"]
    assert set(narrow["a zh x1"].hooks) == {"en", "fr"}


def test_no_strength_of_a_sweep_is_lost() -> None:
    strengths = [1.0, 1.0000001]
    sweep = steerings({"a": lambda source, target, strength: []}, ["en", "fr"], strengths)
    assert sorted({each.strength for each in sweep.values()}) == strengths


def test_the_order_of_languages_changes_rows_and_nothing_else() -> None:
    sampling = Decoding(new_tokens=2, temperature=1.0, seed=3)
    interventions = {"off": ablate(some_neurons(toy())), "to": Steering("en", {"fr": hooks()})}
    backwards = dict(reversed(PROMPTS.items()))
    one, other = (
        run(interventions, prompts, controls=1, decoding=sampling)
        for prompts in (PROMPTS, backwards)
    )
    assert other.groups == one.groups[::-1] == ("fr", "en")
    order = [3, 4, 0, 1, 2]
    assert [[texts[place] for place in order] for texts in one.texts] == [
        list(texts) for texts in other.texts
    ]
    torch.testing.assert_close(other.rate, one.rate.flip(1), equal_nan=True)
    torch.testing.assert_close(other.baseline_rate, one.baseline_rate.flip(0))
    key = ["intervention", "question"]
    frames = [
        each.to_frame().sort_values(key).reset_index(drop=True).drop(columns=["p", "p_holm"])
        for each in (one, other)
    ]
    assert frames[0].equals(frames[1])
    shares = [each.distribution().sort_index(axis=0).sort_index(axis=1) for each in (one, other)]
    assert shares[0].equals(shares[1])


# --- planted: one letter's direction, and a language that is that letter ---


def only_x(texts: Sequence[str]) -> list[str]:
    return ["ru" if set(text) == {"x"} else "en" for text in texts]


def towards(letter: str) -> Activations:
    """Means whose difference, added after the last block, leaves the model but one letter."""
    item = Alphabet()([letter])["input_ids"][0][0]
    hf = hf_model("llama")
    vector = hf.lm_head.weight[item] * hf.model.norm.weight * 1e4
    mean = torch.zeros(2, LAYERS, D_MODEL, dtype=torch.float64)
    mean[1, -1] = vector.detach().double()
    return Activations(("en", "ru"), mean, mean.square(), torch.tensor([1, 1]), "residual")


@pytest.mark.lane
def test_planted_steering_always_works_and_its_controls_never() -> None:
    method = {
        "shift": lambda source, target, strength: shift(
            towards("x"), source=source, target=target, layers=LAYERS - 1, strength=strength
        )
    }
    prompts = {"en": [*"abcdefgh"]}
    longer = Decoding(new_tokens=6)
    sweep = steerings(method, ["en"], [0.0, 1.0], targets=["ru"])
    found = run(sweep, prompts, controls=3, identify=only_x, decoding=longer)
    assert found.rate.tolist() == [[0.0], [1.0]]
    assert found.baseline_rate.tolist() == [1.0]  # of English
    assert set(found.texts[2]) == {"xxxxxx"}
    none, weak, strong = found.to_frame().to_dict("records")
    assert (none["wanted"], none["rate"]) == ("en", 1.0)
    assert (weak["before"], weak["rate"], weak["control"], weak["p"]) == (0.0, 0.0, 0.0, 1.0)
    assert (strong["before"], strong["rate"], strong["gain"]) == (0.0, 1.0, 1.0)
    assert strong["control"] == 0.0
    assert strong["p"] == strong["p_holm"] == 2 / 2**8
    assert (strong["repetition"], strong["line_pass"]) == (pytest.approx(2 / 3), 1.0)
    assert strong["distinct_1"] == pytest.approx(1 / 48)
    assert strong["p_random"] < 0.01
    assert weak["p_random"] == 1.0  # three random sets do nothing, and neither does it
    assert math.isnan(none["p_random"])


# --- numbers by hand ---


def handmade() -> GenerationMatrix:
    """Five questions; one plain intervention, one that steers English into French."""
    texts = (
        ("a", "b", "c", "d", "e"),  # none
        ("f", "g", "h", "i", "j"),  # plain
        ("k", "l", "m", None, None),  # to fr
        ("n", "o", "p", "q", "r"),  # plain, controlled
        ("s", "t", "u", "v", "w"),
        ("x", "y", "z", None, None),  # to fr, controlled
        ("A", "B", "C", None, None),
    )
    n_tokens = torch.tensor(
        [[4, 5, 1, 2, 3], [6, 2, 2, 8, 1], [5, 1, 7, 0, 0], *[[1, 1, 1, 1, 1]] * 2]
        + [[1, 1, 1, 0, 0]] * 2
    )
    generator = torch.Generator().manual_seed(0)
    nll = torch.rand(7, 5, generator=generator, dtype=torch.float64)
    nll[n_tokens == 0] = torch.nan
    return GenerationMatrix(
        interventions=("plain", "to fr"),
        prompts=("1", "2", "3", "4", "5"),
        languages=("en", "en", "en", "fr", "fr"),
        texts=texts,
        spoken=(
            ("en", "en", "und", "fr", "en"),
            ("en", "fr", "fr", "fr", "fr"),
            ("fr", "fr", "de", "und", "und"),
            ("en", "en", "en", "en", "en"),
            ("fr", "en", "en", "fr", "fr"),
            ("fr", "en", "en", "und", "und"),
            ("en", "en", "en", "und", "und"),
        ),
        lines=(
            (("en",), ("en", "fr"), (), ("fr", "fr"), ("fr",)),
            (("en", "en"), ("en",), ("fr",), (), ("fr", "en")),
            (("fr",), ("fr", "fr", "en"), ("fr",), (), ()),
            *[(("en",),) * 5] * 4,
        ),
        nll=nll,
        tokens=torch.randint(4, (int(n_tokens.sum()),), generator=generator),
        n_tokens=n_tokens,
        steering={"to fr": {"target": "fr", "method": "shift", "strength": 2.5}},
        n_controls=2,
    )


def test_rates_by_hand() -> None:
    found = handmade()
    assert found.groups == ("en", "fr")
    expected = torch.tensor([[1 / 3, 1.0], [2 / 3, torch.nan]]).double()
    torch.testing.assert_close(found.rate, expected, equal_nan=True)
    assert found.baseline_rate.tolist() == pytest.approx([2 / 3, 1 / 2])


def standard_error(values: Sequence[float]) -> float:
    middle = sum(values) / len(values)
    square = sum((value - middle) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(square / len(values))


def test_the_frame_by_hand() -> None:
    frame = handmade().to_frame()
    keys = ["intervention", "question", "wanted", "method", "target", "answers"]
    assert frame[keys].to_numpy().tolist() == [
        ["none", "en", "en", "", "", 3],
        ["none", "fr", "fr", "", "", 2],
        ["plain", "en", "en", "", "", 3],
        ["plain", "fr", "fr", "", "", 2],
        ["to fr", "en", "fr", "shift", "fr", 3],
    ]
    nan = pytest.approx(float("nan"), nan_ok=True)
    assert frame["strength"].tolist() == [nan, nan, nan, nan, 2.5]
    assert frame["rate"].tolist() == pytest.approx([2 / 3, 1 / 2, 1 / 3, 1, 2 / 3])
    # the baseline is judged by what the intervention wants
    assert frame["before"].tolist() == pytest.approx([2 / 3, 1 / 2, 2 / 3, 1 / 2, 0])
    control = [(1 + 2 / 3) / 2, (0 + 1) / 2, (1 / 3 + 0) / 2]
    assert frame["control"].tolist() == [nan, nan, *map(pytest.approx, control)]
    # changes from the run without intervention, whatever random sets do
    assert frame["gain"].tolist() == pytest.approx([0, 0, -1 / 3, 1 / 2, 2 / 3])
    hits = [([1, 1, 0], [1, 0, 0]), ([1, 0], [1, 1]), ([0, 0, 0], [1, 1, 0])]
    for row, (before, after) in zip(frame.to_dict("records")[2:], hits, strict=True):
        ends = paired_share_interval(torch.tensor(before).double(), torch.tensor(after).double())
        assert (row["gain_low"], row["gain_high"]) == pytest.approx(ends)
    p = [1.0, 1.0, 0.5]  # one item changed, one, and two
    assert frame["p"].tolist() == [nan, nan, *p]
    assert frame["p_holm"].tolist() == [nan, nan, *holm(torch.tensor(p[:2])).tolist(), p[2]]
    drawn = [(1, 2 / 3), (0, 1), (1 / 3, 0)]
    apart = [[0.5, -1, -1], [0.5, 0.5], [0.5, 1, 0]]  # hits less mean hits of the draws
    random = [
        prediction_test(
            rate, torch.tensor(each).double(), max(standard_error(some), 0.5 / len(some))
        )
        for rate, each, some in zip([1 / 3, 1.0, 2 / 3], drawn, apart, strict=True)
    ]
    assert frame["p_random"].tolist() == [nan, nan, *map(pytest.approx, random)]
    adjusted = [*holm(torch.tensor(random[:2]).double()).tolist(), random[2]]
    assert frame["p_random_holm"].tolist() == [nan, nan, *map(pytest.approx, adjusted)]
    places = [list(frame).index(name) for name in ("p", "p_holm", "p_random", "p_random_holm")]
    assert places[1] == places[0] + 1 and places[3] == places[2] + 1
    assert frame["line_pass"].tolist() == pytest.approx([1 / 3, 1, 2 / 3, 0, 2 / 3])
    assert frame["gain_low"][:2].isna().all() and frame["gain_high"][:2].isna().all()
    frame = frame[2:]
    assert (frame["gain_low"] <= frame["gain"] + 1e-12).all()
    assert (frame["gain"] <= frame["gain_high"] + 1e-12).all()


def test_the_summary_by_hand() -> None:
    found = handmade()
    frame = found.summary()
    assert "question" not in frame
    assert frame["wanted"].tolist() == ["own", "own", "fr"]
    assert frame["answers"].tolist() == [5, 5, 3]
    assert frame["rate"].tolist() == pytest.approx([3 / 5, 3 / 5, 2 / 3])
    assert frame["before"].tolist() == pytest.approx([3 / 5, 3 / 5, 0])
    # questions 0 and 1 in both languages, question 2 in English only
    clusters = [
        ([(1 + 1) / 2, (1 + 0) / 2, 0], [(1 + 1) / 2, (0 + 1) / 2, 0]),
        ([0, 0, 0], [1, 1, 0]),
    ]
    for name in ("p", "p_holm", "p_random", "p_random_holm"):
        assert math.isnan(frame[name][0])
    changes = [torch.tensor(y).double() - torch.tensor(x).double() for x, y in clusters]
    p = [float(sign_flip_test(each)) for each in changes]
    assert frame["p"].tolist()[1:] == p
    assert frame["p_holm"].tolist()[1:] == holm(torch.tensor(p)).tolist()
    apart = [[(0.5 + 0.5) / 2, (-1 + 0.5) / 2, -1], [0.5, 1, 0]]
    drawn = [(3 / 5, 4 / 5), (1 / 3, 0)]
    for row, (before, after), draws, each in zip(
        frame.to_dict("records")[1:], clusters, drawn, apart, strict=True
    ):
        assert row["gain"] == pytest.approx(row["rate"] - row["before"])
        ends = paired_share_interval(torch.tensor(before).double(), torch.tensor(after).double())
        assert (row["gain_low"], row["gain_high"]) == pytest.approx(ends)
        assert (row["rate_low"], row["rate_high"]) == pytest.approx(
            share_interval(row["rate"] * 3, 3)  # three questions, however many answers
        )
        expected = prediction_test(row["rate"], torch.tensor(draws).double(), standard_error(each))
        assert row["p_random"] == pytest.approx(expected)


def test_distinct_n_of_all_languages_is_their_mean() -> None:
    found = handmade()
    pooled, single = found.summary(), found.to_frame()
    for name in ("none", "plain", "to fr"):
        mine = single[single["intervention"] == name]
        row = pooled[pooled["intervention"] == name].iloc[0]
        for n in (1, 2):
            assert row[f"distinct_{n}"] == pytest.approx(mine[f"distinct_{n}"].mean())


def test_a_language_in_which_nothing_was_said_has_no_distinct_n() -> None:
    found = handmade()
    kept = found.n_tokens.clone()
    kept[1, 3:] = 0  # French answers under "plain" are empty
    places = torch.ones(len(found.tokens), dtype=torch.bool)
    start = int(found.n_tokens[0].sum() + found.n_tokens[1, :3].sum())
    places[start : start + int(found.n_tokens[1, 3:].sum())] = False
    silent = dataclasses.replace(found, n_tokens=kept, tokens=found.tokens[places])
    rows = silent.to_frame().set_index(["intervention", "question"])
    assert math.isnan(rows.loc[("plain", "fr"), "distinct_1"])
    assert rows.loc[("plain", "fr"), "repetition"] == 0
    row = silent.summary().set_index("intervention").loc["plain"]
    assert row["distinct_1"] == pytest.approx(rows.loc[("plain", "en"), "distinct_1"])


def test_by_cluster_is_the_mean_of_each_cluster() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        values = torch.rand(30, generator=generator, dtype=torch.float64)
        clusters = torch.randint(-3, 9, (30,), generator=generator)
        expected = [float(values[clusters == each].mean()) for each in sorted({*clusters.tolist()})]
        assert by_cluster(values, clusters).tolist() == pytest.approx(expected)
        # whoever is alone in a cluster stands for itself
        assert by_cluster(values, torch.arange(30)).equal(values)


# --- translations are no independent witnesses, and random sets are random ---


def simulated(
    hits: torch.Tensor, *, languages: int, n_interventions: int = 1, n_controls: int = 0
) -> GenerationMatrix:
    """Hits of runs and questions, the same in every language: translations say the same."""
    runs, questions = hits.shape
    tags = ("en", "fr", "de", "es", "it", "ru")[:languages]
    own = [lang for lang in tags for _ in range(questions)]
    spoken = tuple(
        tuple(lang if row[place % questions] else "zh" for place, lang in enumerate(own))
        for row in hits.tolist()
    )
    shape = (runs, len(own))
    return GenerationMatrix(
        interventions=tuple(f"set {number}" for number in range(n_interventions)),
        prompts=tuple(f"{number}" for number in range(len(own))),
        languages=tuple(own),
        texts=(("a",) * len(own),) * runs,
        spoken=spoken,
        lines=tuple(tuple((said,) for said in row) for row in spoken),
        nll=torch.ones(shape, dtype=torch.float64),
        tokens=torch.ones(runs * len(own), dtype=torch.int64),
        n_tokens=torch.ones(shape, dtype=torch.int64),
        n_controls=n_controls,
    )


def test_translations_that_say_the_same_are_not_counted_as_more() -> None:
    generator = torch.Generator().manual_seed(0)
    found, naive = 0, 0
    for _ in range(60):
        hits = torch.rand(2, 14, generator=generator) < 0.5  # nothing but chance
        matrix = simulated(hits, languages=5)
        row = matrix.summary().iloc[1]
        found += row["p"] < 0.05
        change = (hits[1].double() - hits[0].double()).repeat(5)
        naive += float(sign_flip_test(change, resamples=999)) < 0.05
        alone = simulated(hits, languages=1).summary().iloc[1]
        for name in ("rate", "rate_low", "rate_high", "gain", "gain_low", "gain_high", "p"):
            assert row[name] == pytest.approx(alone[name])
    assert found <= 6
    assert naive > 15  # answers as witnesses would find it in a third of them


def test_languages_that_differ_are_worth_more_than_one() -> None:
    generator = torch.Generator().manual_seed(1)
    spoken = torch.rand(2, 5 * 12, generator=generator) < torch.tensor([[0.35], [0.65]])
    apart = dataclasses.replace(
        simulated(spoken[:, :12], languages=5),
        spoken=tuple(
            tuple(
                lang if hit else "zh"
                for lang, hit in zip(
                    [x for x in ("en", "fr", "de", "es", "it") for _ in range(12)], row, strict=True
                )
            )
            for row in spoken.tolist()
        ),
    )
    assert apart.summary()["p"][1] < 0.01
    assert (apart.to_frame()["p"][5:] > apart.summary()["p"][1]).all()


def test_a_set_that_is_a_random_one_is_seldom_beyond_random_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    p: list[float] = []
    for _ in range(40):
        chances = 0.3 + 0.5 * torch.rand(1 + 4 * 4, 1, generator=generator)
        hits = torch.rand(1 + 4 * 4, 20, generator=generator) < chances
        matrix = simulated(hits, languages=3, n_interventions=4, n_controls=3)
        p += matrix.summary()["p_random"].tolist()[1:]
    assert len(p) == 160 and not any(map(math.isnan, p))
    assert sum(each < 0.05 for each in p) <= 16


def test_without_controls_an_intervention_is_tested_against_what_was_before() -> None:
    whole = handmade()
    found = GenerationMatrix(
        **{name: getattr(whole, name) for name in ("interventions", "prompts", "languages")},
        **{name: getattr(whole, name)[:3] for name in ("texts", "spoken", "lines", "nll")},
        tokens=whole.tokens,
        n_tokens=whole.n_tokens[:3],
        steering=whole.steering,
    )
    rows = found.to_frame().to_dict("records")
    assert all(math.isnan(row["control"]) for row in rows)
    assert [row["gain"] for row in rows] == pytest.approx(
        [row["rate"] - row["before"] for row in rows]
    )
    expected = [[0.0, -1, 0], [0.0, 1], [1, 1, 0]]
    for row, each in zip(rows[2:], expected, strict=True):
        assert row["p"] == float(sign_flip_test(torch.tensor(each).double()))
        assert math.isnan(row["p_random"]) and math.isnan(row["p_random_holm"])
    for name in ("rate", "gain", "gain_low", "gain_high", "p", "p_holm"):
        assert found.to_frame()[name].equals(whole.to_frame()[name])


def test_fluency_by_brute_force() -> None:
    found = handmade()
    starts = [0, *itertools.accumulate(found.n_tokens.flatten().tolist())]
    answers = [
        [found.tokens.tolist()[starts[5 * r + q] : starts[5 * r + q + 1]] for q in range(5)]
        for r in range(3)
    ]
    rows = iter(found.to_frame().to_dict("records"))
    for number, lang in [(0, "en"), (0, "fr"), (1, "en"), (1, "fr"), (2, "en")]:
        mine = answers[number][:3] if lang == "en" else answers[number][3:]
        row = next(rows)
        for n in (1, 2):
            seen: list[tuple[int, ...]] = []
            for answer in mine:
                for start in range(len(answer)):
                    if start + n <= len(answer):
                        seen.append(tuple(answer[start : start + n]))
            assert row[f"distinct_{n}"] == pytest.approx(len(set(seen)) / len(seen))
        repeated = []
        for answer in mine:
            grams = [str(answer[start : start + 4]) for start in range(max(len(answer) - 3, 0))]
            again = sum(gram in grams[:place] for place, gram in enumerate(grams))
            repeated.append(again / len(grams) if grams else 0.0)
        assert row["repetition"] == pytest.approx(sum(repeated) / len(repeated))
        places = slice(0, 3) if lang == "en" else slice(3, 5)
        assert row["nll"] == pytest.approx(float(found.nll[number, places].mean()))


@given(
    answers=st.lists(st.lists(st.integers(0, 3), max_size=9), max_size=4),
    n=st.integers(1, 5),
)
@settings(max_examples=60, deadline=None)
def test_distinct_and_repetition_count_n_grams(answers: list[list[int]], n: int) -> None:
    counts: Counter[str] = Counter()
    for answer in answers:
        text = "".join(map(str, answer))
        mine = [text[start : start + n] for start in range(len(text)) if text[start + n - 1 :]]
        counts.update(mine)
        expected = 1 - len({*mine}) / len(mine) if mine else 0.0
        assert repetition(answer, n) == pytest.approx(expected)
    if counts:
        assert distinct(answers, n) == pytest.approx(len(counts) / counts.total())
    else:
        assert math.isnan(distinct(answers, n))


def test_wilsons_interval_is_where_the_share_is_as_far_as_it_may_be() -> None:
    for row in handmade().to_frame().to_dict("records"):
        share, n = row["rate"], row["answers"]
        assert row["rate_low"] <= share <= row["rate_high"]
        for end in (row["rate_low"], row["rate_high"]):
            if 0 < end < 1:
                assert abs(share - end) == pytest.approx(
                    1.959964 * math.sqrt(end * (1 - end) / n), abs=1e-6
                )
            else:
                assert end == share
        assert (row["rate_low"], row["rate_high"]) == share_interval(round(share * n), n)


def test_the_distribution_by_hand() -> None:
    frame = handmade().distribution()
    assert list(frame.index) == [
        ("none", "en"), ("none", "fr"), ("plain", "en"), ("plain", "fr"), ("to fr", "en"),
    ]  # fmt: skip
    assert set(frame.columns[:2]) == {"en", "fr"}
    assert set(frame.columns) == {"en", "fr", "de", "und"}
    expected = {
        "en": [2 / 3, 1 / 2, 1 / 3, 0, 0],
        "fr": [0, 1 / 2, 2 / 3, 1, 2 / 3],
        "de": [0, 0, 0, 0, 1 / 3],
        "und": [1 / 3, 0, 0, 0, 0],
    }
    for lang, shares in expected.items():
        assert frame[lang].tolist() == pytest.approx(shares)
    assert frame.sum(axis=1).tolist() == pytest.approx([1.0] * 5)


def test_without_interventions_there_are_no_rates_and_a_baseline() -> None:
    found = run({})
    assert len(found.to_frame()) == 2
    assert len(found.summary()) == 1
    assert len(found.distribution()) == 2
    assert "0 interventions" in repr(found)
    assert found.rate.shape == (0, 2)


def test_an_intervention_called_none_does_not_hide_the_run_without_any() -> None:
    with pytest.raises(OptionError, match="none"):
        run({"none": hooks()})


# --- judging ---


def test_an_identifier_is_asked_once_and_about_letters_only() -> None:
    asked: list[list[str]] = []

    def identify(texts: Sequence[str]) -> list[str | None]:
        asked.append(list(texts))
        return [language_of(text) for text in texts]

    spoken, lines = judged([["ab\nzz\n\n42", "ab", None], ["", "42", "zz\r\nab\x85日"]], identify)
    assert spoken == (("fr", "fr", "und"), ("und", "und", "en"))
    assert lines == ((("fr", "en"), ("fr",), ()), ((), (), ("en", "fr", "zh")))
    (once,) = asked
    assert len(once) == len(set(once))
    assert "42" not in once and "" not in once


def test_what_the_identifier_says_becomes_a_tag_or_nothing() -> None:
    answers: dict[str, Any] = {
        "a": {"fra_Latn": 0.4, "en": 0.6},
        "b": "French",
        "c": None,
        "d": {},
        "e": "nonsense",
        "f": {"zho_Hans": 1.0},
        "g": {"fr": 0.5, "en": 0.5},
    }
    spoken, _ = judged([[*answers]], lambda texts: [answers[text] for text in texts])
    assert spoken == (("en", "fr", "und", "und", "und", "zh", "fr"),)


@pytest.mark.parametrize(
    ("said", "wanted", "expected"),
    [
        ("fr", "fr", True),
        ("zh-CN", "zh", True),
        ("zh", "zh-TW", True),
        ("zh-CN", "zh-TW", False),
        ("fr-FR", "fr", True),
        ("fr-CA", "fr-FR", False),
        ("pt", "pt-BR", True),
        ("pt-BR", "pt", True),
        ("pt-PT", "pt-BR", False),
        ("no", "nb", True),
        ("nb", "no", True),
        ("nn", "no", True),
        ("no", "nn", True),
        ("sr-Latn", "sr", True),
        ("sr", "sr-Latn", True),
        ("de", "nl", False),
        ("de", "de-AT", True),
        ("de", "nl-BE", False),
        ("und", "fr", False),
    ],
)
def test_a_language_is_spoken_if_nothing_that_both_know_differs(
    said: str, wanted: str, expected: bool
) -> None:
    assert is_spoken(said, wanted) is expected
    assert is_spoken(wanted, said) is expected  # whoever says it
    if said == language_tag(said) and wanted == language_tag(wanted):
        (found,) = spoken_languages(["a"], lambda texts: [said] * len(texts))
        assert is_spoken(found, wanted) is expected


def test_norwegian_answers_count_for_whoever_asked_in_bokmal() -> None:
    prompts = {"nb": ["who"], "pt-BR": ["what"]}
    asked = run({}, prompts)
    said = dict(zip(asked.texts[0], ("no", "pt"), strict=True))
    found = run({}, prompts, identify=lambda texts: [said.get(text) for text in texts])
    assert found.languages == ("nb", "pt-BR")
    assert found.spoken[0] == ("no", "pt")
    assert found.baseline_rate.tolist() == [1.0, 1.0]
    assert found.to_frame()["rate"].tolist() == [1.0, 1.0]
    assert found.summary()["line_pass"].tolist() == [1.0]


def test_labels_of_fasttext_are_understood(caplog: pytest.LogCaptureFixture) -> None:
    labels = {"a": "__label__fr", "b": {"__label__deu_Latn": 0.9, "__label__fr": 0.1}}
    with caplog.at_level(logging.WARNING, logger="lens_lang"):
        found = spoken_languages([*labels], lambda texts: [labels[text] for text in texts])
    assert found == ["fr", "de"]
    assert not caplog.records


def test_labels_that_are_no_language_are_none_and_said(caplog: pytest.LogCaptureFixture) -> None:
    labels: dict[str, Any] = {"a": "nonsense", "b": "fr", "c": "LABEL_3", "d": "nonsense"}
    with caplog.at_level(logging.WARNING, logger="lens_lang"):
        found = spoken_languages([*labels], lambda texts: [labels[text] for text in texts])
    assert found == ["und", "fr", "und", "und"]
    (record,) = caplog.records
    assert "'LABEL_3', 'nonsense'" in record.getMessage()
    assert "give tags such as 'fr'" in record.getMessage()
    caplog.clear()
    for nothing_said in (None, {}, "und", {"und": 1.0}):
        assert spoken_languages(["a"], lambda texts, x=nothing_said: [x]) == ["und"]
    assert spoken_languages(["42", ""], lambda texts: ["nonsense"] * len(texts)) == ["und", "und"]
    assert not caplog.records


def test_rejudging_changes_judgements_only() -> None:
    found = run({"x": hooks(), "to": Steering("ru", {"en": hooks(1)})}, controls=1)
    again = found.rejudged(only_x)
    assert again.spoken != found.spoken
    assert again.spoken == tuple(
        tuple(
            "und" if text is None or not any(map(str.isalpha, text)) else only_x([text])[0]
            for text in texts
        )
        for texts in found.texts
    )
    changed = {"spoken": found.spoken, "lines": found.lines, "provenance": found.provenance}
    back = again.rejudged(by_first_letter)
    same(back, found)
    assert back.provenance == found.provenance
    assert set(changed["provenance"]) == set(again.provenance)
    different = {key for key, value in again.provenance.items() if found.provenance[key] != value}
    assert different <= {"identifier"}
    for name in ("texts", "languages", "prompts", "interventions", "steering", "tokens"):
        assert getattr(again, name) is getattr(found, name)


def test_provenance_names_the_identifier() -> None:
    found = run({})
    assert found.rejudged(only_x).provenance["identifier"] != found.provenance["identifier"]


# --- what ended an answer is none of it, and how questions are answered unless told ---


def test_tokens_hold_what_was_said_and_not_what_ended_it() -> None:
    plain = run({}, {"en": ["who"]}, decoding=Decoding(new_tokens=8))
    (text,) = plain.texts[0]
    assert text is not None and plain.n_tokens.tolist() == [[8]]
    raw = generate(toy(), ["who"], Decoding(new_tokens=8))[0]
    stop = raw.text[3:5]  # of two letters, of which the first alone does not stop it
    kept = raw.text[: raw.text.index(stop)]
    found = run({}, {"en": ["who"]}, decoding=Decoding(new_tokens=8, stop=(stop,)))
    assert found.texts == ((kept.strip(),),)
    ended = generate(toy(), ["who"], Decoding(new_tokens=8, stop=(stop,)))[0]
    assert ended.ended and len(ended.tokens) > len(kept.rstrip())
    assert found.tokens.tolist() == list(raw.tokens[: len(kept.rstrip())])
    # the likelihood is that of all that was generated
    assert float(found.nll) == pytest.approx(ended.nll / len(ended.tokens), abs=1e-5)


def test_the_end_of_text_is_no_token_of_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = speaker()
    raw = generate(model, ["who"], Decoding(new_tokens=8))[0]
    place = next(n for n, token in enumerate(raw.tokens) if n and token not in raw.tokens[:n])
    end = raw.tokens[place]
    monkeypatch.setattr(Alphabet, "eos_token_id", end)
    monkeypatch.setattr(Alphabet, "decode", lambda self, ids, **options: "".join(
        self.letters[i - 3] for i in ids if i >= 3 and i != end
    ))  # fmt: skip
    found = run({}, {"en": ["who"]}, model=model, decoding=Decoding(new_tokens=8))
    ended = generate(model, ["who"], Decoding(new_tokens=8))[0]
    assert ended.ended and ended.tokens == raw.tokens[: place + 1]
    assert found.tokens.tolist() == list(raw.tokens[:place])
    assert found.n_tokens.tolist() == [[place]]


def test_an_answer_that_ends_at_once_says_nothing() -> None:
    raw = generate(toy(), ["who"], Decoding(new_tokens=1))[0]
    found = run({}, {"en": ["who"]}, decoding=Decoding(new_tokens=4, stop=(raw.text[0],)))
    assert found.texts == (("",),)
    assert found.n_tokens.tolist() == [[0]] and len(found.tokens) == 0
    (row,) = found.to_frame().to_dict("records")
    assert (row["answers"], row["rate"], row["repetition"]) == (1, 0.0, 0.0)
    assert math.isnan(row["distinct_1"])
    assert float(found.nll) == pytest.approx(raw.nll, abs=1e-5)


def test_questions_are_answered_in_the_frame_of_open_questions_unless_told_otherwise() -> None:
    default = inspect.signature(generation_matrix).parameters["decoding"].default
    assert default is answering.ANSWER
    assert (default.stop, default.repetition_penalty) == (("\nQ:", "\nA:"), 1.1)
    assert (default.new_tokens, default.temperature, default.skip_blank) == (32, 0.0, False)
    found = generation_matrix(toy(), {"en": ["who"]}, {}, identify=by_first_letter, progress=False)
    expected = generate(toy(), ["who"], answering.ANSWER)[0]
    assert found.texts == ((expected.text.strip(),),)
    assert found.provenance["decoding"] == {**vars(default), "stop": ["\nQ:", "\nA:"]}


# --- controls ---


def test_controls_are_the_same_in_any_company_and_order() -> None:
    a, b, c = ablate(some_neurons(toy())), hooks(1), Steering("en", {"fr": hooks(2)})
    whole = run({"a": a, "b": b, "c": c}, controls=2)
    turned = run({"c": c, "b": b, "a": a}, controls=3)
    alone = run({"b": b}, {"fr": PROMPTS["fr"]}, controls=2)

    def controls(matrix: GenerationMatrix, name: str) -> list[Any]:
        place = matrix.interventions.index(name)
        first = 1 + len(matrix.interventions) + place * matrix.n_controls
        return list(matrix.texts[first : first + matrix.n_controls])

    for name in "abc":
        assert controls(turned, name)[:2] == controls(whole, name)
    assert [texts[3:] for texts in controls(whole, "b")] == controls(alone, "b")
    assert controls(whole, "a") != controls(whole, "b")
    assert len({str(each) for each in controls(turned, "b")}) == 3


def test_controls_are_matched_ones_seeded_by_name_and_draw() -> None:
    found = run({"a": hooks()}, controls=2)
    for draw in range(2):
        expected: list[str] = []
        for texts in PROMPTS.values():
            drawn = matched_control(hooks(), generator=seeded(SHORT.seed, "a", draw))
            said = generate(toy(), texts, SHORT, fwd_hooks=drawn)
            expected += [each.text.strip() for each in said]
        assert found.texts[2 + draw] == tuple(expected)
    other = run({"a": hooks()}, controls=2, decoding=Decoding(**vars(SHORT) | {"seed": 1}))
    assert other.texts[:2] == found.texts[:2]
    assert other.texts[2:] != found.texts[2:]


# --- parts ---

INTERVENTIONS = {"off": ablate(some_neurons(toy())), "to": Steering("en", {"fr": hooks()})}
CALLS = 2 + 3 + 3  # baselines; interventions; one control each


@pytest.mark.parametrize("done", [0, 3, CALLS - 1])
def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, counting: Counting, done: int
) -> None:
    uninterrupted = run(INTERVENTIONS, controls=1)
    assert len(counting.calls) == CALLS
    counting.calls.clear()
    counting.last = done
    with pytest.raises(KeyboardInterrupt):
        run(INTERVENTIONS, controls=1, run_dir=tmp_path)
    assert len(counting.calls) == done + 1
    counting.calls.clear()
    counting.last = None
    resumed = run(INTERVENTIONS, controls=1, run_dir=tmp_path)
    assert len(counting.calls) == CALLS - done
    same(resumed, uninterrupted)
    assert resumed.provenance == uninterrupted.provenance
    reads = counting.reads
    same(run(INTERVENTIONS, controls=1, run_dir=str(tmp_path)), uninterrupted)
    assert counting.reads == reads  # nothing is read again
    assert len(list(tmp_path.iterdir())) == CALLS


def test_parts_serve_other_matrices(tmp_path: Path, counting: Counting) -> None:
    run(INTERVENTIONS, controls=1, run_dir=tmp_path)
    counting.calls.clear()
    interventions = {"new": Steering("fr", {"en": hooks(5)}), **INTERVENTIONS}
    more = run(interventions, controls=2, run_dir=tmp_path)
    # the new one with two controls, and a second control of the old ones
    assert len(counting.calls) == 3 + 3
    same(more, run(interventions, controls=2))
    counting.calls.clear()
    run(INTERVENTIONS, dict(reversed(PROMPTS.items())), run_dir=tmp_path, batch_size=1)
    run(INTERVENTIONS, run_dir=tmp_path, identify=only_x)
    assert counting.calls == []


def with_fields(**changes: Any) -> dict[str, Any]:
    return {"decoding": Decoding(**vars(SHORT) | changes)}


@pytest.mark.parametrize(
    "changes",
    [
        with_fields(new_tokens=4),
        with_fields(temperature=1.0),
        with_fields(top_p=0.5),
        with_fields(repetition_penalty=1.4),
        with_fields(stop=("e",)),
        with_fields(skip_blank=True),
        with_fields(seed=1),
        {"interventions": {"x": hooks(0, -3.1)}},
        {"interventions": {"x": hooks(1)}},
        {"interventions": {"x": scale(some_neurons(toy()), -3.0, positions="new")}},
        {"prompts": {"en": ["who", "what is it?", "A house."]}},
        {"model": speaker(seed=1)},
    ],
)
def test_what_was_measured_otherwise_is_measured_anew(
    tmp_path: Path, counting: Counting, changes: dict[str, Any]
) -> None:
    plain: dict[str, Any] = {"interventions": {"x": hooks()}, "prompts": {"en": PROMPTS["en"]}}
    run(**plain, run_dir=tmp_path)
    counting.calls.clear()
    found = run(**plain | changes, run_dir=tmp_path)
    assert len(counting.calls) == (1 if "interventions" in changes else 2)
    same(found, run(**plain | changes))


def test_a_model_with_other_weights_is_asked_anew(tmp_path: Path) -> None:
    model = speaker()
    before = run({}, model=model, run_dir=tmp_path)
    with torch.no_grad():
        for layer in model.original_model.model.layers:
            layer.mlp.down_proj.weight[:, 20:] *= -2
    assert run({}, model=model).texts != before.texts
    same(run({}, model=model, run_dir=tmp_path), run({}, model=model))


def test_a_model_that_reads_prompts_otherwise_is_asked_anew(tmp_path: Path) -> None:
    model = speaker()
    run({}, model=model, run_dir=tmp_path)
    model.cfg.default_prepend_bos = False
    same(run({}, model=model, run_dir=tmp_path), run({}, model=model))


def test_a_users_own_hook_is_free_without_run_dir_and_controls(tmp_path: Path) -> None:
    mine = [(MLP_POST.at(1), lambda values, hook: values * -2)]
    found = run({"mine": mine, "both": [*hooks(), *mine]})
    expected = generate(toy(), PROMPTS["fr"], SHORT, fwd_hooks=mine)
    assert found.texts[1][3:] == tuple(each.text.strip() for each in expected)
    assert len(set(found.texts)) == 3
    with pytest.raises(OptionError, match="leave out run_dir, or the hook"):
        run({"mine": mine}, run_dir=tmp_path)
    with pytest.raises(OptionError, match="use controls=0, or leave it out"):
        run({"mine": mine}, controls=1)


def test_a_hook_that_cannot_be_kept_is_refused_before_anything_is_generated(
    tmp_path: Path, counting: Counting
) -> None:
    mine = [(MLP_POST.at(1), lambda values, hook: values * -2)]
    with pytest.raises(OptionError, match="leave out run_dir, or the hook"):
        run({"first": hooks(), "mine": mine}, run_dir=tmp_path)
    assert counting.calls == []


def test_what_is_attached_to_the_model_is_measured_and_not_kept(tmp_path: Path) -> None:
    expected = run({"x": hooks()}).texts[1]
    with toy().hooks(fwd_hooks=hooks()):
        assert run({}).texts == (expected,)
        with pytest.raises(OptionError, match="Hooks are attached to toy .*leave out run_dir"):
            run({}, run_dir=tmp_path)
    assert not list(tmp_path.iterdir())
    assert run({}, run_dir=tmp_path).texts != (expected,)  # nothing is left on it


def test_half_a_surrogate_pair_ends_in_one_sentence(tmp_path: Path) -> None:
    for options in ({}, {"run_dir": tmp_path}):
        with pytest.raises(CorpusError, match="surrogate"):
            run({}, {"en": ["ab\ud800c"]}, **options)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    run({}, run_dir=tmp_path)
    file = min(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(StorageError, match=file.name):
        run({}, run_dir=tmp_path)


# --- files ---


def strange() -> GenerationMatrix:
    found = copy.copy(handmade())
    texts = [list(each) for each in found.texts]
    texts[0] = ['"\\', "a\nb\r\n\u2028c\x00\t", "日本語 🦊 e\u0301", "", "null"]
    object.__setattr__(found, "texts", tuple(map(tuple, texts)))
    object.__setattr__(found, "prompts", ("é\n?", *found.prompts[1:]))
    object.__setattr__(found, "provenance", {"decoding": {"stop": ["\n"]}, "é": None})
    return found


@pytest.mark.parametrize("make", [handmade, strange, lambda: run(INTERVENTIONS, controls=1)])
def test_saving_and_loading_is_the_identity(make: Any, tmp_path: Path) -> None:
    matrix = make()
    matrix.save(tmp_path / "x.safetensors")
    found = GenerationMatrix.load(tmp_path / "x.safetensors")
    same(found, matrix)
    assert found.to_frame().equals(matrix.to_frame())
    assert found.summary().equals(matrix.summary())
    assert found.distribution().equals(matrix.distribution())
    assert repr(found) == repr(matrix)
    found.save(tmp_path / "y.safetensors")
    assert (tmp_path / "x.safetensors").read_bytes() == (tmp_path / "y.safetensors").read_bytes()


def test_provenance_is_json_and_survives_saving(tmp_path: Path) -> None:
    matrix = run(INTERVENTIONS)
    matrix.save(tmp_path / "x")
    assert GenerationMatrix.load(tmp_path / "x").provenance == matrix.provenance
    assert json.loads(json.dumps(matrix.provenance)) == matrix.provenance


def test_any_result_is_loaded_by_one_function(tmp_path: Path) -> None:
    handmade().save(tmp_path / "x")
    found: Any = results.load(tmp_path / "x")
    same(found, handmade())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    handmade().save(tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-8])
    (tmp_path / "renamed").write_bytes(whole.replace(b"spoken", b"spokem"))
    means().save(tmp_path / "other")
    for name, message in [
        ("cut", "not a readable safetensors file"),
        ("renamed", "is damaged: 'spoken' is missing"),
        ("other", "holds a Activations, not a GenerationMatrix"),
        ("missing", "There is no file"),
    ]:
        with pytest.raises(StorageError, match=message):
            GenerationMatrix.load(tmp_path / name)


# --- what is refused, before anything is generated ---


def no_library(texts: Sequence[str]) -> list[Any]:
    raise MissingExtraError("Identifying languages", "lid")


def nothing(values: torch.Tensor, hook: Any) -> None: ...


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"prompts": {}}, OptionError, "at least one question in each language"),
        ({"prompts": {"en": []}}, OptionError, "at least one question in each language"),
        ({"prompts": {"en": ["who"], "fr": []}}, OptionError, "at least one question in each"),
        ({"controls": -1}, OptionError, "controls must be at least 0, got -1"),
        ({"prompts": {"nonsense": ["who"]}}, LanguageError, "No language is called 'nonsense'"),
        ({"prompts": {"fr": ["a"], "French": ["b"]}}, LanguageError, "given twice: fr"),
        ({"identify": no_library}, MissingExtraError, "needs packages that are not installed"),
        (
            {"interventions": {"x": [("blocks.0.mlp.hook_pots", nothing)]}},
            SiteError,
            "no hook point 'blocks.0.mlp.hook_pots'; did you mean",
        ),
        (
            {"interventions": {"x": Steering("en", {"fr": [("blocks.9.hook_out", nothing)]})}},
            SiteError,
            "no hook point 'blocks.9.hook_out'",
        ),
        (
            {"interventions": {"x": Steering("en", {"de": hooks()})}},
            LanguageError,
            "hooks for de, and questions are in en, fr",
        ),
        ({"interventions": {"x": Steering("en", {})}}, LanguageError, "hooks for no language"),
        (
            {"interventions": {"x": Steering("en", {"nonsense": hooks()})}},
            LanguageError,
            "No language is called 'nonsense'",
        ),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_generated(
    counting: Counting, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        run(**{"interventions": {"x": hooks()}} | changes)
    assert counting.reads == 0


def test_hooks_behind_the_last_block_are_refused_before_anything_is_generated(
    counting: Counting,
) -> None:
    name = next(each for each in toy().hook_dict if each.startswith("ln_final"))
    for place in (name, lambda each: "ln_final" in each):
        with pytest.raises(SiteError, match="comes after the last block"):
            run({"fine": hooks(), "x": [(place, nothing)]})
    assert counting.calls == []


def test_an_empty_question_is_refused() -> None:
    with pytest.raises(CorpusError, match="Prompt 1 is empty"):
        run({}, {"en": ["who", ""]})


def test_one_string_is_no_list_of_questions() -> None:
    with pytest.raises((CorpusError, OptionError), match="one string"):
        run({}, {"en": "who is it?"})


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (lambda texts: ["en"], "1 answers for .* texts"),
        (lambda texts: [{"en": 1.5}] * len(texts), "is no distribution"),
        (lambda texts: [{"en": 0.6, "fr": 0.6}] * len(texts), "is no distribution"),
        (lambda texts: [{"en": float("nan")}] * len(texts), "is no distribution"),
    ],
)
def test_an_identifier_that_makes_no_sense_is_refused(answers: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        run({}, identify=answers)


def test_a_hook_after_a_shift_sees_it() -> None:
    seen: list[torch.Tensor] = []
    look = (RESID_POST.at(1), lambda resid, hook: seen.append(resid.clone()))
    vector = shift(means(), source="en", target="fr", layers=1)
    run({"look": [look], "shifted": [*vector, look]}, {"en": ["who"]})
    half = len(seen) // 2
    torch.testing.assert_close(seen[half], seen[0] + vector[0][1].vector)


def test_a_target_that_is_no_language_is_refused_where_it_is_named() -> None:
    with pytest.raises(LanguageError, match="No language is called 'Frensh'"):
        Steering("Frensh", {"fr": hooks()})
    assert Steering("French", {"en": hooks()}).target == "fr"
