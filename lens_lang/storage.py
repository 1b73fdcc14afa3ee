"""Results on disk: one safetensors file each, with a JSON header, written atomically.

The header names the class and the format's version, the axes' labels and the provenance.
Nothing here can run code from a file: no pickle, no eval.
"""

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lens_lang.errors import StorageError

FORMAT = "lens_lang"
FORMAT_VERSION = 1


def versions() -> dict[str, str]:
    """Return the versions that a result depends on, for its provenance.

    Examples:
        >>> sorted(versions())
        ['lens_lang', 'torch', 'transformer_lens']
    """
    from importlib.metadata import PackageNotFoundError, version

    found = {"torch": str(torch.__version__)}
    for name in ("lens-lang", "transformer-lens"):
        try:
            found[name.replace("-", "_")] = version(name)
        except PackageNotFoundError:
            found[name.replace("-", "_")] = "not installed"
    return found


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` when the block ends well, and vanishes if not.

    A reader never sees half a file, and a full disk leaves the old file as it was.

    Args:
        path: The file to write.

    Raises:
        StorageError: The file cannot be written.
    """
    path = Path(path)
    # Not mkstemp, whose files only their owner may read: run folders are shared on clusters.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise StorageError(
            f"Could not write {path}: {error.strerror or error}. What stood there before is "
            "untouched"
        ) from error
    finally:
        with suppress(OSError):  # it may never have come to be, and the error above says why
            temporary.unlink()


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written in a folder that is this process's own."""
    for part in folder.rglob(".*.part"):
        part.unlink()


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file atomically.

    Raises:
        StorageError: The file cannot be written.
    """
    with replacing(path) as part:
        part.write_text(json.dumps(content, ensure_ascii=False, indent=2), encoding="utf-8")


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StorageError: The file is missing or is not a JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"There is no file {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, dict):
        raise StorageError(f"{path} holds a JSON {type(content).__name__}, not an object")
    return content


def write_tensors(
    path: str | Path, kind: str, header: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Write one result as a safetensors file.

    Args:
        path: The file to write; written whole or not at all.
        kind: Name of the result's class.
        header: Everything that is not a tensor, as JSON values.
        tensors: The tensors by name.

    Raises:
        StorageError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save

    about = {"format_version": FORMAT_VERSION, "class": kind, "header": header}
    # One entry, because safetensors shuffles several: equal results are equal files.
    metadata = {FORMAT: json.dumps(about, ensure_ascii=False)}
    # Cloned, because safetensors refuses tensors that share memory.
    contiguous = {
        name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()
    }
    with replacing(path) as part:
        try:
            part.write_bytes(save(contiguous, metadata))
        except SafetensorError as error:
            raise StorageError(f"Could not write {path}: {error}") from error


def read_tensors(
    path: str | Path, kind: str | None = None
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Read a file written by `write_tensors`.

    Args:
        path: The file.
        kind: Refuse any other class than this one; None takes any.

    Returns:
        The class's name, the header and the tensors.

    Raises:
        StorageError: The file is missing, truncated, of another program, version or class.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise StorageError(f"There is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise StorageError(
            f"{path} is not a readable safetensors file (truncated, or another format): {error}"
        ) from error
    if FORMAT not in metadata:
        raise StorageError(f"{path} is a safetensors file, but lens_lang did not write it")
    try:
        about = json.loads(metadata[FORMAT])
        version, found, header = about["format_version"], about["class"], about["header"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise StorageError(f"The header of {path} is damaged: {error}") from error
    if not isinstance(found, str) or not isinstance(header, dict):
        raise StorageError(f"The header of {path} is damaged: its class or header is malformed")
    if version != FORMAT_VERSION:
        raise StorageError(
            f"{path} has format version {version}, and this lens_lang reads version "
            f"{FORMAT_VERSION}: use the lens_lang that wrote it"
        )
    if kind is not None and found != kind:
        raise StorageError(f"{path} holds a {found}, not a {kind}: lens_lang.load reads any result")
    return found, header, tensors
