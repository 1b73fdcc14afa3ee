"""Sign flips against every way to flip, Holm's method against closed testing; tables hold both."""

import math
from itertools import chain, combinations, permutations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from lens_lang.errors import OptionError
from lens_lang.evaluate import significance
from lens_lang.evaluate.answers import AnswerScores
from lens_lang.evaluate.categories import CategoryEffect
from lens_lang.evaluate.nll import DocumentNLL
from lens_lang.evaluate.perplexity import PerplexityMatrix
from lens_lang.evaluate.significance import (
    holm,
    paired_share_interval,
    prediction_interval,
    prediction_test,
    sign_flip_test,
)
from lens_lang.sections.effect import effect_section
from lens_lang.sections.section import p_value
from lens_lang.sections.sharing import category_effect_section

# --- sign flips ---


def by_brute_force(differences: list[int]) -> float:
    observed = abs(sum(differences))
    ways = [*product((1, -1), repeat=len(differences))]
    sums = (sum(s * d for s, d in zip(way, differences, strict=True)) for way in ways)
    return sum(abs(each) >= observed for each in sums) / len(ways)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-9, 9), min_size=1, max_size=9))
def test_few_samples_are_enumerated(differences: list[int]) -> None:
    expected = by_brute_force(differences)
    # tenths are no binary fractions: equal sums must count as equal all the same
    for scale in (1.0, 0.1, 1e-9, 1e12):
        found = sign_flip_test(torch.tensor(differences, dtype=torch.float64) * scale)
        assert float(found) == expected


def some(*shape: int, shift: float = 0.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) + shift


def test_drawn_flips_come_close_to_all_of_them() -> None:
    values = some(20, 14, shift=0.3)
    drawn, exact = sign_flip_test(values), sign_flip_test(values, resamples=2**14)
    assert not torch.equal(drawn, exact)
    torch.testing.assert_close(drawn, exact, atol=0.02, rtol=0)


def test_enumeration_begins_where_it_costs_no_more() -> None:
    values = some(13, shift=5.0)
    assert float(sign_flip_test(values, resamples=2**13 - 1)) == 2 / 2**13
    assert float(sign_flip_test(values, resamples=2**13 - 2)) >= 1 / (2**13 - 1)
    assert float(sign_flip_test(some(100, shift=5.0), resamples=99)) == 1 / 100  # never 0


@pytest.mark.parametrize("count", [9, 40])
def test_p_is_uniform_where_there_is_nothing(count: int) -> None:
    p = sign_flip_test(some(3000, count), resamples=1999)
    for level in (0.01, 0.05, 0.2, 0.5, 0.8):
        error = 4 * math.sqrt(level * (1 - level) / 3000)
        assert float((p <= level).double().mean()) == pytest.approx(level, abs=error + 1 / 256)


def test_p_is_small_where_there_is_something() -> None:
    assert sign_flip_test(some(10, 40, shift=2.0)).max() == 1e-4
    assert sign_flip_test(some(500, 40, shift=0.5)).median() < 0.01


def test_neither_direction_nor_unit_matters() -> None:
    for values in (some(5, 8, shift=0.5), some(5, 30, shift=0.5)):
        p = sign_flip_test(values)
        for other in (-values, values * 1e6, values.float()):
            torch.testing.assert_close(sign_flip_test(other), p, atol=1e-12, rtol=0)


