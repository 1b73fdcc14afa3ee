"""Regions switched off, task by task: the tables by hand, and exactly these neurons off."""

import dataclasses
import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import LAYERS
from test_generation import by_first_letter, run, toy
from test_intervene import some_neurons
from test_task_matrix import CountingTasks, chosen_items, interrupted, same, solve

from lens_lang import results
from lens_lang.errors import LanguageError, OptionError, ShapeError, StorageError
from lens_lang.evaluate import mwork as module
from lens_lang.evaluate import solving
from lens_lang.evaluate.mwork import PARTS, SETTINGS, mwork, tune_regions
from lens_lang.evaluate.significance import holm, prediction_test
from lens_lang.evaluate.story import MWork
from lens_lang.evaluate.task_scores import METRICS, TaskMatrix
from lens_lang.intervene import ablate
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.regions import Regions
from lens_lang.sites import ATTN_Q, ATTN_V, MLP_POST
from lens_lang.tasks import TASKS, XCSQA, XNLI, Item, TaskItems

THIRDS = Regions(understanding=1, generation=1)
LAYER = {"U": 0, "A": 1, "F": 1, "G": 2}
SITES = {"U": (MLP_POST, ATTN_Q, ATTN_V), "A": (ATTN_Q, ATTN_V), "F": (MLP_POST,)}
SITES["G"] = SITES["U"]


# --- by hand ---


def handmade(
    settings: Sequence[str] = ("U", "U+G"),
    *,
    task: str = "xquad",
    items: Mapping[str, int] | None = None,
    controls: int = 2,
    aligned: bool = True,
    seed: int = 0,
) -> TaskMatrix:
    """English and two languages, each tested where `mwork` tests it."""
    items = {"de": 5, "en": 5, "fr": 5} if items is None else items
    others = [lang for lang in items if lang != "en"]
    interventions = [(setting, lang) for setting in settings for lang in others]
    n_metrics, runs = len(METRICS[TASKS[task].metric]), 1 + len(interventions) * (1 + controls)
    generator = torch.Generator().manual_seed(seed)
    scores = {
        lang: torch.rand((n_metrics, runs, n), generator=generator, dtype=torch.float64)
        for lang, n in items.items()
    }
    for place, (_, off) in enumerate(interventions):
        first = 1 + len(interventions) + place * controls
        for lang in others:
            if lang != off:
                scores[lang][:, [1 + place, *range(first, first + controls)]] = torch.nan
    return TaskMatrix(
        task,
        tuple(f"{setting} {lang}" for setting, lang in interventions),
        tuple(items),
        {
            lang: tuple(f"{number}" if aligned else f"{lang} {number}" for number in range(n))
            for lang, n in items.items()
        },
        scores,
        {lang: (("a",) * n,) * runs for lang, n in items.items()},
        controls,
        {"é": None},
    )


def together(*matrices: TaskMatrix) -> MWork:
    settings = {
        each.task: tuple(dict.fromkeys(name.split()[0] for name in each.interventions))
        for each in matrices
    }
    regions = {"understanding": (0,), "task": (1,), "generation": (2,)}
    return MWork({each.task: each for each in matrices}, settings, regions, {"neurons": {"x": 1}})


