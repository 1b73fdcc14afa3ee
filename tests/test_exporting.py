"""An exported model does without hooks what the model does under them, and is otherwise bit-equal.

"Bit-equal" is read from the folder by `transformers` alone, against a plain Hugging Face model that
TransformerLens never saw.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from conftest import (
    ARCHITECTURES,
    D_MLP,
    D_MODEL,
    GATED,
    HEADS,
    KV_HEADS,
    LAYERS,
    VOCAB,
    has_hooked_transformer,
    hf_model,
    tiny,
)
from safetensors import SafetensorError
from test_sites import TOKENS

from lens_lang import exporting
from lens_lang.errors import ModelError, OptionError, ShapeError, SiteError, StorageError
from lens_lang.exporting import export
from lens_lang.intervene import ablate, scale
from lens_lang.models import PACKAGED, bridge
from lens_lang.neurons import NeuronSet
from lens_lang.sites import (
    ATTN_K,
    ATTN_PATTERN,
    ATTN_Q,
    ATTN_V,
    ATTN_Z,
    MLP_POST,
    MLP_PRE,
    MLP_UP,
    RESID_POST,
    Site,
    is_gated,
    n_layers,
    site_width,
)
from lens_lang.storage import versions

SITES = (MLP_PRE, MLP_UP, MLP_POST, ATTN_Q, ATTN_K, ATTN_V, ATTN_Z)
NOBODY = NeuronSet({})

_MORE = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LONG = {**_MORE, "intermediate_size": D_MLP, "max_position_embeddings": 128, "pad_token_id": None}

# Other ways to fuse projections, which the architectures of conftest do not have.
FUSED: dict[str, Callable[[], Any]] = {
    # interleaved by head
    "neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**_LONG)),
    # queries, keys and values of different widths one after the other, and gate and up
    "phi3": lambda: transformers.Phi3ForCausalLM(
        transformers.Phi3Config(**_LONG, num_key_value_heads=KV_HEADS)
    ),
    # only gate and up
    "glm4": lambda: transformers.Glm4ForCausalLM(
        transformers.Glm4Config(**_LONG, num_key_value_heads=KV_HEADS, head_dim=8)
    ),
    # one key-value head for all
    "falcon": lambda: transformers.FalconForCausalLM(transformers.FalconConfig(**_MORE)),
    "mpt": lambda: transformers.MptForCausalLM(
        transformers.MptConfig(
            vocab_size=VOCAB, d_model=D_MODEL, n_layers=LAYERS, n_heads=HEADS, max_seq_len=128
        )
    ),
}


def fresh(architecture: str) -> Any:
    """A Hugging Face model of its own, with weights of realistic scale."""
    if architecture in ARCHITECTURES:
        return hf_model(architecture)
    torch.manual_seed(0)
    model = FUSED[architecture]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0 if parameter.ndim > 1 else 0.1, 0.15)
    return model


def some_neurons(model: Any, *sites: Site, share: float = 0.2, seed: int = 0) -> NeuronSet:
    generator = torch.Generator().manual_seed(seed)
    shapes = {site: (n_layers(model), site_width(model, site)) for site in sites}
    return NeuronSet(
        {site: torch.rand(shape, generator=generator) < share for site, shape in shapes.items()}
    )


def sites_of(model: Any) -> list[Site]:
    return [site for site in SITES if site != MLP_UP or is_gated(model)]


def hooked_logits(model: Any, hooks: Any = ()) -> torch.Tensor:
    with torch.inference_mode():
        return model.run_with_hooks(TOKENS, fwd_hooks=list(hooks))


def loaded(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", attn_implementation="eager"
    ).eval()


def exported_logits(folder: Path) -> torch.Tensor:
    with torch.inference_mode():
        return loaded(folder)(TOKENS).logits


def assert_same_tensors(mine: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert tensor.dtype == theirs[key].dtype, key
        assert torch.equal(tensor, theirs[key]), key


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}


def changed(folder: Path, model: Any) -> set[str]:
    """Which tensors of an exported model differ from those of a plain one."""
    state = loaded(folder).state_dict()
    return {
        key for key, tensor in model.state_dict().items() if not torch.equal(tensor, state[key])
    }


@pytest.mark.lane
@pytest.mark.parametrize("factor", [0.0, 1.7])
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *FUSED])
def test_exported_logits_equal_hooked_logits_at_every_site(
    architecture: str, factor: float, tmp_path: Path
) -> None:
    model = bridge(fresh(architecture))
    plain = hooked_logits(model)
    for site in sites_of(model):
        neurons = some_neurons(model, site)
        hooks = ablate(neurons) if factor == 0 else scale(neurons, factor)
        expected = hooked_logits(model, hooks)
        folder = export(model, neurons, tmp_path / site.name, scale=factor)
        torch.testing.assert_close(exported_logits(folder), expected, atol=1e-5, rtol=0)
        assert (expected - plain).abs().max() > 1e-4  # ten times what is forgiven above


@pytest.mark.lane
@pytest.mark.parametrize("factor", [0.0, 1.7])
@pytest.mark.parametrize("architecture", ["gemma3", "gpt2", "bloom", "qwen2"])
def test_all_sites_together(architecture: str, factor: float, tmp_path: Path) -> None:
    model = tiny(architecture)
    neurons = some_neurons(model, *sites_of(model))
    hooks = ablate(neurons) if factor == 0 else scale(neurons, factor)
    folder = export(model, neurons, tmp_path / "out", scale=factor)
    torch.testing.assert_close(
        exported_logits(folder), hooked_logits(model, hooks), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_a_single_neuron_changes_only_its_own_entries(architecture: str, tmp_path: Path) -> None:
    """Entry by entry, because logits would forgive a row that hardly matters."""
    hf, model = fresh(architecture), tiny(architecture)
    head, inner, layer = 1, 3, 1  # a key of the second head: of the second group in GQA
    mask = torch.zeros(LAYERS, site_width(model, ATTN_K), dtype=torch.bool)
    mask[layer, head * 8 + inner] = True
    folder = export(model, NeuronSet({ATTN_K: mask}), tmp_path / "out", scale=2.0)
    prefix, row, transposed = {
        "llama": ("model.layers.1.self_attn.k_proj", head * 8 + inner, False),
        "gpt2": ("transformer.h.1.attn.c_attn", D_MODEL + head * 8 + inner, True),
        "bloom": (
            "transformer.h.1.self_attention.query_key_value",
            head * 3 * 8 + 8 + inner,
            False,
        ),
    }[architecture]
    before, after = hf.state_dict(), loaded(folder).state_dict()
    keys = {f"{prefix}.weight", *({f"{prefix}.bias"} & before.keys())}
    assert changed(folder, hf) == keys
    for key in keys:
        expected = before[key].clone()
        (expected.mT if transposed and expected.ndim == 2 else expected)[row] *= 2
        assert torch.equal(after[key], expected)


@pytest.mark.lane
@pytest.mark.parametrize("architecture", [*ARCHITECTURES, *FUSED])
def test_an_unedited_export_is_bit_equal_to_the_source(architecture: str, tmp_path: Path) -> None:
    source = fresh(architecture)
    source.save_pretrained(tmp_path / "source")
    folder = export(bridge(fresh(architecture)), NOBODY, tmp_path / "out")
    assert folder == tmp_path / "out"
    assert_same_tensors(dict(loaded(folder).state_dict()), dict(source.state_dict()))
    assert_same_tensors(_files(folder), _files(tmp_path / "source"))
    for name in ("config.json", "generation_config.json"):
        mine, theirs = (json.loads((f / name).read_text()) for f in (folder, tmp_path / "source"))
        assert mine == theirs


def _files(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        tensors.update(load_file(file))
    return tensors


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "bloom", "opt"])
def test_compatibility_mode_without_processing_exports_the_same(
    architecture: str, tmp_path: Path
) -> None:
    model = bridge(fresh(architecture))
    model.enable_compatibility_mode(no_processing=True, disable_warnings=True)
    assert changed(export(model, NOBODY, tmp_path / "out"), fresh(architecture)) == set()
    neurons = some_neurons(model, ATTN_Q, ATTN_Z, MLP_POST)
    expected = hooked_logits(tiny(architecture), ablate(neurons))
    folder = export(model, neurons, tmp_path / "off")
    torch.testing.assert_close(exported_logits(folder), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("neurons", ["none", "empty masks", "times one"])
def test_what_changes_nothing_exports_the_model_as_it_is(neurons: str, tmp_path: Path) -> None:
    model = tiny("bloom")
    share = 0.5 if neurons == "times one" else 0.0
    some = NOBODY if neurons == "none" else some_neurons(model, ATTN_Q, MLP_POST, share=share)
    folder = export(model, some, tmp_path / "out", scale=1.0 if neurons == "times one" else 0)
    assert changed(folder, fresh("bloom")) == set()


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bloom"])
def test_the_live_model_is_left_as_it_was(architecture: str, tmp_path: Path) -> None:
    model = bridge(fresh(architecture))
    parameters, logits = state_of(model), hooked_logits(model)
    config = model.original_model.config.to_dict()
    generation = model.original_model.generation_config.to_dict()
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    random = torch.get_rng_state()
    export(model, some_neurons(model, *sites_of(model)), tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), random)
    assert_same_tensors(state_of(model), parameters)
    assert torch.equal(hooked_logits(model), logits)
    assert model.original_model.config.to_dict() == config
    assert model.original_model.generation_config.to_dict() == generation
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert all(not point.fwd_hooks for point in model.hook_dict.values())


def test_exporting_twice_and_loading_twice_gives_the_same(tmp_path: Path) -> None:
    model = tiny("gemma3")
    neurons = some_neurons(model, MLP_POST, ATTN_V)
    first, second = (export(model, neurons, tmp_path / name) for name in ("a", "b"))
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert_same_tensors(dict(loaded(first).state_dict()), dict(loaded(first).state_dict()))


def test_an_exported_model_can_be_exported_again(tmp_path: Path) -> None:
    """Twice 1.5 is 2.25 (1.5 is exact in binary, so to the bit)."""
    neurons = some_neurons(tiny("bloom"), ATTN_Q, MLP_POST)
    once = export(tiny("bloom"), neurons, tmp_path / "once", scale=1.5)
    twice = export(bridge(loaded(once)), neurons, tmp_path / "twice", scale=1.5)
    expected = exported_logits(export(tiny("bloom"), neurons, tmp_path / "both", scale=2.25))
    torch.testing.assert_close(exported_logits(twice), expected, atol=1e-5, rtol=0)


def test_only_edited_tensors_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    shared: dict[str, bool] = {}

    def look(plain: Any, folder: Path, max_shard_size: str) -> None:
        live = {parameter.data_ptr() for parameter in model.parameters()}
        shared.update({k: t.data_ptr() in live for k, t in plain.state_dict().items()})

    monkeypatch.setattr(exporting, "_save", look)
    mask = torch.zeros(LAYERS, D_MLP, dtype=torch.bool)
    mask[1, 4] = True
    export(model, NeuronSet({MLP_POST: mask}), tmp_path / "out")
    copied = [key for key, is_shared in shared.items() if not is_shared]
    assert copied == ["model.layers.1.mlp.down_proj.weight"]


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["gemma3", "gpt2", "bloom"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = bridge(fresh(architecture).to(dtype))
    folder = export(model, some_neurons(model, ATTN_V), tmp_path / "out", scale=1.5)
    assert {tensor.dtype for tensor in _files(folder).values()} == {dtype}
    config = json.loads((folder / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert loaded(folder).dtype == dtype
    # 1.5 times a weight rounds once, as the reference here does
    before = fresh(architecture).to(dtype).state_dict()
    for key in changed(folder, fresh(architecture).to(dtype)):
        now, old = loaded(folder).state_dict()[key], before[key]
        moved = now != old
        assert torch.equal(now[moved], (old * 1.5)[moved])


@pytest.mark.lane
@pytest.mark.parametrize("architecture", ["llama", "bloom"])
def test_sharded_files_load_to_the_same(architecture: str, tmp_path: Path) -> None:
    model = tiny(architecture)
    neurons = some_neurons(model, ATTN_Q, MLP_POST)
    whole = export(model, neurons, tmp_path / "whole")
    sharded = export(model, neurons, tmp_path / "sharded", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert_same_tensors(_files(sharded), _files(whole))
    assert torch.equal(exported_logits(sharded), exported_logits(whole))


@pytest.mark.parametrize("architecture", ["gemma3", "gpt2", "bloom", "opt"])
def test_tied_weights_stay_tied_and_are_stored_once(architecture: str, tmp_path: Path) -> None:
    folder = export(tiny(architecture), NOBODY, tmp_path / "out")
    again = loaded(folder)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert sum(tensor.shape == (VOCAB, D_MODEL) for tensor in _files(folder).values()) == 1


def test_untied_weights_stay_untied(tmp_path: Path) -> None:
    again = loaded(export(tiny("llama"), NOBODY, tmp_path / "out"))
    assert not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)


def test_weights_changed_in_the_live_model_are_exported(tmp_path: Path) -> None:
    """Also those of GPT-2's attention, where TransformerLens's parts are views."""
    model = bridge(fresh("gpt2"))
    with torch.no_grad():
        model.blocks[1].attn.k.original_component.weight[3] += 0.5
        model.blocks[2].mlp.out.original_component.weight[7] -= 0.5
    folder = export(model, NOBODY, tmp_path / "out")
    assert changed(folder, fresh("gpt2")) == {
        "transformer.h.1.attn.c_attn.weight",
        "transformer.h.2.mlp.c_proj.weight",
    }
    torch.testing.assert_close(exported_logits(folder), hooked_logits(model), atol=1e-5, rtol=0)


def test_infinite_weights_are_switched_off_to_zero(tmp_path: Path) -> None:
    model = bridge(fresh("llama"))
    mask = torch.zeros(LAYERS, D_MLP, dtype=torch.bool)
    mask[0, 5] = True
    with torch.no_grad():
        model.blocks[0].mlp.out.original_component.weight[:, 5] = torch.inf
    folder = export(model, NeuronSet({MLP_POST: mask}), tmp_path / "out")
    assert bool(exported_logits(folder).isfinite().all())


class TestGenerationConfig:
    """What the model generates with goes along, even what transformers would refuse to save."""

    @pytest.mark.parametrize("sampled", [True, False])
    def test_it_is_kept(self, sampled: bool, tmp_path: Path) -> None:
        model = bridge(fresh("llama"))
        model.original_model.generation_config = transformers.GenerationConfig(
            do_sample=sampled, temperature=0.3, eos_token_id=[2, 5]
        )
        folder = export(model, NOBODY, tmp_path / "out")
        kept = loaded(folder).generation_config
        assert (kept.do_sample or False, kept.temperature) == (sampled, 0.3)
        assert kept.eos_token_id == [2, 5]

    def test_without_one_there_is_no_file(self, tmp_path: Path) -> None:
        model = bridge(fresh("llama"))
        model.original_model.generation_config = None
        folder = export(model, NOBODY, tmp_path / "out")
        assert not (folder / "generation_config.json").exists()
        torch.testing.assert_close(exported_logits(folder), hooked_logits(tiny("llama")))


def word_tokenizer(*, bos: bool) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {f"w{number}": number for number in range(3, VOCAB)}
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, **words}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        inner.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


class TestTokenizer:
    """It is in the folder when the model has one, and splits text as before."""

    @pytest.mark.lane
    @pytest.mark.parametrize("bos", [True, False])
    def test_it_encodes_as_before(self, bos: bool, tmp_path: Path) -> None:
        original = word_tokenizer(bos=bos)
        model = bridge(fresh("llama"), word_tokenizer(bos=bos))
        folder = export(model, NOBODY, tmp_path / "out")
        again = transformers.AutoTokenizer.from_pretrained(folder)
        for text in ("w3 w4", "w96 nobody w5", ""):
            assert again(text).input_ids == original(text).input_ids
        assert (again.bos_token_id, again.eos_token_id) == (1, 2)

    def test_without_one_there_is_none(self, tmp_path: Path) -> None:
        folder = export(tiny("llama"), NOBODY, tmp_path / "out")
        assert sorted(file.name for file in folder.iterdir()) == [
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
        ]


class TestCard:
    """The README says what the folder is, and nothing about whose machine it was made on."""

    def test_it_names_the_base_the_edit_and_the_licence(self, tmp_path: Path) -> None:
        model = bridge(fresh("llama"), name="somebody/some-llama")
        mask = torch.zeros(LAYERS, D_MLP, dtype=torch.bool)
        mask[0, :2] = True
        mask[2, 7] = True
        keys = torch.zeros(LAYERS, KV_HEADS * 8, dtype=torch.bool)
        keys[1, 3] = True
        neurons = NeuronSet({MLP_POST: mask, ATTN_K: keys})
        text = (export(model, neurons, tmp_path / "quiet", scale=0.25) / "README.md").read_text()
        assert 'base_model: "somebody/some-llama"' in text
        assert "with 4 neurons multiplied by 0.25 in its weights" in text
        for row in ("mlp_post | 0 | 2 | 112", "mlp_post | 2 | 1 | 112", "attn_k | 1 | 1 | 16"):
            assert f"| {row} | 0.25 |" in text
        assert "mlp_post | 1 |" not in text
        assert "In all: 3 at mlp_post, 1 at attn_k" in text
        assert "lens_lang.export(model, neurons, 'quiet', scale=0.25)" in text
        assert all(version in text for version in versions().values())
        assert "licence of the base model applies" in text
        assert str(tmp_path) not in text

    def test_ablation_and_an_unedited_export_are_told_apart(self, tmp_path: Path) -> None:
        model = tiny("llama")
        off = export(model, some_neurons(model, MLP_POST), tmp_path / "off")
        assert "neurons switched off in its weights" in (off / "README.md").read_text()
        same = export(model, NOBODY, tmp_path / "same")
        assert "` as it was, exported" in (same / "README.md").read_text()

    def test_an_odd_name_stays_one_value_of_the_header(self, tmp_path: Path) -> None:
        import yaml

        name = 'a "b": c\ntags: [d]'
        folder = export(bridge(fresh("llama"), name=name), NOBODY, tmp_path / "out")
        header = (folder / "README.md").read_text().split("---\n")[1]
        assert yaml.safe_load(header) == {
            "library_name": "transformers",
            "base_model": name,
            "tags": ["lens-lang"],
        }


class TestChangedCopies:
    """Where TransformerLens has copies, a change of them is refused rather than lost."""

    @pytest.mark.lane
    @pytest.mark.parametrize("architecture", ["bloom", "neox"])
    @pytest.mark.parametrize("part", ["q", "k", "v"])
    def test_a_changed_copy_is_refused(self, architecture: str, part: str, tmp_path: Path) -> None:
        model = bridge(fresh(architecture))
        with torch.no_grad():
            getattr(model.blocks[1].attn, part).original_component.weight[3, 2] += 1
        message = "copies of q, k, v in the attn of layer 1, .* exporting would lose the change"
        with pytest.raises(ModelError, match=message):
            export(model, NOBODY, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []

    def test_a_changed_bias_is_refused(self, tmp_path: Path) -> None:
        model = bridge(fresh("bloom"))
        with torch.no_grad():
            model.blocks[2].attn.v.original_component.bias[0] += 1
        with pytest.raises(ModelError, match="in the attn of layer 2, .* would lose the change"):
            export(model, some_neurons(model, MLP_POST), tmp_path / "out")

    def test_a_change_of_the_fused_weight_that_the_model_never_saw_is_refused(
        self, tmp_path: Path
    ) -> None:
        hf = fresh("bloom")
        fused = hf.transformer.h[0].self_attention.query_key_value.weight
        model = bridge(hf)
        with torch.no_grad():
            fused.zero_()
        with pytest.raises(ModelError, match="no fused weight that equals them"):
            export(model, NOBODY, tmp_path / "out")

    def test_a_uniform_fused_weight_is_ambiguous(self, tmp_path: Path) -> None:
        hf = fresh("bloom")
        with torch.no_grad():
            hf.transformer.h[0].self_attention.query_key_value.weight.fill_(0.1)
            hf.transformer.h[0].self_attention.query_key_value.bias.fill_(0.1)
        with pytest.raises(ModelError, match="attn of layer 0 is fused .* cannot be told"):
            export(bridge(hf), NOBODY, tmp_path / "out")

    def test_a_parameter_that_only_the_bridge_has_is_refused(self, tmp_path: Path) -> None:
        model = bridge(fresh("llama"))
        bias = torch.nn.Parameter(torch.zeros(VOCAB))
        model.unembed.original_component.bias = bias
        export(model, NOBODY, tmp_path / "zeros")  # as TransformerLens 3 adds by itself
        with torch.no_grad():
            bias[3] = 1.0
        with pytest.raises(ModelError, match="lm_head.bias exists only in TransformerLens"):
            export(model, NOBODY, tmp_path / "out")

    def test_biases_of_zeros_that_only_the_bridge_has_are_left_out(self, tmp_path: Path) -> None:
        """Beside a fused projection without any; the neurons' weights are edited all the same."""
        model = bridge(fresh("falcon"))
        expected = hooked_logits(model, ablate(some_neurons(model, ATTN_Q)))
        bias = torch.nn.Parameter(torch.zeros(D_MODEL))
        model.blocks[1].attn.q.original_component.bias = bias
        folder = export(model, some_neurons(model, ATTN_Q), tmp_path / "zeros")
        assert (
            _files(folder).keys()
            == _files(export(bridge(fresh("falcon")), NOBODY, tmp_path / "f")).keys()
        )
        torch.testing.assert_close(exported_logits(folder), expected, atol=1e-5, rtol=0)
        with torch.no_grad():
            bias[3] = 1.0
        with pytest.raises(ModelError, match="attn of layer 1, .* would lose the change"):
            export(model, NOBODY, tmp_path / "out")

    def test_weights_that_are_tied_only_in_the_configuration_are_refused(
        self, tmp_path: Path
    ) -> None:
        hf = fresh("gemma3")
        hf.lm_head.weight = torch.nn.Parameter(hf.lm_head.weight.detach() + 1)
        with pytest.raises(ModelError, match="ties lm_head.weight to another weight, but"):
            export(bridge(hf), NOBODY, tmp_path / "out")


