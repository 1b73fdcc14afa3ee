"""Training moves the chosen entries and not a bit of anything else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, hf_model, hooked_transformer, random_documents

from lens_lang import tuning
from lens_lang.corpora import Corpora
from lens_lang.delta import Delta, WeightChange
from lens_lang.errors import (
    ActivationError,
    CorpusError,
    ModelError,
    OptionError,
    ShapeError,
    SiteError,
    StorageError,
)
from lens_lang.evaluate.nll import document_nll, scored_positions
from lens_lang.models import bridge
from lens_lang.neurons import NeuronSet
from lens_lang.results import load
from lens_lang.sites import (
    ATTN_K,
    ATTN_Q,
    ATTN_V,
    ATTN_Z,
    MLP_POST,
    MLP_PRE,
    MLP_UP,
    RESID_POST,
    Site,
    site_width,
)
from lens_lang.tuning import Recipe, tune
from lens_lang.weights import find_weight, neuron_weights

SITES = (MLP_POST, ATTN_Q, ATTN_K, ATTN_V, ATTN_Z)
QUIET = Recipe(batch_size=4, progress=False)
TEXT = Corpora.from_tokens(
    {
        "en": random_documents([5, 9, 2, 12, 7] * 2),
        "fr": random_documents([8, 3, 10] * 2, seed=1),
    },
    bos_id=1,
)
HELD_OUT = Corpora.from_tokens(
    {"en": random_documents([15, 9], seed=5), "fr": random_documents([8, 13], seed=6)}, bos_id=1
)


def some_neurons(model: Any, *sites: Site, share: float = 0.1, seed: int = 0) -> NeuronSet:
    generator = torch.Generator().manual_seed(seed)
    return NeuronSet(
        {
            site: torch.rand(3, site_width(model, site), generator=generator) < share
            for site in sites or SITES
        }
    )


def parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def chosen(model: Any, neurons: NeuronSet) -> dict[int, torch.Tensor]:
    """Which entries of each parameter may move, by the parameter's place in memory."""
    masks: dict[int, torch.Tensor] = {}
    for some in neuron_weights(model, neurons):
        parameter = some.parameter
        mask = masks.setdefault(id(parameter), torch.zeros_like(parameter, dtype=torch.bool))
        mask.index_fill_(some.axis, some.indices, True)
    return masks


@pytest.fixture
def own_llama() -> Any:
    """A model of the test's own, to change."""
    return bridge(hf_model("llama"))


# --- what moves ---


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "gemma3", "bloom", "opt"])
def test_only_chosen_entries_move_and_all_that_have_a_gradient_do(architecture: str) -> None:
    """Twenty steps of AdamW, weight decay as torch has it by default."""
    model = bridge(hf_model(architecture))
    neurons = some_neurons(model)
    before, masks = parameters(model), chosen(model, neurons)
    tuned = tune(model, neurons, TEXT, steps=20, lr=1e-2, recipe=QUIET)
    n_moved = 0
    for name, value in model.named_parameters():
        mask = masks.get(id(value), torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[~mask], before[name][~mask]), name
        n_moved += int((value[mask] != before[name][mask]).sum())
    total = sum(int(mask.sum()) for mask in masks.values())
    assert tuned.delta.n_entries == total
    assert n_moved > 0.99 * total  # an entry may come back to where it was
    assert len(tuned.losses) == 20
    tuned.delta.remove(model)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name


def test_the_fused_projection_of_gpt2_moves_with_its_parts() -> None:
    model = bridge(hf_model("gpt2"))
    before = parameters(model)
    tokens = torch.tensor([[1, 5, 9, 40, 3]])
    plain = model(tokens)
    tuned = tune(model, some_neurons(model), TEXT, steps=3, lr=1e-2, recipe=QUIET)
    assert not torch.allclose(model(tokens), plain)
    tuned.delta.remove(model)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name