@pytest.mark.parametrize("count", [6, 50])
def test_a_row_knows_nothing_of_the_others(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = some(7, 3, count, shift=0.2)
    p = sign_flip_test(values)
    assert p.shape == (7, 3) and p.dtype == torch.float64
    assert float(sign_flip_test(values[4, 2])) == float(p[4, 2])
    assert torch.equal(sign_flip_test(values), p)
    # nor does the memory that is held at once
    monkeypatch.setattr(significance, "_HELD", 1000)
    assert torch.equal(sign_flip_test(values), p)


def test_another_seed_draws_other_flips() -> None:
    values = some(50, shift=0.1)
    assert float(sign_flip_test(values, seed=1)) != float(sign_flip_test(values))


def test_what_cannot_be_tested_is_nan() -> None:
    assert sign_flip_test(torch.zeros(2, 0)).isnan().tolist() == [True, True]
    assert sign_flip_test(torch.zeros(0, 4)).shape == (0,)
    values = torch.tensor([[1.0, 2.0], [1.0, math.nan], [math.inf, 1.0], [0.0, 0.0], [3.0, -3.0]])
    first, *unknown, zero, cancelled = sign_flip_test(values).tolist()
    assert (first, zero, cancelled) == (0.5, 1.0, 1.0)
    assert all(math.isnan(each) for each in unknown)
    assert sign_flip_test(torch.zeros(30)).item() == 1.0
    assert sign_flip_test(torch.tensor([5.0])).item() == 1.0  # one document says nothing
    with pytest.raises(OptionError, match="at least 1, got 0"):
        sign_flip_test(torch.zeros(3), resamples=0)


# --- one more random draw ---


def test_ps_of_one_more_draw_are_students() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        n = int(torch.randint(2, 40, (1,), generator=generator))
        draws = torch.randn(n, generator=generator, dtype=torch.float64) * 0.1 + 0.3
        value, error = (float(x) for x in torch.rand(2, generator=generator).double())
        spread = math.sqrt(float(draws.var()) * (1 + 1 / n) + error**2)
        expected = 2 * stats.t.sf(abs(value - float(draws.mean())) / spread, n - 1)
        assert prediction_test(value, draws, error) == pytest.approx(expected, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    draws=st.lists(st.floats(-5, 5), min_size=2, max_size=8),
    value=st.floats(-9, 9),
    error=st.floats(0.01, 3),
    level=st.floats(0.01, 0.99),
)
def test_p_is_below_a_level_where_the_value_lies_outside_the_interval(
    draws: list[float], value: float, error: float, level: float
) -> None:
    given_draws = torch.tensor(draws, dtype=torch.float64)
    p = prediction_test(value, given_draws, error)
    assert 0 <= p <= 1
    low, high = prediction_interval(
        given_draws, torch.tensor(error).double(), level=1 - level
    ).tolist()
    if any(draws) and abs(p - level) > 1e-6:  # draws that all do nothing have their own interval
        assert (p < level) == (not low <= value <= high)


@settings(max_examples=60, deadline=None)
@given(
    draws=st.lists(st.floats(-5, 5), min_size=2, max_size=8),
    value=st.floats(-9, 9),
    error=st.floats(0.01, 3),
    moved=st.floats(-9, 9),
    factor=st.floats(0.01, 100),
)
def test_neither_direction_nor_unit_nor_zero_matters_to_a_prediction(
    draws: list[float], value: float, error: float, moved: float, factor: float
) -> None:
    given_draws = torch.tensor(draws, dtype=torch.float64)
    p = prediction_test(value, given_draws, error)
    assert prediction_test(-value, -given_draws, error) == pytest.approx(p)
    assert prediction_test(value + moved, given_draws + moved, error) == pytest.approx(p, abs=1e-6)
    scaled = prediction_test(value * factor, given_draws * factor, error * factor)
    assert scaled == pytest.approx(p, abs=1e-6)
    assert prediction_test(value, given_draws.flip(0), error) == pytest.approx(p, abs=1e-9)
    middle = float(given_draws.mean())
    mirrored = prediction_test(2 * middle - value, given_draws, error)
    assert mirrored == pytest.approx(p, abs=1e-6)
    assert prediction_test(value, given_draws, error * 2) >= p - 1e-9  # who knows less says less


@pytest.mark.parametrize("draws", [2, 3, 5, 12])
def test_ps_of_one_more_draw_are_uniform_where_it_is_one(draws: int) -> None:
    values = some(3000, 1 + draws, seed=draws) * 0.2 + 3
    p = torch.tensor([prediction_test(float(row[0]), row[1:], 0.0) for row in values])
    for level in (0.01, 0.05, 0.2, 0.5, 0.8):
        error = 4 * math.sqrt(level * (1 - level) / 3000)
        assert float((p < level).double().mean()) == pytest.approx(level, abs=error)
    # and small where it is none; two draws find little
    far = [prediction_test(float(row[0]) + 3, row[1:], 0.0) for row in values[:300]]
    assert sum(each < 0.05 for each in far) / 300 > (0.3 if draws == 2 else 0.8)


def test_what_one_draw_says_of_others_is_nothing() -> None:
    nan = math.nan
    for value, draws in [
        (1.0, []), (1.0, [0.0]), (0.0, [0.0]), (nan, [0.0, 1.0]), (1.0, [0.0, nan]),
        (1.0, [nan, nan]), (1.0, [0.0, math.inf]),
    ]:  # fmt: skip
        assert math.isnan(prediction_test(value, torch.tensor(draws), 0.1))
    assert prediction_test(0.0, torch.zeros(2), 0.0) == 1.0
    assert math.isnan(prediction_test(0.5, torch.zeros(3), 0.0))  # nothing varies, and this differs
    assert prediction_test(0.0, torch.zeros(3), 0.5) == pytest.approx(1.0)


# --- a change of a share ---


def newcombe(both: int, lost: int, gained: int, neither: int) -> tuple[float, float]:
    """Method 10 of Newcombe (1998) from the fourfold table: items right before and after, ..."""
    n = both + lost + gained + neither
    z = stats.norm.ppf(0.975)

    def wilson(right: int) -> tuple[float, float]:
        middle = 2 * right + z * z
        root = z * math.sqrt(z * z + 4 * right * (n - right) / n)
        return (middle - root) / (2 * (n + z * z)), (middle + root) / (2 * (n + z * z))

    before, after = both + lost, both + gained
    (l1, u1), (l2, u2) = wilson(before), wilson(after)
    p1, p2 = before / n, after / n
    product_of_margins = before * (n - before) * after * (n - after)
    cross = both * neither - lost * gained
    corrected = cross if cross < 0 else max(cross - n / 2, 0)
    phi = corrected / math.sqrt(product_of_margins) if product_of_margins else 0.0
    down, up = (p2 - l2, u1 - p1), (u2 - p2, p1 - l1)
    width = [math.sqrt(a * a - 2 * phi * a * b + b * b) for a, b in (down, up)]
    return p2 - p1 - width[0], p2 - p1 + width[1]


def table(both: int, lost: int, gained: int, neither: int) -> tuple[Tensor, Tensor]:
    before = [1] * both + [1] * lost + [0] * gained + [0] * neither
    after = [1] * both + [0] * lost + [1] * gained + [0] * neither
    return torch.tensor(before).double(), torch.tensor(after).double()


def test_the_interval_of_a_textbooks_table() -> None:
    # Altman et al. (2000), Statistics with confidence, table 6.2: 14, 5, 0, 22
    low, high = paired_share_interval(*table(14, 5, 0, 22))
    assert (low, high) == pytest.approx((-0.226, -0.011), abs=6e-4)


COUNTS = st.tuples(*[st.integers(0, 12)] * 4).filter(any)


@settings(max_examples=200, deadline=None)
@given(COUNTS)
def test_the_interval_of_a_changed_share_is_newcombes(counts: tuple[int, int, int, int]) -> None:
    before, after = table(*counts)
    low, high = paired_share_interval(before, after)
    assert (low, high) == pytest.approx(newcombe(*counts), abs=1e-9)
    change = float(after.mean() - before.mean())
    assert -1 - 1e-12 <= low <= change + 1e-12
    assert change - 1e-12 <= high <= 1 + 1e-12
    assert low < high  # however little changed
    back = paired_share_interval(after, before)
    assert back == pytest.approx((-high, -low))
    turned = paired_share_interval(1 - before, 1 - after)
    assert turned == pytest.approx((-high, -low))
    order = torch.randperm(len(before), generator=torch.Generator().manual_seed(0))
    assert paired_share_interval(before[order], after[order]) == pytest.approx((low, high))
    wide = paired_share_interval(before, after, level=0.99)
    assert wide[0] <= low + 1e-12 and high <= wide[1] + 1e-12


def test_items_that_do_not_change_say_how_many_might() -> None:
    for right in (0, 3, 10):
        widths = []
        for copies in (1, 4, 16):
            before, _ = table(right * copies, 0, 0, (10 - right) * copies)
            low, high = paired_share_interval(before, before)
            assert low == pytest.approx(-high) and high > 0
            widths.append(high)
        assert widths == sorted(widths, reverse=True)
    assert all(map(math.isnan, paired_share_interval(torch.zeros(0), torch.zeros(0))))
    # all of them changed
    low, high = paired_share_interval(torch.ones(20), torch.zeros(20))
    assert low == -1.0 < high < -0.75
    with pytest.raises(OptionError, match="between 0 and 1, got 95"):
        paired_share_interval(torch.zeros(2), torch.zeros(2), level=95.0)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.1, 0.3), (0.95, 0.9)])
