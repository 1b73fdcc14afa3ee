"""Results that keep themselves: all fields of a frozen dataclass in one file, and back."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from lens_lang.errors import SiteError, StorageError
from lens_lang.sites import Site, find_site
from lens_lang.storage import read_tensors, write_tensors

AnySaved = TypeVar("AnySaved", bound="Saved")


class Saved:
    """Gives a frozen dataclass ``save`` and ``load``.

    Its fields are tensors, numbers, texts, tuples and mappings of these, one site, or None.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def save(self, path: str | Path) -> None:
        """Write to one safetensors file.

        Args:
            path: The file.

        Raises:
            StorageError: The file cannot be written.
        """
        header: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Tensor):
                tensors[each.name] = value
            elif isinstance(value, Site):
                header[each.name] = value.name
            else:
                header[each.name] = dict(value) if isinstance(value, Mapping) else value
        write_tensors(path, type(self).__name__, header, tensors)

    @classmethod
    def load(cls: type[AnySaved], path: str | Path) -> AnySaved:
        """Read what `save` wrote.

        Args:
            path: The file.

        Raises:
            StorageError: The file is missing, damaged, or holds something else.
        """
        _, header, tensors = read_tensors(path, cls.__name__)
        try:
            values: dict[str, Any] = {
                each.name: tensors[each.name] if each.name in tensors else header[each.name]
                for each in fields(cls)
            }
            # JSON knows lists only.
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            if "site" in values:
                values["site"] = find_site(values["site"])
            return cls(**values)
        except (KeyError, TypeError, ValueError, AttributeError, SiteError) as error:
            raise StorageError(f"{path} is damaged: {error} is missing or malformed") from error
