"""Hooks change exactly the chosen neurons, as zeroed or edited weights would, and compose."""

from functools import partial
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, D_MLP, GATED, hf_model, tiny
from test_sites import HF_MODULES, TOKENS, blocks

from lens_lang.errors import OptionError, ShapeError, SiteError
from lens_lang.intervene import (
    NeuronEdit,
    UpProjection,
    ablate,
    add,
    matched_control,
    replace,
    scale,
    steer,
)
from lens_lang.neurons import LanguageNeurons, NeuronSet, random_like
from lens_lang.sites import (
    ATTN_K,
    ATTN_Q,
    ATTN_V,
    ATTN_Z,
    MLP_POST,
    MLP_PRE,
    MLP_UP,
    is_gated,
    n_layers,
    site_width,
)
from lens_lang.stats import Activations


def some_neurons(
    model: Any, site: Any = MLP_POST, *, share: float = 0.2, seed: int = 0
) -> NeuronSet:
    generator = torch.Generator().manual_seed(seed)
    shape = (n_layers(model), site_width(model, site))
    return NeuronSet({site: torch.rand(shape, generator=generator) < share})


def run(model: Any, hooks: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.run_with_hooks(TOKENS, fwd_hooks=list(hooks))


def gate_values(model: Any) -> torch.Tensor:
    """act(gate) at every token, from the two hook points that exist."""
    _, cache = model.run_with_cache(TOKENS)
    post = torch.stack([cache[MLP_POST.at(layer)] for layer in range(n_layers(model))])
    if not is_gated(model):
        return post
    up = torch.stack([cache[MLP_UP.at(layer)] for layer in range(n_layers(model))])
    return post / up


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ablating_equals_zeroed_weights(architecture: str) -> None:
    model = tiny(architecture)
    neurons = some_neurons(model)
    edited = hf_model(architecture)
    down = HF_MODULES["gated" if architecture in GATED else architecture][2]
    with torch.no_grad():
        for layer, block in enumerate(blocks(edited)):
            weight = block.get_submodule(down).weight
            off = neurons.masks[MLP_POST][layer]
            if architecture == "gpt2":  # Conv1D keeps its weight as (in, out)
                weight[off] = 0
            else:
                weight[:, off] = 0
        expected = edited(TOKENS).logits
    torch.testing.assert_close(run(model, ablate(neurons)), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(run(model, []), expected, atol=1e-3)


@pytest.mark.lane
@pytest.mark.parametrize(
    ("site", "module"), [(ATTN_Q, "q_proj"), (ATTN_K, "k_proj"), (ATTN_V, "v_proj")]
)
def test_ablating_attention_neurons_equals_zeroed_columns(site: Any, module: str) -> None:
    model = tiny("qwen2")  # GQA, with biases
    neurons = some_neurons(model, site)
    edited = hf_model("qwen2")
    with torch.no_grad():
        for layer, block in enumerate(blocks(edited)):
            projection = block.self_attn.get_submodule(module)
            projection.weight[neurons.masks[site][layer]] = 0
            projection.bias[neurons.masks[site][layer]] = 0
        expected = edited(TOKENS).logits
    torch.testing.assert_close(run(model, ablate(neurons)), expected, atol=1e-5, rtol=0)


@pytest.mark.lane
def test_ablating_a_whole_layer_leaves_only_its_bias(any_model: Any) -> None:
    mask = torch.zeros(n_layers(any_model), site_width(any_model, MLP_POST), dtype=torch.bool)
    mask[1] = True
    seen: dict[str, torch.Tensor] = {}

    def keep(values: torch.Tensor, hook: Any) -> None:
        seen["out"] = values

    name = "blocks.1.hook_mlp_out"
    run(any_model, [*ablate(NeuronSet({MLP_POST: mask})), (name, keep)])
    rows = seen["out"].flatten(0, 1)
    torch.testing.assert_close(rows, rows[:1].expand_as(rows), atol=1e-6, rtol=0)
    if is_gated(any_model):
        assert rows.abs().max() == 0  # no bias anywhere


@pytest.mark.lane
def test_ablating_nothing_is_the_identity(any_model: Any) -> None:
    nobody = some_neurons(any_model, share=0.0)
    assert ablate(nobody) == []
    assert torch.equal(run(any_model, ablate(nobody)), run(any_model, []))


@pytest.mark.lane
def test_setting_neurons_to_their_own_values_changes_nothing(any_model: Any) -> None:
    """Steering to what a neuron does anyway: only one position, so one value serves."""
    tokens = torch.tensor([[5]])
    space = "gate" if is_gated(any_model) else "product"
    _, cache = any_model.run_with_cache(tokens)
    layers = range(n_layers(any_model))
    value = torch.stack([cache[MLP_POST.at(layer)][0, 0] for layer in layers])
    if space == "gate":
        value = value / torch.stack([cache[MLP_UP.at(layer)][0, 0] for layer in layers])
    hooks = replace(some_neurons(any_model, share=0.5), value, space=space)
    with torch.inference_mode():
        changed = any_model.run_with_hooks(tokens, fwd_hooks=hooks)
        torch.testing.assert_close(changed, any_model(tokens), atol=2e-5, rtol=0)
        louder = any_model.run_with_hooks(
            tokens, fwd_hooks=replace(some_neurons(any_model, share=0.5), value + 1, space=space)
        )
    assert not torch.allclose(louder, changed, atol=1e-2)


@pytest.mark.lane
@pytest.mark.parametrize("kind", ["set", "add"])
def test_gate_space_edits_the_gate_before_the_product(kind: str) -> None:
    """Against a model whose activation function's output is edited by hand."""
    neurons = some_neurons(tiny("llama"))
    values = torch.randn(3, D_MLP, generator=torch.Generator().manual_seed(1))
    edited = hf_model("llama")
    for layer, block in enumerate(blocks(edited)):
        chosen = neurons.masks[MLP_POST][layer]

        def change(
            module: Any, args: Any, output: Any, chosen: Any = chosen, layer: int = layer
        ) -> torch.Tensor:
            target = values[layer] if kind == "set" else output + values[layer]
            return torch.where(chosen, target.expand_as(output), output)

        block.mlp.act_fn = torch.nn.SiLU()
        block.mlp.act_fn.register_forward_hook(change)
    with torch.no_grad():
        expected = edited(TOKENS).logits
    function = replace if kind == "set" else add
    in_gate = run(tiny("llama"), function(neurons, values, space="gate"))
    torch.testing.assert_close(in_gate, expected, atol=1e-5, rtol=0)
    in_product = run(tiny("llama"), function(neurons, values, space="product"))
    assert not torch.allclose(in_product, expected, atol=1e-2)


@pytest.mark.lane
def test_scaling_multiplies_and_composes(llama: Any) -> None:
    neurons = some_neurons(llama)
    twice = run(llama, scale(neurons, 2.0) + scale(neurons, 1.5))
    torch.testing.assert_close(twice, run(llama, scale(neurons, 3.0)), atol=1e-5, rtol=0)
    torch.testing.assert_close(run(llama, scale(neurons, 1.0)), run(llama, []))
    assert torch.equal(run(llama, scale(neurons, 0.0)), run(llama, ablate(neurons)))


def test_one_factor_per_neuron_is_taken_by_its_place(llama: Any) -> None:
    mask = torch.zeros(3, D_MLP, dtype=torch.bool)
    mask[1, [4, 9]] = True
    factors = torch.arange(3 * D_MLP).view(3, D_MLP).float()
    ((name, edit),) = scale(NeuronSet({MLP_POST: mask}), factors)
    changed = edit(torch.ones(1, 2, D_MLP))
    assert name == "blocks.1.mlp.hook_post"
    assert changed[0, 0, [4, 9]].tolist() == [D_MLP + 4.0, D_MLP + 9.0]
    assert changed.sum() == 2 * (D_MLP - 2) + 2 * (2 * D_MLP + 13)


@pytest.mark.lane
def test_later_hooks_see_earlier_ones_and_users_compose_by_plus(llama: Any) -> None:
    neurons = some_neurons(llama)
    seen: list[torch.Tensor] = []

    def look(values: torch.Tensor, hook: Any) -> None:
        seen.append(values.clone())

    name = MLP_POST.at(0)
    off = neurons.masks[MLP_POST][0]
    run(llama, [*ablate(neurons), (name, look)])
    run(llama, [(name, look), *ablate(neurons)])
    assert seen[0][..., off].abs().max() == 0
    assert seen[1][..., off].abs().max() > 0
    assert torch.equal(seen[0][..., ~off], seen[1][..., ~off])


@pytest.mark.lane
def test_a_cache_taken_before_the_edit_keeps_the_unedited_values(llama: Any) -> None:
    """In-place edits would reach into it, because caches share storage."""
    kept: list[torch.Tensor] = []

    def cache(values: torch.Tensor, hook: Any) -> None:
        kept.append(values.detach())

    neurons = some_neurons(llama)
    run(llama, [(MLP_POST.at(0), cache), *ablate(neurons)])
    run(llama, [(MLP_POST.at(0), cache)])
    assert torch.equal(kept[0], kept[1])


@pytest.mark.lane
@pytest.mark.parametrize("site", [ATTN_Q, ATTN_K, ATTN_V, ATTN_Z, MLP_PRE, MLP_POST])
def test_input_tensors_are_never_written(site: Any) -> None:
    model = tiny("llama")
    width = site_width(model, site)
    shape = (1, 2, width) if site in (MLP_PRE, MLP_POST) else (1, 2, width // 8, 8)
    values = torch.randn(shape)
    before = values.clone()
    ((_, edit), *_) = ablate(some_neurons(model, site, share=0.5))
    changed = edit(values, hook=None)
    assert torch.equal(values, before)
    assert changed.shape == values.shape
    assert changed.data_ptr() != values.data_ptr()


def test_half_precision_stays_half_precision(llama: Any) -> None:
    ((_, edit), *_) = scale(some_neurons(llama), 0.3)
    assert edit(torch.ones(1, 2, D_MLP, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_ablating_infinity_gives_zero_not_nan(llama: Any) -> None:
    ((_, edit), *_) = ablate(some_neurons(llama, share=1.0))
    assert edit(torch.full((1, 1, D_MLP), torch.inf)).abs().max() == 0


@pytest.mark.lane
@pytest.mark.parametrize("positions", ["all", "prompt", "new"])
def test_positions_choose_prompt_or_new_tokens(llama: Any, positions: Any) -> None:
    """Generation under hooks equals stepping by hand with the rule applied by hand."""
    neurons = some_neurons(llama, share=0.6)
    prompt = TOKENS[:1]
    options = {"max_new_tokens": 4, "do_sample": False, "verbose": False, "stop_at_eos": False}
    lengths: list[int] = []
    spy = (MLP_POST.at(0), lambda values, hook: lengths.append(values.shape[1]))
    with llama.hooks(fwd_hooks=[spy, *ablate(neurons, positions=positions)]):
        generated = llama.generate(prompt, return_type="tokens", **options)
    assert lengths == [6, 1, 1, 1]  # the prompt at once, then token by token

    def by_hand(values: torch.Tensor, hook: Any, layer: int) -> torch.Tensor:
        off = neurons.masks[MLP_POST][layer]
        changed = values.clone()
        first = 0 if positions in ("all", "prompt") else prompt.shape[1]
        last = values.shape[1] if positions in ("all", "new") else prompt.shape[1]
        changed[:, first:last, off] = 0
        return changed

    tokens = prompt
    hooks = [(MLP_POST.at(layer), partial(by_hand, layer=layer)) for layer in range(3)]
    for _ in range(4):
        with torch.inference_mode():
            logits = llama.run_with_hooks(tokens, fwd_hooks=hooks)
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, tokens)


class TestSteering:
    """Source off, target at its mean, the target's value where both claim a neuron."""

    def languages(self, model: Any) -> LanguageNeurons:
        return LanguageNeurons(
            {"en": some_neurons(model, share=0.3), "fr": some_neurons(model, share=0.3, seed=1)}
        )

    def means(self, model: Any, space: Any) -> Activations:
        values = torch.rand(2, n_layers(model), site_width(model, MLP_POST)).double()
        return Activations(
            languages=("en", "fr"),
            sum=values,
            sum_sq=values.square(),
            n_tokens=torch.tensor([1, 1]),
            space=space,
        )

    @pytest.mark.lane
    def test_it_is_the_sum_of_its_parts(self, any_model: Any) -> None:
        space: Any = "gate" if is_gated(any_model) else "product"
        neurons, mean = self.languages(any_model), self.means(any_model, space)
        assert len(neurons["en"] & neurons["fr"]) > 0
        hooks = steer(neurons, source="en", target="French", mean=mean, strength=0.5)
        target = replace(neurons["fr"], (mean["fr"] * 0.5).float(), space=space)
        expected = run(any_model, ablate(neurons["en"]) + target)  # zero first, then set
        assert torch.equal(run(any_model, hooks), expected)

    @pytest.mark.lane
    def test_it_adds_instead_of_replacing(self, any_model: Any) -> None:
        space: Any = "gate" if is_gated(any_model) else "product"
        neurons, mean = self.languages(any_model), self.means(any_model, space)
        hooks = steer(neurons, source="en", target="fr", mean=mean, strength=0.5, how="add")
        off = ablate(neurons["en"] - neurons["fr"])  # a neuron of both is the target's
        target = add(neurons["fr"], (mean["fr"] * 0.5).float(), space=space)
        assert torch.equal(run(any_model, hooks), run(any_model, off + target))
        replaced = steer(neurons, source="en", target="fr", mean=mean, strength=0.5)
        assert not torch.equal(run(any_model, hooks), run(any_model, replaced))

    def test_means_of_the_up_projection_are_refused(self, llama: Any) -> None:
        with pytest.raises(OptionError, match="means of the up-projection"):
            steer(self.languages(llama), source="en", target="fr", mean=self.means(llama, "up"))


class TestControls:
    """A control is the same edit on as many other neurons of the same layers."""

    def test_it_matches_layers_sites_kinds_and_values(self, llama: Any) -> None:
        neurons = some_neurons(llama)
        generator = torch.Generator().manual_seed(0)
        hooks = replace(neurons, 0.7, space="gate")
        control = matched_control(hooks, generator=generator)
        assert [name for name, _ in control] == [name for name, _ in hooks]
        for (_, edit), (_, drawn) in zip(hooks, control, strict=True):
            if isinstance(edit, UpProjection):
                assert isinstance(drawn, UpProjection)
                assert drawn is not edit
                continue
            assert (edit.kind, edit.layer, edit.site) == (drawn.kind, drawn.layer, drawn.site)
            assert torch.equal(edit.values, drawn.values)
            assert not set(edit.indices.tolist()) & set(drawn.indices.tolist())
            assert len(set(drawn.indices.tolist())) == len(edit.indices)
        run(llama, control)  # and it runs: notes and edits belong together

    def test_two_edits_of_a_layer_do_not_draw_each_others_neurons(self, llama: Any) -> None:
        hooks = ablate(some_neurons(llama)) + scale(some_neurons(llama, seed=1), 2.0)
        control = matched_control(hooks, generator=torch.Generator().manual_seed(0))
        for layer in range(3):
            edits = [
                e for _, e in hooks + control if isinstance(e, NeuronEdit) and e.layer == layer
            ]
            originals = {i for edit in edits[:2] for i in edit.indices.tolist()}
            drawn = [i for edit in edits[2:] for i in edit.indices.tolist()]
            assert len(drawn) == len(set(drawn))
            assert not originals & set(drawn)

    @pytest.mark.parametrize("layer", range(3))
    def test_too_few_others_are_told_with_their_layer(self, layer: int) -> None:
        mask = torch.zeros(3, D_MLP, dtype=torch.bool)
        mask[layer, :100] = True
        with pytest.raises(ShapeError, match=f"Layer {layer} of mlp_post has 12 neurons outside"):
            matched_control(ablate(NeuronSet({MLP_POST: mask})), generator=torch.Generator())

    def test_a_seed_draws_what_it_draws_for_the_set(self, llama: Any) -> None:
        neurons = some_neurons(llama)
        control = matched_control(ablate(neurons), generator=torch.Generator().manual_seed(0))
        drawn = random_like(neurons, generator=torch.Generator().manual_seed(0))
        for (_, mine), (_, theirs) in zip(control, ablate(drawn), strict=True):
            assert torch.equal(mine.indices, theirs.indices)

    def test_foreign_hooks_have_no_control(self) -> None:
        with pytest.raises(OptionError, match="was not made by lens_lang"):
            matched_control([("x", lambda values, hook: None)], generator=torch.Generator())


@pytest.mark.lane
def test_neurons_of_another_model_are_refused(llama: Any) -> None:
    foreign = NeuronSet({MLP_POST: torch.ones(3, 50, dtype=torch.bool)})
    with pytest.raises(
        ShapeError, match="with 50 neurons .* has 112: they belong to another model"
    ):
        run(llama, ablate(foreign))


def test_gate_space_without_a_gate_is_explained(gpt2: Any) -> None:
    hooks = replace(some_neurons(gpt2), 1.0, space="gate")
    edits = [(name, hook) for name, hook in hooks if isinstance(hook, NeuronEdit)]
    with pytest.raises(SiteError, match="has no gate .use space='product'"):
        run(gpt2, edits)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (torch.zeros(3, 5), ShapeError, "one per layer and neuron .3, 112."),
        (torch.tensor([[float("nan")]] * 3), OptionError, "NaN or infinity"),
        (float("inf"), OptionError, "NaN or infinity"),
    ],
)
def test_impossible_values_are_refused(
    llama: Any, values: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scale(some_neurons(llama), values)


@pytest.mark.lane
def test_hooks_are_gone_after_an_exception(llama: Any) -> None:
    def explode(values: torch.Tensor, hook: Any) -> None:
        raise RuntimeError("planted")

    before = run(llama, [])
    with pytest.raises(RuntimeError, match="planted"):
        run(llama, [*ablate(some_neurons(llama)), (MLP_POST.at(2), explode)])
    assert torch.equal(run(llama, []), before)
