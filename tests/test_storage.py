"""Files are written whole or not at all, and nothing in them is trusted."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lens_lang import storage
from lens_lang.errors import StorageError
from lens_lang.storage import (
    read_json,
    read_tensors,
    remove_leftovers,
    replacing,
    write_json,
    write_tensors,
)

HEADER = {"languages": ["en", "中文"], "nested": {"top": 0.01, "none": None}}


def saved(path: Path) -> Path:
    write_tensors(path, "Thing", HEADER, {"x": torch.arange(6).view(2, 3), "y": torch.zeros(0)})
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    kind, header, tensors = read_tensors(saved(tmp_path / "deep" / "er" / "a.safetensors"))
    assert (kind, header) == ("Thing", HEADER)
    assert torch.equal(tensors["x"], torch.arange(6).view(2, 3))
    assert tensors["y"].shape == (0,)


def test_equal_results_are_equal_files(tmp_path: Path) -> None:
    files = [saved(tmp_path / f"{i}.safetensors").read_bytes() for i in range(5)]
    assert len(set(files)) == 1


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    x = torch.ones(3)
    write_tensors(tmp_path / "a", "Thing", {}, {"x": x, "same": x, "part": x[:2]})
    _, _, tensors = read_tensors(tmp_path / "a")
    assert tensors["part"].tolist() == [1.0, 1.0]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    with pytest.raises(RuntimeError, match="planted"), replacing(file) as part:
        part.write_text("half")
        raise RuntimeError("planted")
    assert read_json(file) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = saved(tmp_path / "a.safetensors")
    before = file.read_bytes()

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StorageError, match="Could not write .*a.safetensors: No space left on"):
        write_tensors(file, "Thing", {}, {"x": torch.zeros(9)})
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_folder_that_cannot_be_made_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="Could not write"):
        write_json(tmp_path / "file" / "a.json", {})


def test_files_are_readable_for_others_as_the_umask_says(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    assert saved(tmp_path / "a").stat().st_mode == plain.stat().st_mode


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / "sums").mkdir()
    (tmp_path / "sums" / ".fr.safetensors.0123.part").write_text("half")
    kept = saved(tmp_path / "sums" / "fr.safetensors")
    remove_leftovers(tmp_path)
    assert list(tmp_path.rglob("*.*")) == [kept]


@pytest.mark.parametrize("length", [0, 4, 50, 200])
def test_truncated_files_are_refused(tmp_path: Path, length: int) -> None:
    file = saved(tmp_path / "a")
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(StorageError, match="not a readable safetensors file"):
        read_tensors(file)


def metadata(**changes: Any) -> dict[str, str]:
    about = {"format_version": storage.FORMAT_VERSION, "class": "Thing", "header": {}}
    return {storage.FORMAT: json.dumps({**about, **changes})}


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({}, "lens_lang did not write it"),
        ({"other": "1"}, "lens_lang did not write it"),
        ({storage.FORMAT: "{"}, "header of .* is damaged"),
        ({storage.FORMAT: "[]"}, "header of .* is damaged"),
        ({storage.FORMAT: "{}"}, "header of .* is damaged"),
        (metadata(format_version=99), "format version 99, and this lens_lang reads version 1"),
        (metadata(**{"class": "Else"}), "holds a Else, not a Thing"),
    ],
)
def test_foreign_and_damaged_headers_are_refused(
    tmp_path: Path, about: dict[str, str], message: str
) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "a", metadata=about or None)
    with pytest.raises(StorageError, match=message):
        read_tensors(tmp_path / "a", "Thing")


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "not readable JSON"), (b"[1]", "holds a JSON list"),
                             (b"\xff", "not readable JSON")]
)  # fmt: skip
def test_bad_json_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StorageError, match=message):
        read_json(tmp_path / "a.json")
    with pytest.raises(StorageError, match="There is no file"):
        read_json(tmp_path / "b.json")
    with pytest.raises(StorageError, match="There is no file"):
        read_tensors(tmp_path / "b")
