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

from lens_lang.errors import OptionError, StorageError
from lens_lang.intervene import NeuronEdit, UpProjection
from lens_lang.sites import FwdHooks, HookedModel, model_name
from lens_lang.storage import read_json, write_json
from lens_lang.vectors import VectorEdit

_AS_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


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


def model_fingerprint(model: HookedModel) -> str:
    """Return what tells a model's weights from others', after any edit, in any process.

    Reads every number, as integers, whose sums do not depend on their order: as fast as memory,
    and equal on any number of threads. Summed along rows and columns of every weight.

    Args:
        model: The model.
    """
    digest = hashlib.sha256(model_name(model).encode())
    for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
        numbers = parameter.detach()
        if numbers.is_floating_point():
            numbers = numbers.contiguous().view(_AS_INTEGERS[numbers.element_size()])
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        # Along rows and along columns, so that neurons that change places are seen in either.
        axes = (0, -1) if numbers.ndim > 1 else ()
        for each in [numbers.sum(axis, dtype=torch.int64) for axis in axes] or [numbers]:
            digest.update(each.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def fingerprint(fwd_hooks: FwdHooks) -> str:
    """Return what tells interventions of lens_lang from one another, in any process.

    Args:
        fwd_hooks: The hooks.

    Raises:
        OptionError: A hook is not of lens_lang, so nobody can say what it does.

    Examples:
        >>> fingerprint([]) == fingerprint([])
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
