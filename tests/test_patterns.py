"""Which languages share a neuron: against sets, hand cases, any batching, any accident."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCAB, hf_model, random_documents, tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lens_lang import passes, results
from lens_lang.collection import collect_parallel
from lens_lang.detect.sharing import sharing
from lens_lang.errors import (
    ActivationError,
    CorpusError,
    LanguageError,
    OptionError,
    ShapeError,
    SiteError,
    StorageError,
)
from lens_lang.intervene import ablate
from lens_lang.models import bridge
from lens_lang.neurons import NeuronSet
from lens_lang.parallel import ParallelCorpora
from lens_lang.patterns import (
    CATEGORIES,
    Firing,
    SharingPattern,
    SharingPatterns,
    categories,
    of_counts,
)
from lens_lang.sites import MLP_POST, MLP_PRE, is_gated, n_layers

GOLDEN = torch.tensor([[1.0, 0, 1, 1, -1], [1, 0, 0, 0, 0], [1, 0, 0, 1, 2]])
SUMS = ("firing", "only", "exactly", "members")


def by_sets(acts: Tensor, threshold: float) -> dict[str, Any]:
    """One example, `lang layer neuron`, with Python sets: what the paper's words say."""
    langs, layers, neurons = acts.shape
    found: dict[str, Any] = {name: [] for name in CATEGORIES}
    for layer in range(layers):
        active = [
            {j for j in range(neurons) if float(acts[k, layer, j]) > threshold}
            for k in range(langs)
        ]
        everywhere, somewhere = set.intersection(*active), set.union(*active)
        once = {
            j: k
            for k in range(langs)
            for j in active[k] - set().union(*(active[o] for o in range(langs) if o != k))
        }
        found["all_shared"].append(everywhere)
        found["specific"].append(once)
        found["partial_shared"].append(somewhere - everywhere - set(once))
        found["non_activated"].append(set(range(neurons)) - somewhere)
    return found


def indices(neurons: NeuronSet, layer: int) -> set[int]:
    return {index for at, index in neurons.indices(MLP_POST).tolist() if at == layer}


def patterns_of(acts: Tensor, **options: Any) -> SharingPatterns:
    names = [f"l{k}" for k in range(acts.shape[1])]
    return SharingPatterns.from_activations(acts, names, **options)


def assert_equal(mine: SharingPatterns, theirs: SharingPatterns) -> None:
    assert mine.names == theirs.names
    for name in SUMS:
        assert torch.equal(getattr(mine, name), getattr(theirs, name)), name


# --- golden cases ---


def test_golden_categories() -> None:
    """Golden case Sharing 1: three languages, five neurons; exactly 0 does not fire."""
    kinds = categories(GOLDEN > 0).int().argmax(0).tolist()
    assert [CATEGORIES[kind] for kind in kinds] == [
        "all_shared", "non_activated", "specific", "partial_shared", "specific",
    ]  # fmt: skip
    found = sharing(SharingPatterns.from_activations(GOLDEN[None, :, None], ("en", "fr", "de")))
    assert indices(found.specific["en"], 0) == {2}
    assert indices(found.specific["fr"], 0) == set()
    assert indices(found.specific["de"], 0) == {4}


def test_golden_a_small_negative_gelu_does_not_fire() -> None:
    """Golden case Sharing 1, second half."""
    pre = torch.tensor([-0.01, 0.0, 0.01])
    fires = Firing(MLP_PRE, torch.nn.functional.gelu).values(pre) > 0
    assert fires.tolist() == [False, False, True]


def test_golden_consistency() -> None:
    """Golden case Sharing 3: categories {1, 2} and {2, 3} have one neuron in common."""
    acts = torch.zeros(2, 2, 1, 5)
    acts[0, :, 0, [1, 2]] = 1.0
    acts[1, :, 0, [2, 3]] = 1.0
    found = sharing(patterns_of(acts))
    assert float(found.consistent[0, CATEGORIES.index("all_shared")]) == 1 / 5
    assert indices(found.all_shared, 0) == {2}
    assert indices(found.non_activated, 0) == {0, 4}


