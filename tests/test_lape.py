"""LAPE as the paper and the released script define it, and its switches."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_lang.detect.baselines import lap, lave, random_neurons
from lens_lang.detect.lape import LapeVariant, activation_entropy, lape, select_by_entropy
from lens_lang.errors import OptionError
from lens_lang.neurons import LanguageNeurons
from lens_lang.sites import MLP_POST, MLP_PRE
from lens_lang.stats import Activations, Frequency

LANGUAGES = ("en", "zh", "fr", "es", "vi", "id", "ja")
GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> tuple[Frequency, list[Any]]:
    held = json.loads((GOLDEN / f"lape_{name}.json").read_text())
    count = torch.tensor(held["over_zero"])
    n_tokens = torch.tensor(held["n"]).expand(7).clone()
    return Frequency(languages=LANGUAGES, count=count, n_tokens=n_tokens), held["result"]


def as_lists(neurons: LanguageNeurons) -> list[list[list[int]]]:
    """The layout of the released script: language, layer, sorted indices."""
    return [
        [row.nonzero().flatten().tolist() for row in s.masks[MLP_POST]] for s in neurons.values()
    ]


def from_probability(probability: list[list[float]], n: int = 10_000) -> Frequency:
    """Probabilities as rows of languages and columns of neurons, one layer."""
    count = (torch.tensor(probability, dtype=torch.float64) * n).round().long()[:, None]
    return Frequency(
        languages=LANGUAGES[: len(count)],
        count=count,
        n_tokens=torch.full((len(count),), n),
    )


@pytest.mark.parametrize("name", ["A", "B"])
def test_golden_selection_of_the_released_script(name: str) -> None:
    freq, expected = golden(name)
    assert as_lists(lape(freq, compat=True)) == expected
    padded = expected + [[[]] * freq.count.shape[1]] * (7 - len(expected))
    assert as_lists(lape(freq)) == padded  # every language has an entry, even an empty one


def test_golden_a_drops_trailing_languages_only_in_compat_mode() -> None:
    freq, _ = golden("A")
    assert lape(freq).languages == LANGUAGES
    assert lape(freq, compat=True).languages == ("en", "zh")


def test_golden_b_memberships() -> None:
    freq, _ = golden("B")
    counts = {lang: len(found) for lang, found in lape(freq).items()}
    assert counts == {"en": 0, "zh": 2, "fr": 1, "es": 1, "vi": 1, "id": 2, "ja": 3}
    assert len(lape(freq).union()) == 10
    pool = freq.probability.flatten()
    threshold = pool.kthvalue(round(len(pool) * 0.95)).values.item()
    assert threshold == pytest.approx(0.8565004, abs=1e-7)


@pytest.mark.parametrize(
    ("probability", "expected"),
    [([0.45, 0.01, 0.01, 0.01, 0.02], 0.4583), ([0.18, 0.18, 0.02, 0.01, 0.01], 1.0529)],
)
def test_entropies_by_hand(probability: list[float], expected: float) -> None:
    freq = from_probability([[p] for p in probability])
    assert activation_entropy(freq).item() == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("m", range(1, 8))
def test_entropy_of_m_equal_languages_is_ln_m(m: int) -> None:
    freq = from_probability([[0.3 if k < m else 0.0] for k in range(7)])
    assert activation_entropy(freq).item() == pytest.approx(math.log(m), abs=1e-12)


def test_a_dead_neuron_scores_best_and_is_never_selected() -> None:
    freq = from_probability([[0.0, 0.9, 0.5], [0.0, 0.1, 0.5]])
    assert activation_entropy(freq)[0, 0] == 0
    found = lape(freq, top=1.0, filter_quantile=0.5, bar_quantile=0.5)
    assert (0, 0) not in found.union()
    assert (0, 1) in found["en"]


def test_equal_probabilities_exceed_nothing() -> None:
    found = lape(from_probability([[0.5] * 4] * 3))
    assert [len(s) for s in found.values()] == [0, 0, 0]
    released = lape(from_probability([[0.5] * 4] * 3), top=0.5, compat=True)
    assert [len(s) for s in released.values()] == [0]


def test_a_probability_exactly_at_the_bar_is_not_above_it() -> None:
    # ten values; the 5th smallest is 0.5 itself
    freq = from_probability([[0.1, 0.2, 0.3, 0.4, 0.5], [0.6, 0.7, 0.8, 0.9, 1.0]])
    member = select_by_entropy(freq.probability, top=1.0, filter_quantile=0.5, bar_quantile=0.5)
    assert member[:, 0].tolist() == [[False] * 5, [True] * 5]
    lower = select_by_entropy(freq.probability, top=1.0, filter_quantile=0.4, bar_quantile=0.4)
    assert lower[0, 0].tolist() == [False] * 4 + [True]


def test_ranks_are_rounded_half_to_even_and_counted_from_one() -> None:
    values = torch.tensor([[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]])
    bar = {
        q: select_by_entropy(values, top=1.0, filter_quantile=0.01, bar_quantile=q).sum().item()
        for q in (0.01, 0.25, 0.4, 0.42, 0.75, 1.0)
    }
    # 6 q = 0.06 -> rank 1, 1.5 -> 2, 2.4 -> 2, 2.52 -> 3, 4.5 -> 4, 6 -> 6; above it: 6 - rank
    assert bar == {0.01: 5, 0.25: 4, 0.4: 4, 0.42: 3, 0.75: 2, 1.0: 0}


def test_a_neuron_belongs_to_every_language_above_the_bar() -> None:
    freq = from_probability([[0.9, 0.1, 0.1, 0.1], [0.8, 0.1, 0.1, 0.1], [0.0, 0.1, 0.1, 0.1]])
    options: dict[str, Any] = {"top": 0.25, "filter_quantile": 0.8, "bar_quantile": 0.8}
    assert [len(s) for s in lape(freq, **options).values()] == [1, 1, 0]
    argmax = lape(freq, **options, variant=LapeVariant(assign="argmax"))
    assert [len(s) for s in argmax.values()] == [1, 0, 0]
    exclusive = lape(freq, **options, variant=LapeVariant(assign="exclusive"))
    assert [len(s) for s in exclusive.values()] == [0, 0, 0]


def test_too_few_candidates_are_not_filled_up_with_filtered_ones() -> None:
    freq = from_probability([[0.9, 0.2, 0.3, 0.1], [0.0, 0.2, 0.3, 0.1]])
    options: dict[str, Any] = {"top": 1.0, "filter_quantile": 0.9, "bar_quantile": 0.3}
    assert list(lape(freq, **options).union()) == [(MLP_POST, 0, 0)]
    kept = lape(freq, **options, variant=LapeVariant(filtered="keep"))
    assert len(kept.union()) > 1  # what the released script does when its two rates differ


def test_ties_go_to_the_lower_layer_then_index() -> None:
    count = torch.zeros(2, 2, 3, dtype=torch.int64)
    count[0] = torch.tensor([[9, 0, 9], [9, 9, 0]])
    freq = Frequency(languages=("en", "fr"), count=count, n_tokens=torch.tensor([10, 10]))
    found = lape(freq, top=0.5, filter_quantile=0.5, bar_quantile=0.5)
    assert found["en"].indices(MLP_POST).tolist() == [[0, 0], [0, 2], [1, 0]]


def test_selection_per_layer_takes_the_same_share_of_each() -> None:
    freq, _ = golden("B")
    options: dict[str, Any] = {"top": 0.02, "filter_quantile": 0.5, "bar_quantile": 0.5}
    found = lape(freq, **options, variant=LapeVariant(scope="layer"))
    assert found.union().per_layer(MLP_POST).tolist() == [5, 5, 5, 5]
    assert lape(freq, **options).union().per_layer(MLP_POST).tolist() != [5, 5, 5, 5]


def test_an_absolute_cut_ignores_the_share() -> None:
    freq, _ = golden("B")
    found = lape(freq, max_entropy=1.2, filter_quantile=0.5, bar_quantile=0.5)
    entropy = activation_entropy(freq)
    expected = (entropy <= 1.2) & (
        freq.probability
        > freq.probability.flatten().kthvalue(round(freq.probability.numel() * 0.5)).values
    ).any(0)
    assert torch.equal(found.union().masks[MLP_POST], expected)


def test_quantiles_may_be_each_languages_own_or_interpolated() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 2, 50, generator=generator, dtype=torch.float64)
    values[2] *= 10
    own = select_by_entropy(
        values, top=1.0, filter_quantile=0.9, bar_quantile=0.9, variant=LapeVariant(pool="language")
    )
    assert own.sum((1, 2)).tolist() == [10, 10, 10]
    pooled = select_by_entropy(values, top=1.0, filter_quantile=0.9, bar_quantile=0.9)
    assert pooled.sum((1, 2)).tolist() == [0, 0, 30]
    numpy_like = select_by_entropy(
        values,
        top=1.0,
        filter_quantile=0.01,
        bar_quantile=0.9,
        variant=LapeVariant(quantile="interpolated"),
    )
    assert torch.equal(numpy_like, values > torch.quantile(values, 0.9))


def test_float32_merges_counts_that_float64_tells_apart() -> None:
    n = 2**26
    count = torch.tensor([[[2**25, 2**25 + 1]], [[2**25 + 1, 2**25]]])
    freq = Frequency(languages=("en", "fr"), count=count, n_tokens=torch.tensor([n, n]))
    options: dict[str, Any] = {"top": 1.0, "filter_quantile": 0.5, "bar_quantile": 0.5}
    assert len(lape(freq, **options).union()) == 2
    single = lape(freq, **options, variant=LapeVariant(numerics="float32"))
    assert len(single.union()) == 0


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(7)), st.integers(0, 1000))
def test_language_order_permutes_the_result_and_nothing_else(order: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(0, 1000, (7, 3, 40), generator=generator)
    n_tokens = torch.full((7,), 1000)
    freq = Frequency(languages=LANGUAGES, count=count, n_tokens=n_tokens)
    turned = Frequency(
        languages=tuple(LANGUAGES[i] for i in order), count=count[order], n_tokens=n_tokens
    )
    a, b = lape(freq, top=0.05), lape(turned, top=0.05)
    assert all(a[lang] == b[lang] for lang in LANGUAGES)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 5), st.sampled_from([0.02, 0.1, 0.5]))
def test_selection_equals_a_literal_reading_of_the_paper(seed: int, k: int, top: float) -> None:
    """Plain Python, neuron by neuron, as an oracle."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(0, 50, (k, 2, 20), generator=generator)
    freq = Frequency(languages=LANGUAGES[:k], count=count, n_tokens=torch.full((k,), 50))
    found = lape(freq, top=top, filter_quantile=0.8, bar_quantile=0.7)

    p = {
        (x, layer, j): count[x, layer, j].item() / 50
        for x in range(k)
        for layer in range(2)
        for j in range(20)
    }
    ordered = sorted(p.values())
    theta, bar = (ordered[round(len(ordered) * q) - 1] for q in (0.8, 0.7))
    scores = []
    for layer in range(2):
        for j in range(20):
            values = [p[x, layer, j] for x in range(k)]
            if max(values) > theta:
                entropy = -sum(v / sum(values) * math.log(v / sum(values)) for v in values if v)
                scores.append((round(entropy, 12), layer, j))
    chosen = sorted(scores)[: round(40 * top)]
    for x, lang in enumerate(LANGUAGES[:k]):
        expected = sorted([layer, j] for _, layer, j in chosen if p[x, layer, j] > bar)
        assert found[lang].indices(MLP_POST).tolist() == expected