def test_the_interval_covers_the_change_as_often_as_it_says(shares: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(500):
        chance = torch.rand(24, generator=generator)
        other = torch.rand(24, generator=generator)
        again = torch.where(torch.rand(24, generator=generator) < 0.6, chance, other)
        before, after = (chance < shares[0]).double(), (again < shares[1]).double()
        low, high = paired_share_interval(before, after)
        covered += low <= shares[1] - shares[0] <= high
    assert covered / 500 > 0.92


# --- Holm ---


def by_closed_testing(p: list[float]) -> list[float]:
    """The largest Bonferroni p of all sets of tests that contain it (Marcus et al., 1976)."""
    tests = range(len(p))
    sets = [*chain.from_iterable(combinations(tests, size) for size in range(1, len(p) + 1))]
    corrected = [min(1.0, len(some) * min(p[n] for n in some)) for some in sets]
    return [max(q for q, some in zip(corrected, sets, strict=True) if n in some) for n in tests]


def test_the_correction_by_hand() -> None:
    found = holm(torch.tensor([0.01, 0.04, 0.03, 0.005], dtype=torch.float64))
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 0.04 no less than the one before
    assert found.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.5, 1.0])), max_size=7))
def test_the_correction_is_closed_testing(p: list[float]) -> None:
    found = holm(torch.tensor(p, dtype=torch.float64)).tolist()
    assert found == pytest.approx(by_closed_testing(p))


