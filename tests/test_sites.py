"""Hook points are what we take them for, on every architecture, or are refused."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from conftest import ARCHITECTURES, D_MLP, GATED, KV_HEADS, hf_model, tiny

from lens_lang.errors import ModelError, ShapeError, SiteError
from lens_lang.models import bridge
from lens_lang.sites import (
    ATTN_K,
    ATTN_Q,
    ATTN_V,
    ATTN_Z,
    MLP_POST,
    MLP_PRE,
    MLP_UP,
    RESID_POST,
    HookedModel,
    check_hooks,
    check_layers,
    check_supported,
    find_site,
    gate_activation,
    is_gated,
    n_layers,
    preflight,
    run_until,
    site_width,
    switch_site,
)

TOKENS = torch.tensor([[5, 9, 3, 44, 8, 60], [7, 7, 91, 2, 13, 30]])

# Where plain PyTorch hooks find the pre-activation, the up-projection and the input of the
# down-projection in the Hugging Face model: an oracle that knows nothing of TransformerLens.
HF_MODULES = {
    "gated": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "gpt2": ("mlp.c_fc", None, "mlp.c_proj"),
    "bloom": ("mlp.dense_h_to_4h", None, "mlp.dense_4h_to_h"),
    "opt": ("fc1", None, "fc2"),
    "phi": ("mlp.fc1", None, "mlp.fc2"),
}


def blocks(model: Any) -> Any:
    for path in ("model.layers", "transformer.h", "model.decoder.layers"):
        try:
            return model.get_submodule(path)
        except AttributeError:
            continue
    raise AssertionError("an architecture without known blocks")


def hf_activations(architecture: str) -> dict[tuple[str, int], torch.Tensor]:
    """Pre-activation, up and product in every layer, by plain forward hooks."""
    model = hf_model(architecture)
    names = HF_MODULES["gated" if architecture in GATED else architecture]
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def keep_output(module: Any, args: Any, output: Any, key: tuple[str, int]) -> None:
        seen[key] = output.detach().view(*TOKENS.shape, -1)

    def keep_input(module: Any, args: Any, key: tuple[str, int]) -> None:
        seen[key] = args[0].detach().view(*TOKENS.shape, -1)

    for layer, block in enumerate(blocks(model)):
        pre, up, down = names
        block.get_submodule(pre).register_forward_hook(partial(keep_output, key=("pre", layer)))
        block.get_submodule(down).register_forward_pre_hook(
            partial(keep_input, key=("post", layer))
        )
        if up:
            block.get_submodule(up).register_forward_hook(partial(keep_output, key=("up", layer)))
    with torch.inference_mode():
        model(TOKENS)
    return seen


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hook_values_equal_plain_hugging_face_hooks(architecture: str) -> None:
    model = tiny(architecture)
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def keep(values: torch.Tensor, hook: Any, key: tuple[str, int]) -> None:
        seen[key] = values

    kinds = {"pre": MLP_PRE, "post": MLP_POST}
    if is_gated(model):
        kinds["up"] = MLP_UP
    readers = [
        (site.at(layer), partial(keep, key=(kind, layer)))
        for kind, site in kinds.items()
        for layer in range(n_layers(model))
    ]
    run_until(model, TOKENS, readers=readers)
    expected = hf_activations(architecture)
    assert seen.keys() == expected.keys()
    for key, values in expected.items():
        torch.testing.assert_close(seen[key], values, atol=1e-5, rtol=0)


@pytest.mark.lane
def test_preflight_accepts_every_architecture(any_model: Any) -> None:
    assert isinstance(any_model, HookedModel)
    sites = [MLP_PRE, MLP_POST, ATTN_Q, ATTN_K, ATTN_V, ATTN_Z, RESID_POST]
    widths = preflight(any_model, sites + [MLP_UP] * is_gated(any_model))
    assert widths[ATTN_Q] == widths[ATTN_Z] == any_model.cfg.n_heads * any_model.cfg.d_head
    assert widths[MLP_PRE] == widths[MLP_POST] == any_model.blocks[0].mlp.W_out.shape[0]


@pytest.mark.lane
def test_widths_come_from_weights_not_from_the_configuration() -> None:
    assert site_width(tiny("opt"), MLP_PRE) == D_MLP  # the bridge's cfg.d_mlp says 4 * d_model
    assert site_width(tiny("llama"), ATTN_K) == KV_HEADS * 8


@pytest.mark.lane
def test_product_sign_is_not_firing() -> None:
    """The trap: half of all entries of a gated model disagree between hook_pre and hook_post."""
    seen = hf_activations("llama")
    disagree = ((seen["pre", 1] > 0) != (seen["post", 1] > 0)).float().mean()
    assert 0.3 < disagree < 0.7
    plain = hf_activations("gpt2")
    assert torch.equal(plain["pre", 1] > 0, plain["post", 1] > 0)


@pytest.mark.lane
@pytest.mark.parametrize("architecture", GATED)
def test_gate_activation_is_found_by_measurement(architecture: str) -> None:
    model = tiny(architecture)
    name = model.original_model.config.to_dict()
    declared = name.get("hidden_activation") or name["hidden_act"]
    expected = transformers.activations.ACT2FN[declared]
    x = torch.linspace(-4, 4, 101)
    torch.testing.assert_close(gate_activation(model)(x), expected(x), atol=1e-6, rtol=0)


def test_gate_activation_refuses_a_model_without_gate(gpt2: Any) -> None:
    with pytest.raises(ModelError, match="no gated MLPs"):
        gate_activation(gpt2)


def test_gate_activation_refuses_an_unknown_function() -> None:
    config = transformers.LlamaConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        hidden_act="mish",
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5)
    with pytest.raises(ModelError, match="none of .*space='product'"):
        gate_activation(bridge(model))


@pytest.mark.lane
def test_running_until_skips_what_nobody_needs(llama: Any) -> None:
    reached: list[str] = []

    def note(values: torch.Tensor, hook: Any, name: str) -> None:
        reached.append(name)

    later = [(RESID_POST.at(2), partial(note, name="later"))]
    run_until(
        llama, TOKENS, fwd_hooks=later, readers=[(MLP_PRE.at(1), partial(note, name="wanted"))]
    )
    assert reached == ["wanted"]


@pytest.mark.lane
def test_no_hooks_stay_after_an_exception(any_model: Any) -> None:
    def explode(values: torch.Tensor, hook: Any) -> None:
        raise RuntimeError("planted")

    def attached() -> int:  # the bridge of OPT has a hook of its own
        return sum(len(point.fwd_hooks) for point in any_model.hook_dict.values())

    before, hooks_before = any_model(TOKENS), attached()
    with pytest.raises(RuntimeError, match="planted"):
        run_until(any_model, TOKENS, readers=[(MLP_POST.at(1), explode)])
    assert torch.equal(any_model(TOKENS), before)
    assert attached() == hooks_before


@pytest.mark.lane
def test_a_silent_hook_point_is_reported(llama: Any) -> None:
    silent = "blocks.0.attn.hook_hidden_states"
    with pytest.raises(SiteError, match="1 of 1 hook points never fired"):
        run_until(llama, TOKENS, readers=[(silent, lambda values, hook: None)])


@pytest.mark.lane
def test_a_misspelt_hook_is_refused_with_a_near_miss(llama: Any) -> None:
    with pytest.raises(SiteError, match=r"'blocks.0.mlp.hook_pots'; did you mean .*hook_post"):
        check_hooks(llama, [("blocks.0.mlp.hook_pots", lambda values, hook: None)])


def test_the_missing_up_projection_is_explained(gpt2: Any) -> None:
    with pytest.raises(SiteError, match="no gate. Use space='product'"):
        check_hooks(gpt2, [(MLP_UP.at(0), lambda values, hook: None)])
    with pytest.raises(SiteError, match="no site mlp_up"):
        preflight(gpt2, [MLP_UP])


class Impostor:
    """A model whose hook points misbehave in a chosen way."""

    def __init__(self, firings: int, width: int, cfg: dict[str, Any] | None = None) -> None:
        self.firings, self.width = firings, width
        self.cfg = SimpleNamespace(
            n_layers=1, d_model=4, d_mlp=8, device="cpu", model_name="impostor", **(cfg or {})
        )
        mlp = SimpleNamespace(W_out=torch.zeros(8, 4))
        self.blocks = [SimpleNamespace(mlp=mlp)]
        self.hook_dict = {MLP_PRE.at(0): None}
        self._hooks: list[Any] = []

    def hooks(self, fwd_hooks: list[Any]) -> Any:
        from contextlib import nullcontext

        self._hooks = fwd_hooks
        return nullcontext()

    def __call__(self, tokens: torch.Tensor, **options: Any) -> None:
        for _ in range(self.firings):
            for _, hook in self._hooks:
                hook(torch.zeros(*tokens.shape, self.width), hook=None)


@pytest.mark.parametrize(
    ("firings", "width", "message"),
    [(2, 8, "fires 2 times"), (0, 8, "fires never"), (1, 4, "is 4 wide, but the weights say 8")],
)
def test_preflight_refuses_hook_points_that_misbehave(
    firings: int, width: int, message: str
) -> None:
    with pytest.raises(SiteError, match=message):
        preflight(Impostor(firings, width), [MLP_PRE])


def test_preflight_accepts_an_impostor_that_behaves() -> None:
    assert preflight(Impostor(1, 8), [MLP_PRE]) == {MLP_PRE: 8}


@pytest.mark.lane
def test_mixtures_of_experts_are_refused() -> None:
    config = transformers.MixtralConfig(
        vocab_size=20,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
    )
    model = bridge(transformers.MixtralForCausalLM(config))
    with pytest.raises(ModelError, match="mixture of experts"):
        preflight(model, [MLP_PRE])


@pytest.mark.lane
def test_processed_weights_are_refused() -> None:
    model = bridge(hf_model("llama"))
    model.enable_compatibility_mode(no_processing=True)
    check_supported(model)  # aliases only: the weights are raw
    folded = bridge(hf_model("llama"))
    folded.enable_compatibility_mode()
    with pytest.raises(ModelError, match="were processed"):
        check_supported(folded)
    with pytest.raises(ModelError, match="were processed"):
        check_supported(Impostor(1, 8, {"normalization_type": "RMSPre"}))


def test_statistics_of_another_model_are_refused(llama: Any) -> None:
    check_layers(llama, MLP_POST, (3, D_MLP))
    with pytest.raises(ShapeError, match="belong to another model"):
        check_layers(llama, MLP_POST, (2, D_MLP))


def test_sites_have_names_and_switches() -> None:
    assert find_site("attn_q") is ATTN_Q
    assert switch_site(MLP_PRE) is MLP_POST
    assert switch_site(MLP_POST) is MLP_POST
    with pytest.raises(SiteError, match="'mlp_pst'; did you mean 'mlp_post'"):
        find_site("mlp_pst")