def test_it_is_what_masked_gradients_and_adamw_give(
    own_llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Golden case PLND 9, with the whole parameters in torch's AdamW and gradients masked."""
    neurons = some_neurons(own_llama)
    reference = bridge(hf_model("llama"))
    masks = chosen(reference, neurons)
    plain = [p for p in reference.parameters() if id(p) in masks]
    optimiser = torch.optim.AdamW(plain, lr=1e-2, weight_decay=0.0)
    (batch,) = Corpora.from_tokens({"en": random_documents([9])}, bos_id=1).batches(1)
    rows, places = scored_positions(batch).nonzero(as_tuple=True)
    for _ in range(3):
        optimiser.zero_grad()
        logits = reference(batch.tokens)[rows, places - 1]
        loss = torch.nn.functional.cross_entropy(logits, batch.tokens[rows, places])
        loss.backward()
        for parameter in plain:
            assert parameter.grad is not None
            parameter.grad *= masks[id(parameter)]
        optimiser.step()
    start = parameters(bridge(hf_model("llama")))
    for name, value in reference.named_parameters():
        mask = masks.get(id(value), torch.zeros_like(value, dtype=torch.bool))
        assert torch.equal(value[~mask], start[name][~mask])

    def adamw(trained: Any, lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)

    recipe = Recipe(batch_size=1, warmup=0.0, max_norm=None, optimiser=adamw, progress=False)
    text = Corpora.from_tokens({"en": random_documents([9])}, bos_id=1)
    monkeypatch.setattr(tuning._Plan, "rate", lambda self, step: 1e-2)  # no schedule there
    tune(own_llama, neurons, text, steps=3, lr=1e-2, recipe=recipe)
    for (name, mine), theirs in zip(
        own_llama.named_parameters(), reference.parameters(), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg=name)


def test_passes_of_a_step_add_up_by_token() -> None:
    text = Corpora.from_tokens({"en": random_documents([3, 12])}, bos_id=1)
    results = []
    for batch_size, accumulation in ((2, 1), (1, 2)):
        model = bridge(hf_model("llama"))
        recipe = Recipe(batch_size=batch_size, accumulation=accumulation, progress=False)
        tuned = tune(model, some_neurons(model), text, steps=2, lr=1e-3, recipe=recipe)
        results.append((tuned.losses, [c.after for c in tuned.delta.changes.values()]))
    torch.testing.assert_close(results[0][0], results[1][0])
    for one, two in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_running_blocks_again_changes_memory_and_nothing_else(architecture: str) -> None:
    results = []
    for checkpointing in (False, True):
        model = bridge(hf_model(architecture))
        runs: list[int] = []
        handle = model.blocks[1].attn.q.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        recipe = Recipe(batch_size=4, checkpointing=checkpointing, progress=False)
        tuned = tune(model, some_neurons(model), TEXT, steps=2, lr=1e-3, recipe=recipe)
        handle.remove()
        assert len(runs) == (4 if checkpointing else 2)
        assert not any(module.training for module in model.original_model.modules())
        results.append(tuned)
    torch.testing.assert_close(results[0].losses, results[1].losses)
    for name, change in results[0].delta.changes.items():
        torch.testing.assert_close(change.after, results[1].delta.changes[name].after)


def test_it_learns_what_it_is_taught() -> None:
    model = bridge(hf_model("gemma3"))
    text = Corpora.from_tokens({"en": [[5, 9, 40, 3, 77, 12, 60]]}, bos_id=1)
    neurons = some_neurons(model, share=0.5)
    tuned = tune(model, neurons, text, steps=60, lr=2e-2, held_out=text, recipe=QUIET)
    assert float(tuned.losses[-1]) < 0.5 * float(tuned.losses[0])
    assert tuned.held_out is not None
    assert float(tuned.held_out.delta_nll) < -2


def test_the_loss_is_the_models_own(own_llama: Any) -> None:
    tuned = tune(
        own_llama,
        some_neurons(own_llama),
        TEXT["fr"],
        steps=1,
        recipe=Recipe(batch_size=6, progress=False),
    )
    fresh = document_nll(bridge(hf_model("llama")), TEXT["fr"])["fr"]
    assert float(tuned.losses[0]) == pytest.approx(float(fresh.nll.sum() / fresh.n_tokens.sum()))


def test_neurons_of_two_sites_made_of_the_same_weights_are_trained_once(own_llama: Any) -> None:
    width = site_width(own_llama, MLP_POST)
    one, two = torch.zeros(3, width).bool(), torch.zeros(3, width).bool()
    one[0, [3, 5]], two[0, [5, 7]] = True, True
    neurons = NeuronSet({MLP_PRE: one, MLP_UP: two})
    tuned = tune(own_llama, neurons, TEXT, steps=2, recipe=QUIET)
    rows = {name: c.indices.tolist() for name, c in tuned.delta.changes.items()}
    assert rows == {
        "blocks.0.mlp.gate.weight": [3, 5],
        "blocks.0.mlp.in.weight": [3, 5, 7],
        "blocks.0.mlp.out.weight": [3, 5, 7],
    }


def test_half_precision_moves_by_steps_smaller_than_its_digits() -> None:
    """Each step is far below a bfloat16 digit; the float32 values remember it."""
    model = bridge(hf_model("llama").to(torch.bfloat16))
    neurons = some_neurons(model, MLP_POST)
    recipe = Recipe(
        batch_size=4, warmup=0.0, max_norm=None, optimiser=torch.optim.SGD, progress=False
    )
    before = [some.read() for some in neuron_weights(model, neurons)]
    once = tune(model, neurons, TEXT, steps=1, lr=3e-3, recipe=recipe)
    still = sum(int((c.after != c.before).sum()) for c in once.delta.changes.values())
    once.delta.remove(model)
    often = tune(model, neurons, TEXT, steps=60, lr=3e-3, recipe=recipe)
    moved = sum(int((c.after != c.before).sum()) for c in often.delta.changes.values())
    assert moved > 5 * max(still, 1)
    assert {c.after.dtype for c in often.delta.changes.values()} == {torch.bfloat16}
    often.delta.remove(model)
    for some, values in zip(neuron_weights(model, neurons), before, strict=True):
        assert torch.equal(some.read(), values)


def test_the_optimiser_holds_as_much_as_the_chosen_entries(own_llama: Any) -> None:
    held: list[torch.optim.Optimizer] = []

    def keep(trained: Any, lr: float) -> torch.optim.Optimizer:
        held.append(torch.optim.AdamW(trained, lr=lr))
        return held[0]

    recipe = Recipe(batch_size=4, optimiser=keep, progress=False)
    tuned = tune(own_llama, some_neurons(own_llama), TEXT, steps=2, recipe=recipe)
    state = held[0].state_dict()["state"].values()
    numbers = sum(x.numel() for one in state for x in one.values() if x.ndim)
    assert numbers == 2 * tuned.delta.n_entries  # both moments, nothing else


# --- the rest of the model ---


@pytest.mark.parametrize("fails", [False, True])
def test_flags_hooks_and_weights_are_as_before(
    own_llama: Any, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [p.requires_grad for p in own_llama.parameters()]
    before = parameters(own_llama)
    real = tuning._step

    def break_in_the_third(model: Any, state: Any, passes: Any, max_norm: Any) -> Any:
        if fails and state.step == 2:
            raise KeyboardInterrupt
        return real(model, state, passes, max_norm)

    monkeypatch.setattr(tuning, "_step", break_in_the_third)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            tune(own_llama, some_neurons(own_llama), TEXT, steps=4, recipe=QUIET)
        for name, value in own_llama.named_parameters():
            assert torch.equal(value, before[name])
    else:
        tune(own_llama, some_neurons(own_llama), TEXT, steps=4, recipe=QUIET)
    assert [p.requires_grad for p in own_llama.parameters()] == flags
    assert all(p.grad is None for p in own_llama.parameters())
    assert not any(p._post_accumulate_grad_hooks for p in own_llama.parameters())


def test_a_loss_that_is_no_number_leaves_the_weights_alone(own_llama: Any) -> None:
    before = parameters(own_llama)
    recipe = Recipe(batch_size=4, optimiser=torch.optim.SGD, max_norm=None, progress=False)
    with pytest.raises(ActivationError, match="Use a smaller lr"):
        tune(own_llama, some_neurons(own_llama), TEXT, steps=9, lr=1e30, recipe=recipe)
    for name, value in own_llama.named_parameters():
        assert torch.equal(value, before[name])


# --- schedule, stopping, controls ---


def test_the_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    plan = tuning._Plan(TEXT, None, 100, 2.0, Recipe(warmup=0.1))
    rates = [plan.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (n + 1) for n in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert 0 < rates[99] < 0.01
    assert tuning._Plan(TEXT, None, 3, 2.0, Recipe(warmup=0.0)).rate(0) == 2.0


def test_every_row_is_seen_once_before_any_is_seen_twice() -> None:
    plan = tuning._Plan(TEXT, None, 10, 1.0, Recipe(batch_size=2, seed=3))
    n_batches = sum(TEXT.n_batches(2).values())
    seen = [batch.tokens.tolist() for (batch,) in plan.batches()]
    rounds = [seen[i : i + n_batches] for i in range(0, 10, n_batches)]
    for one in rounds:
        assert len({str(batch) for batch in one}) == len(one)
    again = [batch.tokens.tolist() for (batch,) in plan.batches()]
    assert seen == again


def test_stopping_early_keeps_the_best(own_llama: Any) -> None:
    text = Corpora.from_tokens({"en": random_documents([9, 7], seed=8)}, bos_id=1)
    recipe = Recipe(batch_size=2, evaluate_every=1, patience=2, warmup=0.0, progress=False)
    neurons = some_neurons(own_llama, share=0.5)
    tuned = tune(own_llama, neurons, text, steps=40, lr=0.05, held_out=HELD_OUT, recipe=recipe)
    assert len(tuned.losses) < 40
    assert tuned.delta.provenance["steps done"] == len(tuned.losses)
    # learning two random documents by heart only hurts others; the first look was the best
    assert tuned.held_out is not None
    best = tuned.held_out.documents["en"].nll[1].sum()
    shorter = bridge(hf_model("llama"))
    worst = tune(shorter, neurons, text, steps=40, lr=0.05, held_out=HELD_OUT, recipe=QUIET)
    assert worst.held_out is not None
    assert best < worst.held_out.documents["en"].nll[1].sum()


def test_controls_stand_beside_and_leave_nothing_behind() -> None:
    neurons = some_neurons(bridge(hf_model("llama")), MLP_POST)
    alone, beside = (
        tune(
            bridge(hf_model("llama")),
            neurons,
            TEXT["fr"],
            steps=4,
            lr=1e-2,
            held_out=HELD_OUT,
            controls=controls,
            recipe=QUIET,
        )
        for controls in (0, 2)
    )
    assert alone.held_out is not None
    assert beside.held_out is not None
    for name, change in alone.delta.changes.items():
        assert torch.equal(change.after, beside.delta.changes[name].after)
    matrix = beside.held_out
    assert (matrix.interventions, matrix.languages, matrix.n_controls) == (
        ("tuned",),
        ("en", "fr"),
        2,
    )
    nll = matrix.documents["fr"].nll
    assert nll.shape == (4, 2)
    assert len({round(float(row.sum()), 6) for row in nll}) == 4  # four different models
    torch.testing.assert_close(nll[:2], alone.held_out.documents["fr"].nll)
    frame = matrix.to_frame()
    assert list(frame["language"]) == ["en", "fr"]


# --- run folder ---


def test_a_killed_run_continues_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(
        batch_size=4, save_every=2, evaluate_every=2, patience=9, accumulation=2, progress=False
    )

    def run(folder: Path | None) -> Any:
        model = bridge(hf_model("qwen2"))
        return tune(
            model,
            some_neurons(model),
            TEXT,
            steps=9,
            lr=1e-2,
            held_out=HELD_OUT,
            controls=1,
            recipe=recipe,
            run_dir=folder,
        )

    expected = run(None)
    real, calls = tuning._step, []

    def kill(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 9 + 6:  # the control is done, and four steps are saved
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(tuning, "_step", kill)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.setattr(tuning, "_step", real)
    calls.clear()
    resumed = run(tmp_path)
    assert torch.equal(resumed.losses, expected.losses)
    for name, change in expected.delta.changes.items():
        assert torch.equal(resumed.delta.changes[name].after, change.after), name
    assert resumed.held_out.documents["en"].nll.equal(expected.held_out.documents["en"].nll)


def test_another_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    def run(lr: float = 1e-3, *, moved: int = 0, trained: bool = False) -> None:
        model = bridge(hf_model("llama"))
        if trained:
            with torch.no_grad():
                next(model.parameters()).add_(0.5)
        neurons = some_neurons(model)
        others = {site: mask.roll(moved, dims=1) for site, mask in neurons.masks.items()}
        tune(model, NeuronSet(others), TEXT, steps=1, lr=lr, recipe=QUIET, run_dir=tmp_path)

    run()
    run()
    with pytest.raises(StorageError, match="holds another run: it differs in lr[.]"):
        run(1e-4)
    with pytest.raises(StorageError, match="holds another run: it differs in neurons digest[.]"):
        run(moved=1)
    with pytest.raises(StorageError, match="holds another run: it differs in weights[.]"):
        run(trained=True)


# --- what is refused ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"steps": 1, "lr": 0.0}, "lr must be a number above 0"),
        ({"steps": 1, "lr": float("inf")}, "lr must be a number above 0"),
        ({"steps": 1, "controls": 1}, "need held_out"),
        ({"steps": 1, "recipe": Recipe(patience=1)}, "need held_out"),
    ],
)
def test_impossible_options_are_refused(
    options: dict[str, Any], message: str, own_llama: Any
) -> None:
    with pytest.raises(OptionError, match=message):
        tune(own_llama, some_neurons(own_llama), TEXT, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"accumulation": 0}, "accumulation must be at least 1"),
        ({"warmup": 1.0}, "warmup is a share"),
        ({"max_norm": 0.0}, "max_norm must be above 0"),
        ({"patience": 0}, "patience must be at least 1"),
    ],
)
def test_impossible_recipes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Recipe(**options)


