"""Neuron files of other projects: read them with names and checks, write them for others.

The released LAPE code keeps ``list[language][layer] -> indices`` in a ``.pth`` file, without the
languages' names, the model, or the width of its layers; six of the seven published files have
fewer languages than their documentation says. So the languages must be named here, and are
counted.
"""

import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_lang.errors import OptionError, StorageError
from lens_lang.languages import distinct_languages
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.sites import MLP_POST, Site
from lens_lang.storage import replacing

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_WIDEST = 2**24
"""More neurons than any layer has: an index above it is damage, not a neuron."""


def read(
    path: str | Path,
    *,
    languages: Sequence[str],
    width: int | None = None,
    site: Site = MLP_POST,
) -> LanguageNeurons:
    """Read a ``.neuron.pth`` file as the released LAPE code writes it.

    The file is read without running anything that it may contain.

    Args:
        path: The file: a list over languages of a list over layers of index tensors.
        languages: What the languages are, in the file's order; the file does not say. The
            published files have en, zh, fr, es, vi, id, and only LLaMA-2-7B and -13B also ja.
        width: Neurons per layer of the model. The file does not say; None takes the largest
            index, rounded up to a multiple of 256, as all the published models have.
        site: Where the neurons are switched.

    Returns:
        The neurons of each language.

    Raises:
        StorageError: The file is missing, damaged, not of this layout, or tries to run code.
        OptionError: The number of languages is not the file's.
    """
    path = Path(path)
    if not path.is_file():
        raise StorageError(f"There is no neuron file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the protocol of old files
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StorageError(
            f"{path} is not a plain file of tensors; it was not opened further, because it could "
            f"run code: {str(error).splitlines()[0]}"
        ) from error
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise StorageError(
            f"{path} is truncated or no torch file: {type(error).__name__} {error}".splitlines()[0]
        ) from error
    layers = _checked(content, path)
    names = distinct_languages(languages)
    if len(names) != len(layers):
        raise OptionError(
            f"{path.name} has {len(layers)} languages, but {len(names)} names were given "
            f"({', '.join(names)})"
        )
    largest = max((int(some.max()) for lang in layers for some in lang if len(some)), default=-1)
    guessed = width is None
    if width is None:
        width = max(-(-(largest + 1) // 256), 1) * 256
    if largest >= width:
        raise OptionError(f"{path.name} has neuron {largest}, but width is {width}")
    sets = {}
    for name, lang in zip(names, layers, strict=True):
        mask = torch.zeros(len(lang), width, dtype=torch.bool)
        for layer, indices in enumerate(lang):
            mask[layer, indices] = True
        sets[name] = NeuronSet({site: mask})
    provenance = {"method": "read from file", "file": path.name, "width is guessed": guessed}
    return LanguageNeurons(sets, provenance)


def write(neurons: LanguageNeurons, path: str | Path, *, site: Site = MLP_POST) -> None:
    """Write neurons in the layout of the released LAPE code.

    Names, widths and provenance are lost in it: keep a file of `LanguageNeurons.save` too.

    Args:
        neurons: The neurons; languages are written in their order.
        path: The file.
        site: Which of the neurons to write.

    Raises:
        StorageError: The file cannot be written.
    """
    content = []
    for found in neurons.values():
        members, sizes = found.indices(site)[:, 1], found.per_layer(site).tolist()
        content.append([layer.clone() for layer in torch.split(members, sizes)])
    with replacing(path) as part:
        torch.save(content, part)


def _checked(content: Any, path: Path) -> list[list[Tensor]]:
    """Return the content if it has the layout, with every index tensor as int64."""
    problem = ""
    if not isinstance(content, list) or not content:
        problem = "a list over languages is expected"
    elif not all(
        isinstance(lang, list) and lang and len(lang) == len(content[0]) for lang in content
    ):
        problem = "every language needs a list over the same number of layers"
    elif not all(isinstance(x, Tensor) and x.ndim == 1 for lang in content for x in lang):
        problem = "every layer needs a one-dimensional tensor of indices"
    elif any(x.dtype not in _WHOLE and len(x) for lang in content for x in lang):
        problem = "indices must be whole numbers"
    elif outside := [
        int(end)
        for lang in content
        for x in lang
        if len(x)
        for end in (x.min(), x.max())
        if not 0 <= int(end) < _WIDEST
    ]:
        problem = f"{outside[0]} is no index of a neuron"
    if problem:
        raise StorageError(f"{path} is not a file of language neurons: {problem}")
    return [[x.long() for x in lang] for lang in content]