# --- laws ---


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(2, 5), st.integers(1, 2), st.integers(1, 6),
    st.sampled_from([0.0, 0.25]), st.integers(0, 999),
)  # fmt: skip
def test_the_vectorised_form_is_the_sets(
    examples: int, langs: int, layers: int, neurons: int, threshold: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    acts = torch.randn(examples, langs, layers, neurons, generator=generator).round(decimals=1)
    patterns = patterns_of(acts, threshold=threshold)
    oracle = [by_sets(each, threshold) for each in acts]
    for layer, kind in itertools.product(range(layers), range(4)):
        name = CATEGORIES[kind]
        sizes = [len(each[name][layer]) for each in oracle]
        assert patterns.members[0, :, layer, kind].tolist() == sizes
        always = set.intersection(*(set(each[name][layer]) for each in oracle))
        assert int(sharing(patterns).same[layer, kind]) == len(always)
        if name != "specific":
            assert indices(sharing(patterns)[name], layer) == always
    for lang, layer in itertools.product(range(langs), range(layers)):
        mine = [{j for j, k in each["specific"][layer].items() if k == lang} for each in oracle]
        assert indices(sharing(patterns).specific[f"l{lang}"], layer) == set.intersection(*mine)


@given(st.integers(2, 6), st.integers(0, 999))
def test_every_neuron_is_of_exactly_one_kind(langs: int, seed: int) -> None:
    """Golden case Sharing 2, first half."""
    acts = torch.randn(3, langs, 2, 20, generator=torch.Generator().manual_seed(seed))
    patterns = patterns_of(acts)
    assert bool((patterns.members.sum(-1) == 20).all())
    assert bool((patterns.exactly.sum(1) == 3).all())
    assert torch.equal(patterns.only.sum(1), patterns.exactly[:, 1])
    one = sharing(patterns_of(acts[:1]))
    total = sum(one[name].masks[MLP_POST].int() for name in CATEGORIES)
    assert bool((total == 1).all())


def test_a_higher_threshold_shares_less() -> None:
    """Golden case Sharing 2, second half."""
    levels = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
    patterns = patterns_of(torch.randn(4, 3, 2, 200), threshold=levels)
    shares = torch.stack([sharing(patterns, threshold=level).share.mean(0) for level in levels])
    assert bool((shares[:, 0].diff() <= 0).all())
    assert bool((shares[:, 3].diff() >= 0).all())
    assert shares[0, 0] > shares[-1, 0]


def test_several_thresholds_are_as_many_passes() -> None:
    acts = torch.randn(3, 3, 2, 50)
    both = patterns_of(acts, threshold=(0.2, -0.1))
    for place, level in enumerate((0.2, -0.1)):
        alone = patterns_of(acts, threshold=level)
        for name in SUMS:
            assert torch.equal(getattr(both, name)[place], getattr(alone, name)[0])


def test_two_languages_share_nothing_in_part() -> None:
    patterns = patterns_of(torch.randn(5, 2, 1, 40))
    assert int(patterns.members[..., 1].sum()) == 0
    assert len(sharing(patterns).partial_shared) == 0


def test_the_order_of_languages_changes_the_order_of_results() -> None:
    acts = torch.randn(4, 3, 2, 30)
    one = SharingPatterns.from_activations(acts, ("en", "fr", "de"))
    other = SharingPatterns.from_activations(acts[:, [2, 0, 1]], ("de", "en", "fr"))
    assert torch.equal(one.members, other.members)
    for lang in ("en", "fr", "de"):
        assert sharing(one).specific[lang] == sharing(other).specific[lang]


@given(st.integers(1, 4))
def test_patterns_of_parts_add_up(cut: int) -> None:
    acts = torch.randn(5, 3, 2, 20, generator=torch.Generator().manual_seed(cut))
    names = list("abcde")
    whole = patterns_of(acts, names=names)
    parts = patterns_of(acts[:cut], names=names[:cut]) + patterns_of(acts[cut:], names=names[cut:])
    assert_equal(parts, whole)


def test_what_does_not_go_together_is_not_added() -> None:
    acts = torch.randn(2, 3, 2, 20)
    one = patterns_of(acts)
    for other, kind, word in (
        (patterns_of(acts), OptionError, "twice"),
        (patterns_of(acts[:, :2], names="xy"), ShapeError, "languages"),
        (patterns_of(acts, threshold=0.1, names="xy"), ShapeError, "thresholds"),
        (patterns_of(acts[..., :9], names="xy"), ShapeError, "models"),
    ):
        with pytest.raises(kind, match=word):
            one + other


def test_save_and_load_change_nothing(tmp_path: Path) -> None:
    patterns = patterns_of(torch.randn(3, 3, 2, 20), threshold=(0.0, 0.5))
    patterns.save(tmp_path / "p.safetensors")
    again = results.load(tmp_path / "p.safetensors")
    assert isinstance(again, SharingPatterns)
    assert_equal(again, patterns)
    assert again.thresholds == (0.0, 0.5)
    sharing(patterns).neurons().save(tmp_path / "n.safetensors")
    assert results.load(tmp_path / "n.safetensors") == sharing(patterns).neurons()


# --- sharing of many examples ---


def test_a_share_of_the_examples_can_be_enough() -> None:
    acts = -torch.ones(10, 2, 1, 3)
    acts[:9, :, :, 0] = 1.0  # in nine of ten examples
    acts[:7, :, :, 1] = 1.0
    patterns = patterns_of(acts)
    assert indices(sharing(patterns).all_shared, 0) == set()
    assert indices(sharing(patterns, min_share=0.9).all_shared, 0) == {0}
    assert indices(sharing(patterns, min_share=0.7).all_shared, 0) == {0, 1}
    assert indices(sharing(patterns, min_share=0.7).non_activated, 0) == {2}


def test_across_any_example_one_division_is_made() -> None:
    acts = -torch.ones(2, 3, 1, 4)
    acts[0, 0, 0, 0] = acts[1, 1, 0, 0] = acts[1, 2, 0, 0] = 1.0  # each language once
    acts[0, 2, 0, 1] = acts[1, 2, 0, 1] = 1.0  # always the third
    acts[0, :2, 0, 2] = 1.0
    found = sharing(patterns_of(acts), across="any")
    assert indices(found.all_shared, 0) == {0}
    assert indices(found.specific["l2"], 0) == {1}
    assert indices(found.partial_shared, 0) == {2}
    assert indices(found.non_activated, 0) == {3}


def test_shares_come_with_their_spread() -> None:
    acts = -torch.ones(4, 2, 1, 10)
    for example, n in enumerate((2, 4, 4, 6)):
        acts[example, :, 0, :n] = 1.0
    found = sharing(patterns_of(acts))
    assert float(found.share[0, 0]) == pytest.approx(0.4)
    assert found.range[0, 0].tolist() == [0.2, 0.6]
    low, high = found.ci[0, 0].tolist()
    assert 0.2 <= low < 0.4 < high <= 0.6
    assert found.active[:, 0].tolist() == pytest.approx([0.4, 0.4])
    row = found.to_frame().query("category == 'all_shared'").iloc[0]
    assert (row["share"], row["least"], row["most"]) == pytest.approx((0.4, 0.2, 0.6))


def test_neurons_of_a_kind_can_be_asked_for_by_name() -> None:
    found = sharing(patterns_of(torch.randn(1, 3, 2, 20)))
    assert found["specific"] == found.specific.union()
    assert found["all_shared"] == found.all_shared
    with pytest.raises(OptionError, match="all_shared"):
        found["shared"]
    assert list(found.neurons()) == [
        "all_shared", "partial_shared", "specific-l0", "specific-l1", "specific-l2",
        "non_activated",
    ]  # fmt: skip
    assert found.neurons().provenance["method"] == "sharing"
    assert "all_shared" in repr(found)


# --- bad input ---


def test_sharing_needs_two_languages() -> None:
    with pytest.raises(LanguageError, match="at least 2"):
        patterns_of(torch.randn(1, 1, 1, 4))
    with pytest.raises(LanguageError, match="at least 2"):
        categories(torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(LanguageError, match="at least 2"):
        ParallelCorpora.from_tokens({"en": [[5]]})


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": ()},
        {"threshold": (0.0, 0.0)},
        {"threshold": float("nan")},
        {"threshold": (0.0, float("nan"))},
    ],
)
def test_wrong_options_are_refused_before_the_model_runs(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        SharingPattern(**wrong)


def test_thresholds_and_shares_that_were_not_measured_are_refused() -> None:
    patterns = patterns_of(torch.randn(2, 2, 1, 4), threshold=(0.0, 0.5))
    with pytest.raises(OptionError, match=r"0, 0\.5"):
        sharing(patterns, threshold=0.1)
    for share in (0.5, 1.01):
        with pytest.raises(OptionError, match="min_share"):
            sharing(patterns, min_share=share)
    with pytest.raises(OptionError, match="min_share"):
        sharing(patterns, across="any", min_share=0.9)


def test_sums_of_the_wrong_shape_are_refused() -> None:
    patterns = patterns_of(torch.randn(2, 3, 1, 4))
    with pytest.raises(ShapeError, match="members"):
        SharingPatterns(
            patterns.languages, ("a",), (0.0,), patterns.firing, patterns.only, patterns.exactly,
            patterns.members,
        )  # fmt: skip


@pytest.mark.parametrize("damage", ["header", "class", "short"])
def test_a_damaged_file_is_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "p.safetensors"
    patterns_of(torch.randn(2, 3, 1, 4)).save(path)
    content = path.read_bytes()
    wrong = {
        "header": content.replace(b"thresholds", b"thresh0lds"),
        "class": content.replace(b"SharingPatterns", b"SharingPatter_s"),
        "short": content[:-8],
    }[damage]
    path.write_bytes(wrong)
    with pytest.raises(StorageError):
        SharingPatterns.load(path)


# --- collecting ---


def examples(seed: int = 0) -> ParallelCorpora:
    lengths = {"en": [5, 9, 2, 12, 7], "fr": [8, 3, 10, 6, 1], "de": [4, 4, 11, 2, 9]}
    docs = {
        lang: random_documents(each, seed=seed + place)
        for place, (lang, each) in enumerate(lengths.items())
    }
    return ParallelCorpora.from_tokens(docs, bos_id=1)


def brute_force(model: Any, texts: ParallelCorpora, spec: SharingPattern) -> Tensor:
    """One text at a time, everything cached: `example lang layer neuron`."""
    firing = Firing.of(model, spec.space)
    rows = []
    for number in range(len(texts)):
        for docs in texts.documents.values():
            tokens = torch.cat([torch.tensor([1]), docs[number].long()])[None]
            _, cache = model.run_with_cache(tokens)
            acts = torch.stack(
                [firing.values(cache[firing.site.at(n)][0, 1:]) for n in range(n_layers(model))]
            )
            rows.append(
                {"last": acts[:, -1], "mean": acts.mean(1), "any": acts.amax(1)}[spec.position]
            )
    return torch.stack(rows).unflatten(0, (len(texts), -1))


@pytest.mark.lane
@pytest.mark.parametrize("position", ["last", "mean", "any"])
@pytest.mark.parametrize("space", ["gate", "product"])
def test_collecting_is_one_text_at_a_time(any_model: Any, position: Any, space: Any) -> None:
    """Padding, batching and hooks change nothing."""
    texts = examples()
    spec = SharingPattern(threshold=(0.0, 0.05), position=position, space=space)
    found = collect_parallel(any_model, texts, spec, batch_size=2)
    acts = brute_force(any_model, texts, spec)
    expected = SharingPatterns.from_activations(
        acts.detach(), texts.languages, threshold=(0.0, 0.05)
    )
    # A pre-activation within rounding of the threshold may fall on either side.
    close = sum(int((acts - level).abs().lt(1e-6).sum()) for level in (0.0, 0.05))
    for name in SUMS:
        assert (getattr(found, name) - getattr(expected, name)).abs().sum() <= 4 * close, name
    assert found.languages == ("en", "fr", "de")
    assert found.space == space


def test_the_gate_says_whether_a_neuron_fires_and_the_product_does_not(llama: Any) -> None:
    texts = examples()
    gate = collect_parallel(llama, texts, SharingPattern())
    product = collect_parallel(llama, texts, SharingPattern(space="product"))
    assert not torch.equal(gate.firing, product.firing)
    assert is_gated(llama)


@pytest.mark.lane
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_batches_of_any_size_count_the_same(llama: Any, batch_size: int) -> None:
    model = bridge(hf_model("llama").double())
    whole = collect_parallel(model, examples(), SharingPattern(), batch_size=2)
    assert_equal(
        collect_parallel(model, examples(), SharingPattern(), batch_size=batch_size), whole
    )


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bloom"])
def test_padding_on_the_left_counts_the_same(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As single prompts do, but for pre-activations within rounding of the threshold."""
    model = tiny(architecture)
    alone = collect_parallel(model, examples(), SharingPattern(), batch_size=5)
    original = ParallelCorpora.batches
    monkeypatch.setattr(
        ParallelCorpora, "batches", lambda self, n: original(self, n, padding_side="left")
    )
    left = collect_parallel(model, examples(), SharingPattern(), batch_size=5)
    assert (left.firing - alone.firing).abs().sum() <= 2
    assert (left.members - alone.members).abs().sum() <= 4


def test_shares_of_the_examples_add_up(llama: Any) -> None:
    model = bridge(hf_model("llama").double())
    whole = collect_parallel(model, examples(), SharingPattern())
    parts = [
        collect_parallel(model, examples().sharded(n, 2), SharingPattern(), batch_size=1)
        for n in range(2)
    ]
    both = parts[0] + parts[1]
    for name in ("firing", "only", "exactly"):
        assert torch.equal(getattr(both, name), getattr(whole, name))
    order = [both.names.index(name) for name in whole.names]
    assert torch.equal(both.members[:, order], whole.members)


@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_run_goes_on_and_ends_bit_equal(
    llama: Any, tmp_path: Path, after: int
) -> None:
    spec = SharingPattern(threshold=(0.0, 0.1))
    whole = collect_parallel(llama, examples(), spec, batch_size=1)
    original, ran = passes.Passes.sum, 0

    def dies(self: Any, batch: Any) -> Any:
        nonlocal ran
        ran += 1
        if ran > after:
            raise KeyboardInterrupt
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes.Passes, "sum", dies)
        with pytest.raises(KeyboardInterrupt):
            collect_parallel(llama, examples(), spec, batch_size=1, run_dir=tmp_path)
    resumed = collect_parallel(llama, examples(), spec, batch_size=1, run_dir=tmp_path)
    assert_equal(resumed, whole)
    assert_equal(SharingPatterns.load(tmp_path / "sharingpatterns.safetensors"), whole)


def test_another_run_in_the_same_folder_is_refused(llama: Any, tmp_path: Path) -> None:
    collect_parallel(llama, examples(), SharingPattern(), run_dir=tmp_path)
    for texts, spec in ((examples(7), SharingPattern()), (examples(), SharingPattern(0.5))):
        with pytest.raises(StorageError, match="another run"):
            collect_parallel(llama, texts, spec, run_dir=tmp_path)


def test_something_must_be_collected(llama: Any) -> None:
    with pytest.raises(OptionError, match="at least one"):
        collect_parallel(llama, examples())


def test_bad_models_text_and_hooks_end_in_a_sentence(llama: Any) -> None:
    with pytest.raises(CorpusError, match="another model"):
        docs = {"en": [[VOCAB]], "fr": [[5]]}
        collect_parallel(llama, ParallelCorpora.from_tokens(docs), SharingPattern())
    with pytest.raises(SiteError, match="no hook point"):
        collect_parallel(
            llama, examples(), SharingPattern(), fwd_hooks=[("blocks.0.mlp.hook_prost", print)]
        )
    broken = hf_model("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.gate_proj.weight[0, 0] = torch.nan
    with pytest.raises(ActivationError, match="layer 1"):
        collect_parallel(bridge(broken), examples(), SharingPattern())


def test_it_is_measured_under_hooks(llama: Any) -> None:
    off = NeuronSet({MLP_POST: torch.ones(3, 112, dtype=torch.bool)})
    plain = collect_parallel(llama, examples(), SharingPattern())
    hooked = collect_parallel(llama, examples(), SharingPattern(), fwd_hooks=ablate(off))
    assert torch.equal(plain.firing[:, :, 0], hooked.firing[:, :, 0])
    assert not torch.equal(plain.firing[:, :, 1], hooked.firing[:, :, 1])
    assert hooked.provenance["fwd_hooks"] == [f"blocks.{n}.mlp.hook_post" for n in range(3)]


def test_the_number_of_languages_says_the_kind() -> None:
    kinds = of_counts(torch.arange(5), 4)
    assert kinds.int().argmax(0).tolist() == [3, 2, 1, 1, 0]


def test_tiny_models_are_left_as_they_were() -> None:
    model = tiny("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    collect_parallel(model, examples(), SharingPattern())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert not any(point.fwd_hooks for point in model.hook_dict.values())