class TestRefusals:
    """Each in one sentence, before anything is written."""

    @pytest.mark.parametrize("factor", [float("nan"), float("inf"), -float("inf")])
    def test_a_factor_that_is_no_number(self, factor: float, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="scale, which must be finite, got"):
            export(tiny("llama"), NOBODY, tmp_path / "out", scale=factor)

    @pytest.mark.parametrize("size", ["", "big", "5", "5 GiB", "-1GB"])
    def test_a_size_that_is_none(self, size: str, tmp_path: Path) -> None:
        with pytest.raises(OptionError, match="max_shard_size must be a number with KB"):
            export(tiny("llama"), NOBODY, tmp_path / "out", max_shard_size=size)

    @pytest.mark.parametrize("site", [RESID_POST, ATTN_PATTERN])
    def test_sites_without_weights(self, site: Site, tmp_path: Path) -> None:
        neurons = NeuronSet({site: torch.ones(LAYERS, D_MODEL, dtype=torch.bool)})
        with pytest.raises(SiteError, match=f"at {site.name}, which has no weights of its own"):
            export(tiny("llama"), neurons, tmp_path / "out")

    def test_the_up_projection_of_an_mlp_without_a_gate(self, tmp_path: Path) -> None:
        neurons = NeuronSet({MLP_UP: torch.ones(LAYERS, D_MLP, dtype=torch.bool)})
        with pytest.raises(SiteError, match="have no gate, .* Take mlp_pre or mlp_post"):
            export(tiny("gpt2"), neurons, tmp_path / "out")

    @pytest.mark.parametrize("shape", [(LAYERS, 50), (LAYERS + 1, D_MLP)])
    def test_neurons_of_another_model(self, shape: tuple[int, int], tmp_path: Path) -> None:
        neurons = NeuronSet({MLP_POST: torch.ones(shape, dtype=torch.bool)})
        with pytest.raises(ShapeError, match="they belong to another model"):
            export(tiny("llama"), neurons, tmp_path / "out")

    def test_mixtures_of_experts(self, tmp_path: Path) -> None:
        config = transformers.MixtralConfig(
            **_LONG, num_key_value_heads=KV_HEADS, num_local_experts=4
        )
        model = bridge(transformers.MixtralForCausalLM(config))
        with pytest.raises(ModelError, match="is a mixture of experts"):
            export(model, NOBODY, tmp_path / "out")

    def test_processed_weights(self, tmp_path: Path) -> None:
        model = bridge(fresh("gpt2"))
        model.enable_compatibility_mode(disable_warnings=True)
        with pytest.raises(ModelError, match="were processed"):
            export(model, NOBODY, tmp_path / "out")

    def test_quantised_weights(self, tmp_path: Path) -> None:
        model = bridge(fresh("llama"))
        model.original_model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
        with pytest.raises(ModelError, match="are quantised, .* Load it unquantised"):
            export(model, NOBODY, tmp_path / "out")

    def test_weights_in_integers(self, tmp_path: Path) -> None:
        model = bridge(fresh("llama"))
        linear = model.blocks[0].mlp.out.original_component
        packed = torch.nn.Parameter(linear.weight.detach().to(torch.int8), requires_grad=False)
        linear.weight = packed
        with pytest.raises(ModelError, match="are quantised"):
            export(model, NOBODY, tmp_path / "out")

    def test_offloaded_weights(self, tmp_path: Path) -> None:
        model = bridge(fresh("llama"))
        linear = model.blocks[1].mlp.out.original_component
        linear.weight = torch.nn.Parameter(linear.weight.detach().to("meta"))
        message = "model.layers.1.mlp.down_proj.weight is not in memory"
        with pytest.raises(ModelError, match=message):
            export(model, NOBODY, tmp_path / "out")

    def test_a_configuration_of_another_model(self, tmp_path: Path) -> None:
        model = bridge(fresh("gpt2"))
        model.original_model.config.n_layer = LAYERS + 1
        with pytest.raises(ModelError, match="has no transformer.h.3.* which transformers expects"):
            export(model, NOBODY, tmp_path / "out")

    def test_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("mine")
        with pytest.raises(StorageError, match="out, which is a file: choose another path$"):
            export(tiny("llama"), NOBODY, tmp_path / "out")
        assert (tmp_path / "out").read_text() == "mine"

    def test_a_folder_with_something_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
        with pytest.raises(StorageError, match="with something in it: .* or empty it$"):
            export(tiny("llama"), NOBODY, str(tmp_path / "out"))
        assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]

    def test_a_folder_below_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(StorageError, match="Could not export to .* Nothing was written there"):
            export(tiny("llama"), NOBODY, tmp_path / "file" / "out")


