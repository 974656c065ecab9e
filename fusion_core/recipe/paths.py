"""Paths in recipes: where relative ones start, and how they are written where others read them.

A text that was read from a recipe file knows that file's folder, so that a relative path means the
same wherever `fuse` is started. Texts from flags and from Python start in the working directory.
"""

from __future__ import annotations

import os
from pathlib import Path


class RecipeText(str):
    """A text of a recipe file; `folder` is where relative paths in it start."""

    __slots__ = ("folder",)
    folder: str


def placed_in(value: object, folder: str) -> object:
    """Return what a recipe file holds, every text of it knowing the file's folder."""
    match value:
        case str():
            text = RecipeText(value)
            text.folder = folder
            return text
        case dict():
            return {key: placed_in(each, folder) for key, each in value.items()}
        case list():
            return [placed_in(each, folder) for each in value]
        case _:
            return value


def path_of(value: str | os.PathLike[str]) -> str:
    """Return where a path leads from the working directory; `~` is the user's home.

    Raises `ValueError` for a text that no file system takes for a path.
    """
    text = os.fspath(value)
    if not text or "\0" in text or not _is_encodable(text):
        raise ValueError("not a path: it is empty, or holds characters that no path has")
    text = os.path.expanduser(text)  # noqa: PTH111 - Path's would raise where there is no home
    placed = os.path.join(_folder_of(value), text)  # noqa: PTH118 - Path would drop a leading ./
    if os.pardir not in Path(placed).parts:
        return placed
    tidy = os.path.normpath(placed)  # which leads elsewhere where a link is left by `..`
    return tidy if os.path.realpath(tidy) == os.path.realpath(placed) else placed


def input_path(value: str | os.PathLike[str]) -> str:
    """Return where a path to something that is read leads.

    Raises `ValueError` where it is not in the recipe's folder and is in the working directory: one
    that is read must not depend on where `fuse` is started.
    """
    path, folder = path_of(value), _folder_of(value)
    if folder and not os.path.lexists(path) and os.path.lexists(value):
        raise ValueError(
            f"not in {folder}, the recipe's folder, where its relative paths start; the working "
            "directory has one"
        )
    return path


def portable(path: str, folder: Path | None) -> str:
    """Return a path as a recipe in `folder` names it, without the user's home in it.

    None returns it as it is; in the root, paths are whole, so the recipe is one wherever it lies.
    """
    if folder is None:
        return path
    given, place, home = Path(path), folder.resolve(), Path("~").expanduser().resolve()
    real = given.parent.resolve() / given.name
    if real.is_relative_to(home) and not place.is_relative_to(home) and home != Path(home.anchor):
        return (Path("~") / real.relative_to(home)).as_posix()
    return str(real) if place == Path(place.anchor) else os.path.relpath(real, place)


def without_folders(value: object) -> object:
    """Return data with the name alone in the place of every path: it may be published."""
    match value:
        case str() if os.path.isabs(value) or os.path.lexists(value):  # noqa: PTH117 - a text
            return Path(value).name
        case dict():
            return {key: without_folders(each) for key, each in value.items()}
        case list() | tuple():
            return [without_folders(each) for each in value]
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
