"""A model spread over two devices measures what it does on one, and mixes nothing of the two.

The devices are pretended: every tensor remembers where it would lie, all are on the CPU.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import D_MLP, LAYERS, VOCAB, LetterTokenizer, hf_model, random_documents
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import lens_lang as ll
from lens_lang.models import bridge
from lens_lang.vocabulary import VocabularyLanguages

ONLY_SHAPES = ("copy_", "expand_as", "view_as", "reshape_as")
CPU = torch.device("cpu")


def place(tensor: Tensor) -> str:
    return tensor.__dict__.get("place", "cpu")


def put(values: Any, device: str) -> Any:
    for each in tree_leaves(values):
        if isinstance(each, Tensor):
            each.__dict__["place"] = device
    return values


def asked(value: Any) -> str | None:
    if isinstance(value, Tensor):
        return place(value)
    is_device = isinstance(value, torch.device) or value in ("cpu", "cuda:0", "cuda:1")
    return str(value) if is_device else None


class Pretend(TorchFunctionMode):
    """PyTorch as if there were two GPUs: it refuses what they would refuse."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = func.__name__, dict(kwargs or {})
        if name == "__get__" and func.__self__.__name__ == "device":
            return torch.device(place(args[0]))
        device = asked(kwargs.get("device"))
        if device is not None:
            kwargs["device"] = CPU
        if name in ("to", "cpu"):
            device = device or next(filter(None, map(asked, args[1:])), None)
            device = device or ("cpu" if name == "cpu" else place(args[0]))
            rest = (CPU if isinstance(each, str | torch.device) else each for each in args[1:])
            moved = func(args[0], *rest, **kwargs)
            if moved is args[0] and device != place(moved):
                moved = torch.ops.aten.alias(moved)
            return put(moved, device)
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        if name in ("__getitem__", "__setitem__"):  # an index may lie on the CPU
            index = [each for each in tree_leaves(args[1]) if isinstance(each, Tensor)]
            tensors = [args[0], *(x for x in index if place(x) != "cpu")]
            tensors += [each for each in args[2:] if isinstance(each, Tensor)]
        places = {place(each) for each in tensors if each.ndim or place(each) != "cpu"}
        if len(places) > 1 and name not in ONLY_SHAPES:
            raise RuntimeError(f"{name} of tensors on {sorted(places)}")
        if name in ("numpy", "__array__") and places - {"cpu"}:
            raise TypeError(f"{name} of a tensor on {places}")
        where = place(tensors[0]) if len(places) > 1 else next(iter(places), "cpu")
        return put(func(*args, **kwargs), device or where)


def spread(architecture: str) -> Any:
    """A model whose last block and final norm are on the second device, as `accelerate` does it."""
    hf = hf_model(architecture)
    parts = dict.fromkeys((hf.model.embed_tokens, hf.model.rotary_emb), "cuda:0")
    parts |= {each: f"cuda:{n // 2}" for n, each in enumerate(hf.model.layers)}
    tied = hf.lm_head.weight is hf.model.embed_tokens.weight
    parts |= {hf.model.norm: "cuda:1", hf.lm_head: "cuda:0" if tied else "cuda:1"}
    for module, device in parts.items():
        put([*module.parameters(), *module.buffers()], device)

        def bring(module: Any, args: Any, kwargs: Any, device: str = device) -> Any:
            return tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, (args, kwargs))

        module.register_forward_pre_hook(bring, with_kwargs=True)
    with Pretend():
        model: Any = bridge(hf)
    model.tokenizer = LetterTokenizer()
    return model


TEXT = ll.Corpora.from_tokens({"en": random_documents([5, 9]), "fr": random_documents([8])})
NEURONS = ll.NeuronSet.from_indices(
    torch.tensor([[0, 3], [2, 7]]), site=ll.MLP_POST, shape=(LAYERS, D_MLP)
)


def frequency(model: Any) -> Any:
    return ll.collect(model, TEXT, ll.ActivationFrequency(), progress=False).count


def perplexity(model: Any) -> Any:
    hooks = {"few": ll.ablate(NEURONS)}
    return ll.perplexity_matrix(model, TEXT, hooks, controls=1, progress=False).delta_nll


def cards(model: Any) -> Any:
    vocabulary = VocabularyLanguages(("en",), torch.full((VOCAB, 2), 0.5))
    made = ll.neuron_cards(model, ["0.3", "2.7"], vocabulary, top_k=3)
    return torch.tensor([item.score for card in made for item in card.promoted])


def importance(model: Any) -> Any:
    return ll.collect(model, TEXT, ll.PLNDImportance(), progress=False).score_sum[ll.MLP_POST]


def latent(model: Any) -> Any:
    answers = [{"en": (5, 6), "fr": (7,)}]
    return ll.latent_language(model, ["hello"], answers).energy


@pytest.mark.parametrize("architecture", ["gemma3", "llama"])  # with tied embeddings and without
@pytest.mark.parametrize("measure", [frequency, perplexity, cards, importance, latent])
def test_a_model_on_two_devices_measures_the_same(
    architecture: str, measure: Callable[[Any], Tensor]
) -> None:
    model = spread(architecture)
    with Pretend():
        found = measure(model)
        assert model.blocks[0].mlp.W_out.device != model.blocks[2].mlp.W_out.device
        assert found.device.type == "cpu"
    whole = bridge(hf_model(architecture))
    whole.tokenizer = LetterTokenizer()
    torch.testing.assert_close(found, measure(whole), rtol=0, atol=0)


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here @ there.T,
        lambda here, there: torch.stack([here, there]),
        lambda here, there: here[there[0].long()],
        lambda here, there: here.__setitem__(0, there[0]),
        lambda here, there: here + there[0, 0],
        lambda here, there: here + torch.ones(1),
        lambda here, there: here.detach().numpy(),
    ],
)
def test_what_two_devices_refuse_is_noticed(mix: Callable[[Tensor, Tensor], Any]) -> None:
    blocks = spread("llama").blocks
    with Pretend(), torch.inference_mode(), pytest.raises((RuntimeError, TypeError), match="cuda"):
        mix(blocks[0].mlp.W_out.clone(), blocks[2].mlp.W_out)
