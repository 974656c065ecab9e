"""Paths in recipes: where relative paths start, and how recipes name them.

A text that was read from a recipe file knows that file's folder, so a relative path means the same
wherever `fuse` is started. Texts from flags and from Python start in the working directory.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

#: The folders of an absolute path inside a text; not those of a URL.
_FOLDERS = re.compile(r"(?<![\w~./-])/(?:[^\s/'\"]+/)+")


class RecipeText(str):
    """A text of a recipe file. Relative paths in it start in `folder`."""

    __slots__ = ("folder",)
    folder: str


def mark_folder(value: object, folder: str) -> object:
    """Return the content of a recipe file with every text as a `RecipeText` of its folder."""
    match value:
        case str():
            text = RecipeText(value)
            text.folder = folder
            return text
        case dict():
            return {key: mark_folder(item, folder) for key, item in value.items()}
        case list():
            return [mark_folder(item, folder) for item in value]
        case _:
            return value


def resolve_path(value: str | os.PathLike[str]) -> str:
    """Return a path from the working directory; `~` is the user's home.

    Raises `ValueError` for a text that no file system accepts as a path.
    """
    text = os.fspath(value)
    if not text or "\0" in text or not _is_encodable(text):
        raise ValueError("expected a path, got an empty text or one with invalid characters")
    text = os.path.expanduser(text)  # noqa: PTH111 - Path's would raise where there is no home
    path = os.path.join(_folder_of(value), text)  # noqa: PTH118 - Path would drop a leading ./
    if os.pardir not in Path(path).parts:
        return path
    normal = os.path.normpath(path)  # which leads elsewhere where `..` leaves a link
    return normal if os.path.realpath(normal) == os.path.realpath(path) else path


def resolve_input_path(value: str | os.PathLike[str]) -> str:
    """Return the path of an input file from the working directory.

    Raises `ValueError` if the path exists in the working directory but not in the recipe's folder:
    the input must not depend on where `fuse` is started.
    """
    path, folder = resolve_path(value), _folder_of(value)
    if folder and not os.path.lexists(path) and os.path.lexists(value):
        raise ValueError(
            f"not found in {folder}, the recipe's folder, where its relative paths start; it "
            "exists in the working directory"
        )
    return path


def make_portable(path: str, folder: Path | None) -> str:
    """Return a path as a recipe in `folder` names it, without the name of the user's home.

    Without a folder, return the path unchanged. A recipe in the root has absolute paths, so that it
    reads the same wherever it lies.
    """
    if folder is None:
        return path
    given, start, home = Path(path), folder.resolve(), Path("~").expanduser().resolve()
    real = given.parent.resolve() / given.name
    if real.is_relative_to(home) and not start.is_relative_to(home) and home != Path(home.anchor):
        return (Path("~") / real.relative_to(home)).as_posix()
    return str(real) if start == Path(start.anchor) else os.path.relpath(real, start)


def strip_folders(value: object) -> object:
    """Return data in which every path is reduced to its name, so that it can be published.

    Absolute paths inside a text, such as a warning, are reduced too.
    """
    match value:
        case str() if os.path.isabs(value) or os.path.lexists(value):  # noqa: PTH117 - a text
            return Path(value).name
        case str():
            home = os.path.expanduser("~").rstrip("/")  # noqa: PTH111 - Path's would raise
            return _FOLDERS.sub("", value.replace(f"{home}/", "~/") if home else value)
        case dict():
            return {key: strip_folders(item) for key, item in value.items()}
        case list() | tuple():
            return [strip_folders(item) for item in value]
        case _:
            return value


def _folder_of(value: object) -> str:
    return value.folder if isinstance(value, RecipeText) else ""


def _is_encodable(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