def scores_of(
    matrix: TaskMatrix, kind: str, setting: str, off: str, tested: str, metric: int = 0
) -> list[float]:
    """Items' scores under a language's own neurons, or on average under random ones."""
    place = matrix.interventions.index(f"{setting} {off}")
    rows = matrix.scores[tested][metric].tolist()
    if kind == "own":
        return rows[1 + place]
    first = 1 + len(matrix.interventions) + place * matrix.n_controls
    drawn = rows[first : first + matrix.n_controls]
    return [sum(each) / len(each) for each in zip(*drawn, strict=True)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def exact_p(differences: Sequence[float]) -> float:
    """By all ways to give signs."""
    far = abs(sum(differences)) - 1e-12
    ways = itertools.product((1, -1), repeat=len(differences))
    sums = [abs(sum(map(float.__mul__, differences, map(float, signs)))) for signs in ways]
    return mean([each >= far for each in sums])


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("controls", [0, 1, 2])
@pytest.mark.parametrize("metric", [None, "log_probability"])
def test_the_tables_by_hand(aligned: bool, controls: int, metric: str | None) -> None:
    counts = {"de": 3, "en": 3, "fr": 3} if aligned else {"de": 2, "en": 4, "fr": 3}
    quad = handmade(aligned=aligned, controls=controls, items=counts)
    nli = handmade(("G",), task="xnli", items={"en": 3, "fr": 3}, controls=controls, seed=1)
    frame = together(quad, nli).to_frame(metric)
    rows = iter(frame.to_dict("records"))
    names = ("p", "p_others", "p_random", "p_random_others")
    tests: dict[str, list[float]] = {name: [] for name in names}
    for matrix, setting in ((quad, "U"), (quad, "U+G"), (nli, "G")):
        others = [lang for lang in matrix.languages if lang != "en"]
        number = 0 if metric is None else matrix.metrics.index(metric)
        of = partial(scores_of, matrix, setting=setting, metric=number)
        before = {lang: matrix.scores[lang][number, 0].tolist() for lang in matrix.languages}
        for kind in ("own", "random") if controls else ("own",):
            row = next(rows)
            assert [row[key] for key in ("task", "metric", "off", "neurons")] == [
                matrix.task, metric or matrix.metrics[0], setting, kind,
            ]  # fmt: skip
            english = mean([mean(of(kind, off=lang, tested="en")) for lang in others])
            own = mean([mean(of(kind, off=lang, tested=lang)) for lang in others])
            assert row["english"] == pytest.approx(english)
            assert row["others"] == pytest.approx(own)
            assert row["d_english"] == pytest.approx(english - mean(before["en"]))
            d_others = own - mean([mean(before[lang]) for lang in others])
            assert row["d_others"] == pytest.approx(d_others)
            assert row["delta"] == pytest.approx(row["d_english"] - row["d_others"])
            for name in ("d_english", "d_others", "delta"):
                assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
            if kind == "random":
                assert all(math.isnan(row[key]) for key in row if key.startswith("p"))
                continue
            # what an item adds to delta
            parts: dict[str, float] = {}
            for lang in ("en", *others):
                told = [1 / len(others)] * len(others) if lang == "en" else [-1 / len(others)]
                for weight, off in zip(told, others if lang == "en" else [lang], strict=True):
                    mine = of("own", off=off, tested=lang)
                    for name, x, y in zip(matrix.names[lang], mine, before[lang], strict=True):
                        key = name if aligned or matrix is nli else f"{lang} {name}"
                        parts[key] = parts.get(key, 0) + weight * (x - y) / len(mine)
            assert row["p"] == pytest.approx(exact_p([*parts.values()]))
            for name in tests:
                tests[name].append(row[name])
                assert math.isnan(row[name]) == (controls < 2 and "random" in name)
    assert next(rows, None) is None
    own_rows = frame[frame["neurons"] == "own"]
    for name, each in tests.items():
        adjusted = holm(torch.tensor(each).double()).tolist()
        assert own_rows[f"{name}_holm"].tolist() == pytest.approx(adjusted, nan_ok=True)
        assert list(frame).index(f"{name}_holm") == list(frame).index(name) + 1


@pytest.mark.parametrize("aligned", [True, False])
def test_the_others_change_is_tested_by_hand(aligned: bool) -> None:
    matrix = handmade(("U",), items={"de": 4, "en": 4, "fr": 4}, aligned=aligned)
    row = together(matrix).to_frame().to_dict("records")[0]
    parts: dict[str, float] = {}
    for lang in ("de", "fr"):
        pairs = zip(
            matrix.names[lang],
            scores_of(matrix, "own", "U", lang, lang),
            matrix.of(lang)[0].tolist(),
            strict=True,
        )
        for name, mine, before in pairs:
            parts[name] = parts.get(name, 0) + mine - before
    assert len(parts) == (4 if aligned else 8)
    assert row["p_others"] == pytest.approx(exact_p([*parts.values()]))


@pytest.mark.parametrize("aligned", [True, False])
def test_one_more_random_set_by_hand(aligned: bool) -> None:
    """Own neurons against the spread of the draws, and what the choice of items adds to it."""
    n, draws = 12, 4
    matrix = handmade(
        ("U",), items={"de": n, "en": n, "fr": n}, aligned=aligned, controls=draws, seed=3
    )
    row = together(matrix).to_frame().to_dict("records")[0]
    before = {lang: matrix.of(lang)[0] for lang in matrix.languages}
    tested = {"en": ("de", "fr"), "de": ("de",), "fr": ("fr",)}
    own, random = {}, {}
    for lang, offs in tested.items():
        runs = [1 + matrix.interventions.index(f"U {off}") for off in offs]
        first = [1 + len(matrix.interventions) + (run - 1) * draws for run in runs]
        scores = matrix.of(lang)
        own[lang] = torch.stack([scores[run] for run in runs]).mean(0) - before[lang]
        random[lang] = (
            torch.stack([scores[each : each + draws] for each in first]).mean(0) - before[lang]
        )

    def combined(values: Mapping[str, Any]) -> tuple[Any, Any]:
        others = (values["de"] + values["fr"]) / 2
        return values["en"] - others, others

    generator = torch.Generator().manual_seed(5)
    drawn: list[tuple[float, float]] = []
    for _ in range(4000):
        places = torch.randint(n, (3, n), generator=generator)
        if aligned:
            places[:] = places[0].clone()
        drawn.append(
            combined(
                {
                    lang: float((own[lang] - random[lang].mean(0))[rows].mean())
                    for lang, rows in zip(own, places, strict=True)
                }
            )
        )
    errors = torch.tensor(drawn).std(0).tolist()
    values = combined({lang: float(each.mean()) for lang, each in own.items()})
    spreads = combined({lang: each.mean(1) for lang, each in random.items()})
    for name, value, spread, error in zip(
        ("p_random", "p_random_others"), values, spreads, errors, strict=True
    ):
        assert row[name] == pytest.approx(prediction_test(value, spread, error), abs=0.02)
        assert 0.02 < row[name] < 0.98


def test_each_language_by_hand() -> None:
    matrix = handmade()
    frame = together(matrix).by_language()
    keys = ["task", "off", "neurons", "language"]
    assert frame[keys].to_numpy().tolist() == [
        ["xquad", setting, kind, lang]
        for setting in ("U", "U+G")
        for kind in ("own", "random")
        for lang in ("de", "fr")
    ]
    for row in frame.to_dict("records"):
        about = (matrix, row["neurons"], row["off"], row["language"])
        own, english = (mean(scores_of(*about, lang)) for lang in (row["language"], "en"))
        before, english_before = (
            float(matrix.of(lang)[0].mean()) for lang in (row["language"], "en")
        )
        assert row["score"] == pytest.approx(own)
        assert row["english"] == pytest.approx(english)
        assert row["before"] == pytest.approx(before)
        assert row["english_before"] == pytest.approx(english_before)
        assert row["delta"] == pytest.approx((english - english_before) - (own - before))


def test_languages_by_themselves_average_to_the_table() -> None:
    result = together(handmade())
    means = result.by_language().groupby(["task", "off", "neurons"])[["delta", "english"]].mean()
    table = result.to_frame().set_index(["task", "off", "neurons"])[["delta", "english"]]
    for name in ("delta", "english"):
        assert means[name].to_dict() == pytest.approx(table[name].to_dict())


def planted(effect: float, *, n: int = 24, aligned: bool = True) -> MWork:
    """Own neurons hurt the others so much at every item; English and random ones do nothing."""
    matrix = handmade(("U",), items={"de": n, "en": n, "fr": n}, aligned=aligned)
    for lang, each in matrix.scores.items():
        each[:] = torch.where(each.isnan(), each, each[:, :1])
        each[:, 1:3] -= effect * (lang != "en")
    return together(matrix)


@pytest.mark.parametrize("aligned", [True, False])
def test_a_huge_effect_is_found_and_none_is_not(aligned: bool) -> None:
    own, random = planted(1.0, aligned=aligned).to_frame().to_dict("records")
    assert own["d_english"] == pytest.approx(0)
    assert own["d_others"] == pytest.approx(-1)
    assert own["delta"] == pytest.approx(1)
    # items that all change alike say nothing of the next one
    for name in ("delta_low", "delta_high"):
        assert math.isnan(own[name]) or own[name] == pytest.approx(1)
    assert own["p"] == own["p_holm"] <= 1e-3
    assert own["p_others"] <= 1e-3
    assert random["delta"] == pytest.approx(0)
    own, _ = planted(0.0, aligned=aligned).to_frame().to_dict("records")
    assert own["p"] == own["p_others"] == own["p_random"] == own["p_random_others"] == 1.0
    for name in ("d_english", "d_others", "delta"):  # items that do not change say nothing
        assert own[name] == 0 and math.isnan(own[f"{name}_low"] + own[f"{name}_high"])


def test_what_hurts_english_as_much_is_no_story() -> None:
    """Every item is hurt in all languages alike, one more than the other."""
    for aligned in (True, False):
        matrix = handmade(("U",), items={"de": 20, "en": 20, "fr": 20}, aligned=aligned)
        hurt = torch.linspace(0, 1, 20).double()
        for each in matrix.scores.values():
            each[:] = torch.where(each.isnan(), each, each[:, :1])
            each[:, 1:3] -= hurt
        row = together(matrix).to_frame().to_dict("records")[0]
        width = row["delta_high"] - row["delta_low"]
        assert row["delta"] == pytest.approx(0)
        assert row["p"] > 0.5
        assert row["p_others"] < 0.01
        # items drawn together keep together
        assert (math.isnan(width) or width < 1e-9) if aligned else (0.1 < width < 0.6)


@pytest.mark.parametrize("aligned", [True, False])
def test_intervals_are_bootstraps_over_items(aligned: bool) -> None:
    n = 12
    matrix = handmade(("U",), items={"de": n, "en": n, "fr": n}, aligned=aligned)
    row = together(matrix).to_frame().to_dict("records")[0]
    generator = torch.Generator().manual_seed(7)
    base = {lang: matrix.of(lang)[0] for lang in matrix.languages}
    english = (matrix.of("en")[1] + matrix.of("en")[2]) / 2 - base["en"]
    changes = {"en": english, "de": matrix.of("de")[1] - base["de"]}
    changes["fr"] = matrix.of("fr")[2] - base["fr"]
    found: dict[str, list[float]] = {"d_english": [], "d_others": [], "delta": []}
    for _ in range(4000):
        drawn = torch.randint(n, (3, n), generator=generator)
        if aligned:
            drawn[:] = drawn[0].clone()
        x, de, fr = (
            float(changes[lang][rows].mean())
            for lang, rows in zip(("en", "de", "fr"), drawn, strict=True)
        )
        found["d_english"].append(x)
        found["d_others"].append((de + fr) / 2)
        found["delta"].append(x - (de + fr) / 2)
    for name, values in found.items():
        ends = torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist()
        assert [row[f"{name}_low"], row[f"{name}_high"]] == pytest.approx(ends, abs=0.03)


def test_one_item_says_nothing_of_others() -> None:
    matrix = handmade(("U",), items={"de": 1, "en": 1, "fr": 1})
    row = together(matrix).to_frame().to_dict("records")[0]
    assert math.isnan(row["delta_low"])
    assert math.isnan(row["delta_high"])


def test_a_metric_that_a_task_does_not_have_is_refused() -> None:
    result = together(handmade(), handmade(("G",), task="xnli"))
    with pytest.raises(OptionError, match="xnli was not judged by 'f1'"):
        result.to_frame("f1")
    with pytest.raises(OptionError, match="xquad was not judged by 'accuracy'"):
        result.by_language("accuracy")


# --- files ---


@pytest.mark.parametrize("controls", [0, 2])
def test_saving_and_loading_is_the_identity(tmp_path: Path, controls: int) -> None:
    result = together(
        handmade(controls=controls), handmade(("A+F",), task="xnli", controls=controls, seed=3)
    )
    result.save(tmp_path / "x")
    found = MWork.load(tmp_path / "x")
    assert list(found.matrices) == ["xquad", "xnli"]
    for task, matrix in result.matrices.items():
        same(found.matrices[task], matrix)
        assert found.matrices[task].provenance == matrix.provenance
    for name in ("settings", "regions", "provenance"):
        assert getattr(found, name) == getattr(result, name)
    assert found.to_frame().equals(result.to_frame())
    assert found.by_language().equals(result.by_language())
    assert repr(found) == repr(result) == "MWork(xquad U, U+G; xnli A+F)"
    found.save(tmp_path / "y")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    again: Any = results.load(tmp_path / "x")
    assert again.to_frame().equals(result.to_frame())


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    together(handmade()).save(tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "cut").write_bytes(whole[:-8])
    (tmp_path / "settings").write_bytes(whole.replace(b"settings", b"settimgs"))
    (tmp_path / "tensor").write_bytes(whole.replace(b"xquad.de", b"xquad.da"))
    handmade().save(tmp_path / "other")
    for name, message in [
        ("cut", "not a readable safetensors file"),
        ("settings", "is damaged: 'settings' is missing"),
        ("tensor", "is damaged: 'de' is missing"),
        ("other", "holds a TaskMatrix, not a MWork"),
        ("missing", "There is no file"),
    ]:
        with pytest.raises(StorageError, match=message):
            MWork.load(tmp_path / name)


# --- on a model ---


def neurons(*languages: str, sites: Sequence[Any] = SITES["U"]) -> LanguageNeurons:
    languages = languages or ("en", "fr", "zh")
    sets = {
        lang: NeuronSet(
            {
                site: some_neurons(toy(), site, share=0.25, seed=10 * number + place).masks[site]
                for place, site in enumerate(sites)
            }
        )
        for number, lang in enumerate(languages)
    }
    return LanguageNeurons(sets, {"method": "random"})


def region(some: NeuronSet, setting: str) -> NeuronSet:
    """The neurons of a setting, layer by layer and site by site."""
    masks = {site: torch.zeros_like(mask) for site, mask in some.masks.items()}
    for letter in setting.split("+"):
        for site in SITES[letter]:
            if site in masks:
                masks[site][LAYER[letter]] = some.masks[site][LAYER[letter]]
    return NeuronSet(masks)


def zeroed(some: NeuronSet) -> list[Any]:
    """Hooks that write zeros with nothing of lens_lang's."""

    def off(values: torch.Tensor, hook: Any, mask: torch.Tensor) -> torch.Tensor:
        return values.flatten(2).masked_fill(mask, 0.0).view_as(values)

    return [
        (site.at(layer), partial(off, mask=mask[layer]))
        for site, mask in some.masks.items()
        for layer in range(LAYERS)
    ]


def tell(
    some: LanguageNeurons, tasks: Sequence[TaskItems], controls: int = 0, **more: Any
) -> MWork:
    options = solving.TaskOptions(controls=controls, new_tokens=3)
    return mwork(
        toy(), some, tasks, regions=THIRDS, options=options, progress=False, **more
    )  # fmt: skip


@pytest.mark.lane
def test_exactly_the_neurons_of_the_regions_are_off() -> None:
    some, items = neurons(), chosen_items().limit(2)
    every = ["U", "A", "F", "G", "U+A+G"]
    result = tell(some, [items], settings={"xcsqa": every})
    assert result.settings == {"xcsqa": tuple(every)}
    by_hand = {}
    for setting in every:
        for lang in ("fr", "zh"):
            hooks = zeroed(region(some[lang], setting))
            by_hand[f"{setting} {lang}"] = {lang: hooks, "en": hooks}
    expected = solve(items, by_hand)
    same(result.matrices["xcsqa"], expected)
    scores = expected.of("en", "log_probability")
    assert len({tuple(row) for row in scores.tolist()}) == len(scores)


def test_english_is_tested_under_every_languages_neurons() -> None:
    some, items = neurons(), chosen_items()
    result = tell(some, [items], controls=2, settings={"xcsqa": ["U", "G"]})
    matrix = result.matrices["xcsqa"]
    assert matrix.interventions == ("U fr", "U zh", "G fr", "G zh")
    assert bool(matrix.scores["en"].isfinite().all())
    for lang, own in (("fr", (1, 3)), ("zh", (2, 4))):
        tested = [0, *own, *(5 + 2 * (run - 1) + draw for run in own for draw in (0, 1))]
        assert [
            run for run in range(13) if bool(matrix.scores[lang][:, run].isfinite().all())
        ] == sorted(tested)
    plan = {
        f"{setting} {lang}": {x: ablate(region(some[lang], setting)) for x in (lang, "en")}
        for setting in ("U", "G")
        for lang in ("fr", "zh")
    }
    same(matrix, solve(items, plan, controls=2))
    frame = result.to_frame("log_probability")
    assert frame[["off", "neurons"]].to_numpy().tolist() == [
        ["U", "own"], ["U", "random"], ["G", "own"], ["G", "random"],
    ]  # fmt: skip
    assert bool(frame["delta"].notna().all())


def test_several_tasks_and_what_they_say_of_themselves() -> None:
    some = neurons("fr", "en")
    nli = dataclasses.replace(chosen_items(), task=XNLI).limit(1)
    result = tell(some, [nli, chosen_items().limit(1)])
    assert result.settings == {"xnli": SETTINGS["xnli"], "xcsqa": SETTINGS["xcsqa"]}
    assert result.regions == {"understanding": (0,), "task": (1,), "generation": (2,)}
    assert result.provenance["model"] == "toy"
    assert result.provenance["neurons"] == {"method": "random"}
    counts = result.provenance["counts"]
    for lang, each in some.items():
        assert counts[lang] == {name: len(region(each, x)) for x, name in PARTS.items()}
        assert sum(counts[lang].values()) == len(each)
    for matrix in result.matrices.values():  # Chinese has no neurons
        assert {name.split()[1] for name in matrix.interventions} == {"fr"}
    assert len(result.to_frame()) == 4 + 4


def test_without_attention_neurons_their_region_disappears() -> None:
    some, items = neurons(sites=(MLP_POST,)), chosen_items().limit(1)
    result = tell(some, [items])
    assert result.settings == {"xcsqa": ("F", "U+F+G")}  # of F, A, A+F, U+A+F+G
    nli = dataclasses.replace(items, task=XNLI)
    assert tell(some, [nli]).settings == {"xnli": ("U", "F", "G", "U+F+G")}
    assert result.provenance["left out"] == {"xcsqa": {"A": ["fr", "zh"]}}
    # who asks for it by name is told that there is none
    for setting in ("A", "A+F"):
        with pytest.raises(OptionError, match="asks for attention neurons, and fr, zh have none"):
            tell(some, [items], settings={"xcsqa": ["F", setting]})
    # English's own attention neurons are never switched off
    alone = {
        lang: NeuronSet(
            {x: mask & (lang == "en" or x == MLP_POST) for x, mask in each.masks.items()}
        )
        for lang, each in neurons().items()
    }
    assert tell(LanguageNeurons(alone), [items]).settings == result.settings


def test_settings_without_neurons_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """What changes nothing does not stand in a table as if it had been measured."""
    some, items = neurons(), chosen_items().limit(1)
    sets = {lang: region(each, "U" if lang == "zh" else "U+G") for lang, each in some.items()}
    result = tell(LanguageNeurons(sets), [items], controls=1, settings={"xcsqa": ["F", "G", "U+F"]})
    assert result.settings == {"xcsqa": ("G", "U+F")}
    assert result.matrices["xcsqa"].interventions == ("G fr", "U+F fr", "U+F zh")
    assert result.provenance["left out"] == {"xcsqa": {"F": ["fr", "zh"], "G": ["zh"]}}
    assert tell(some, [items]).provenance["left out"] == {}
    frame = result.to_frame("log_probability")
    assert frame["off"].tolist() == ["G", "G", "U+F", "U+F"]
    # the others of G are French alone
    row = frame.to_dict("records")[0]
    scores = result.matrices["xcsqa"].of("fr", "log_probability")
    assert row["others"] == pytest.approx(float(scores[1].mean()))
    counting = CountingTasks(monkeypatch)
    with pytest.raises(OptionError, match="for xcsqa: fr, zh have no neurons in F$"):
        tell(LanguageNeurons(sets), [items], settings={"xcsqa": ["F", "F"]})
    assert counting.calls == []


@pytest.mark.parametrize("done", [0, 4, 10])
def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    some, tasks = neurons(), [chosen_items().limit(1)]
    options: dict[str, Any] = {"controls": 1, "settings": {"xcsqa": ["U"]}}
    uninterrupted = tell(some, tasks, **options)
    counting = CountingTasks(monkeypatch)
    counting.last = done
    with pytest.raises(KeyboardInterrupt), pytest.MonkeyPatch.context() as patch:
        patch.setattr("lens_lang.likelihood.read_on", interrupted(counting))
        tell(some, tasks, run_dir=tmp_path, **options)
    counting.calls.clear()
    counting.last = None
    resumed = tell(some, tasks, run_dir=tmp_path, **options)
    assert len(counting.calls) == 3 + 4 + 4 - done
    same(resumed.matrices["xcsqa"], uninterrupted.matrices["xcsqa"])
    assert resumed.provenance == uninterrupted.provenance


# --- the search for regions ---


def scored(table: Mapping[str, tuple[float, float]], seen: dict[str, Any] | None = None) -> Any:
    """A `task_matrix` that knows the scores of English and Chinese under each intervention."""

    def task_matrix(model: Any, items: Any, interventions: Any, **options: Any) -> TaskMatrix:
        if seen is not None:
            seen.update(interventions)
        rows = [(1.0, 1.0), *(table[name] for name in interventions)]
        scores = {
            lang: torch.tensor([[[row[place]] * 2 for row in rows]] * 3, dtype=torch.float64)
            for place, lang in enumerate(("en", "zh"))
        }
        answers = {lang: (("a", "a"),) * len(rows) for lang in scores}
        names = dict.fromkeys(scores, ("1", "2"))
        return TaskMatrix("xcsqa", tuple(interventions), ("en", "zh"), names, scores, answers)

    return task_matrix


def search(sizes: Any, language: str = "zh", **options: Any) -> Any:
    return tune_regions(toy(), neurons(), chosen_items(), language=language, sizes=sizes, **options)


def test_the_size_that_hurts_the_language_most_is_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = {
        "understanding 0": (1.0, 1.0),
        "understanding 1": (0.9, 0.2),  # the greatest difference, though not the worst score
        "understanding 2": (0.1, 0.1),
        "generation 2": (0.8, 0.7),
        "generation 1": (1.0, 0.3),
        "generation 0": (1.0, 1.0),
    }
    seen: dict[str, Any] = {}
    monkeypatch.setattr(module, "task_matrix", scored(table, seen))
    found = search({"understanding": [0, 1, 2], "generation": [2, 1, 0]})
    assert found.regions == Regions(understanding=1, generation=1)
    rows = found.table.to_dict("records")
    assert [f"{row['region']} {row['layers']}" for row in rows] == list(table)
    for row, (english, other) in zip(rows, table.values(), strict=True):
        assert (row["english"], row["language"]) == (english, other)
        assert row["difference"] == pytest.approx(english - other)
    # each size alone: its first or last layers, in Chinese and in English, and nothing else
    mine = neurons()["zh"]
    for name, by_language in seen.items():
        part, _, number = name.partition(" ")
        layers = range(LAYERS)[: int(number)] if part == "understanding" else (
            range(LAYERS)[LAYERS - int(number) :]
        )  # fmt: skip
        assert list(by_language) == ["zh", "en"]
        off = {
            (edit.site, edit.layer, index)
            for _, edit in by_language["zh"]
            for index in edit.indices.tolist()
        }
        assert off == {neuron for neuron in mine if neuron[1] in layers}
        assert all(edit.kind == "set" for _, edit in by_language["zh"])
        assert by_language["en"] is by_language["zh"]


def test_regions_that_leave_no_layer_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "understanding 1": (1.0, 0.5),
        "understanding 2": (1.0, 0.4),
        "generation 1": (1.0, 0.2),
    }
    monkeypatch.setattr(module, "task_matrix", scored(table))
    found = search({"understanding": [1, 2], "generation": [1]})
    assert found.regions == Regions(understanding=1, generation=1)