def test_what_cannot_be_trained_is_refused(own_llama: Any) -> None:
    empty = NeuronSet({MLP_POST: torch.zeros(3, 112).bool()})
    with pytest.raises(OptionError, match="the set is empty"):
        tune(own_llama, empty, TEXT, steps=1)
    other = NeuronSet({MLP_POST: torch.ones(3, 50).bool()})
    with pytest.raises(ShapeError, match="another model"):
        tune(own_llama, other, TEXT, steps=1)
    stream = NeuronSet({RESID_POST: torch.ones(3, 48).bool()})
    with pytest.raises(SiteError, match="no site of neurons with weights"):
        tune(own_llama, stream, TEXT, steps=1)
    plain = bridge(hf_model("gpt2"))
    with pytest.raises(SiteError, match="has no site mlp_up"):
        tune(plain, NeuronSet({MLP_UP: torch.ones(3, 112).bool()}), TEXT, steps=1)
    short = Corpora.from_tokens({"en": [[5], [6]]})
    with pytest.raises(CorpusError, match="no token to learn"):
        tune(own_llama, some_neurons(own_llama), short, steps=1)
    recipe = Recipe(patience=1, progress=False)
    held_out = Corpora.from_tokens({"zh": [[5, 6]]})
    with pytest.raises(OptionError, match="there is none: zh and en, fr"):
        tune(own_llama, some_neurons(own_llama), TEXT, steps=1, held_out=held_out, recipe=recipe)