def test_neurons_are_found_where_they_fire_and_named_where_they_switch() -> None:
    freq, _ = golden("B")
    found = lape(freq)
    assert freq.site is MLP_PRE
    assert found.sites == (MLP_POST,)
    assert found.provenance["method"] == "lape"
    assert found.provenance["read at"] == "mlp_pre"
    assert found.provenance["options"]["top"] == 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top": 0.0}, "top is a share of all neurons, above 0 and at most 1, got 0.0"),
        ({"top": 1.5}, "top is a share"),
        ({"filter_quantile": 0.0}, "filter_quantile must lie above 0"),
        ({"bar_quantile": 1.1}, "bar_quantile must lie above 0"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, float], message: str) -> None:
    freq, _ = golden("A")
    with pytest.raises(OptionError, match=message):
        lape(freq, **options)  # type: ignore[arg-type]


def test_one_language_has_no_entropy() -> None:
    with pytest.raises(OptionError, match="at least two languages"):
        lape(from_probability([[0.5, 0.2]]))


class TestBaselines:
    """The methods that LAPE is compared with, on the same statistics."""

    def test_lap_takes_whatever_fires_nearly_always(self) -> None:
        freq = from_probability([[0.96, 0.95, 0.2], [0.1, 0.99, 0.97]])
        found = lap(freq)
        assert found["en"].indices(MLP_POST).tolist() == [[0, 0]]  # strictly above
        assert found["zh"].indices(MLP_POST).tolist() == [[0, 1], [0, 2]]
        with pytest.raises(OptionError, match="threshold is a probability"):
            lap(freq, threshold=1.0)

    def activations(self, mean: torch.Tensor, **changes: Any) -> Activations:
        fields = {"sum": mean * 10, "sum_sq": mean.square() * 10}
        n_tokens = torch.full((len(mean),), 10)
        return Activations(
            languages=LANGUAGES[: len(mean)], n_tokens=n_tokens, **{**fields, **changes}
        )

    def test_lave_is_lapes_rule_on_positive_means(self) -> None:
        generator = torch.Generator().manual_seed(0)
        mean = torch.randn(4, 2, 60, generator=generator, dtype=torch.float64)
        options: dict[str, Any] = {"top": 0.1, "filter_quantile": 0.8, "bar_quantile": 0.8}
        found = lave(self.activations(mean), **options)
        expected = select_by_entropy(mean.clamp(min=0), **options)
        for row, some in zip(expected, found.values(), strict=True):
            assert torch.equal(some.masks[MLP_POST], row)
        assert len(found.union()) > 0

    def test_lave_does_not_take_the_up_projection(self) -> None:
        mean = torch.rand(2, 1, 3, dtype=torch.float64)
        with pytest.raises(OptionError, match="in gate or product space"):
            lave(self.activations(mean, space="up"))

    def test_random_neurons_have_the_numbers_asked_for(self) -> None:
        counts = {"en": 3, "zh": 0, "fr": 20}
        languages = ("en", "zh", "fr")

        def draw(seed: int) -> LanguageNeurons:
            generator = torch.Generator().manual_seed(seed)
            return random_neurons(languages, counts=counts, shape=(2, 10), generator=generator)

        assert {lang: len(some) for lang, some in draw(0).items()} == counts
        assert draw(0) == draw(0)
        assert draw(0) != draw(1)
        with pytest.raises(OptionError, match="Cannot draw 21 of 20 neurons for 'en'"):
            random_neurons(("en",), counts={"en": 21}, shape=(2, 10), generator=torch.Generator())
