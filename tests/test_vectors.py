"""Vectors are added where, when and as much as is said, and are differences of language means."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import D_MODEL, LAYERS, random_documents, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_intervene import some_neurons
from test_sites import TOKENS

from lens_lang.collection import collect
from lens_lang.continuing import ending_tokens
from lens_lang.corpora import Corpora
from lens_lang.decoding import Decoding, generate
from lens_lang.detect.baselines import lave
from lens_lang.errors import LanguageError, OptionError, ShapeError, SiteError
from lens_lang.intervene import NeuronEdit, ablate, matched_control, replace, steer
from lens_lang.likelihood import log_likelihoods
from lens_lang.neurons import LanguageNeurons
from lens_lang.results import load
from lens_lang.sites import RESID_POST, n_layers
from lens_lang.stats import Activations, MeanActivation
from lens_lang.vectors import VectorEdit, shift

MANY = settings(max_examples=30, deadline=None)


def means(
    *languages: str,
    layers: int = LAYERS,
    width: int = D_MODEL,
    space: Any = "residual",
    seed: int = 0,
) -> Activations:
    """Random means of languages, counted over different numbers of tokens."""
    generator = torch.Generator().manual_seed(seed)
    languages = languages or ("en", "fr", "de")
    shape = (len(languages), layers, width)
    total = torch.randn(shape, generator=generator, dtype=torch.float64) * 10
    n_tokens = torch.arange(3, 3 + len(languages))
    return Activations(languages, total, total.square(), n_tokens, space)


def difference(mean: Activations, source: str, target: str) -> torch.Tensor:
    places = [mean.languages.index(lang) for lang in (source, target)]
    before, after = (mean.sum[place] / int(mean.n_tokens[place]) for place in places)
    return after - before


def vectors(hooks: Any) -> torch.Tensor:
    return torch.stack([hook.vector for _, hook in hooks])


def residuals(model: Any, hooks: Any = ()) -> torch.Tensor:
    """The residual stream after every block, as whoever comes after the hooks sees it."""
    seen: dict[int, torch.Tensor] = {}

    def keep(resid: torch.Tensor, hook: Any, layer: int) -> None:
        seen[layer] = resid.clone()

    readers = [
        (RESID_POST.at(layer), partial(keep, layer=layer)) for layer in range(n_layers(model))
    ]
    with torch.inference_mode():
        model.run_with_hooks(TOKENS, fwd_hooks=[*hooks, *readers])
    return torch.stack([seen[layer] for layer in range(n_layers(model))])


# --- what is added ---


@pytest.mark.lane
@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_difference_of_means_is_added_after_its_layer_only(any_model: Any, layer: int) -> None:
    mean = means()
    hooks = shift(mean, source="en", target="fr", layers=layer, strength=0.7)
    plain, shifted = residuals(any_model), residuals(any_model, hooks)
    vector = 0.7 * difference(mean, "en", "fr")[layer].float()
    assert torch.equal(shifted[:layer], plain[:layer])
    torch.testing.assert_close(shifted[layer], plain[layer] + vector, atol=1e-6, rtol=1e-6)
    if layer + 1 < LAYERS:  # and the next block reads it
        assert not torch.allclose(shifted[layer + 1], plain[layer + 1] + vector, atol=1e-3)


@pytest.mark.lane
def test_each_of_several_layers_adds_its_own_difference(any_model: Any) -> None:
    mean = means()
    hooks = shift(mean, source="fr", target="de", layers=[2, 0], strength=-1.5)
    added = -1.5 * difference(mean, "fr", "de").float()
    by_hand = [
        (RESID_POST.at(layer), lambda resid, hook, layer=layer: resid + added[layer])
        for layer in (0, 2)
    ]
    torch.testing.assert_close(residuals(any_model, hooks), residuals(any_model, by_hand))
    assert not torch.allclose(residuals(any_model, hooks), residuals(any_model), atol=0.1)


@pytest.mark.lane
def test_no_strength_changes_nothing(any_model: Any) -> None:
    hooks = shift(means(), source="en", target="fr", layers=range(LAYERS), strength=0)
    assert len(hooks) == LAYERS
    assert torch.equal(residuals(any_model, hooks), residuals(any_model))


@pytest.mark.lane
def test_there_and_back_again_is_nothing(any_model: Any) -> None:
    there = shift(means(), source="en", target="fr", layers=[0, 1])
    back = shift(means(), source="fr", target="en", layers=[0, 1])
    assert torch.equal(vectors(there), -vectors(back))
    torch.testing.assert_close(
        residuals(any_model, there + back), residuals(any_model), atol=1e-4, rtol=1e-4
    )


@MANY
@given(
    strengths=st.tuples(*[st.floats(-100, 100)] * 2),
    layer=st.integers(0, LAYERS - 1),
    seed=st.integers(0, 5),
)
def test_vectors_add(strengths: tuple[float, float], layer: int, seed: int) -> None:
    mean, (a, b) = means(seed=seed), strengths

    def along(source: str, target: str, strength: float) -> torch.Tensor:
        hooks = shift(mean, source=source, target=target, layers=layer, strength=strength)
        return vectors(hooks)[0].double()

    close = partial(torch.testing.assert_close, atol=1e-3, rtol=1e-4)
    close(along("en", "fr", a) + along("en", "fr", b), along("en", "fr", a + b))
    close(along("en", "fr", a) + along("fr", "de", a), along("en", "de", a))
    close(along("en", "fr", -a), along("fr", "en", a))
    assert bool((along("en", "en", a) == 0).all())


def test_languages_have_their_usual_names_and_one_layer_is_a_list_of_it() -> None:
    mean = means()
    short = shift(mean, source="en", target="fr", layers=1)
    long = shift(mean, source="English", target="fra_Latn", layers=[1])
    assert torch.equal(vectors(short), vectors(long))
    assert [name for name, _ in short] == [name for name, _ in long] == [RESID_POST.at(1)]
    assert short[0][1].layer == 1
    assert shift(mean, source="en", target="fr", layers=[]) == []


def test_the_residual_stream_itself_is_left_alone_and_keeps_its_dtype() -> None:
    edit = VectorEdit(0, torch.tensor([1.0, -2.0]))
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        resid = torch.ones(2, 3, 2, dtype=dtype)
        found = edit(resid)
        assert found.dtype == dtype
        assert found.tolist() == [[[2.0, -1.0]] * 3] * 2
        assert bool((resid == 1).all())


def test_a_vector_says_how_long_it_is_and_where() -> None:
    edit = VectorEdit(3, torch.tensor([3.0, 4.0]))
    assert repr(edit) == "add a vector of length 5 after layer 3"


# --- positions ---


def test_a_new_token_comes_alone_and_a_prompt_does_not() -> None:
    for length in (1, 2, 7):
        resid = torch.zeros(2, length, 2)
        for positions, acts in (("all", True), ("prompt", length > 1), ("new", length == 1)):
            edit = VectorEdit(0, torch.ones(2), positions)
            found = edit(resid)
            assert (found is not None) == acts
            assert found is None or bool((found == 1).all())


def by_hand(model: Any, prompt: Sequence[int], new: int, vector: Any, where: str) -> list[int]:
    """Greedy, without a cache, the vector added at positions counted in the whole row."""

    def add(resid: torch.Tensor, hook: Any) -> torch.Tensor:
        changed = resid.clone()
        here = {"all": slice(None), "prompt": slice(len(prompt)), "new": slice(len(prompt), None)}
        changed[:, here[where]] += vector
        return changed

    tokens = list(prompt)
    while len(tokens) < len(prompt) + new:
        with torch.inference_mode():
            logits = model.run_with_hooks(
                torch.tensor([tokens]), fwd_hooks=[(RESID_POST.at(1), add)]
            )
        tokens.append(int(logits[0, -1].argmax()))
        if tokens[-1] in ending_tokens(model):
            break
    return tokens[len(prompt) :]


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "bloom"])
def test_the_prompt_alone_or_new_tokens_alone_are_shifted(architecture: str) -> None:
    model, mean = tiny(architecture), means()
    prompts = random_documents([4, 1, 9])
    vector = 3 * difference(mean, "en", "fr")[1].float()
    said = {}
    for where in ("all", "prompt", "new"):
        hooks = shift(mean, source="en", target="fr", layers=1, strength=3, positions=where)
        found = generate(model, prompts, Decoding(new_tokens=5), fwd_hooks=hooks)
        said[where] = [list(each.tokens) for each in found]
        assert said[where] == [by_hand(model, each, 5, vector, where) for each in prompts]
    plain = [list(each.tokens) for each in generate(model, prompts, Decoding(new_tokens=5))]
    assert [each[0] for each in said["new"]] == [each[0] for each in plain]
    assert len({str(each) for each in (*said.values(), plain)}) > 2


# --- where the means come from ---


@pytest.mark.lane
@pytest.mark.parametrize("count_bos", [False, True])
def test_means_of_the_residual_stream_are_those_over_counted_tokens(
    any_model: Any, count_bos: bool
) -> None:
    docs = {"en": random_documents([5, 9, 2]), "fr": random_documents([8, 3], seed=1)}
    corpora = Corpora.from_tokens(docs, bos_id=1, count_bos=count_bos)
    found = collect(any_model, corpora, MeanActivation("residual"), batch_size=2)
    assert found.space == "residual"
    for lang, rows in docs.items():
        seen = []
        for row in rows:
            with torch.inference_mode():
                _, cache = any_model.run_with_cache(torch.tensor([[1, *row]]))
            whole = torch.stack([cache[RESID_POST.at(layer)][0] for layer in range(LAYERS)])
            seen.append(whole[:, 0 if count_bos else 1 :].double())
        values = torch.cat(seen, dim=1)
        place = found.languages.index(lang)
        assert int(found.n_tokens[place]) == values.shape[1]
        torch.testing.assert_close(found[lang], values.mean(1), atol=1e-4, rtol=1e-4)
        spread = values.std(1, correction=0)
        torch.testing.assert_close(found.std[place], spread, atol=1e-3, rtol=1e-3)


@pytest.mark.lane
def test_a_shift_moves_the_mean_of_one_language_onto_the_others(llama: Any) -> None:
    docs = Corpora.from_tokens(
        {"en": random_documents([6] * 4), "fr": random_documents([9] * 3, seed=1)}, bos_id=1
    )
    mean = collect(llama, docs, MeanActivation("residual"))
    hooks = shift(mean, source="en", target="fr", layers=1)
    moved = collect(llama, docs, MeanActivation("residual"), fwd_hooks=hooks)
    torch.testing.assert_close(moved["en"][1], mean["fr"][1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(moved["en"][0], mean["en"][0])


def test_means_are_saved_with_their_space(tmp_path: Path) -> None:
    means().save(tmp_path / "x")
    found = load(tmp_path / "x")
    assert found.space == "residual"
    one, other = (shift(each, source="en", target="fr", layers=0) for each in (means(), found))
    assert torch.equal(vectors(one), vectors(other))


# --- controls ---


@MANY
@given(
    values=st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=2, max_size=60),
    seed=st.integers(0, 2**32),
)
def test_a_control_is_as_long_and_in_another_direction(values: list[float], seed: int) -> None:
    edit = VectorEdit(2, torch.tensor(values), "new")
    hooks = [("x", edit)]
    drawn, same = (
        matched_control(hooks, generator=torch.Generator().manual_seed(seed))[0][1]
        for _ in range(2)
    )
    assert isinstance(drawn, VectorEdit) and isinstance(same, VectorEdit)
    length = float(edit.vector.norm())
    assert float(drawn.vector.norm()) == pytest.approx(length, rel=1e-4, abs=1e-30)
    assert (drawn.layer, drawn.positions, drawn.vector.shape) == (2, "new", edit.vector.shape)
    assert torch.equal(drawn.vector, same.vector)
    assert torch.isfinite(drawn.vector).all()
    if length > 1e-6:
        assert not torch.allclose(drawn.vector / length, edit.vector / length)


def test_directions_of_controls_are_everywhere_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    edit = VectorEdit(0, torch.tensor([3.0, 0.0, 4.0]))
    drawn = torch.stack(
        [edit.along(torch.randn(3, generator=generator)).vector for _ in range(4000)]
    )
    assert drawn.mean(0).abs().max() < 0.25
    torch.testing.assert_close(drawn.T @ drawn / 4000, torch.eye(3) * 25 / 3, atol=0.6, rtol=0)
    # on a sphere every coordinate is uniform
    for coordinate in (drawn / 5).T:
        counts = torch.histc(coordinate, 4, -1, 1)
        assert (counts - 1000).abs().max() < 120


def test_the_matched_control_of_a_shift_is_a_shift_of_the_same_layers() -> None:
    hooks = shift(means(), source="en", target="fr", layers=[0, 2], positions="prompt")
    first, same, other = (
        matched_control(hooks, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert [name for name, _ in first] == [name for name, _ in hooks]
    assert [(hook.layer, hook.positions) for _, hook in first] == [(0, "prompt"), (2, "prompt")]
    torch.testing.assert_close(vectors(first).norm(dim=1), vectors(hooks).norm(dim=1))
    assert torch.equal(vectors(first), vectors(same))
    for one, another in ((hooks, first), (first, other)):
        cosine = torch.nn.functional.cosine_similarity(vectors(one), vectors(another))
        assert cosine.abs().max() < 0.6
    # one direction for all layers, as the differences of two languages have nearly one
    torch.testing.assert_close(torch.nn.functional.normalize(vectors(first))[0],
                               torch.nn.functional.normalize(vectors(first))[1])  # fmt: skip


def test_every_shift_among_hooks_gets_the_same_random_direction() -> None:
    hooks = shift(means(), source="en", target="fr", layers=[0, 1, 2])
    turned = shift(means(seed=1), source="fr", target="de", layers=1, strength=-3, positions="new")
    drawn = matched_control(hooks + turned, generator=torch.Generator().manual_seed(0))
    directions = torch.nn.functional.normalize(vectors(drawn))
    torch.testing.assert_close(directions, directions[:1].expand_as(directions))
    torch.testing.assert_close(vectors(drawn).norm(dim=1), vectors(hooks + turned).norm(dim=1))
    # alone, and beside neurons, a vector's direction is that of the same source
    alone = matched_control(turned, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(vectors(alone), vectors(drawn)[-1:])


@MANY
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=40),
    seed=st.integers(0, 2**32),
    factor=st.floats(1e-3, 1e3),
)
def test_a_vector_along_a_direction_keeps_its_length_and_takes_the_direction(
    values: list[float], seed: int, factor: float
) -> None:
    edit = VectorEdit(1, torch.tensor(values), "prompt")
    direction = torch.randn(len(values), generator=torch.Generator().manual_seed(seed))
    found = edit.along(direction)
    assert (found.layer, found.positions) == (1, "prompt")
    expected = direction / direction.norm() * edit.vector.norm()
    torch.testing.assert_close(found.vector, expected, rtol=1e-4, atol=1e-6)
    again = edit.along(direction * factor).vector
    torch.testing.assert_close(again, found.vector, rtol=1e-4, atol=1e-6)
    assert edit.vector.tolist() == torch.tensor(values).tolist()


def test_neurons_and_vectors_have_controls_together(llama: Any) -> None:
    neurons = some_neurons(llama)
    hooks = ablate(neurons) + shift(means(), source="en", target="fr", layers=1)
    drawn = matched_control(hooks, generator=torch.Generator().manual_seed(0))
    assert [(name, type(hook)) for name, hook in drawn] == [
        (name, type(hook)) for name, hook in hooks
    ]
    for (_, mine), (_, theirs) in zip(hooks, drawn, strict=True):
        if isinstance(mine, NeuronEdit):
            assert len(mine.indices) == len(theirs.indices)
            assert not set(mine.indices.tolist()) & set(theirs.indices.tolist())


def test_the_control_of_nothing_is_nothing() -> None:
    hooks = shift(means(), source="en", target="fr", layers=1, strength=0)
    (_, drawn), *_ = matched_control(hooks, generator=torch.Generator().manual_seed(0))
    assert bool((drawn.vector == 0).all())


# --- what is refused ---


@pytest.mark.parametrize("space", ["gate", "product", "up"])
def test_means_of_neurons_are_refused(space: str) -> None:
    with pytest.raises(OptionError, match=f"these are means in {space} space: collect MeanActi"):
        shift(means(space=space), source="en", target="fr", layers=0)


@pytest.mark.parametrize("layers", [-1, LAYERS, [0, LAYERS], [-1, 0]])
def test_layers_that_the_means_do_not_have_are_refused(layers: Any) -> None:
    with pytest.raises(OptionError, match=f"between 0 and {LAYERS - 1}, got (-1|{LAYERS})"):
        shift(means(), source="en", target="fr", layers=layers)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), float("-inf")])
def test_a_strength_that_is_not_finite_is_refused(strength: float) -> None:
    with pytest.raises(OptionError, match="strength must be a finite number"):
        shift(means(), source="en", target="fr", layers=0, strength=strength)


def test_other_languages_are_refused() -> None:
    for source, target in (("en", "es"), ("es", "en"), ("en", "nonsense")):
        with pytest.raises(LanguageError, match="There is no language"):
            shift(means(), source=source, target=target, layers=0)


@pytest.mark.lane
@pytest.mark.parametrize("width", [D_MODEL - 1, D_MODEL + 1, 1])
def test_means_of_a_model_of_another_width_are_refused(llama: Any, width: int) -> None:
    hooks = shift(means(width=width), source="en", target="fr", layers=0)
    with pytest.raises(ShapeError, match=f"vector of {width} numbers .* stream of {D_MODEL}"):
        generate(llama, [[4, 5]], Decoding(new_tokens=1), fwd_hooks=hooks)


@pytest.mark.lane
def test_means_of_a_deeper_model_are_refused(llama: Any) -> None:
    hooks = shift(means(layers=9), source="en", target="fr", layers=8)
    with pytest.raises(SiteError, match="no hook point 'blocks.8.hook_resid_post'"):
        generate(llama, [[4, 5]], Decoding(new_tokens=1), fwd_hooks=hooks)


def test_what_is_scored_at_once_has_no_new_tokens(llama: Any) -> None:
    pair = (torch.tensor([4, 5]), torch.tensor([6]))
    plain, shifted = (
        log_likelihoods(llama, [pair], fwd_hooks=hooks)[0]
        for hooks in ([], shift(means(), source="en", target="fr", layers=0))
    )
    assert plain != shifted
    for where in ("prompt", "new"):
        hooks = shift(means(), source="en", target="fr", layers=0, positions=where)
        with pytest.raises(OptionError, match="make them with positions='all'"):
            log_likelihoods(llama, [pair], fwd_hooks=hooks)


def test_means_of_the_residual_stream_are_no_means_of_neurons(llama: Any) -> None:
    neurons = LanguageNeurons({lang: some_neurons(llama) for lang in ("en", "fr")})
    mean = means(width=112)  # as many numbers as the model has neurons
    with pytest.raises(OptionError, match="these are means of the residual stream"):
        steer(neurons, source="en", target="fr", mean=mean)
    with pytest.raises(OptionError, match="in gate or product space, got 'residual'"):
        lave(mean)
    with pytest.raises(ShapeError, match="one per layer and neuron"):
        replace(neurons["fr"], means()["fr"])


def test_means_in_different_spaces_do_not_add() -> None:
    with pytest.raises(ShapeError, match="differ in space"):
        means() + means(space="gate")
    both = means() + means(seed=1)
    assert both.space == "residual"