class TestFolder:
    """It is complete or it is not there."""

    def test_empty_and_missing_folders_are_taken(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "empty")
        monkeypatch.chdir(tmp_path)
        for path in (tmp_path / "link", tmp_path / "a" / "b" / "c", "here"):
            folder = export(tiny("llama"), NOBODY, path)
            assert folder == Path(path)
            assert (folder / "model.safetensors").is_file()
        assert (tmp_path / "empty" / "config.json").is_file()
        assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "empty", "here", "link"]

    @pytest.mark.parametrize("existing", [True, False])
    @pytest.mark.parametrize(
        ("error", "seen", "message"),
        [
            (RuntimeError("planted"), RuntimeError, "planted"),
            (KeyboardInterrupt("planted"), KeyboardInterrupt, "planted"),
            (SafetensorError("disk full"), StorageError, "disk full. Nothing was"),
            (OSError(28, "No space left on device"), StorageError, "No space left .* Nothing was"),
        ],
    )
    def test_an_error_in_the_middle_leaves_nothing(
        self,
        error: BaseException,
        seen: type[BaseException],
        message: str,
        existing: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        model = tiny("llama")
        before = state_of(model)
        real = exporting._save

        def fail(plain: Any, folder: Path, max_shard_size: str) -> None:
            real(plain, folder, max_shard_size)
            assert (folder / "model.safetensors").is_file()
            raise error

        monkeypatch.setattr(exporting, "_save", fail)
        if existing:
            (tmp_path / "out").mkdir()
        with pytest.raises(seen, match=message):
            export(model, some_neurons(model, MLP_POST), tmp_path / "out")
        assert [file.name for file in tmp_path.rglob("*")] == ["out"] * existing
        assert_same_tensors(state_of(model), before)

    def test_what_appears_at_the_target_meanwhile_is_kept(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def late(plain: Any, folder: Path, max_shard_size: str) -> None:
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "mine").write_text("mine")

        monkeypatch.setattr(exporting, "_save", late)
        with pytest.raises(StorageError, match="Could not export to"):
            export(tiny("llama"), NOBODY, tmp_path / "out")
        assert [file.name for file in tmp_path.rglob("*")] == ["out", "mine"]


needs_hooked_transformer = pytest.mark.skipif(
    not has_hooked_transformer(), reason="HookedTransformer left TransformerLens with version 4"
)


@needs_hooked_transformer
class TestHookedTransformer:
    """It has no Hugging Face model behind it, so the edit is made in the one it came from."""

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        fresh("llama").save_pretrained(tmp_path / "source")
        word_tokenizer(bos=True).save_pretrained(tmp_path / "source")
        return tmp_path / "source"

    def model(self, source: Path) -> Any:
        import warnings

        from transformer_lens import HookedTransformer, HookedTransformerConfig
        from transformer_lens.pretrained.weight_conversions import convert_llama_weights

        hf = loaded(source)
        cfg = HookedTransformerConfig(
            n_layers=LAYERS,
            d_model=D_MODEL,
            n_ctx=128,
            d_head=8,
            n_heads=HEADS,
            d_mlp=D_MLP,
            n_key_value_heads=KV_HEADS,
            d_vocab=VOCAB,
            act_fn="silu",
            gated_mlp=True,
            normalization_type="RMS",
            positional_embedding_type="rotary",
            rotary_dim=8,
            rotary_adjacent_pairs=False,
            rotary_base=int(hf.config.rope_parameters["rope_theta"]),
            eps=hf.config.rms_norm_eps,
            final_rms=True,
            original_architecture="LlamaForCausalLM",
            device="cpu",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            model = HookedTransformer(cfg)
        model.load_state_dict(convert_llama_weights(hf, cfg), strict=False)
        return model.eval()

    @pytest.mark.lane
    @pytest.mark.parametrize("factor", [0.0, 1.7])
    @pytest.mark.parametrize("site", SITES)
    def test_exported_logits_equal_hooked_logits(
        self, site: Site, factor: float, source: Path, tmp_path: Path
    ) -> None:
        model = self.model(source)
        neurons = some_neurons(model, site)
        hooks = ablate(neurons) if factor == 0 else scale(neurons, factor)
        folder = export(model, neurons, tmp_path / "out", scale=factor, source=source)
        expected = hooked_logits(model, hooks)
        torch.testing.assert_close(exported_logits(folder), expected, atol=2e-5, rtol=0)
        assert transformers.AutoTokenizer.from_pretrained(folder)("w3").input_ids == [1, 3]
        assert ", source='source')" in (folder / "README.md").read_text()

    @pytest.mark.lane
    def test_without_a_tokeniser_in_the_source(self, source: Path, tmp_path: Path) -> None:
        for file in source.glob("tokenizer*"):
            file.unlink()
        folder = export(self.model(source), NOBODY, tmp_path / "out", source=source)
        assert_same_tensors(_files(folder), _files(source))
        assert not list(folder.glob("tokenizer*"))

    @pytest.mark.lane
    def test_without_a_source_it_says_what_to_give(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="give source=, the folder or hub id"):
            export(self.model(source), NOBODY, tmp_path / "out")

    @pytest.mark.lane
    def test_a_source_that_cannot_be_loaded(self, source: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match="Could not load source='.*nowhere'"):
            export(self.model(source), NOBODY, tmp_path / "out", source=tmp_path / "nowhere")

    @pytest.mark.lane
    def test_a_source_of_another_size(self, source: Path, tmp_path: Path) -> None:
        model = self.model(source)
        shutil.rmtree(source)
        fresh("bloom").save_pretrained(source)
        with pytest.raises(ModelError, match="layers of .* it was not loaded from there"):
            export(model, NOBODY, tmp_path / "out", source=source)

    @pytest.mark.lane
    def test_a_source_with_other_weights(self, source: Path, tmp_path: Path) -> None:
        model = self.model(source)
        with torch.no_grad():
            model.blocks[2].attn.W_O[1, 2, 3] += 1
        with pytest.raises(ModelError, match="attn.W_O of layer 2 differs"):
            export(model, NOBODY, tmp_path / "out", source=source)


@pytest.mark.real
def test_the_packaged_model_exports(gemma: Any, tmp_path: Path) -> None:
    """Real weights, tied embeddings, QK-norm, and a tokeniser of 262,144 pieces."""
    neurons = some_neurons(gemma, MLP_POST, ATTN_V, share=0.02)
    text = "Le chat est sur la table."
    folder = export(gemma, neurons, tmp_path / "out")
    again = transformers.AutoTokenizer.from_pretrained(folder)
    original = transformers.AutoTokenizer.from_pretrained(exporting.packaged_folder())
    assert again(text).input_ids == original(text).input_ids
    tokens = torch.tensor([original(text).input_ids])
    with torch.inference_mode():
        expected = gemma.run_with_hooks(tokens, fwd_hooks=ablate(neurons))
        found = loaded(folder)(tokens).logits
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    assert PACKAGED in (folder / "README.md").read_text()


def test_every_gated_model_of_the_suite_is_gated() -> None:
    """The laws above choose their sites by this."""
    assert [name for name in ARCHITECTURES if is_gated(tiny(name))] == list(GATED)