# --- deltas ---


def some_delta(model: Any) -> Delta:
    delta = tune(model, some_neurons(model), TEXT, steps=2, lr=1e-2, recipe=QUIET).delta
    delta.remove(model)
    return delta


def test_applying_and_removing_are_each_others_inverse(own_llama: Any, tmp_path: Path) -> None:
    delta = some_delta(own_llama)
    delta.save(tmp_path / "x.safetensors")
    loaded = load(tmp_path / "x.safetensors")
    assert isinstance(loaded, Delta)
    before = parameters(own_llama)
    loaded.apply(own_llama)
    for name, change in delta.changes.items():
        values = find_weight(own_llama, name).index_select(change.axis, change.indices)
        assert torch.equal(values, change.after)
    delta.remove(own_llama)
    for name, value in own_llama.named_parameters():
        assert torch.equal(value, before[name])


def test_a_delta_that_does_not_belong_is_refused_and_nothing_is_written(own_llama: Any) -> None:
    delta = some_delta(own_llama)
    with pytest.raises(ModelError, match="or is not in it"):
        delta.remove(own_llama)
    delta.apply(own_llama)
    with pytest.raises(ModelError, match="or is in it already"):
        delta.apply(own_llama)
    stranger = bridge(hf_model("llama", seed=1))
    before = parameters(stranger)
    with pytest.raises(ModelError, match="belongs to another model"):
        delta.apply(stranger)
    for name, value in stranger.named_parameters():
        assert torch.equal(value, before[name])
    with pytest.raises(ModelError, match=r"has no weight 'blocks\.0\.mlp\.gate\.weight'"):
        delta.apply(bridge(hf_model("gpt2")))


