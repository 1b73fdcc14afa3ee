"""A long measurement in parts, each kept as soon as it is done.

A part's file is named after what made it, so that the same command finds what an interrupted one
has done, another one measures anew, and nothing is ever mistaken for something else.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_lang.continuing import ending_tokens
from lens_lang.documents import bos_token
from lens_lang.errors import OptionError, StorageError
from lens_lang.fingerprint import weights_digest
from lens_lang.intervene import NeuronEdit, UpProjection
from lens_lang.sites import FwdHooks, HookedModel, model_name
from lens_lang.storage import read_json, write_json
from lens_lang.vectors import VectorEdit

_FORMAT = 1
"""Of what is kept; another one is measured anew."""

_ABANDONED = 3600.0
"""Seconds after which a half-written file is nobody's."""


class Parts:
    """Parts of a measurement, in a folder or nowhere.

    Args:
        folder: Where to keep them; None measures every time.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)
        for left in self.folder.glob(".*.part") if self.folder else ():
            # A process that was killed left it; what is fresh may be another's, being written.
            if time.time() - left.stat().st_mtime > _ABANDONED:
                left.unlink(missing_ok=True)

    def get(self, key: Mapping[str, Any], measure: Callable[[], Any]) -> Any:
        """Return a part, from its file if there is one.

        Args:
            key: Everything that the part depends on, as JSON values.
            measure: Makes the part, as JSON values.

        Returns:
            The part, equal whether measured or read.

        Raises:
            StorageError: Its file is damaged, or cannot be written.
        """
        if self.folder is None:
            return measure()
        written = json.dumps(key, sort_keys=True, ensure_ascii=False)
        file = self.folder / f"{hashlib.sha256(written.encode()).hexdigest()[:32]}.json"
        if file.exists():
            found = read_json(file)
            if found.get("key") != json.loads(written) or "part" not in found:
                raise StorageError(f"{file} is damaged: delete it, and it is measured again")
            return found["part"]
        part = measure()
        write_json(file, {"key": key, "part": part})
        return part


def model_digest(model: HookedModel) -> str:
    """Return what tells a model from others, after any edit, in any process.

    Weights are read whole. Settings, ends of text and the tokeniser's name and size are told, too.

    Args:
        model: The model.

    Raises:
        OptionError: Hooks are attached to it, so what it says is not its own.
    """
    hooked = [name for name, point in model.hook_dict.items() if getattr(point, "fwd_hooks", None)]
    if hooked:
        raise OptionError(
            f"Hooks are attached to {model_name(model)} (at {hooked[0]!r}), so what is measured "
            "now is not the model's own and cannot be kept for later: leave out run_dir, or give "
            "the hooks as an intervention"
        )
    told = json.dumps([_settings(model), weights_digest(model)], sort_keys=True, default=str)
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _settings(model: Any) -> dict[str, Any]:
    """What a model's answers depend on beside its weights, and no path or version."""
    hf = getattr(model, "original_model", None)
    given = model.cfg.__dict__ if hf is None else hf.config.to_dict()
    idle = ("transformers_version", "device", "model_name", "name_or_path", "tokenizer_name")
    tokenizer = getattr(model, "tokenizer", None)
    return {
        "format": _FORMAT,
        "config": {
            name: value
            for name, value in given.items()
            if not name.startswith("_")
            and name not in idle
            and isinstance(value, str | int | float | bool | list | dict | tuple | None)
        },
        "ends": sorted(ending_tokens(model)),
        "bos": None if tokenizer is None else bos_token(model, None),
        "tokeniser": None if tokenizer is None else [type(tokenizer).__name__, len(tokenizer)],
    }


def hooks_digest(fwd_hooks: FwdHooks) -> str:
    """Return what tells interventions of lens_lang from one another, in any process.

    Args:
        fwd_hooks: The hooks.

    Raises:
        OptionError: A hook is not of lens_lang, so nobody can say what it does.

    Examples:
        >>> hooks_digest([]) == hooks_digest([])
        True
    """
    digest = hashlib.sha256()
    for name, hook in fwd_hooks:
        if not isinstance(name, str) or not isinstance(
            hook, NeuronEdit | UpProjection | VectorEdit
        ):
            raise OptionError(
                f"The hook at {name!r} was not made by lens_lang, so a later run could not tell "
                "whether it is the same: leave out run_dir, or the hook"
            )
        about: list[Any] = [name, type(hook).__name__]
        tensors: list[Tensor] = []
        if isinstance(hook, NeuronEdit):
            about += [hook.kind, hook.positions, hook.width, hook.up is None]
            tensors = [hook.indices.long(), hook.values.double()]
        elif isinstance(hook, VectorEdit):
            about += [hook.positions]
            tensors = [hook.vector.double()]
        digest.update(json.dumps(about).encode())
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def seeded(seed: int, *names: str | int) -> torch.Generator:
    """Return a source of randomness that depends on what it is for, and not on what came before.

    Args:
        seed: Of the whole measurement.
        *names: What is drawn.
    """
    digest = hashlib.sha256(json.dumps([seed, *names]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
