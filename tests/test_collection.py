"""Collecting counts every token once: against brute force, in any layout, through any accident."""

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import VOCAB, hf_model, random_documents, tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_lang import passes, run_folder
from lens_lang.collection import collect, collect_parallel
from lens_lang.contexts import TopContexts
from lens_lang.corpora import Corpora
from lens_lang.detect.lape import lape
from lens_lang.errors import ActivationError, CorpusError, OptionError, SiteError, StorageError
from lens_lang.intervene import ablate
from lens_lang.models import bridge
from lens_lang.neurons import NeuronSet
from lens_lang.parallel import ParallelCorpora
from lens_lang.patterns import SharingPattern
from lens_lang.sites import MLP_POST, MLP_PRE, MLP_UP, is_gated, n_layers, site_width
from lens_lang.specs import Sums
from lens_lang.stats import ActivationFrequency, Frequency, MeanActivation


def brute_force(model: Any, corpora: Corpora, lang: str) -> dict[str, torch.Tensor]:
    """One document at a time, everything cached, plain tensor operations in float64."""
    sites = {"pre": MLP_PRE, "post": MLP_POST, **({"up": MLP_UP} if is_gated(model) else {})}
    values: dict[str, list[torch.Tensor]] = {name: [] for name in sites}
    docs = corpora.documents[lang]
    for number in range(len(docs)):
        tokens = torch.cat([torch.tensor([corpora.bos_id]), docs[number].long()])[None]
        _, cache = model.run_with_cache(tokens)
        for name, site in sites.items():
            layers = [cache[site.at(layer)][0, 1:] for layer in range(n_layers(model))]
            values[name].append(torch.stack(layers).double())
    joined = {name: torch.cat(parts, dim=1) for name, parts in values.items()}
    gate = joined["post"] / joined["up"] if "up" in joined else joined["post"]
    return {
        "count": (joined["pre"] > 0).sum(1),
        "gate": gate.sum(1),
        "gate_sq": gate.square().sum(1),
        "product": joined["post"].sum(1),
    }