@pytest.mark.lane
def test_a_search_on_a_model_measures_what_it_says(tmp_path: Path) -> None:
    sizes = {"understanding": [0, 1], "generation": [1]}
    metric = "log_probability"
    found = search(sizes, "Chinese", metric=metric, run_dir=tmp_path)
    mine = neurons()["zh"]
    by_hand: dict[str, Any] = {
        "understanding 0": [],
        "understanding 1": zeroed(region(mine, "U")),
        "generation 1": zeroed(region(mine, "G")),
    }
    expected = solve(chosen_items(), by_hand)
    for run_number, row in enumerate(found.table.to_dict("records"), 1):
        for name, lang in (("english", "en"), ("language", "zh")):
            score = float(expected.of(lang, metric)[run_number].mean())
            assert row[name] == pytest.approx(score)
    best = found.table[found.table["region"] == "understanding"].sort_values("difference")
    assert found.regions == Regions(int(best["layers"].iloc[-1]), 1)
    again = search(sizes, metric=metric, run_dir=tmp_path)
    assert again.table.equals(found.table)


@pytest.mark.parametrize(
    ("sizes", "language", "error", "message"),
    [
        ({"understanding": [1]}, "zh", OptionError, "for understanding and for generation"),
        ({"understanding": [1], "generation": []}, "zh", OptionError, "and for generation, got"),
        ({"understanding": [1], "task": [1]}, "zh", OptionError, "sizes must give numbers"),
        ({"understanding": [3], "generation": [1]}, "zh", OptionError, "leave none of 3"),
        ({"understanding": [-1], "generation": [1]}, "zh", OptionError, "from 0 on, got -1 for un"),
        (
            {"understanding": [1], "generation": [True]},
            "zh",
            OptionError,
            "got True for generation",
        ),
        ({"understanding": [2], "generation": [1]}, "zh", OptionError, "leave none of 3"),
        ({"understanding": [1], "generation": [1]}, "de", LanguageError, "no language 'de' here"),
    ],
)
def test_a_search_that_cannot_end_is_refused(
    sizes: Any, language: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        search(sizes, language)


def test_a_search_without_a_choice_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = CountingTasks(monkeypatch)
    with pytest.raises(OptionError, match="leave none of 3"):
        search({"understanding": [2], "generation": [1]})
    assert counting.calls == []


def test_what_cannot_be_searched_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = CountingTasks(monkeypatch)
    sizes: Any = {"understanding": [1], "generation": [0.3]}
    with pytest.raises(OptionError, match="sizes must be whole numbers .* got 0.3 for generation"):
        inspect.unwrap(tune_regions)(toy(), neurons(), chosen_items(), language="zh", sizes=sizes)
    sizes["generation"] = [1]
    with pytest.raises(OptionError, match="xcsqa is not judged by 'acuracy'; did you mean 'accura"):
        search(sizes, metric="acuracy")
    assert counting.calls == []


def test_a_search_has_no_controls_and_asks_in_two_languages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counting = CountingTasks(monkeypatch)
    sizes = {"understanding": [1], "generation": [1]}
    found = search(sizes, options=solving.TaskOptions(controls=3))
    assert len(counting.calls) == 2 * (1 + 2)
    assert found.table.equals(search(sizes).table)


def test_a_search_is_kept_with_what_it_chose(tmp_path: Path) -> None:
    items, sizes = chosen_items().limit(2), {"understanding": [1], "generation": [0, 1]}
    found = tune_regions(
        toy(), neurons(), items, language="Chinese", sizes=sizes, metric="log_probability"
    )
    result = mwork(toy(), neurons(), [items], regions=found, progress=False)
    plain = mwork(toy(), neurons(), [items], regions=found.regions, progress=False)
    same(result.matrices["xcsqa"], plain.matrices["xcsqa"])
    assert result.regions == plain.regions
    assert "search" not in plain.provenance["regions"]
    result.save(tmp_path / "x")
    about = dict(MWork.load(tmp_path / "x").provenance["regions"])
    assert about["understanding"] == 1
    told = about.pop("search")
    assert [told[key] for key in ("task", "language", "metric")] == [
        "xcsqa",
        "zh",
        "log_probability",
    ]
    assert told["items"]["counts"] == {"en": 2, "zh": 2}
    assert told["tried"] == found.table.to_dict("records")
    assert about == plain.provenance["regions"]


def test_english_is_not_tuned_against_itself() -> None:
    with pytest.raises((LanguageError, OptionError)):
        search({"understanding": [1], "generation": [1]}, "English")


def test_a_search_needs_english_and_the_language() -> None:
    items = chosen_items().items
    for left, missing in (("en", "zh"), ("zh", "en"), ("fr", "en|zh|nl")):
        some = TaskItems(XCSQA, {left: items[left]}, "here")
        with pytest.raises(LanguageError, match=missing):
            tune_regions(
                toy(), neurons(), some, language="zh",
                sizes={"understanding": [1], "generation": [1]},
            )  # fmt: skip


# --- what is refused ---


@pytest.mark.parametrize("setting", ["X", "u", "", "U+", "U+U", "UG", "U,G", "U + G"])
def test_settings_that_are_none_are_refused(setting: str) -> None:
    with pytest.raises(OptionError, match="A setting is made of U, A, F, G joined by +"):
        tell(neurons(), [chosen_items()], settings={"xcsqa": ["U", setting]})


def test_a_task_needs_something_to_switch_off() -> None:
    for settings in ({}, {"xcsqa": []}, {"xquad": ["U"]}):
        with pytest.raises(OptionError, match="nothing to switch off for xcsqa"):
            tell(neurons(), [chosen_items()], settings=settings)


def test_each_task_is_given_once() -> None:
    with pytest.raises(OptionError, match="each task once, got xcsqa, xcsqa"):
        tell(neurons(), [chosen_items(), chosen_items()])
    with pytest.raises(OptionError, match="each task once, got none"):
        tell(neurons(), [])


@pytest.mark.parametrize(
    ("tested", "found"),
    [(("fr", "zh"), ("en", "fr", "zh")), (("en",), ("fr",)), (("en", "zh"), ("en", "fr"))],
)
def test_english_and_a_language_with_neurons_are_needed(
    tested: tuple[str, ...], found: tuple[str, ...]
) -> None:
    items = chosen_items().items
    some = TaskItems(XCSQA, {lang: items[lang] for lang in tested}, "here")
    with pytest.raises(LanguageError, match="must be in English and in a language that has neur"):
        tell(neurons(*found), [some])


def test_regions_must_leave_a_layer_for_the_task() -> None:
    with pytest.raises(OptionError, match="2 layers of understanding and 1 of generation leave"):
        mwork(toy(), neurons(), [chosen_items()], regions=Regions(2, 1), progress=False)


def of_shape(layers: int, width: int) -> LanguageNeurons:
    mask = torch.zeros(layers, width, dtype=torch.bool)
    mask[:, ::3] = True
    return LanguageNeurons(dict.fromkeys(("en", "fr"), NeuronSet({MLP_POST: mask})))


def test_neurons_of_a_wider_model_are_refused() -> None:
    with pytest.raises(ShapeError, match="belong to another model"):
        tell(of_shape(LAYERS, 113), [chosen_items()])


@pytest.mark.parametrize("layers", [LAYERS - 1, LAYERS + 1])
def test_neurons_of_a_model_of_another_depth_are_refused(layers: int) -> None:
    with pytest.raises(ShapeError, match="belong to another model"):
        mwork(
            toy(), of_shape(layers, 112), [chosen_items()], regions=Regions(1, 0),
            settings={"xcsqa": ["U", "F"]}, progress=False,
        )  # fmt: skip


def test_items_are_named_alike_only_where_they_are() -> None:
    """The same names in another order are not aligned, and nothing is paired that is not."""
    matrix = handmade(("U",), items={"de": 3, "en": 3, "fr": 3})
    turned = dataclasses.replace(matrix, names={**matrix.names, "fr": matrix.names["fr"][::-1]})
    one, other = (together(each).to_frame().to_dict("records")[0] for each in (matrix, turned))
    assert one["delta"] == other["delta"]
    assert other["p"] == pytest.approx(
        together(handmade(("U",), items={"de": 3, "en": 3, "fr": 3}, aligned=False))
        .to_frame()["p"][0]
    )  # fmt: skip


def test_matrices_and_stories_use_the_same_model_without_a_trace() -> None:
    before = run({}, {"en": ["who"]}, identify=by_first_letter).texts
    tell(neurons(), [TaskItems(XCSQA, {
        lang: (Item("x", "who", ("a",), ("a", "b")),) for lang in ("en", "fr")
    }, "here")], settings={"xcsqa": ["U"]})  # fmt: skip
    assert run({}, {"en": ["who"]}, identify=by_first_letter).texts == before