def test_the_order_of_tests_does_not_matter() -> None:
    p = torch.tensor([0.04, 0.01, 0.04, math.nan, 0.3], dtype=torch.float64)
    found = holm(p)
    for order in permutations(range(5)):
        torch.testing.assert_close(holm(p[[*order]]), found[[*order]], equal_nan=True)


def test_what_was_not_tested_does_not_count() -> None:
    p = torch.tensor([math.nan, 0.25, 0.125, math.nan])
    found = holm(p)
    assert found[[1, 2]].tolist() == [0.25, 0.25]
    assert found[[0, 3]].isnan().all()
    assert holm(torch.full((2,), math.nan)).isnan().all()
    assert holm(torch.zeros(0)).tolist() == []
    assert holm(torch.tensor([0.75, 0.5])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_only_probabilities_are_corrected(p: float) -> None:
    with pytest.raises(OptionError, match="between 0 and 1"):
        holm(torch.tensor([0.5, p]))


def test_together_they_find_what_is_absent_as_seldom_as_they_say() -> None:
    p = sign_flip_test(some(400, 9, 12), resamples=999)
    found = torch.stack([holm(each) for each in p])
    assert float((found.min(-1).values <= 0.05).double().mean()) < 0.09
    assert float((p.min(-1).values <= 0.05).double().mean()) > 0.2


# --- in the tables ---


def same(found: list[float], expected: Tensor) -> None:
    assert found == pytest.approx(expected.flatten().tolist(), nan_ok=True)


def matrix(n_controls: int = 0, *, documents: int = 12) -> PerplexityMatrix:
    """Each language loses by its own neurons, by the third intervention, and by chance."""
    languages, names = ("en", "fr"), ("en", "fr", "x")
    scored = {}
    for place, lang in enumerate(languages):
        nll = some(1 + 3 * (1 + n_controls), documents, seed=place)
        nll[1 + place] += 2.0
        nll[3] += 0.5
        scored[lang] = DocumentNLL(nll, torch.full((documents,), 10), torch.full((documents,), 40))
    return PerplexityMatrix(names, languages, scored, n_controls)


def test_every_change_of_a_matrix_is_tested() -> None:
    some_matrix = matrix(2)
    frame = some_matrix.to_frame()
    changes = torch.stack(
        [some_matrix.documents[lang].nll[1:4] - some_matrix.documents[lang].nll[0] for lang in
         some_matrix.languages], dim=1
    )  # fmt: skip
    p = sign_flip_test(changes)
    same(frame["p"].tolist(), p)
    same(frame["p_holm"].tolist(), torch.stack([holm(each) for each in p]))
    assert (frame["p_holm"] >= frame["p"]).all()
    own = frame.set_index(["intervention", "language"])["p_holm"]
    assert own["en", "en"] < 0.05 and own["fr", "fr"] < 0.05


@pytest.mark.parametrize("n_controls", [0, 2])
def test_a_language_is_tested_against_its_controls(n_controls: int) -> None:
    some_matrix = matrix(n_controls)
    table = some_matrix.selectivity()
    rows = []
    for place, lang in enumerate(("en", "fr")):
        nll = some_matrix.documents[lang].nll
        first = 4 + n_controls * place
        against = nll[first : first + n_controls].mean(0) if n_controls else nll[0]
        rows.append(nll[1 + place] - against)
    p = sign_flip_test(torch.stack(rows))
    same(table["p"].tolist(), p)
    same(table["p_holm"].tolist(), holm(p))


def test_controls_that_were_not_measured_are_not_tested() -> None:
    given_matrix = matrix(2)
    given_matrix.documents["fr"].nll[4:6] = math.nan  # the controls of en
    assert not given_matrix.to_frame()["p"].isna().any()
    assert given_matrix.p_beyond.isnan().tolist() == [[False, True], [False, False], [False, False]]
    assert not given_matrix.selectivity()["p"].isna().any()


def test_a_matrix_of_no_language_has_none_to_test() -> None:
    whole = matrix()
    other = PerplexityMatrix(("x", "y", "z"), whole.languages, whole.documents)
    assert other.selectivity().empty
    same(other.to_frame()["p"].tolist(), whole.p)


def test_answers_are_tested_prompt_by_prompt() -> None:
    languages = ("fr",) * 6 + ("en",) * 8 + ("de",)
    before = AnswerScores(languages, some(15), torch.zeros(15).bool())
    gains = some(15, seed=1)
    gains[:6] = gains[:6].abs()
    after = AnswerScores(languages, before.log_probability + gains, torch.zeros(15).bool())
    table = after.change_from(before)
    p = torch.stack([sign_flip_test(each) for each in (gains[:6], gains[6:14], gains[14:])])
    assert (float(p[0]), float(p[2])) == (2 / 2**6, 1.0)
    same(table["p"].tolist(), p)
    same(table["p_holm"].tolist(), holm(p))
    columns = [*table.columns]
    assert columns[columns.index("ci_high") + 1 :][:2] == ["p", "p_holm"]


def effect(draws: int) -> CategoryEffect:
    before, off = some(8, 2), some(4, 8, 2, seed=1, shift=-1.5)
    control = some(4, draws, 8, 2, seed=2)
    return CategoryEffect(
        ("en", "fr"),
        tuple("abcdefgh"),
        before,
        before > 0,
        off,
        off > 0,
        control,
        control > 0,
        torch.full((8, 3, 4), 25),
        100,
    )


@pytest.mark.parametrize("draws", [0, 3])
def test_each_kind_is_tested_beyond_chance(draws: int) -> None:
    given_effect = effect(draws)
    beyond = given_effect.off - (given_effect.control.mean(1) if draws else given_effect.before)
    p = sign_flip_test(beyond.movedim(1, -1))
    corrected = torch.stack([holm(each) for each in p])
    table = given_effect.summary().set_index("language")
    for place, lang in enumerate(("en", "fr")):
        for rows in (table.loc[lang], given_effect.summary(lang)):
            same(rows["p"].tolist(), p[:, place])
            same(rows["p_holm"].tolist(), corrected[:, place])
    every = sign_flip_test(beyond.mean(-1))
    same(table.loc["all", "p"].tolist(), every)
    same(table.loc["all", "p_holm"].tolist(), holm(every))  # over the four kinds


# --- on the page ---


@pytest.mark.parametrize(
    ("p", "shown"),
    [
        (0.0001, "<.001"),
        (0.00099, "<.001"),
        (0.001, ".001"),
        (0.032, ".032"),
        (0.5, ".500"),
        (1.0, "1"),
        (math.nan, ""),
    ],
)
def test_p_is_shown_to_three_places(p: float, shown: str) -> None:
    assert p_value(p) == shown


@pytest.mark.parametrize("n_controls", [0, 2])
def test_the_sections_show_the_corrected_p(n_controls: int) -> None:
    section = effect_section(matrix(n_controls), None)
    place = section.columns.index("p (Holm)")
    expected = matrix(n_controls).selectivity()["p_holm"]
    assert [row[place] for row in section.rows] == [p_value(p) for p in expected]
    assert ("less the mean random control" in section.text[-1]) == bool(n_controls)
    section = category_effect_section("facts", effect(n_controls))
    assert {len(row) for row in section.rows} == {len(section.columns)}
    table = effect(n_controls).summary().query("language == 'all'")
    assert [row[-1] for row in section.rows] == [p_value(p) for p in table["p_holm"]]
    assert section.columns[-1] == "p (Holm)"
