"""Sets of neurons obey the laws of sets, languages' sets compare as plain Python sets do."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from test_corpora import elsewhere

from lens_lang.errors import (
    LanguageError,
    LensLangError,
    OptionError,
    ShapeError,
    SiteError,
    StorageError,
)
from lens_lang.intervene import ablate
from lens_lang.neurons import LanguageNeurons, NeuronSet, random_like
from lens_lang.single_neurons import neuron_place
from lens_lang.single_neurons import neuron_set as set_of
from lens_lang.sites import ATTN_Q, ATTN_V, MLP_POST, MLP_PRE, Site
from lens_lang.storage import write_tensors

LAYERS, WIDTH = 3, 5
ALL = {(layer, index) for layer in range(LAYERS) for index in range(WIDTH)}
Pairs = set[tuple[int, int]]

pairs = st.sets(st.sampled_from(sorted(ALL)))
laws = settings(deadline=None, max_examples=60)


def neuron_set(members: Pairs, *, site: Site = MLP_POST) -> NeuronSet:
    mask = torch.zeros(LAYERS, WIDTH, dtype=torch.bool)
    for layer, index in members:
        mask[layer, index] = True
    return NeuronSet({site: mask})


def members(neurons: NeuronSet) -> Pairs:
    return {(layer, index) for _, layer, index in neurons}


def at_two_sites(post: Pairs, query: Pairs) -> NeuronSet:
    return neuron_set(post) | neuron_set(query, site=ATTN_Q)


@laws
@given(pairs, pairs)
def test_set_algebra_is_that_of_python_sets(a: Pairs, b: Pairs) -> None:
    left, right = neuron_set(a), neuron_set(b)
    assert members(left | right) == a | b
    assert members(left & right) == a & b
    assert members(left - right) == a - b
    assert members(left ^ right) == a ^ b
    assert members(~left) == ALL - a
    assert len(left) == len(a)
    assert (left == right) == (a == b)


@laws
@given(pairs, pairs, pairs)
def test_the_algebra_is_boolean(a: Pairs, b: Pairs, c: Pairs) -> None:
    x, y, z = neuron_set(a), neuron_set(b), neuron_set(c)
    assert ~(x | y) == ~x & ~y
    assert ~~x == x
    assert x & (y | z) == (x & y) | (x & z)
    assert x ^ y == (x | y) - (x & y)
    assert len(x | y) + len(x & y) == len(x) + len(y)


@laws
@given(pairs)
def test_counting_listing_and_asking_agree(a: Pairs) -> None:
    neurons = neuron_set(a)
    assert neurons.indices(MLP_POST).tolist() == [list(pair) for pair in sorted(a)]
    assert list(neurons) == [(MLP_POST, *pair) for pair in sorted(a)]
    assert neurons.per_layer(MLP_POST).tolist() == [
        sum(layer == wanted for layer, _ in a) for wanted in range(LAYERS)
    ]
    for pair in ALL:
        assert (pair in neurons) == (pair in a)
        assert ((MLP_POST, *pair) in neurons) == (pair in a)
    frame = neurons.to_frame()
    assert list(frame.columns) == ["site", "layer", "neuron"]
    assert frame.to_numpy().tolist() == [["mlp_post", *pair] for pair in sorted(a)]


@laws
@given(pairs)
def test_indices_build_the_set_they_came_from(a: Pairs) -> None:
    neurons = neuron_set(a)
    again = NeuronSet.from_indices(neurons.indices(MLP_POST), site=MLP_POST, shape=(LAYERS, WIDTH))
    assert again == neurons


def test_indices_may_lie_on_any_device() -> None:
    found = NeuronSet.from_indices(elsewhere([[1, 2]]), site=MLP_POST, shape=(LAYERS, WIDTH))
    assert found == neuron_set({(1, 2)})
    with pytest.raises(ShapeError, match=r"\(1, 5\) lies outside"):
        NeuronSet.from_indices(elsewhere([[1, 5]]), site=MLP_POST, shape=(LAYERS, WIDTH))


@laws
@given(pairs, pairs, pairs, pairs)
def test_sites_do_not_mix(a: Pairs, b: Pairs, c: Pairs, d: Pairs) -> None:
    left, right = at_two_sites(a, b), at_two_sites(c, d)
    assert left | right == at_two_sites(a | c, b | d)
    assert left & right == at_two_sites(a & c, b & d)
    assert left - right == at_two_sites(a - c, b - d)
    assert ~left == at_two_sites(ALL - a, ALL - b)
    assert len(left) == len(a) + len(b)


def test_a_site_that_one_operand_does_not_know_counts_as_empty_there() -> None:
    post, query = neuron_set({(0, 1)}), neuron_set({(0, 1), (2, 2)}, site=ATTN_Q)
    assert (post & query) == at_two_sites(set(), set())
    assert (query - post) == at_two_sites(set(), {(0, 1), (2, 2)})
    assert (post | query).sites == (MLP_POST, ATTN_Q)
    assert post != neuron_set({(0, 1)}, site=ATTN_Q)


def test_neurons_outside_the_model_or_at_another_site_are_not_in_the_set() -> None:
    neurons = ~neuron_set(set())
    for outside in [(LAYERS, 0), (0, WIDTH), (-1, 0), (0, -1)]:
        assert outside not in neurons
    assert (ATTN_Q, 0, 0) not in neurons
    assert (MLP_POST, 0, 0) in neurons


def test_a_neuron_without_its_site_is_ambiguous_in_a_set_of_two_sites() -> None:
    with pytest.raises(OptionError, match=r"A neuron is \(site, layer, index\).* got \(0, 1\)"):
        _ = (0, 1) in at_two_sites({(0, 1)}, set())
    with pytest.raises(OptionError, match=r"got \(0,\)"):
        _ = (0,) in neuron_set({(0, 1)})


def test_changing_the_tensor_or_the_mapping_passed_in_does_not_change_the_set() -> None:
    mask = torch.zeros(LAYERS, WIDTH, dtype=torch.bool)
    given_masks = {MLP_POST: mask}
    neurons = NeuronSet(given_masks)
    mask[1, 2] = True
    given_masks[ATTN_Q] = mask
    assert len(neurons) == 0
    assert neurons.sites == (MLP_POST,)
    with pytest.raises(TypeError, match="does not support item assignment"):
        neurons.masks[MLP_POST] = mask  # type: ignore[index]


def test_using_a_set_in_hooks_and_algebra_does_not_change_it() -> None:
    neurons = neuron_set({(0, 1), (2, 3)})
    for name, hook in ablate(neurons):
        assert name.endswith("hook_post")
        hook(torch.ones(1, 2, WIDTH))
    everything = neurons | ~neurons
    everything.masks[MLP_POST].zero_()
    assert members(neurons) == {(0, 1), (2, 3)}


def test_sets_compare_with_sets_only_and_cannot_be_hashed() -> None:
    assert neuron_set({(0, 1)}) != {(MLP_POST, 0, 1)}
    with pytest.raises(TypeError, match="unhashable"):
        hash(neuron_set(set()))


def test_what_a_set_prints_tells_how_much_of_what() -> None:
    assert repr(neuron_set({(0, 1)})) == "NeuronSet(1 neuron: mlp_post 1 of 3 x 5)"
    assert repr(at_two_sites({(0, 1)}, {(0, 1)})) == (
        "NeuronSet(2 neurons: mlp_post 1 of 3 x 5, attn_q 1 of 3 x 5)"
    )


def test_sets_of_different_models_do_not_combine() -> None:
    small = NeuronSet({MLP_POST: torch.ones(2, 4, dtype=torch.bool)})
    with pytest.raises(
        ShapeError, match=r"\(3, 5\) and of \(2, 4\).* at mlp_post: .*different mod"
    ):
        _ = neuron_set(set()) | small


@pytest.mark.parametrize("outside", [(3, 0), (0, 5), (-1, 0), (0, -2)])
def test_indices_outside_the_model_are_refused_by_name(outside: tuple[int, int]) -> None:
    chosen = torch.tensor([[0, 0], outside, [2, 4]])
    message = rf"\({outside[0]}, {outside[1]}\) lies outside \(3, 5\) at mlp_post"
    with pytest.raises(ShapeError, match=message):
        NeuronSet.from_indices(chosen, site=MLP_POST, shape=(LAYERS, WIDTH))


def test_a_site_the_set_does_not_speak_of_is_an_error_not_an_empty_answer() -> None:
    with pytest.raises(SiteError, match="has neurons at mlp_post, not at attn_v"):
        neuron_set({(0, 1)}).indices(ATTN_V)
    with pytest.raises(SiteError, match="has neurons at no site, not at mlp_post"):
        NeuronSet({}).per_layer(MLP_POST)


# --- several languages ---


def language_neurons(**sets: Pairs) -> LanguageNeurons:
    return LanguageNeurons({lang: neuron_set(chosen) for lang, chosen in sets.items()})


@pytest.fixture
def three() -> LanguageNeurons:
    return LanguageNeurons(
        {
            "en": neuron_set({(0, 1), (0, 2)}),
            "fr": neuron_set({(0, 2), (1, 1), (2, 4)}),
            "zh": neuron_set(set()),
        },
        {"method": "lape", "options": {"top": 0.01}, "corpora": {"n_tokens": {"en": 5}}},
    )


def test_a_language_is_found_under_any_of_its_names(three: LanguageNeurons) -> None:
    for name in ("fr", "French", "fra_Latn", "français"):
        assert three[name] is three.sets["fr"]
    assert list(three) == ["en", "fr", "zh"] == list(three.languages)
    assert dict(three.items()).keys() == three.keys()
    assert "fr" in three


def test_an_unknown_language_is_refused_with_what_there_is(three: LanguageNeurons) -> None:
    with pytest.raises(LanguageError, match="no language 'vi' here; known here: en, fr, zh"):
        three["vi"]
    named = language_neurons(english={(0, 1)}, french={(0, 2)})
    with pytest.raises(LanguageError, match="no language 'frensh' here; did you mean 'french'"):
        named["frensh"]
    with pytest.raises(KeyError):
        three["vi"]


def test_languages_keep_their_order_and_own_their_mapping() -> None:
    given_sets = {lang: neuron_set(set()) for lang in ("zh", "en", "fr")}
    neurons = LanguageNeurons(given_sets)
    given_sets["de"] = neuron_set(set())
    assert neurons.languages == ("zh", "en", "fr")


def test_no_language_and_sets_of_different_models_are_refused() -> None:
    with pytest.raises(LanguageError, match="No language was given"):
        LanguageNeurons({})
    other_size = NeuronSet({MLP_POST: torch.zeros(2, 4, dtype=torch.bool)})
    other_site = neuron_set(set(), site=ATTN_Q)
    for other in (other_size, other_site):
        with pytest.raises(ShapeError, match="differ in sites or sizes"):
            LanguageNeurons({"en": neuron_set(set()), "fr": other})


def test_languages_are_equal_by_order_and_sets_whatever_their_provenance(
    three: LanguageNeurons,
) -> None:
    assert three.with_provenance({"note": "again"}) == three
    assert three.with_provenance({"method": "mine"}).provenance == {
        **three.provenance,
        "method": "mine",
    }
    turned = LanguageNeurons({lang: three[lang] for lang in reversed(three.languages)})
    assert turned != three
    assert three != LanguageNeurons({**three.sets, "zh": neuron_set({(0, 0)})})
    assert three != dict(three.items())
    assert repr(three) == "LanguageNeurons(lape: en 2, fr 3, zh 0; 4 distinct)"


@laws
@given(pairs, pairs, pairs)
def test_overlaps_union_and_membership_agree_with_python_sets(a: Pairs, b: Pairs, c: Pairs) -> None:
    sets = {"en": a, "fr": b, "zh": c}
    neurons = language_neurons(**sets)
    count = neurons.overlap("count")
    jaccard, containment = neurons.overlap("jaccard"), neurons.overlap("containment")
    expected = neurons.overlap("expected")
    assert list(count.index) == list(count.columns) == list(sets)
    for row, mine in sets.items():
        for column, theirs in sets.items():
            both = len(mine & theirs)
            assert count.loc[row, column] == both
            for table, whole in ((jaccard, len(mine | theirs)), (containment, len(theirs))):
                value = table.loc[row, column]
                assert value == both / whole if whole else value != value
            by_chance = len(mine) * len(theirs) / len(ALL)
            assert expected.loc[row, column] == pytest.approx(by_chance)
    assert members(neurons.union()) == a | b | c
    served = [sum(neuron in some for some in sets.values()) for neuron in ALL]
    assert neurons.membership() == {n: served.count(n) for n in (1, 2, 3)}


def test_the_overlap_expected_by_chance_is_the_mean_over_random_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.zeros(4, 50, dtype=torch.bool)
    wide[:, :10] = True
    one = NeuronSet({MLP_POST: wide})
    seen, draws = 0, 400
    for _ in range(draws):
        places = torch.randperm(200, generator=generator)[:30]
        mask = torch.zeros(200, dtype=torch.bool)
        mask[places] = True
        other = NeuronSet({MLP_POST: mask.view(4, 50)})
        seen += len(one & other)
    expected = LanguageNeurons({"en": one, "fr": other}).overlap("expected").loc["en", "fr"]
    assert expected == 40 * 30 / 200
    # the hypergeometric's standard deviation is 2.0, so the mean's is 0.1
    assert abs(seen / draws - expected) < 0.5


def test_the_expected_overlap_adds_up_over_sites() -> None:
    both = at_two_sites({(0, 0), (0, 1), (0, 2)}, {(1, 1)})
    other = at_two_sites({(0, 0)}, {(1, 1), (1, 2)})
    table = LanguageNeurons({"en": both, "fr": other}).overlap("expected")
    assert table.loc["en", "fr"] == pytest.approx(3 * 1 / 15 + 1 * 2 / 15)


def test_the_frame_has_a_row_per_language_and_neuron(three: LanguageNeurons) -> None:
    frame = three.to_frame()
    assert list(frame.columns) == ["language", "site", "layer", "neuron"]
    assert frame.to_numpy().tolist() == [
        ["en", "mlp_post", 0, 1],
        ["en", "mlp_post", 0, 2],
        ["fr", "mlp_post", 0, 2],
        ["fr", "mlp_post", 1, 1],
        ["fr", "mlp_post", 2, 4],
    ]


# --- files ---


def test_loading_what_was_saved_gives_the_same(three: LanguageNeurons, tmp_path: Path) -> None:
    three.save(tmp_path / "new folder" / "lape.safetensors")
    again = LanguageNeurons.load(tmp_path / "new folder" / "lape.safetensors")
    assert again == three
    assert again.provenance == three.provenance


@settings(deadline=None, max_examples=15)
@given(pairs, pairs, pairs, pairs)
def test_files_keep_every_site_language_and_empty_set(
    a: Pairs, b: Pairs, c: Pairs, d: Pairs
) -> None:
    neurons = LanguageNeurons({"中文": at_two_sites(a, b), "en/../x": at_two_sites(c, d)})
    with tempfile.TemporaryDirectory() as folder:
        neurons.save(Path(folder) / "two.safetensors")
        again = LanguageNeurons.load(Path(folder) / "two.safetensors")
    assert again == neurons
    assert again.sites == (MLP_POST, ATTN_Q)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no file .*nowhere"):
        LanguageNeurons.load(tmp_path / "nowhere.safetensors")


def test_a_file_of_another_class_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    write_tensors(path, "Frequency", {}, {"x": torch.zeros(1)})
    with pytest.raises(StorageError, match="holds a Frequency, not a LanguageNeurons"):
        LanguageNeurons.load(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_refused(three: LanguageNeurons, tmp_path: Path, share: float) -> None:
    path = tmp_path / "lape.safetensors"
    three.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(StorageError, match="not a readable safetensors file"):
        LanguageNeurons.load(path)


def header(**changes: Any) -> dict[str, Any]:
    return {
        "languages": ["en", "fr"],
        "shapes": {"mlp_post": [LAYERS, WIDTH]},
        "provenance": {},
        **changes,
    }


def write_damaged(path: Path, head: Any, **tensors: torch.Tensor) -> None:
    held = {"mlp_post.0": torch.tensor([[0, 1]]), "mlp_post.1": torch.tensor([[2, 4]])}
    write_tensors(path, "LanguageNeurons", head, {**held, **tensors})


def test_the_file_that_damage_is_done_to_loads_when_it_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "whole.safetensors"
    write_damaged(path, header())
    assert LanguageNeurons.load(path) == language_neurons(en={(0, 1)}, fr={(2, 4)})


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (header(languages=["en", "fr", "de"]), "is damaged: 'mlp_post.2'"),
        ({"languages": ["en"]}, "is damaged: 'shapes'"),
        (header(shapes={"mlp_post": [LAYERS]}), "is damaged"),
        (header(shapes={"mlp_post": ["many", WIDTH]}), "is damaged"),
        (header(shapes={"mlp_post": [LAYERS, 2]}), r"is damaged: Neuron .* lies outside \(3, 2\)"),
        (header(provenance=7), "is damaged"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, head: Any, message: str) -> None:
    path = tmp_path / "damaged.safetensors"
    write_damaged(path, head)
    with pytest.raises(StorageError, match=message):
        LanguageNeurons.load(path)


def test_a_header_with_an_unknown_site_names_it(tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    shapes = {"mlp_pst": [LAYERS, WIDTH]}
    indices = torch.zeros(0, 2, dtype=torch.int32)
    write_damaged(
        path, header(shapes=shapes), **{"mlp_pst.0": indices, "mlp_pst.1": indices.clone()}
    )
    with pytest.raises(LensLangError, match="no site 'mlp_pst'; did you mean 'mlp_post'"):
        LanguageNeurons.load(path)


def test_neurons_are_saved_as_indices_under_their_languages_numbers(
    three: LanguageNeurons, tmp_path: Path
) -> None:
    """The format on disk: other programs may read it, so it does not change silently."""
    path = tmp_path / "lape.safetensors"
    three.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {"mlp_post.0", "mlp_post.1", "mlp_post.2"}
        assert file.get_tensor("mlp_post.1").tolist() == [[0, 2], [1, 1], [2, 4]]
    about = json.loads(metadata["lens_lang"])
    assert (about["format_version"], about["class"]) == (1, "LanguageNeurons")
    head = about["header"]
    assert head["languages"] == ["en", "fr", "zh"]
    assert head["shapes"] == {"mlp_post": [LAYERS, WIDTH]}
    assert "torch" in head["provenance"]["saved_with"]


# --- random controls ---


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


few = st.sets(st.sampled_from([(layer, i) for layer in range(LAYERS) for i in (0, 3)]))


@laws
@given(few, few, st.integers(0, 1000))
def test_a_control_has_as_many_other_neurons_in_every_layer_of_every_site(
    post: Pairs, query: Pairs, seed: int
) -> None:
    neurons = at_two_sites(post, query)
    control = random_like(neurons, generator=seeded(seed))
    assert control.sites == neurons.sites
    for site in neurons.sites:
        assert torch.equal(control.per_layer(site), neurons.per_layer(site))
    assert len(control & neurons) == 0
    assert control == random_like(neurons, generator=seeded(seed))


def test_another_state_of_the_generator_gives_another_control() -> None:
    mask = torch.zeros(2, 200, dtype=torch.bool)
    mask[:, :20] = True
    neurons, generator = NeuronSet({MLP_PRE: mask}), seeded()
    first = random_like(neurons, generator=generator)
    assert first != random_like(neurons, generator=generator)
    before = torch.get_rng_state()
    random_like(neurons, generator=generator)
    assert torch.equal(torch.get_rng_state(), before)  # the global state is nobody's business


def test_excluded_neurons_are_never_drawn_and_others_may_be() -> None:
    neurons = neuron_set({(0, 0), (0, 1)})
    exclude = neuron_set({(0, 2), (0, 3), (0, 4)})
    control = random_like(neurons, generator=seeded(), exclude=exclude)
    assert members(control) == {(0, 0), (0, 1)}  # only its own neurons are left to draw
    nothing = random_like(neurons, generator=seeded(), exclude=neuron_set(set(), site=ATTN_Q))
    assert nothing.per_layer(MLP_POST).tolist() == [2, 0, 0]


def test_a_layer_with_too_few_other_neurons_is_refused() -> None:
    with pytest.raises(ShapeError, match="Layer 1 of mlp_post has 2 neurons outside .* its 3 mem"):
        random_like(neuron_set({(1, 0), (1, 1), (1, 2)}), generator=seeded())


def test_every_other_neuron_is_drawn_equally_often() -> None:
    """Chi-squared over 3000 draws of 2 out of 8: 7 degrees of freedom, 24.3 at p = 0.001."""
    mask = torch.zeros(1, 10, dtype=torch.bool)
    mask[0, [2, 7]] = True
    neurons, generator, draws = NeuronSet({MLP_POST: mask}), seeded(1), 3000
    drawn = torch.zeros(10, dtype=torch.int64)
    for _ in range(draws):
        drawn += random_like(neurons, generator=generator).masks[MLP_POST][0]
    expected = draws * 2 / 8
    outside = drawn[~mask[0]].double()
    assert drawn[mask[0]].tolist() == [0, 0]
    assert float(((outside - expected) ** 2 / expected).sum()) < 24.3


def test_a_neuron_is_named_by_a_pair_or_by_a_word(llama: Any) -> None:
    assert set_of(llama, ["1.3", (2, 5)]) == set_of(llama, [(1, 3), (2, 5)])
    assert list(set_of(llama, [(1, 3)])) == [(MLP_POST, 1, 3)]
    assert len(set_of(llama, [])) == 0
    for wrong in ("1", "1.2.3", "a.b", "-1.2", " 1.2", ""):
        with pytest.raises(OptionError, match="A neuron is"):
            neuron_place(wrong)
    with pytest.raises(OptionError, match="no neuron 1.112 at mlp_post: this model has 3 layers"):
        set_of(llama, ["1.112"])
    with pytest.raises(OptionError, match="this set is empty"):
        _ = set_of(llama, []).site
