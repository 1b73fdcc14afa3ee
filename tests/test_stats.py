"""Statistics add, whatever the order, and refuse to add what does not belong together."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens_lang.errors import LanguageError, ShapeError, StorageError
from lens_lang.sites import MLP_POST, MLP_PRE
from lens_lang.specs import Reading, Sums
from lens_lang.stats import ActivationFrequency, Activations, Frequency

LANGUAGES = ("en", "fr", "zh")


def frequency(seed: int, **changes: Any) -> Frequency:
    generator = torch.Generator().manual_seed(seed)
    n_tokens = torch.randint(50, 90, (3,), generator=generator)
    count = torch.randint(0, 50, (3, 2, 5), generator=generator)
    return Frequency(**{"languages": LANGUAGES, "count": count, "n_tokens": n_tokens, **changes})


def activations(seed: int, **changes: Any) -> Activations:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 2, 5, 7, generator=generator, dtype=torch.float64)
    fields = {
        "languages": LANGUAGES,
        "sum": values.sum(-1),
        "sum_sq": values.square().sum(-1),
        "n_tokens": torch.full((3,), 7),
    }
    return Activations(**{**fields, **changes})


RESULTS = [frequency, activations]


@pytest.mark.parametrize("make", RESULTS)
def test_adding_is_commutative_and_associative(make: Any) -> None:
    a, b, c = make(0), make(1), make(2)
    for name in a._summed:
        left = getattr((a + b) + c, name)
        torch.testing.assert_close(left, getattr(a + (b + c), name), rtol=1e-12, atol=0)
        assert torch.equal(getattr(a + b, name), getattr(b + a, name))


@pytest.mark.parametrize("make", RESULTS)
def test_adding_matches_languages_by_name_not_by_place(make: Any) -> None:
    a, b = make(0), make(1)
    order = [2, 0, 1]
    shuffled = type(b)(
        languages=tuple(LANGUAGES[i] for i in order),
        **{name: getattr(b, name)[order] for name in b._summed},
    )
    for name in a._summed:
        assert torch.equal(getattr(a + shuffled, name), getattr(a + b, name))


@pytest.mark.parametrize("make", RESULTS)
def test_saving_and_loading_is_the_identity(make: Any, tmp_path: Path) -> None:
    result = make(0, provenance={"model": "toy", "corpora": {"n_tokens": {"en": 7}}})
    result.save(tmp_path / "x.safetensors")
    loaded = type(result).load(tmp_path / "x.safetensors")
    for name in (*result._same, "provenance"):
        assert getattr(loaded, name) == getattr(result, name)
    for name in result._summed:
        assert torch.equal(getattr(loaded, name), getattr(result, name))
        assert getattr(loaded, name).dtype == getattr(result, name).dtype


def test_loading_another_class_is_refused(tmp_path: Path) -> None:
    frequency(0).save(tmp_path / "x.safetensors")
    with pytest.raises(StorageError, match="holds a Frequency, not a Activations"):
        Activations.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (frequency(1, languages=("en", "fr", "de")), "differ in languages"),
        (frequency(1, site=MLP_POST), "differ in site"),
        (frequency(1, threshold=0.5), "differ in threshold"),
        (frequency(1, count=torch.zeros(3, 2, 4, dtype=torch.int64)), "different models"),
    ],
)
def test_what_differs_is_not_added(other: Frequency, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        frequency(0) + other


def test_results_of_two_kinds_are_not_added() -> None:
    with pytest.raises(TypeError):
        frequency(0) + activations(0)  # type: ignore[operator]


def test_provenance_keeps_what_agrees_and_lists_what_differs() -> None:
    a = frequency(0, provenance={"model": "toy", "shard": 0})
    b = frequency(0, provenance={"model": "toy", "shard": 1})
    assert (a + b).provenance == {"model": "toy", "shard": [0, 1]}


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        ({"weights": "cd50"}, r"different models: toy \(weights 9d3c\) and toy \(weights cd50\)"),
        ({"fwd_hooks": ["blocks.0.mlp.hook_post"]}, "different hooks: none and .*hook_post"),
    ],
)
def test_what_was_measured_on_different_models_is_not_added(
    theirs: dict[str, Any], message: str
) -> None:
    told = {"model": "toy", "weights": "9d3c", "fwd_hooks": []}
    for make in (frequency, activations):
        with pytest.raises(ShapeError, match=message):
            make(0, provenance=told) + make(1, provenance={**told, **theirs})
    # the same weights may lie in folders of different names; without weights names must do
    moved = frequency(0, provenance=told) + frequency(1, provenance={**told, "model": "copy"})
    assert moved.provenance["model"] == ["toy", "copy"]
    with pytest.raises(ShapeError, match="different models: toy and copy"):
        frequency(0, provenance={"model": "toy"}) + frequency(1, provenance={"model": "copy"})


def test_probability_is_exact_beyond_float32() -> None:
    big = 2**24 + 1  # float32 cannot hold it
    freq = Frequency(
        languages=("en",), count=torch.tensor([[[big]]]), n_tokens=torch.tensor([2**25])
    )
    assert freq.probability.item() == big / 2**25
    assert freq["en"].item() == big / 2**25


def test_mean_and_std_are_those_of_the_values() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 2, 5, 7, generator=generator, dtype=torch.float64)
    result = activations(0)
    torch.testing.assert_close(result.mean, values.mean(-1))
    torch.testing.assert_close(result.std, values.std(-1, correction=0))
    assert torch.equal(result["French"], result.mean[1])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"languages": ("en", "fr")}, ShapeError, "2 languages .en, fr. need as many rows"),
        ({"languages": ("en", "fr", "fr")}, LanguageError, "given twice: fr"),
        ({"n_tokens": torch.tensor([60, 0, 60])}, LanguageError, "No token was counted for fr"),
        ({"n_tokens": torch.tensor([60, 1, 60])}, ShapeError, "between 0 and the number of tokens"),
    ],
)
def test_impossible_counts_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        frequency(0, **changes)


def test_a_result_says_what_it_is_without_its_numbers() -> None:
    assert repr(frequency(0, n_tokens=torch.tensor([1000, 60, 70]))) == (
        "Frequency(mlp_pre > 0, 2 layers of 5; tokens: en 1,000, fr 60, zh 70)"
    )
    assert repr(activations(0)) == ("Activations(gate, 2 layers of 5; tokens: en 7, fr 7, zh 7)")


def test_unknown_language_names_what_is_there() -> None:
    with pytest.raises(LanguageError, match="no language 'de' here; known here: en, fr, zh"):
        frequency(0)["de"]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_sums_merged_in_any_grouping_are_equal(batches: list[int]) -> None:
    whole, grouped = Sums(), Sums()
    for number in batches:
        part = Sums()
        for layer in range(2):
            value = torch.tensor([number + layer, 1], dtype=torch.int32)
            whole.add("count", layer, value)
            part.add("count", layer, value)
        grouped.merge(part)
    assert torch.equal(whole.stacked()["count"], grouped.stacked()["count"])
    assert whole.stacked()["count"].dtype == torch.int64
    again = Sums.unstacked(whole.stacked())
    assert torch.equal(again.stacked()["count"], whole.stacked()["count"])


def test_adding_to_sums_changes_no_tensor_that_was_given() -> None:
    sums, value = Sums(), torch.ones(2, dtype=torch.float64)
    sums.add("sum", 0, value)
    sums.add("sum", 0, value)
    assert value.tolist() == [1.0, 1.0]
    assert sums.stacked()["sum"].tolist() == [[2.0, 2.0]]


@pytest.mark.parametrize(
    ("threshold", "expected"), [(0.0, [1, 1, 0]), (0.5, [0, 1, 0]), (-1.0, [2, 2, 1])]
)
def test_firing_is_strictly_above_the_threshold(
    llama: Any, threshold: float, expected: list[int]
) -> None:
    sums = Sums()
    values = torch.tensor([[0.5, 2.0, 0.0], [0.0, -0.5, -1.0]])
    bound = ActivationFrequency(threshold=threshold).bind(llama)
    everywhere = torch.ones(1, 2, dtype=torch.bool)
    bound.update(sums, Reading(0, {MLP_PRE: values[None]}, everywhere))
    assert sums.stacked()["count"].tolist() == [expected]
