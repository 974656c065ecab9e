"""Seals tell edited files from those that `fuse` wrote, also when an output is replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from signed import sign

from fusion_core.errors import OutputError
from fusion_core.files import is_sealed, seal
from fusion_core.weights.writing.output_path import check_output

if TYPE_CHECKING:
    from pathlib import Path

CARD = seal("# Birds\n\nA merge.\n", "<!-- {} -->")


def test_a_sealed_text_ends_with_a_comment() -> None:
    text, last = CARD.decode().rstrip("\n").rsplit("\n", 1)
    assert text == "# Birds\n\nA merge.\n"
    assert last.startswith("<!-- written by fuse")
    assert last.endswith(" -->")
    assert is_sealed(CARD)


@pytest.mark.parametrize(
    "content",
    [
        CARD.replace(b"merge", b"Merge"),
        b"x" + CARD,
        CARD + b"More.\n",
        CARD.replace(b"\n", b"\r\n"),
        CARD[CARD.rindex(b"<!--") :],
        b"",
        b"\n",
        b"# Birds\n",
    ],
)
def test_every_edit_breaks_the_seal(content: bytes) -> None:
    assert not is_sealed(content)


def test_an_output_with_sealed_files_may_be_replaced_until_one_is_edited(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    sign(tmp_path)
    (tmp_path / "README.md").write_bytes(CARD)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "birds.yaml").write_bytes(seal("birds: 3", "# {}"))
    check_output(tmp_path, overwrite=True)
    (tmp_path / "results" / "fish.yaml").write_text("fish: 4")
    with pytest.raises(OutputError, match="files that fuse did not write: results"):
        check_output(tmp_path, overwrite=True)
    (tmp_path / "results" / "fish.yaml").unlink()
    (tmp_path / "README.md").write_bytes(CARD + b"Mine.")
    with pytest.raises(OutputError, match=r"files that fuse did not write: README\.md"):
        check_output(tmp_path, overwrite=True)