@pytest.mark.lane
def test_counts_and_means_equal_brute_force(any_model: Any, corpora: Corpora) -> None:
    freq, gate, product = collect(
        any_model,
        corpora,
        ActivationFrequency(),
        MeanActivation(),
        MeanActivation("product"),
        batch_size=2,
    )
    assert freq.n_tokens.tolist() == [35, 21]  # neither padding nor BOS
    for row, lang in enumerate(corpora.languages):
        expected = brute_force(any_model, corpora, lang)
        # Rounding of a pre-activation near 0 may differ between batches of two shapes.
        assert (freq.count[row] - expected["count"]).abs().max() <= 1
        assert (freq.count[row] != expected["count"]).float().mean() < 0.01
        torch.testing.assert_close(gate.sum[row], expected["gate"], atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(gate.sum_sq[row], expected["gate_sq"], atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(product.sum[row], expected["product"], atol=2e-4, rtol=2e-4)
    assert gate.space == ("gate" if is_gated(any_model) else "product")


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "bloom"])
def test_padding_left_right_or_none_gives_identical_counts(
    architecture: str, corpora: Corpora, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny(architecture)
    singly = collect(model, corpora, ActivationFrequency(), batch_size=1)
    right = collect(model, corpora, ActivationFrequency(), batch_size=5)
    batches = Corpora.batches
    monkeypatch.setattr(
        Corpora, "batches", lambda self, size: batches(self, size, padding_side="left")
    )
    left = collect(model, corpora, ActivationFrequency(), batch_size=5)
    for padded in (left, right):
        assert padded.n_tokens.tolist() == singly.n_tokens.tolist()
        assert (padded.count - singly.count).abs().max() <= 1
        assert (padded.count != singly.count).float().mean() < 0.005


@pytest.mark.lane
def test_packed_rows_count_like_the_same_rows_as_documents(llama: Any) -> None:
    """Packing is only a way to fill rows: rows given as documents are counted alike."""
    docs = random_documents([16] * 6)
    packed = Corpora.from_tokens({"en": docs}, ctx_len=17, bos_id=1)
    singly = Corpora.from_tokens({"en": docs}, bos_id=1)
    a = collect(llama, packed, ActivationFrequency(), batch_size=3)
    b = collect(llama, singly, ActivationFrequency(), batch_size=3)
    assert torch.equal(a.count, b.count)


def test_unmasked_padding_would_be_seen(llama: Any, corpora: Corpora) -> None:
    """The trap: counting pads changes many neurons, so the tests above can fail."""
    honest = collect(llama, corpora, ActivationFrequency(), batch_size=5)
    (batch, *_) = corpora.batches(5)
    everywhere = torch.zeros_like(honest.count[0])
    _, cache = llama.run_with_cache(batch.tokens, attention_mask=batch.attention_mask.long())
    for layer in range(n_layers(llama)):
        everywhere[layer] = (cache[MLP_PRE.at(layer)] > 0).sum((0, 1))
    assert (everywhere != honest.count[0]).float().mean() > 0.3


def test_bos_counts_only_if_asked(llama: Any, corpora: Corpora) -> None:
    without = collect(llama, corpora, ActivationFrequency())
    with_bos = collect(llama, corpora.laid_out(count_bos=True), ActivationFrequency())
    assert (with_bos.n_tokens - without.n_tokens).tolist() == [5, 3]  # one per document
    difference = with_bos.count - without.count
    assert difference.min() == 0
    # every row begins with the same token, so a neuron fires at all of them or at none
    assert set(difference[0].unique().tolist()) <= {0, 5}


def test_the_firing_site_matters_on_gated_models(llama: Any, gpt2: Any, corpora: Corpora) -> None:
    at_gate = collect(llama, corpora, ActivationFrequency())
    at_product = collect(llama, corpora, ActivationFrequency(site=MLP_POST))
    assert (at_gate.count != at_product.count).float().mean() > 0.5
    plain = [collect(gpt2, corpora, ActivationFrequency(site=s)) for s in (MLP_PRE, MLP_POST)]
    assert torch.equal(plain[0].count, plain[1].count)


@settings(max_examples=8, deadline=None)
@given(count=st.integers(1, 3), batch_size=st.integers(1, 2))
def test_shards_add_up_to_one_pass_exactly(count: int, batch_size: int) -> None:
    docs = {lang: random_documents([6, 4, 9, 5, 7, 3], seed=i) for i, lang in enumerate("ab")}
    corpora = Corpora.from_tokens(docs, bos_id=1)
    model = tiny("llama")
    whole = collect(model, corpora, ActivationFrequency(), batch_size=batch_size, progress=False)
    parts = [
        collect(model, corpora.sharded(i, count), ActivationFrequency(), batch_size=batch_size)
        for i in range(count)
    ]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert torch.equal(total.count, whole.count)
    assert torch.equal(total.n_tokens, whole.n_tokens)
    assert lape(total, top=0.05) == lape(whole, top=0.05)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_share_goes_with_whole_documents_if_all_of_it_does(llama: Any, count: int) -> None:
    """Five documents in six rows: every share of four has as many of either, but not the same."""
    corpora = Corpora.from_tokens(
        {"en": random_documents([10, 5, 5, 5, 5])}, ctx_len=9, bos_id=1, pack=False
    )
    one = torch.zeros(n_layers(llama), site_width(llama, MLP_POST), dtype=torch.bool)
    one[1, 7] = True
    specs = (ActivationFrequency(), TopContexts(NeuronSet({MLP_POST: one}), max_tokens=20))
    for index in range(count):
        with pytest.raises(OptionError, match="collect them in two calls"):
            collect(llama, corpora.sharded(index, count), *specs, batch_size=1)
        whole_rows = corpora.laid_out(ctx_len=11).sharded(index, count)
        freq, _ = collect(llama, whole_rows, *specs, batch_size=1)
        assert int(freq.n_tokens) > 0


def test_language_order_permutes_results_and_nothing_else(llama: Any, corpora: Corpora) -> None:
    turned = Corpora(dict(reversed(corpora.documents.items())), bos_id=1)
    a = collect(llama, corpora, ActivationFrequency(), MeanActivation())
    b = collect(llama, turned, ActivationFrequency(), MeanActivation())
    assert torch.equal(a[0].count, b[0].count.flip(0))
    assert torch.equal(a[1].sum, b[1].sum.flip(0))


def test_one_pass_of_many_specs_equals_many_passes(llama: Any, corpora: Corpora) -> None:
    specs = (ActivationFrequency(), MeanActivation(), MeanActivation("up"))
    together = collect(llama, corpora, *specs)
    alone = [collect(llama, corpora, spec) for spec in specs]
    assert torch.equal(together[0].count, alone[0].count)
    assert torch.equal(together[1].sum, alone[1].sum)
    assert torch.equal(together[2].sum_sq, alone[2].sum_sq)


def test_measuring_under_an_intervention_sees_its_effect(llama: Any, corpora: Corpora) -> None:
    first_layer = torch.zeros(3, site_width(llama, MLP_POST), dtype=torch.bool)
    first_layer[0] = True
    hooks = ablate(NeuronSet({MLP_POST: first_layer}))
    plain = collect(llama, corpora, ActivationFrequency(), MeanActivation("product"))
    under = collect(
        llama, corpora, ActivationFrequency(), MeanActivation("product"), fwd_hooks=hooks
    )
    assert torch.equal(plain[0].count[:, 0], under[0].count[:, 0])  # read before it is switched
    assert not torch.equal(plain[0].count[:, 1:], under[0].count[:, 1:])
    assert under[1].sum[:, 0].abs().max() == 0
    assert under[0].provenance["fwd_hooks"] == ["blocks.0.mlp.hook_post"]


def test_the_model_is_left_as_it_was(llama: Any, corpora: Corpora) -> None:
    tokens = torch.tensor([[4, 8, 15, 16, 23]])
    before = llama(tokens)
    collect(llama, corpora, ActivationFrequency(), MeanActivation())
    assert torch.equal(llama(tokens), before)


def test_collecting_nothing_and_unknown_tokens_are_refused(llama: Any, corpora: Corpora) -> None:
    with pytest.raises(OptionError, match="at least one spec"):
        collect(llama, corpora)
    foreign = Corpora.from_tokens({"en": [[VOCAB]]})
    with pytest.raises(CorpusError, match=f"token id {VOCAB}, but the model has only {VOCAB}"):
        collect(llama, foreign, ActivationFrequency())
    with pytest.raises(SiteError, match="'blocks.0.hook_resid_pst'; did you mean"):
        collect(
            llama, corpora, ActivationFrequency(), fwd_hooks=[("blocks.0.hook_resid_pst", print)]
        )
    with pytest.raises(OptionError, match="Share 1 of 2 has no batch of en"):
        collect(llama, Corpora.from_tokens({"en": [[4]]}).sharded(1, 2), ActivationFrequency())


@pytest.mark.parametrize("where", ["prompt", "new"])
def test_hooks_on_the_prompt_or_on_new_tokens_are_refused(
    llama: Any, corpora: Corpora, where: Any
) -> None:
    shape = (n_layers(llama), site_width(llama, MLP_POST))
    hooks = ablate(NeuronSet({MLP_POST: torch.ones(shape, dtype=torch.bool)}), positions=where)
    with pytest.raises(OptionError, match="make them with positions='all'"):
        collect(llama, corpora, ActivationFrequency(), fwd_hooks=hooks)
    examples = ParallelCorpora.from_tokens({"en": [[4, 5], [6]], "fr": [[7], [8, 9]]})
    with pytest.raises(OptionError, match="make them with positions='all'"):
        collect_parallel(llama, examples, SharingPattern(), fwd_hooks=hooks)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_nan_and_infinity_are_reported_with_their_layer(poison: float, corpora: Corpora) -> None:
    broken = hf_model("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.gate_proj.weight[7, 3] = poison
    with pytest.raises(ActivationError, match="NaN or infinity in layer 1 at mlp_pre on text of"):
        collect(bridge(broken), corpora, ActivationFrequency())


def test_results_remember_where_they_come_from(llama: Any, corpora: Corpora) -> None:
    freq = collect(llama, corpora, ActivationFrequency(threshold=0.1))
    assert freq.provenance["corpora"]["digest"] == corpora.digest
    assert freq.provenance["spec"] == {
        "spec": "ActivationFrequency",
        "site": "mlp_pre",
        "threshold": 0.1,
    }
    assert set(freq.provenance["versions"]) == {"torch", "lens_lang", "transformer_lens"}


class TestRunFolder:
    """Interrupted anywhere, the same command continues and ends bit-equal."""

    def interrupted(
        self, monkeypatch: pytest.MonkeyPatch, after: int, error: type[BaseException]
    ) -> None:
        original = passes.Passes.sum
        calls = {"n": 0}

        def sum_or_die(self: Any, batch: Any) -> Any:
            calls["n"] += 1
            if calls["n"] > after:
                raise error
            return original(self, batch)

        monkeypatch.setattr(passes.Passes, "sum", sum_or_die)

    @pytest.mark.lane
    @pytest.mark.parametrize("after", [0, 1, 3, 4, 7])
    @pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
    def test_resuming_ends_bit_equal(
        self, llama: Any, corpora: Corpora, tmp_path: Path, after: int, error: type[BaseException]
    ) -> None:
        specs = (ActivationFrequency(), MeanActivation())
        whole = collect(llama, corpora, *specs, batch_size=1)
        with pytest.MonkeyPatch.context() as patch:
            self.interrupted(patch, after, error)
            with pytest.raises(error):
                collect(llama, corpora, *specs, batch_size=1, run_dir=tmp_path)
        ran = 0
        with pytest.MonkeyPatch.context() as patch:
            original = passes.Passes.sum

            def counting(self: Any, batch: Any) -> Any:
                nonlocal ran
                ran += 1
                return original(self, batch)

            patch.setattr(passes.Passes, "sum", counting)
            resumed = collect(llama, corpora, *specs, batch_size=1, run_dir=tmp_path)
        assert ran == 8 - after  # nothing is done twice
        assert torch.equal(resumed[0].count, whole[0].count)
        assert torch.equal(resumed[1].sum, whole[1].sum)
        assert torch.equal(resumed[1].sum_sq, whole[1].sum_sq)
        assert lape(resumed[0], top=0.05) == lape(whole[0], top=0.05)

    @pytest.mark.parametrize("after", range(1, 10))
    def test_interrupted_while_adding_a_batch_counts_it_once(
        self, llama: Any, corpora: Corpora, tmp_path: Path, after: int
    ) -> None:
        specs = (ActivationFrequency(), MeanActivation())
        whole = collect(llama, corpora, *specs, batch_size=1)
        merge, calls = Sums.merge, itertools.count(1)

        def merge_and_die(self: Sums, other: Sums) -> None:
            merge(self, other)
            if next(calls) == after:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Sums, "merge", merge_and_die)
            with pytest.raises(KeyboardInterrupt):
                collect(llama, corpora, *specs, batch_size=1, run_dir=tmp_path)
        resumed = collect(llama, corpora, *specs, batch_size=1, run_dir=tmp_path)
        assert torch.equal(resumed[0].count, whole[0].count)
        assert torch.equal(resumed[0].n_tokens, whole[0].n_tokens)
        assert torch.equal(resumed[1].sum, whole[1].sum)
        assert torch.equal(resumed[1].sum_sq, whole[1].sum_sq)

    def test_a_finished_run_is_read_not_repeated(
        self, llama: Any, corpora: Corpora, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = collect(llama, corpora, ActivationFrequency(), run_dir=tmp_path)
        self.interrupted(monkeypatch, 0, AssertionError)
        again = collect(llama, corpora, ActivationFrequency(), run_dir=tmp_path)
        assert torch.equal(first.count, again.count)
        assert torch.equal(first.count, type(first).load(tmp_path / "frequency.safetensors").count)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"spec": ActivationFrequency(threshold=0.5)}, "specs was .*threshold"),
            ({"batch_size": 3}, "batch_size was 8 and is now 3"),
            ({"corpora": Corpora.from_tokens({"en": [[4, 5]]})}, "corpora"),
            ({"model": "mistral"}, "model was|weights was"),
        ],
    )
    def test_another_run_is_refused_with_the_difference(
        self, llama: Any, corpora: Corpora, tmp_path: Path, changes: dict[str, Any], message: str
    ) -> None:
        collect(llama, corpora, ActivationFrequency(), run_dir=tmp_path)
        before = sorted(path.read_bytes() for path in tmp_path.rglob("*.safetensors"))
        model = tiny(changes.get("model", "llama"))
        with pytest.raises(StorageError, match=f"holds another run: .*({message})"):
            collect(
                model,
                changes.get("corpora", corpora),
                changes.get("spec", ActivationFrequency()),
                run_dir=tmp_path,
                batch_size=changes.get("batch_size", 8),
            )
        assert sorted(p.read_bytes() for p in tmp_path.rglob("*.safetensors")) == before

    def test_another_checkpoint_of_the_same_shape_is_refused(
        self, llama: Any, corpora: Corpora, tmp_path: Path
    ) -> None:
        collect(llama, corpora, ActivationFrequency(), run_dir=tmp_path)
        other = bridge(hf_model("llama", seed=1))
        with pytest.raises(StorageError, match="weights was"):
            collect(other, corpora, ActivationFrequency(), run_dir=tmp_path)

    def test_a_damaged_folder_is_reported(
        self, llama: Any, corpora: Corpora, tmp_path: Path
    ) -> None:
        collect(llama, corpora, ActivationFrequency(), run_dir=tmp_path)
        file = tmp_path / "sums" / "en.safetensors"
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(StorageError, match="en.safetensors is not a readable safetensors"):
            collect(llama, corpora, ActivationFrequency(), run_dir=tmp_path)

    def test_hooks_and_a_run_folder_do_not_go_together(
        self, llama: Any, corpora: Corpora, tmp_path: Path
    ) -> None:
        hooks = [("blocks.0.mlp.hook_post", lambda values, hook: None)]
        with pytest.raises(OptionError, match="cannot resume under fwd_hooks"):
            collect(llama, corpora, ActivationFrequency(), run_dir=tmp_path, fwd_hooks=hooks)

    def test_nan_keeps_what_was_summed_before(self, corpora: Corpora, tmp_path: Path) -> None:
        broken = hf_model("llama")
        with torch.no_grad():
            broken.model.embed_tokens.weight[96] = torch.nan  # only a document of "fr" has it
        docs = {"en": random_documents([6, 6]), "fr": [[5, 6], [7, 96]]}
        docs["en"] = [[min(token, 95) for token in doc] for doc in docs["en"]]
        with pytest.raises(ActivationError, match="text of 'fr'"):
            collect(
                bridge(broken),
                Corpora.from_tokens(docs),
                ActivationFrequency(),
                run_dir=tmp_path,
                batch_size=1,
            )
        run = run_folder.RunFolder(tmp_path)
        assert run.read("en").n_batches == 2
        assert run.read("fr").n_batches == 1

    @pytest.mark.lane
    def test_killed_by_sigkill_the_same_command_ends_bit_equal(self, tmp_path: Path) -> None:
        script = textwrap.dedent("""
            import sys, time
            sys.path.insert(0, sys.argv[2])
            import conftest
            from lens_lang import collection, passes
            from lens_lang.corpora import Corpora
            from lens_lang.stats import ActivationFrequency, MeanActivation
            passes._SECONDS_BETWEEN_SAVES = 0.0
            original = passes.Passes.sum
            def slowly(self, batch):
                if sys.argv[3] == "slow":
                    time.sleep(0.15)
                return original(self, batch)
            passes.Passes.sum = slowly
            docs = {x: conftest.random_documents([9] * 12, seed=ord(x)) for x in "ab"}
            collection.collect(
                conftest.tiny("llama"), Corpora.from_tokens(docs, bos_id=1),
                ActivationFrequency(), MeanActivation(), run_dir=sys.argv[1], batch_size=1,
            )
        """)
        here = str(Path(__file__).parent)
        command = [sys.executable, "-c", script]
        killed, whole = tmp_path / "killed", tmp_path / "whole"
        process = subprocess.Popen([*command, killed, here, "slow"], stderr=subprocess.DEVNULL)
        first = killed / "sums" / "b.safetensors"
        deadline = time.monotonic() + 120
        while not first.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert first.exists()
        assert not (killed / "frequency.safetensors").exists()  # it was in the middle
        subprocess.run([*command, killed, here, "fast"], check=True, stderr=subprocess.DEVNULL)
        subprocess.run([*command, whole, here, "fast"], check=True, stderr=subprocess.DEVNULL)
        for name in ("frequency.safetensors", "activations.safetensors"):
            assert (killed / name).read_bytes() == (whole / name).read_bytes()
        frequencies = [Frequency.load(run / "frequency.safetensors") for run in (killed, whole)]
        assert lape(frequencies[0], top=0.05) == lape(frequencies[1], top=0.05)
        assert not list(killed.rglob("*.part"))
