"""Neuron files of other projects: read them with names and checks, write them for others.

The released LAPE code keeps ``list[language][layer] -> indices`` in a ``.pth`` file, without the
languages' names, the model, or the width of its layers; six of the seven published files have
fewer languages than their documentation says. So the languages must be named here, and are
counted.

The released PLND code keeps one text file per language, with a line of Python sets for each of
the up, down, query, key and value projections, and reads it by running it. Keys and values are
numbered per query head in it, so the model's heads must be given to know which neuron is meant.
"""

import ast
import pickle
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_lang.errors import OptionError, ShapeError, SiteError, StorageError
from lens_lang.languages import distinct_languages
from lens_lang.neurons import LanguageNeurons, NeuronSet
from lens_lang.sites import ATTN_K, ATTN_Q, ATTN_V, MLP_POST, Site
from lens_lang.storage import replacing

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_WIDEST = 2**24
"""More neurons than any layer has: an index above it is damage, not a neuron."""

_PLND_LINES: Mapping[str, Site] = {
    "up": MLP_POST,
    "down": MLP_POST,
    "q": ATTN_Q,
    "k": ATTN_K,
    "v": ATTN_V,
}
"""The lines of a PLND file, in order, and where their neurons are switched."""
_NUMPY_NUMBER = re.compile(r"\b(?:np|numpy)\.int(?:32|64)\((\d+)\)", re.ASCII)
"""A whole number as numpy 2 prints it."""
_PLAIN_SETS = re.compile(r"(?:[\d\s{}:,]+|set\(\))*", re.ASCII)
"""What a PLND line may be made of, beside such numbers."""


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


def read_plnd(
    paths: Mapping[str, str | Path],
    *,
    n_layers: int,
    d_mlp: int,
    n_heads: int,
    d_head: int,
    n_kv_heads: int,
) -> LanguageNeurons:
    """Read text files as the released PLND code writes them, one per language.

    The files are read without running anything that they may contain. A layer without an entry
    has no neurons.

    The lines for up and down are two names of the same neurons, those of `MLP_POST`. In released
    files they are identical; where they differ, the union is taken.

    The lines for k and v number the channels of every query head. They become the neurons of
    `ATTN_K` and `ATTN_V` by `kv_index`. The released code divides the number by the query heads
    per key-value head instead, which finds the right head but another channel.

    Args:
        paths: The file of each language.
        n_layers: Layers of the model.
        d_mlp: Neurons per MLP.
        n_heads: Query heads per layer.
        d_head: Channels per head.
        n_kv_heads: Key-value heads per layer; `n_heads` where queries do not share them.

    Returns:
        The neurons of each language at `MLP_POST`, `ATTN_Q`, `ATTN_K` and `ATTN_V`.

    Raises:
        StorageError: A file is missing, damaged, not of this layout, or names a layer or a
            neuron that the model does not have.
        OptionError: A size is below 1, or `n_kv_heads` does not divide `n_heads`.
    """
    _check_positive({"n_layers": n_layers, "d_mlp": d_mlp, "n_heads": n_heads})
    _check_positive({"d_head": d_head, "n_kv_heads": n_kv_heads})
    if n_heads % n_kv_heads:
        raise OptionError(
            f"n_heads must be a multiple of n_kv_heads, got {n_heads} and {n_kv_heads}"
        )
    group = n_heads // n_kv_heads
    widths = [d_mlp if site == MLP_POST else n_heads * d_head for site in _PLND_LINES.values()]
    sets = {}
    for lang, path in paths.items():
        up, down, q, k, v = _plnd_masks(Path(path), n_layers, widths)
        k, v = (_per_kv_head(mask, d_head=d_head, group=group) for mask in (k, v))
        sets[lang] = NeuronSet({MLP_POST: up | down, ATTN_Q: q, ATTN_K: k, ATTN_V: v})
    files = {lang: Path(path).name for lang, path in paths.items()}
    return LanguageNeurons(sets, {"method": "read from file", "files": files})


