"""A folder that keeps a run's sums while they grow, so that it can be continued.

Killed anywhere, the same command reads them, skips the batches they cover and ends with the same
numbers; another command is refused with the difference shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from lens_lang.errors import StorageError
from lens_lang.sites import Site
from lens_lang.specs import Sums
from lens_lang.storage import read_json, read_tensors, remove_leftovers, write_json, write_tensors

_RUN_FILE = "run.json"


@dataclass
class RunState:
    """Sums over one part of a run, such as a language, and how far they reach.

    Attributes:
        sums: One accumulator per spec.
        n_tokens: Tokens that counted.
        n_batches: Batches that went in.
    """

    sums: list[Sums]
    n_tokens: int = 0
    n_batches: int = 0


class RunFolder:
    """A folder with a description of the run and one file of sums per part."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def open(self, description: Mapping[str, Any]) -> None:
        """Begin a run, or check that the one begun here is the same.

        Raises:
            StorageError: It is another one; the message says in what.
        """
        file = self.path / _RUN_FILE
        if not file.exists():
            write_json(file, description)
            return
        remove_leftovers(self.path)
        begun = read_json(file)
        differences = [
            f"{key} was {before!r} and is now {now!r}"
            for key, before, now in _differences(begun, dict(description))
            if key.split(".")[0] != "versions"
        ]
        if differences:
            raise StorageError(
                f"{self.path} holds another run: {'; '.join(differences[:4])}. Use another "
                "folder, or the options of before"
            )

    def write(self, part: str, state: RunState) -> None:
        """Keep a part's sums.

        Raises:
            StorageError: They cannot be written; those of before are untouched.
        """
        header = {"language": part, "n_tokens": state.n_tokens, "n_batches": state.n_batches}
        tensors = {
            f"{position}.{name}": value
            for position, sums in enumerate(state.sums)
            for name, value in sums.stacked().items()
        }
        write_tensors(self._file(part), "Sums", header, tensors)

    def read(self, part: str) -> RunState | None:
        """Return what was kept of a part; None if nothing was.

        Raises:
            StorageError: The file is damaged.
        """
        if not self._file(part).exists():
            return None
        _, header, tensors = read_tensors(self._file(part), "Sums")
        by_spec: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            position, name = key.split(".", 1)
            by_spec.setdefault(int(position), {})[name] = value
        sums = [Sums.unstacked(by_spec[position]) for position in sorted(by_spec)]
        return RunState(sums, int(header["n_tokens"]), int(header["n_batches"]))

    def _file(self, part: str) -> Path:
        return self.path / "sums" / f"{part}.safetensors"


def _differences(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key in {**before, **now}:
        left, right = before.get(key), now.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            found += _differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append((f"{prefix}{key}", left, right))
    return found


def file_names(results: Sequence[Any]) -> list[str]:
    """``frequency.safetensors``, or ``frequency-2.safetensors`` for a second one."""
    names: list[str] = []
    for result in results:
        kind = type(result).__name__.lower()
        earlier = sum(name.split(".")[0].split("-")[0] == kind for name in names)
        names.append(f"{kind}-{earlier + 1}.safetensors" if earlier else f"{kind}.safetensors")
    return names


def spec_options(spec: Any) -> dict[str, Any]:
    """A spec's options as JSON values: sites by their names, tables by their fingerprints."""

    def plain(value: Any) -> Any:
        if isinstance(value, Site):
            return value.name
        if hasattr(value, "digest"):
            return value.digest
        if isinstance(value, Mapping):
            return {key: plain(each) for key, each in value.items()}
        return [plain(each) for each in value] if isinstance(value, tuple | list) else value

    return {option.name: plain(getattr(spec, option.name)) for option in fields(spec)}
