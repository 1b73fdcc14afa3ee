"""Top contexts are what a look at every activation finds, in any layout, through any accident."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import VOCAB, LetterTokenizer, bridge, hf_model, random_documents, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_lang import passes
from lens_lang.collection import collect
from lens_lang.contexts import Context, NeuronContexts, TopContexts
from lens_lang.corpora import Corpora
from lens_lang.errors import LanguageError, OptionError, ShapeError, StorageError
from lens_lang.neurons import NeuronSet
from lens_lang.results import load
from lens_lang.sites import ATTN_Z, MLP_POST, MLP_PRE, MLP_UP, Site, n_layers, site_width
from lens_lang.specs import Sums, largest
from lens_lang.spelling import join_tokens, show_tokens, token_bytes
from lens_lang.stats import ActivationFrequency

PIECES = {0: "<pad>", 1: "<bos>", 2: "<eos>", 3: "▁chat", 4: "<0xE8>", 5: "</b>"}
# Two tokenisers that write 花 in three tokens
BYTE_LEVEL = ["<pad>", "<bos>", "<eos>", "è", "Ĭ", "±", "Ġa", "b", "Ġ"]
FALL_BACK = ["<pad>", "<bos>", "<eos>", "<0xE8>", "<0x8A>", "<0xB1>", "▁a", "b", "▁"]
CHOSEN = [(0, 3), (0, 7), (2, 5)]  # none in layer 1


def neurons(model: Any, pairs: list[tuple[int, int]] = CHOSEN, site: Site = MLP_POST) -> NeuronSet:
    shape = (n_layers(model), site_width(model, site))
    return NeuronSet.from_indices(torch.tensor(pairs), site=site, shape=shape)


def brute_force(
    model: Any, corpora: Corpora, lang: str, pairs: list[tuple[int, int]], site: Site = MLP_POST
) -> dict[tuple[int, int], list[tuple[float, int, int, list[int], list[float]]]]:
    """Every activation of every document by itself: (peak, document, position, ids, values)."""
    found: dict[tuple[int, int], list[Any]] = {pair: [] for pair in pairs}
    for number, doc in enumerate(corpora.documents[lang]):
        ids = doc.long().tolist()
        bos = [] if corpora.bos_id is None else [corpora.bos_id]
        _, cache = model.run_with_cache(torch.tensor([[*bos, *ids]]))
        for layer, index in pairs:
            values = cache[site.at(layer)][0].flatten(1)[len(bos) :, index].tolist()
            peak = max(values)
            found[layer, index].append((peak, number, values.index(peak), ids, values))
    return {pair: sorted(rows, key=lambda r: (-r[0], r[1])) for pair, rows in found.items()}


def check(contexts: NeuronContexts, model: Any, corpora: Corpora, k: int, **window: int) -> None:
    before, after = window.get("before", 16), window.get("after", 8)
    site = contexts.site
    pairs = [(layer, index) for layer, index in contexts.neurons.tolist()]
    for lang in corpora.languages:
        expected = brute_force(model, corpora, lang, pairs, site)
        for pair in pairs:
            found = contexts.of(pair, lang)
            best = [peak for peak, *_ in expected[pair]][:k]
            assert [one.peak for one in found] == pytest.approx(best, rel=1e-4, abs=1e-5)
            assert len({one.document for one in found}) == len(found)
            by_number = {row[1]: row for row in expected[pair]}  # the last bits may change places
            for one in found:
                peak, _, at, ids, values = by_number[one.document]
                first, end = max(0, at - before), at + after + 1
                assert one.language == lang
                assert one.peak == pytest.approx(peak, rel=1e-4, abs=1e-5)
                assert one.at == at - first
                assert one.values[one.at] == one.peak
                assert one.values == pytest.approx(values[first:end], rel=1e-4, abs=1e-5)
                assert one.tokens == tuple(f"[{item}]" for item in ids[first:end])


def equal(mine: NeuronContexts, theirs: NeuronContexts) -> bool:
    names = ["neurons", "peak", "document", "position", "window", "values", "items", "n_tokens"]
    names += ["spelled", "ends"]
    return (
        all(torch.equal(getattr(mine, name), getattr(theirs, name)) for name in names)
        and mine.languages == theirs.languages
        and (mine.before, mine.site) == (theirs.before, theirs.site)
    )


@pytest.mark.lane
def test_contexts_equal_brute_force(any_model: Any, corpora: Corpora) -> None:
    """Uneven documents in batches: padding, BOS and the other rows leave no trace."""
    contexts = collect(any_model, corpora, TopContexts(neurons(any_model), k=2), batch_size=3)
    check(contexts, any_model, corpora, 2)


@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 1), (1, 40)])
@pytest.mark.parametrize("site", [MLP_PRE, ATTN_Z])
def test_windows_and_sites(
    llama: Any, corpora: Corpora, before: int, after: int, site: Site
) -> None:
    spec = TopContexts(neurons(llama, site=site), k=9, before=before, after=after)
    contexts = collect(llama, corpora, spec)
    check(contexts, llama, corpora, 9, before=before, after=after)


@pytest.mark.parametrize("site", [MLP_PRE, MLP_UP, MLP_POST])
def test_neurons_of_an_mlp_are_read_where_they_fire_unless_told(
    llama: Any, corpora: Corpora, site: Site
) -> None:
    chosen = neurons(llama)
    contexts = collect(llama, corpora, TopContexts(chosen, k=2, read_at=site))
    assert contexts.site == site
    check(contexts, llama, corpora, 2)
    untold = collect(llama, corpora, TopContexts(chosen, k=2))
    assert equal(untold, contexts) == (site == MLP_PRE)
    with pytest.raises(OptionError, match="read_at must be one of ATTN_Z for neurons at ATTN_Z"):
        TopContexts(neurons(llama, site=ATTN_Z), read_at=site)


def test_long_documents_are_cut_and_keep_their_numbers(llama: Any) -> None:
    docs = {"en": random_documents([4, 11, 1, 6])}
    corpora = Corpora.from_tokens(docs, bos_id=1)
    cut = Corpora.from_tokens({"en": [doc[:5] for doc in docs["en"]]}, bos_id=1)
    contexts = collect(llama, corpora, TopContexts(neurons(llama), max_tokens=5))
    check(contexts, llama, cut, 8)
    assert {one.document for one in contexts.of((0, 3), "en")} == {0, 1, 2, 3}


def test_packed_corpora_are_read_document_by_document(llama: Any) -> None:
    docs = {"en": random_documents([9, 7, 8, 12])}
    packed = Corpora.from_tokens(docs, ctx_len=6, bos_id=1)
    contexts = collect(llama, packed, TopContexts(neurons(llama), k=3))
    check(contexts, llama, Corpora.from_tokens(docs, bos_id=1), 3)


@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 3), batch_size=st.integers(1, 2), turned=st.booleans())
def test_shards_join_into_one_pass_exactly(count: int, batch_size: int, turned: bool) -> None:
    docs = {lang: random_documents([6, 4, 9, 5, 7, 3], seed=i) for i, lang in enumerate("ab")}
    corpora = Corpora.from_tokens(docs, bos_id=1)
    model = tiny("llama")
    spec = TopContexts(neurons(model), k=4)
    whole = collect(model, corpora, spec, batch_size=batch_size, progress=False)
    parts = [
        collect(model, corpora.sharded(i, count), spec, batch_size=batch_size) for i in range(count)
    ]
    first, *rest = reversed(parts) if turned else parts
    for part in rest:
        first = first + part
    assert equal(first, whole)


def test_batch_size_and_order_of_documents_change_nothing(llama: Any) -> None:
    docs = random_documents([5, 9, 2, 12, 7, 7])
    order = [3, 0, 5, 1, 4, 2]
    spec = TopContexts(neurons(llama), k=4)
    first = collect(llama, Corpora.from_tokens({"en": docs}, bos_id=1), spec, batch_size=1)
    turned = Corpora.from_tokens({"en": [docs[n] for n in order]}, bos_id=1)
    second = collect(llama, turned, spec, batch_size=4)
    for pair in CHOSEN:
        mine, theirs = first.of(pair, "en"), second.of(pair, "en")
        assert [one.document for one in mine] == [order[one.document] for one in theirs]
        assert [one.tokens for one in mine] == [one.tokens for one in theirs]
        assert [one.peak for one in mine] == pytest.approx([one.peak for one in theirs], rel=1e-4)


def test_joining_knows_no_order_and_counts_nothing_twice(llama: Any) -> None:
    spec = TopContexts(neurons(llama), k=3)
    docs = [random_documents([6, 4, 9], seed=seed) for seed in range(3)]
    a, b, c = (collect(llama, Corpora.from_tokens({"en": each}, bos_id=1), spec) for each in docs)
    assert equal((a + b) + c, c + (b + a))
    again = a + a
    assert all(torch.equal(getattr(again, n), getattr(a, n)) for n in ("peak", "window", "values"))
    assert int(again.n_tokens) == 2 * int(a.n_tokens)
    every = Corpora.from_tokens({"en": [doc for each in docs for doc in each]}, bos_id=1)
    together = collect(llama, every, spec, batch_size=3)
    for pair in CHOSEN:
        texts = [[one.tokens for one in each.of(pair, "en")] for each in (a + b + c, together)]
        assert texts[0] == texts[1]


def test_languages_in_another_order_join_by_name(llama: Any, corpora: Corpora) -> None:
    spec = TopContexts(neurons(llama), k=2)
    turned = Corpora(dict(reversed(corpora.documents.items())), bos_id=1)
    one, other = collect(llama, corpora, spec), collect(llama, turned, spec)
    assert other.languages == ("fr", "en")
    joined = one + other
    assert torch.equal(joined.peak, one.peak)
    assert torch.equal(joined.n_tokens, 2 * one.n_tokens)


def test_ties_go_to_the_earlier_document_and_the_earlier_position(llama: Any) -> None:
    """Equal documents have equal peaks; whatever the batches, the first ones are kept."""
    doc, other = random_documents([6, 6])
    corpora = Corpora.from_tokens({"en": [doc] * 5 + [other]}, bos_id=1)
    spec = TopContexts(neurons(llama, [(0, 3)]), k=6)
    for size in (1, 2, 6):
        found = collect(llama, corpora, spec, batch_size=size).of((0, 3), "en")
        tied = [one.document for one in found if one.document < 5]
        peaks = {one.peak for one in found if one.document < 5}
        assert len(peaks) > 1 or tied == [0, 1, 2, 3, 4]
    silent = collect(
        llama,
        corpora,
        TopContexts(neurons(llama, [(0, 3)]), k=3, read_at=MLP_POST),
        fwd_hooks=[(MLP_POST.at(0), lambda values, hook: values * 0)],
        batch_size=2,
    )
    found = silent.of((0, 3), "en")
    assert [(one.document, one.peak, one.at) for one in found] == [(n, 0.0, 0) for n in range(3)]


def test_empty_places_are_never_shown(llama: Any) -> None:
    corpora = Corpora.from_tokens({"en": random_documents([5, 4]), "fr": random_documents([6])})
    contexts = collect(llama, corpora, TopContexts(neurons(llama), k=5))
    assert [len(contexts.of((2, 5), lang)) for lang in ("en", "fr")] == [2, 1]
    assert contexts.peak.shape == (2, 3, 5)
    assert (contexts.peak == -math.inf).sum() == 3 * (3 + 4)
    assert all(math.isfinite(one.peak) for one in contexts.of((0, 3), "fr"))


@pytest.mark.parametrize("after", [0, 1, 3, 7])
def test_interrupted_runs_end_bit_equal(llama: Any, tmp_path: Path, after: int) -> None:
    docs = {lang: random_documents([6, 4, 9, 5], seed=i) for i, lang in enumerate("ab")}
    corpora = Corpora.from_tokens(docs, bos_id=1)
    specs = (ActivationFrequency(), TopContexts(neurons(llama), k=3))
    _, whole = collect(llama, corpora, *specs, batch_size=1)
    original = passes.Passes.sum
    calls = 0

    def sum_or_die(self: Any, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return original(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes.Passes, "sum", sum_or_die)
        with pytest.raises(KeyboardInterrupt):
            collect(llama, corpora, *specs, batch_size=1, run_dir=tmp_path)
    _, resumed = collect(llama, corpora, *specs, batch_size=1, run_dir=tmp_path)
    assert equal(resumed, whole)
    assert equal(NeuronContexts.load(tmp_path / "neuroncontexts.safetensors"), whole)


def test_other_neurons_are_another_run(llama: Any, corpora: Corpora, tmp_path: Path) -> None:
    collect(llama, corpora, TopContexts(neurons(llama)), run_dir=tmp_path)
    with pytest.raises(StorageError, match="holds another run: specs was"):
        collect(llama, corpora, TopContexts(neurons(llama, [(0, 4)])), run_dir=tmp_path)


def test_the_same_rows_under_other_numbers_are_another_run(llama: Any, tmp_path: Path) -> None:
    docs = random_documents([4, 8])
    spec = TopContexts(neurons(llama))
    collect(llama, Corpora.from_tokens({"en": docs}), spec, run_dir=tmp_path)
    with pytest.raises(StorageError, match="documents of"):
        collect(llama, Corpora.from_tokens({"en": docs[::-1]}), spec, run_dir=tmp_path)


def test_saved_contexts_are_read_back_and_need_no_model(
    llama: Any, corpora: Corpora, tmp_path: Path
) -> None:
    contexts = collect(llama, corpora, TopContexts(neurons(llama), k=3))
    contexts.save(tmp_path / "contexts.safetensors")
    again = load(tmp_path / "contexts.safetensors")
    assert isinstance(again, NeuronContexts)
    assert equal(again, contexts)
    assert again.of((2, 5), "English") == contexts.of((2, 5), "en")
    assert equal(again + contexts, contexts + contexts)
    frame = again.to_frame()
    assert len(frame) == sum(len(again.of(p, lang)) for p in CHOSEN for lang in ("en", "fr"))
    row = frame[(frame.layer == 2) & (frame.language == "fr")].iloc[0]
    assert row.text == again.of((2, 5), "fr")[0].text
    assert "3 neurons at mlp_pre, the top 3 documents" in repr(again)


def test_what_was_not_collected_is_said(llama: Any, corpora: Corpora) -> None:
    contexts = collect(llama, corpora, TopContexts(neurons(llama), k=1))
    with pytest.raises(OptionError, match=r"neuron 0\.4 were not .*layer 0: 0\.3, 0\.7"):
        contexts.of((0, 4), "en")
    with pytest.raises(OptionError, match="of layer 1: none"):
        contexts.of((1, 0), "en")
    with pytest.raises(OptionError, match=r"A neuron is \(layer, index\).* got 'mlp'"):
        contexts.of("mlp", "en")
    with pytest.raises(LanguageError, match="no language 'de' here"):
        contexts.of((0, 3), "de")


def test_contexts_of_other_neurons_or_windows_do_not_join(llama: Any, corpora: Corpora) -> None:
    contexts = collect(llama, corpora, TopContexts(neurons(llama), k=2))
    for spec, message in (
        (TopContexts(neurons(llama, [(0, 3), (0, 8), (2, 5)]), k=2), "differ in neurons"),
        (TopContexts(neurons(llama), k=3), r"differ in shape"),
        (TopContexts(neurons(llama), k=2, before=8, after=16), "differ in before: 16 and 8"),
        (
            TopContexts(neurons(llama), k=2, read_at=MLP_POST),
            "differ in site: MLP_PRE and MLP_POST",
        ),
    ):
        with pytest.raises(ShapeError, match=message):
            contexts + collect(llama, corpora, spec)
    with pytest.raises(ShapeError, match="differ in languages"):
        contexts + collect(llama, corpora["en"], TopContexts(neurons(llama), k=2))
    with pytest.raises(TypeError):
        contexts + 1  # type: ignore[operator]


def test_impossible_specs_are_refused(llama: Any, gpt2: Any, corpora: Corpora) -> None:
    some = neurons(llama)
    for options, message in (
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"before": -1}, "before must be at least 0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ):
        with pytest.raises(OptionError, match=message):
            TopContexts(some, **options)
    with pytest.raises(OptionError, match="of one site are needed, got mlp_post and attn_z"):
        TopContexts(some | neurons(llama, site=ATTN_Z))
    with pytest.raises(OptionError, match="of one site are needed, and this set is empty"):
        TopContexts(some - some)
    assert TopContexts((some | neurons(llama, site=ATTN_Z)) - neurons(llama, site=ATTN_Z)).site
    other = NeuronSet({MLP_POST: torch.ones(5, 7, dtype=torch.bool)})
    with pytest.raises(ShapeError, match="another model"):
        collect(llama, corpora, TopContexts(other))


@pytest.mark.parametrize(
    "changes",
    [
        {"neurons": torch.zeros(2, 2).long()},
        {"window": torch.zeros(1, 1, 1, 2).int()},
        {"before": 3},
        {"ends": torch.tensor([1, 3])},
        {"ends": torch.tensor([1, 2, 4])},
        {"ends": torch.tensor([2, 1, 3])},
        {"ends": torch.tensor([-1, 2, 3])},
        {"spelled": torch.tensor([97, 98], dtype=torch.uint8)},
        {"document": torch.zeros(1, 1, 2).long()},
    ],
)
def test_fields_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    fields = {
        "languages": ("en",),
        "neurons": torch.tensor([[0, 1]]),
        "peak": torch.ones(1, 1, 1),
        "document": torch.zeros(1, 1, 1).long(),
        "position": torch.zeros(1, 1, 1).long(),
        "window": torch.tensor([[[[5, 6, 7]]]]).int(),
        "values": torch.ones(1, 1, 1, 3),
        "before": 1,
        "items": torch.tensor([5, 6, 7]).int(),
        "spelled": torch.tensor(list(b"abc"), dtype=torch.uint8),
        "ends": torch.tensor([1, 2, 3]),
        "site": MLP_POST,
        "n_tokens": torch.tensor([3]),
    }
    assert NeuronContexts(**fields).of((0, 1), "en") == (
        Context("en", 0, 1.0, ("a", "b", "c"), (1.0, 1.0, 1.0), 1),
    )
    assert NeuronContexts(**fields).of("0.1", "en") == NeuronContexts(**fields).of((0, 1), "en")
    with pytest.raises((ShapeError, TypeError)):  # annotations are enforced in tests
        NeuronContexts(**{**fields, **changes})


# --- what joins ---


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(-2, 2), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=9
    ),
    count=st.integers(1, 5),
    cut=st.integers(0, 9),
)
def test_largest_is_a_sort_and_joining_is_associative(
    rows: list[tuple[int, int, int]], count: int, cut: int
) -> None:
    def record(some: list[tuple[int, int, int]]) -> torch.Tensor:
        return torch.tensor(some, dtype=torch.float64).view(1, -1, 3)

    ranked = sorted(rows, key=lambda r: (-r[0], r[1], r[2]))[:count]
    best = largest(record(rows), count)
    assert best.shape == (1, count, 3)
    assert best[0, : len(ranked)].tolist() == [list(map(float, r)) for r in ranked]
    assert (best[0, len(ranked) :, 0] == -torch.inf).all()
    joined, turned = Sums(), Sums()
    parts = [largest(record(part), count) for part in (rows[:cut], rows[cut:])]
    for sums, order in ((joined, parts), (turned, parts[::-1])):
        for part in order:
            sums.add("largest.x", 0, part)
    for sums in (joined, turned, Sums.unstacked(joined.stacked())):
        assert torch.equal(sums.stacked()["largest.x"][0], best)
    again = Sums.unstacked(joined.stacked())
    again.merge(joined)  # as a run that is continued: still joined, not added
    assert again.stacked()["largest.x"].shape == (1, 1, count, 3)


# --- text ---


class PieceTokenizer(LetterTokenizer):
    """A tokeniser that has these pieces, and counts how many are asked for."""

    def __init__(self, pieces: list[str]) -> None:
        self.pieces, self.asked = pieces, 0

    def __len__(self) -> int:
        return len(self.pieces)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        self.asked += len(ids)
        return [self.pieces[item] for item in ids]


@pytest.mark.parametrize("pieces", [BYTE_LEVEL, FALL_BACK])
def test_characters_of_several_tokens_are_whole(pieces: list[str], tmp_path: Path) -> None:
    model = bridge(hf_model("gpt2"))
    model.tokenizer = PieceTokenizer(pieces)
    doc = [6, 3, 4, 5, 7, 3, 4, 5]
    corpora = Corpora.from_tokens({"zh": [doc]}, bos_id=1)
    spec = TopContexts(neurons(model, [(0, 3)]), before=len(doc), after=len(doc))
    collect(model, corpora, spec).save(tmp_path / "contexts.safetensors")
    (one,) = NeuronContexts.load(tmp_path / "contexts.safetensors").of("0.3", "zh")
    assert one.tokens == (" a", "·", "·", "花", "b", "·", "·", "花")
    assert one.text == " a花b花"
    assert len(one.values) == len(doc)
    tokens, texts = set(), set()
    for index in range(40):  # neurons with their peaks in other places
        cut = TopContexts(neurons(model, [(0, index)]), before=1, after=1)
        (one,) = collect(model, corpora, cut, progress=False).of((0, index), "zh")
        assert len(one.tokens) == len(one.values)
        tokens.add(one.tokens)
        texts.add(one.text)
    assert tokens <= {
        (" a", "\ufffd"),
        (" a", "·", "\ufffd"),
        ("·", "·", "花"),
        ("·", "\ufffd", "b"),
        ("\ufffd", "b", "\ufffd"),
        ("b", "·", "\ufffd"),
        ("·", "\ufffd"),
    }
    assert len(tokens) > 3
    assert {text.count("\ufffd") for text in texts} <= {0, 1, 2}
    assert not any("·" in text for text in texts)


@given(text=st.text(max_size=12), cuts=st.lists(st.integers(0, 48), max_size=12))
def test_shown_tokens_are_the_text_wherever_it_is_cut(text: str, cuts: list[int]) -> None:
    spelled = text.replace("·", "").encode()
    places = sorted({0, len(spelled), *(cut for cut in cuts if cut < len(spelled))})
    pieces = [spelled[a:b] for a, b in zip(places, places[1:], strict=False)]
    shown = show_tokens(pieces)
    assert len(shown) == len(pieces)
    assert all(shown)
    assert "".join(shown).replace("·", "") == join_tokens(pieces) == spelled.decode()


def test_what_is_cut_off_or_damaged_is_one_sign() -> None:
    flower = "花".encode()
    assert join_tokens([flower[1:], b"a", flower[:2]]) == "\ufffda\ufffd"
    assert show_tokens([flower[1:2], flower[2:], b"a", flower[:1], flower[1:2]]) == (
        *("·", "\ufffd", "a", "·", "\ufffd"),
    )
    assert show_tokens([flower[:1], b"<eos>", flower]) == ("\ufffd", "<eos>", "花")
    assert show_tokens([b"a" + flower[:1], flower[1:] + b"b"]) == ("a·", "花b")
    assert show_tokens([]) == ()


@pytest.mark.parametrize("pieces", [BYTE_LEVEL, FALL_BACK])
def test_only_tokens_that_are_asked_for_are_spelled(pieces: list[str]) -> None:
    many = [*pieces, *(f"{'Ġ' if pieces is BYTE_LEVEL else '▁'}{n}" for n in range(20_000))]
    tokenizer = PieceTokenizer(many)
    model = SimpleNamespace(tokenizer=tokenizer, cfg=SimpleNamespace(d_vocab=len(many)), blocks=[])
    assert token_bytes(model, [3, 7, 9]) == {3: b"\xe8", 7: b"b", 9: b" 0"}
    # only byte-level pieces have to be seen all, to know that they are; and once
    assert tokenizer.asked < 5_000 or pieces is BYTE_LEVEL
    tokenizer.asked = 0
    assert token_bytes(model, [3]) == {3: b"\xe8"}
    assert tokenizer.asked < 5
    many.append("花")  # which no byte-level vocabulary has
    assert token_bytes(model, [3]) == {3: "è".encode() if pieces is BYTE_LEVEL else b"\xe8"}


def test_layers_without_a_chosen_neuron_keep_nothing(llama: Any, corpora: Corpora) -> None:
    bound = TopContexts(neurons(llama)).bind(llama)
    kept: list[Sums] = []
    update = bound.update

    def watched(sums: Sums, reading: Any) -> None:
        kept.append(sums)
        update(sums, reading)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bound), "update", lambda self, *given: watched(*given))
        collect(llama, corpora, TopContexts(neurons(llama)))
    assert {tuple(each.stacked()["largest.contexts"].shape[:2]) for each in kept} == {(2, 2)}


def test_tokens_are_shown_as_text_or_by_name() -> None:
    model = SimpleNamespace(
        tokenizer=LetterTokenizer(), cfg=SimpleNamespace(d_vocab=VOCAB + 3), blocks=[]
    )
    model.tokenizer.convert_ids_to_tokens = lambda ids: [PIECES.get(item) for item in ids]
    assert token_bytes(model, [3, 1, 4, 5, VOCAB + 1, 1]) == {
        1: b"<bos>",  # special
        3: b" chat",
        4: b"\xe8",  # a part of a character
        5: b"</b>",  # markup, which spells nothing
        VOCAB + 1: f"[{VOCAB + 1}]".encode(),  # beyond the tokeniser's
    }
    assert token_bytes(SimpleNamespace(tokenizer=None), [7, 5]) == {5: b"[5]", 7: b"[7]"}


@pytest.mark.real
def test_contexts_on_gemma_are_readable(gemma: Any) -> None:
    corpora = Corpora.sample(gemma, languages=["en", "zh"], pack=False).truncate(tokens=300)
    contexts = collect(gemma, corpora, TopContexts(neurons(gemma, [(12, 1542), (17, 3)]), k=2))
    for lang in ("en", "zh"):
        for one in contexts.of((12, 1542), lang):
            text = gemma.tokenizer.decode(corpora.documents[lang][one.document].tolist())
            assert one.text in text
            assert one.peak == max(one.values)


def test_a_model_with_nan_is_refused(corpora: Corpora) -> None:
    broken = hf_model("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.gate_proj.weight[7, 3] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in layer 1 at mlp_pre"):
        collect(bridge(broken), corpora, TopContexts(neurons(tiny("llama"))))