def write_plnd(neurons: NeuronSet, path: str | Path, *, d_head: int, group: int) -> None:
    """Write the neurons of one language in the layout of the released PLND code.

    The members at `MLP_POST` become the lines for up and down, those at `ATTN_K` and `ATTN_V`
    are repeated for every query head that reads them; a site that the set does not speak of has
    no neurons in the file. Widths and provenance are lost: keep a file of
    `LanguageNeurons.save` too.

    The released code divides the indices of k and v, so it would switch other channels than
    these; `read_plnd` returns what was written.

    Args:
        neurons: The neurons of one language, at any of `MLP_POST`, `ATTN_Q`, `ATTN_K`, `ATTN_V`.
        path: The file. Equal sets give equal files.
        d_head: Channels per head.
        group: Query heads per key-value head.

    Raises:
        SiteError: The set speaks of a site that the layout has no line for.
        ShapeError: The set's layers or heads do not fit each other, or `d_head` and `group`.
        OptionError: `d_head` or `group` is below 1.
        StorageError: The file cannot be written.
    """
    _check_positive({"d_head": d_head, "group": group})
    _check_plnd_sites(neurons, d_head=d_head, group=group)
    masks = dict(neurons.masks)
    for site in (ATTN_K, ATTN_V):
        if site in masks:
            query_space = torch.arange(masks[site].shape[1] * group)
            masks[site] = masks[site][:, kv_index(query_space, d_head=d_head, group=group)]
    n_layers = max((len(mask) for mask in masks.values()), default=0)
    nothing = torch.zeros(n_layers, 0, dtype=torch.bool)
    lines = [_plnd_line(masks.get(site, nothing)) for site in _PLND_LINES.values()]
    with replacing(path) as part:
        part.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def kv_index(index: Int[Tensor, "n"], *, d_head: int, group: int) -> Int[Tensor, "n"]:
    """Return which neurons of the keys or values are meant by channels of query heads.

    Channel ``j`` of query head ``n`` reads channel ``j`` of key-value head ``n // group``.

    Args:
        index: ``n * d_head + j``, as PLND files number keys and values.
        d_head: Channels per head.
        group: Query heads per key-value head.

    Returns:
        ``(n // group) * d_head + j``, as `ATTN_K` and `ATTN_V` number them.

    Raises:
        OptionError: `d_head` or `group` is below 1.

    Examples:
        >>> index = torch.tensor([3 * 128 + 17])  # channel 17 of query head 3
        >>> kv_index(index, d_head=128, group=4)
        tensor([17])
        >>> index // 4  # what the released code takes: the same head, another channel
        tensor([100])
    """
    _check_positive({"d_head": d_head, "group": group})
    return index // d_head // group * d_head + index % d_head


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


def _check_positive(sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise OptionError(f"{name} must be at least 1, got {size}")


def _plnd_masks(path: Path, n_layers: int, widths: Sequence[int]) -> list[Tensor]:
    """Return a mask per line of a PLND file, numbered as in the file."""
    if not path.is_file():
        raise StorageError(f"There is no neuron file {path}")
    try:
        lines = path.read_text(encoding="utf-8").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path} is not a readable text file: {error}") from error
    if len(lines) != len(_PLND_LINES):
        raise StorageError(
            f"{path} is not a PLND neuron file: it must have {len(_PLND_LINES)} lines "
            f"({', '.join(_PLND_LINES)}), got {len(lines)}"
        )
    masks = []
    for number, (name, line, width) in enumerate(zip(_PLND_LINES, lines, widths, strict=True), 1):
        try:
            masks.append(_plnd_mask(line, (n_layers, width)))
        except ValueError as error:
            raise StorageError(
                f"{path} cannot be read as a PLND neuron file: line {number} ({name}) {error}"
            ) from error
    return masks


