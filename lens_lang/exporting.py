"""Writing a model whose neurons are switched off, or scaled, in its weights for good.

The folder is an ordinary Hugging Face one: `transformers` loads it, hooks and this package are no
longer needed, and its logits are those of the original model under the hooks of
`lens_lang.intervene`.

TransformerLens works on the Hugging Face model itself, but under other names. So the edit is made
in the tensors that `transformers` will load; `lens_lang.fused` finds the neurons in them.
"""

import copy
import json
import math
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_lang.errors import ModelError, OptionError, SiteError, StorageError
from lens_lang.fused import find_homes, place_of, switching_weights
from lens_lang.models import PACKAGED, bridge, packaged_folder
from lens_lang.neurons import NeuronSet
from lens_lang.sites import (
    ATTN_K,
    ATTN_Q,
    ATTN_V,
    ATTN_Z,
    MLP_POST,
    MLP_PRE,
    MLP_UP,
    HookedModel,
    check_layers,
    check_supported,
    is_gated,
    model_name,
    n_layers,
    site_width,
)
from lens_lang.storage import versions

_SITES = (MLP_PRE, MLP_UP, MLP_POST, ATTN_Q, ATTN_K, ATTN_V, ATTN_Z)


def export(
    model: HookedModel,
    neurons: NeuronSet,
    path: str | Path,
    *,
    scale: int | float = 0.0,
    source: str | Path | None = None,
    max_shard_size: str = "5GB",
) -> Path:
    """Write a Hugging Face folder in which neurons are switched off, or scaled, for good.

    The exported model's logits are those of `model` under ``ablate(neurons)``, or under
    ``scale(neurons, scale)``. The model itself is left as it is, and only the tensors that change
    are copied. The folder appears when it is complete, and not before.

    Args:
        model: The model, with raw weights. What was changed in its weights is exported too.
        neurons: Neurons at any of mlp_pre, mlp_up, mlp_post, attn_q, attn_k, attn_v and attn_z;
            ``NeuronSet({})`` exports the model as it is.
        path: The folder to write: a new one, or an empty one.
        scale: What to multiply them by; 0 switches them off.
        source: Only for a `HookedTransformer`, which has no Hugging Face model behind it: the
            folder or hub id that it was loaded from.
        max_shard_size: Largest file of weights, such as ``"5GB"`` or ``"200MB"``.

    Returns:
        The folder, for ``AutoModelForCausalLM.from_pretrained`` and, if the model has a
        tokeniser, for ``AutoTokenizer.from_pretrained``. Its README.md says what was changed.

    Raises:
        OptionError: `scale` is NaN or infinite, or `max_shard_size` is no size.
        SiteError: A site has no weights of its own, or the model has no such site.
        ShapeError: The neurons are for another model.
        ModelError: The model is a mixture of experts, quantised, offloaded or processed; its
            weights and those of the Hugging Face model behind it disagree; or `source` is
            missing, cannot be loaded, or is another model.
        StorageError: `path` is a file or a folder with something in it, or cannot be written.
    """
    scale = float(scale)
    _check_options(scale, max_shard_size)
    target = _free_folder(path)
    _check_neurons(model, neurons)
    card = _card(model, neurons, target.name, scale=scale, source=source)
    tokenizer = getattr(model, "tokenizer", None)
    if getattr(model, "original_model", None) is None:
        model, tokenizer = _from_source(model, source, tokenizer)
    plain = _plain_model(model, neurons, scale)
    with _appearing(target) as folder:
        _save(plain, folder, max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return Path(path)


def _check_options(scale: float, max_shard_size: str) -> None:
    if not math.isfinite(scale):
        raise OptionError(f"Neurons are exported times scale, which must be finite, got {scale}")
    if not re.fullmatch(r"\s*\d+(\.\d+)?\s*[KMGT]B\s*", max_shard_size, re.IGNORECASE):
        raise OptionError(
            "max_shard_size must be a number with KB, MB, GB or TB, such as '5GB', got "
            f"{max_shard_size!r}"
        )


def _check_neurons(model: HookedModel, neurons: NeuronSet) -> None:
    check_supported(model)
    for site, mask in neurons.masks.items():
        if site not in _SITES:
            raise SiteError(
                f"Cannot export neurons at {site.name}, which has no weights of its own: only "
                f"{', '.join(site.name for site in _SITES)} have"
            )
        if site == MLP_UP and not is_gated(model):
            raise SiteError(
                f"Cannot export neurons at mlp_up: the MLPs of {model_name(model)} have no gate, "
                "so they have no up-projection beside it. Take mlp_pre or mlp_post"
            )
        check_layers(model, site, (mask.shape[0], mask.shape[1]))


def _free_folder(path: str | Path) -> Path:
    # Resolved, because a folder cannot be moved onto a link, nor be put beside "." by name.
    target = Path(path).resolve()
    taken = any(target.iterdir()) if target.is_dir() else target.exists()
    if taken:
        what = "a folder with something in it" if target.is_dir() else "a file"
        raise StorageError(
            f"Cannot export to {path}, which is {what}: choose another path"
            + (", or empty it" if target.is_dir() else "")
        )
    return target


# The Hugging Face model with the edit in it


def _plain_model(model: Any, neurons: NeuronSet, scale: float) -> Any:
    """The Hugging Face model without TransformerLens in it, sharing all weights but the edited."""
    original = model.original_model
    name = model_name(model)
    if getattr(original.config, "quantization_config", None) is not None or any(
        not parameter.is_floating_point() for parameter in original.parameters()
    ):
        raise ModelError(
            f"Cannot export {name}: its weights are quantised, and neurons are no longer rows and "
            "columns of them. Load it unquantised"
        )
    # A copy, because saving writes dtype and class into it; on meta, so as to take no memory.
    with torch.device("meta"):
        plain = type(original)(copy.deepcopy(original.config))
    tensors = _tensors(model, list(plain.state_dict()))
    _edit(model, tensors, neurons, scale)
    plain.load_state_dict(tensors, assign=True)
    plain.tie_weights()
    for key, kept in plain.state_dict().items():
        if place_of(kept) != place_of(tensors[key]) and not torch.equal(kept, tensors[key]):
            raise ModelError(
                f"Cannot export {name}: its configuration ties {key} to another weight, but the "
                "two differ. Set config.tie_word_embeddings = False, or make them equal"
            )
    plain.generation_config = copy.deepcopy(getattr(original, "generation_config", None))
    return plain.eval()


def _tensors(model: Any, keys: list[str]) -> dict[str, Tensor]:
    """The model's tensors under the names that `transformers` gives them, not copied."""
    found: dict[str, Tensor] = {}
    for key, tensor in model.original_model.state_dict().items():
        # TransformerLens wraps modules where they stand; the wrapped one is one name deeper.
        found.setdefault(key.replace("._original_component", ""), tensor)
    for key in keys:
        if key not in found:
            raise ModelError(
                f"Cannot export {model_name(model)}: it has no {key}, which transformers expects"
            )
        if found[key].is_meta:
            raise ModelError(
                f"Cannot export {model_name(model)}: {key} is not in memory, because the model is "
                "offloaded. Load it without offloading"
            )
    # The rest is what only the bridge has: the same weights by other names, and copies.
    return {key: found[key] for key in keys}


def _edit(model: HookedModel, tensors: dict[str, Tensor], neurons: NeuronSet, scale: float) -> None:
    keys = {place_of(tensor): key for key, tensor in tensors.items()}
    homes = find_homes(model, tensors)
    owned: set[str] = set()
    for piece in switching_weights(model, neurons):
        place = place_of(piece.parameter)
        if place in homes:
            home = homes[place]
            key, axis, indices = home.key, home.axis, home.rows[piece.indices]
        elif place in keys:
            key, axis, indices = keys[place], piece.axis, piece.indices
        else:
            continue  # a bias of zeros that only TransformerLens has, as `find_homes` made sure
        if key not in owned:
            tensors[key] = tensors[key].clone()
            owned.add(key)
        tensor = tensors[key]
        indices = indices.to(tensor.device)
        if scale == 0:  # written, not multiplied: infinity times 0 would be NaN
            tensor.index_fill_(axis, indices, 0.0)
        else:
            tensor.index_copy_(axis, indices, tensor.index_select(axis, indices) * scale)


# HookedTransformer: the Hugging Face model comes from where it came from


def _from_source(
    model: HookedModel, source: str | Path | None, tokenizer: Any
) -> tuple[HookedModel, Any]:
    """Load the checkpoint that a `HookedTransformer` was made of, and its own tokeniser."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    name = model_name(model)
    if source is None:
        raise ModelError(
            f"Cannot export {name} from memory, because a HookedTransformer has no Hugging Face "
            "model behind it: give source=, the folder or hub id that it was loaded from"
        )
    where = packaged_folder() if str(source) == PACKAGED else source
    try:
        hf_model = AutoModelForCausalLM.from_pretrained(where, dtype="auto")
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"Could not load source={str(source)!r}, the checkpoint of {name}, as a folder or from "
            f"the hub ({first})"
        ) from error
    # TransformerLens changes the tokenisers that it is given; the checkpoint's is as published.
    with suppress(OSError, ValueError):
        tokenizer = AutoTokenizer.from_pretrained(where)
    behind = bridge(hf_model)
    _check_same_model(model, behind, str(source))
    return behind, tokenizer


def _check_same_model(model: Any, behind: Any, source: str) -> None:
    name = model_name(model)
    for site in (MLP_POST, ATTN_Q, ATTN_K):
        mine = (n_layers(model), site_width(model, site))
        theirs = (n_layers(behind), site_width(behind, site))
        if mine != theirs:
            raise ModelError(
                f"source={source!r} has {theirs[0]} layers of {theirs[1]} at {site.name}, but "
                f"{name} has {mine[0]} layers of {mine[1]}: it was not loaded from there"
            )
    for layer in range(n_layers(model)):
        for room, weight in _COMPARED:
            here, there = _matrix(model, layer, room, weight), _matrix(behind, layer, room, weight)
            if here is None or there is None:
                continue
            if here.shape != there.shape or not torch.equal(here, there.to(here.dtype)):
                raise ModelError(
                    f"The weights of {name} are not those of source={source!r} ({room}.{weight} of "
                    f"layer {layer} differs), so exporting that would lose them: give the "
                    "checkpoint that it was loaded from, unchanged since"
                )


_COMPARED = (
    *(("mlp", weight) for weight in ("W_gate", "W_in", "W_out")),
    *(("attn", weight) for weight in ("W_Q", "W_K", "W_V", "W_O")),
)


def _matrix(model: Any, layer: int, room: str, weight: str) -> Tensor | None:
    part = getattr(model.blocks[layer], room)
    # HookedTransformer repeats W_K and W_V for every query head, and has them as they are in _W_K.
    matrix = getattr(part, f"_{weight}", None)
    matrix = getattr(part, weight, None) if matrix is None else matrix
    return None if matrix is None else matrix.detach().cpu()


# The folder


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """Yield a folder that becomes `target` when the block ends well, and vanishes if not."""
    from safetensors import SafetensorError

    part = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.mkdir()
        yield part
        if target.is_dir():
            target.rmdir()  # empty, or this fails; only POSIX moves a folder onto an empty one
        part.replace(target)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"Could not export to {target}: {getattr(error, 'strerror', None) or error}. Nothing "
            "was written there"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _save(plain: Any, folder: Path, max_shard_size: str) -> None:
    from transformers import GenerationConfig

    # Written as it stands: transformers refuses to save settings that it loads with a warning, and
    # published models have them.
    generation, plain.generation_config = plain.generation_config, GenerationConfig()
    plain.save_pretrained(folder, max_shard_size=max_shard_size)
    file = folder / "generation_config.json"
    file.unlink(missing_ok=True)
    if generation is not None:
        generation.to_json_file(file, keys_to_pop=["compile_config"])


def _card(
    model: HookedModel,
    neurons: NeuronSet,
    folder: str,
    *,
    scale: float,
    source: str | Path | None,
) -> str:
    """The README.md: what the folder holds and what was done to it."""
    base = model_name(model)
    did = "switched off" if scale == 0 else f"multiplied by {scale:g}"
    what = f"with {len(neurons)} neurons {did} in its weights" if len(neurons) else "as it was"
    # The folder's own name only: a card is published, and paths say who made it.
    told = "" if source is None else f", source={Path(source).name!r}"
    lines = [
        "---",
        "library_name: transformers",
        f"base_model: {json.dumps(base)}",
        "tags: [lens-lang]",
        "---",
        "",
        f"# {folder}",
        "",
        f"`{base}` {what}, exported by lens_lang. It loads with `transformers` alone.",
        "",
    ]
    if len(neurons):
        lines += ["| site | layer | neurons | of | factor |", "|---|---|---|---|---|"]
        lines += [
            f"| {site.name} | {layer} | {count} | {mask.shape[1]} | {scale:g} |"
            for site, mask in neurons.masks.items()
            for layer, count in enumerate(mask.sum(1).tolist())
            if count
        ]
        totals = {site.name: int(mask.sum()) for site, mask in neurons.masks.items()}
        lines += ["", "In all: " + ", ".join(f"{n} at {name}" for name, n in totals.items()), ""]
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
    lines += [
        f"Made by `lens_lang.export(model, neurons, {folder!r}, scale={scale:g}{told})` with "
        f"{made_with}.",
        "",
        "The licence of the base model applies.",
        "",
    ]
    return "\n".join(lines)