def test_a_damaged_delta_is_one_sentence(tmp_path: Path) -> None:
    from lens_lang.storage import write_tensors

    write_tensors(tmp_path / "x.safetensors", "Delta", {"axes": {"a": 0}, "provenance": {}}, {})
    with pytest.raises(StorageError, match="is damaged"):
        Delta.load(tmp_path / "x.safetensors")
    with pytest.raises(ShapeError, match="differ in shape or dtype"):
        WeightChange(0, torch.tensor([0]), torch.zeros(1, 2), torch.zeros(1, 2).half())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_of_a_neuron_are_those_that_make_it(architecture: str) -> None:
    """Zeroing what a neuron writes with is switching it off; what it reads with makes it."""
    model = bridge(hf_model(architecture))
    tokens = torch.tensor([[1, 5, 9, 40, 3]])
    mask = torch.zeros(3, site_width(model, MLP_POST), dtype=torch.bool)
    mask[1, 4] = True
    neurons = NeuronSet({MLP_POST: mask})
    seen: dict[str, torch.Tensor] = {}
    for some in neuron_weights(model, neurons):
        if ".out." not in some.name:
            some.write(torch.zeros_like(some.read()))
    with torch.inference_mode():
        model.run_with_hooks(
            tokens,
            fwd_hooks=[(MLP_POST.at(1), lambda x, hook: seen.update(post=x.clone()))],
        )
    post = seen["post"][..., 4]
    assert float(post.abs().max()) == 0  # every activation here is 0 at 0
    assert float(seen["post"][..., 5].abs().max()) > 0


def test_hooked_transformers_are_not_trained_in_place() -> None:
    from conftest import has_hooked_transformer

    if not has_hooked_transformer():
        pytest.skip("no HookedTransformer on this lane")
    model = hooked_transformer()
    with pytest.raises(ModelError, match="only raw TransformerBridge models"):
        tune(model, some_neurons(model), TEXT, steps=1)