def _plnd_mask(line: str, shape: tuple[int, int]) -> Bool[Tensor, "layer neuron"]:
    """Return the mask that one line spells, or say in a `ValueError` what is wrong with it."""
    n_layers, width = shape
    mask = torch.zeros(shape, dtype=torch.bool)
    seen = set()
    for layer, members in _plain_entries(line):
        if layer >= n_layers:
            raise ValueError(f"has layer {layer}, but n_layers is {n_layers}")
        if layer in seen:
            raise ValueError(f"has layer {layer} twice")
        if members and max(members) >= width:
            raise ValueError(
                f"has neuron {max(members)} in layer {layer}, but there are {width} by the sizes "
                "given: is it the file of another model?"
            )
        seen.add(layer)
        mask[layer, members] = True
    return mask


def _plain_entries(line: str) -> list[tuple[int, list[int]]]:
    """Return the layers of a line and their neurons, as written: nothing is evaluated."""
    # Unwrapped before parsing: a node per wrapper would take a gigabyte for a large file.
    line = _NUMPY_NUMBER.sub(r"\1", line).strip()
    # Checked before parsing: without operators, dots and calls the parser cannot recurse deeply,
    # which kills the whole process on Python 3.10.
    stray = _PLAIN_SETS.sub("", line, count=1)
    if stray:
        raise ValueError(
            f"has {stray[:30]!r} where only whole numbers from 0 and sets of them may stand"
        )
    try:
        tree = ast.parse(line, mode="eval").body
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"is cut off or malformed: {getattr(error, 'msg', error)}") from error
    if not isinstance(tree, ast.Dict):
        raise ValueError("must be {layer: {neurons}, ...}")
    return [
        (_plain_number(key), _plain_set(value))
        for key, value in zip(tree.keys, tree.values, strict=True)
    ]


def _plain_set(node: ast.expr) -> list[int]:
    match node:
        case ast.Set(elts=elements):
            return [_plain_number(element) for element in elements]
        case ast.Call(func=ast.Name(id="set"), args=[], keywords=[]):
            return []
    raise ValueError("must have a set of neurons in every layer, such as {3, 7} or set()")


def _plain_number(node: ast.expr | None) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
    raise ValueError("must have whole numbers as layers and neurons")


def _per_kv_head(
    mask: Bool[Tensor, "layer query"], *, d_head: int, group: int
) -> Bool[Tensor, "layer kv"]:
    """Return the neurons of keys or values that any of their query heads lists."""
    layers, queries = mask.nonzero().unbind(1)
    merged = torch.zeros(len(mask), mask.shape[1] // group, dtype=torch.bool)
    merged[layers, kv_index(queries, d_head=d_head, group=group)] = True
    return merged


def _check_plnd_sites(neurons: NeuronSet, *, d_head: int, group: int) -> None:
    """Refuse a set that a PLND file could not give back."""
    if unknown := [site.name for site in neurons.sites if site not in _PLND_LINES.values()]:
        known = ", ".join(site.name for site in dict.fromkeys(_PLND_LINES.values()))
        raise SiteError(
            f"A PLND file has no line for neurons at {', '.join(unknown)}, only for {known}"
        )
    depths = {site.name: len(mask) for site, mask in neurons.masks.items()}
    if len(set(depths.values())) > 1:
        raise ShapeError(f"The sites of a set must have the same number of layers, got {depths}")
    # every site's number of query heads, which must be one number
    widths = {
        site: mask.shape[1] * (1 if site == ATTN_Q else group)
        for site, mask in neurons.masks.items()
        if site != MLP_POST
    }
    if len(set(widths.values())) > 1 or any(width % (d_head * group) for width in widths.values()):
        shown = ", ".join(f"{site.name} {neurons.masks[site].shape[1]}" for site in widths)
        raise ShapeError(
            f"The neurons per layer ({shown}) are not those of heads of d_head={d_head} with "
            f"group={group} query heads per key-value head"
        )


def _plnd_line(mask: Bool[Tensor, "layer neuron"]) -> str:
    # Spelt out, because a set of integers prints in an order of its own.
    entries = []
    for layer, row in enumerate(mask):
        members = ", ".join(map(str, row.nonzero().flatten().tolist()))
        entries.append(f"{layer}: {{{members}}}" if members else f"{layer}: set()")
    return f"{{{', '.join(entries)}}}"
