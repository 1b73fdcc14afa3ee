"""Tiny models of many architectures, and the packaged one.

Weights are random but of realistic scale: activations are far from zero, so that a wrong sign,
axis or hook point shows.
"""

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from browser import Browse, opening, running_browser

from lens_lang.corpora import Corpora
from lens_lang.models import PACKAGED, bridge, load_model

LAYERS, D_MODEL, D_MLP, HEADS, KV_HEADS, VOCAB = 3, 48, 112, 6, 2, 97

_SHARED: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GATED = {**_SHARED, "intermediate_size": D_MLP, "num_key_value_heads": KV_HEADS}
_SLIDING = {"sliding_window": 4}

ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_GATED)),
    "mistral": lambda: transformers.MistralForCausalLM(
        transformers.MistralConfig(**_GATED, **_SLIDING)
    ),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**_GATED)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(
        transformers.Gemma2Config(
            **_GATED, **_SLIDING, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=1.0
        )
    ),
    "gemma3": lambda: transformers.Gemma3ForCausalLM(
        transformers.Gemma3TextConfig(**_GATED, **_SLIDING, head_dim=8, query_pre_attn_scalar=8)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB,
            n_positions=128,
            n_embd=D_MODEL,
            n_layer=LAYERS,
            n_head=HEADS,
            n_inner=D_MLP,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(
            vocab_size=VOCAB,
            hidden_size=D_MODEL,
            n_layer=LAYERS,
            n_head=HEADS,
            bos_token_id=1,
            eos_token_id=2,
        )
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            **{**_SHARED, "pad_token_id": 0}, ffn_dim=D_MLP, word_embed_proj_dim=D_MODEL
        )
    ),
    "phi": lambda: transformers.PhiForCausalLM(
        transformers.PhiConfig(**_SHARED, intermediate_size=D_MLP)
    ),
}
GATED = ("llama", "mistral", "qwen2", "gemma2", "gemma3")


def hf_model(architecture: str, *, seed: int = 0) -> Any:
    """A random Hugging Face model whose activations have the scale of a trained one's."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[architecture]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            wide = parameter.ndim > 1
            parameter.normal_(0.0 if wide else 0.1, 0.15 if wide else 0.1)
    return model


@cache
def tiny(architecture: str) -> Any:
    """The bridge around `hf_model`, made once: no test changes it."""
    return bridge(hf_model(architecture))


@cache
def hooked_transformer() -> Any:
    """A `HookedTransformer` with raw random weights, on the lane that still has the class."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
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
        device="cpu",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the class is, and we support it
        model = HookedTransformer(cfg)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # gated checkpoints have no biases in their MLPs
            parameter.normal_(0.0, 0.0 if "mlp.b_" in name else 0.15)
    return model.eval()


def has_hooked_transformer() -> bool:
    """Whether this lane's TransformerLens still has the class (it left with version 4)."""
    return int(version("transformer-lens").split(".")[0]) < 4


@pytest.fixture(params=[*ARCHITECTURES, *["hooked_transformer"] * has_hooked_transformer()])
def any_model(request: pytest.FixtureRequest) -> Any:
    """Every architecture as a bridge, and where it exists a `HookedTransformer`."""
    return hooked_transformer() if request.param == "hooked_transformer" else tiny(request.param)


@pytest.fixture
def llama() -> Any:
    return tiny("llama")


@pytest.fixture
def gpt2() -> Any:
    return tiny("gpt2")


@pytest.fixture(scope="session")
def gemma() -> Any:
    """The packaged Gemma 3 270M."""
    return load_model(PACKAGED)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium; of a module, because no other event loop can run while it is open."""
    with running_browser() as started:
        yield started


@pytest.fixture
def browse(browser: Any) -> Iterator[Browse]:
    """``browse(path, width=1280, dark=False)`` opens a file offline; see `browser.Opened`."""
    with opening(browser) as opened:
        yield opened


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The real model's tests first: they take longest, and the others fill in beside them."""
    items.sort(key=lambda item: item.get_closest_marker("real") is None)


class LetterTokenizer:
    """A tokeniser without files: every character is a token."""

    bos_token_id = 1
    eos_token_id = 2
    all_special_ids = (0, 1, 2)

    def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[3 + ord(letter) % (VOCAB - 3) for letter in t] for t in texts]}

    def __len__(self) -> int:
        return VOCAB

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """The printable ASCII letter that is spelled so."""
        codes = [item - 3 if item - 3 >= 32 else item - 3 + VOCAB - 3 for item in ids]
        return [
            "<special>" if item < 3 else chr(code) for item, code in zip(ids, codes, strict=True)
        ]

    def decode(self, ids: list[int], *, skip_special_tokens: bool = False) -> str:
        """The letters of the ids."""
        kept = [item for item in ids if not (skip_special_tokens and item < 3)]
        return "".join(self.convert_ids_to_tokens(kept))


@pytest.fixture
def speller() -> Any:
    """What text corpora need of a model, without a model."""
    return SimpleNamespace(
        tokenizer=LetterTokenizer(), cfg=SimpleNamespace(default_prepend_bos=True)
    )


def random_documents(lengths: list[int], *, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture
def corpora() -> Corpora:
    """Two languages, documents of uneven length, one row each, with BOS."""
    return Corpora.from_tokens(
        {
            "en": random_documents([5, 9, 2, 12, 7]),
            "fr": random_documents([8, 3, 10], seed=1),
        },
        bos_id=1,
    )
