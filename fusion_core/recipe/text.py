"""Recipes as text: YAML in and out.

YAML is read as version 1.2, without tags and within bounds, because recipes are untrusted. This
module does not know what a recipe means (`fusion_core.recipe.config` does).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from io import StringIO
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import CollectionNode

from fusion_core.errors import RecipeError
from fusion_core.formatting import suggest
from fusion_core.recipe.paths import mark_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from ruamel.yaml.nodes import Node, ScalarNode

#: The recipe in an output directory.
RECIPE = "recipe.yaml"

#: Bounds far above a recipe of thousands of models or overrides.
_MAX_CHARACTERS = 2**20
_MAX_NODES = 100_000
_MAX_DEPTH = 100
_MAX_DIGITS = 1_000
_MAX_SHOWN = 60

#: Other programs' files: keys that no recipe has, and what to do.
_FOREIGN = {
    "mergekit": (
        {"merge_method", "slices", "tokenizer_source"},
        "Install the plugin that runs the file as it is: pip install recipes-mergekit",
    ),
    "FusionBench": (
        {"modelpool", "taskpool", "_target_", "defaults", "hydra"},
        "Install the plugin that runs the file as it is: pip install recipes-fusionbench",
    ),
}


def load_yaml(text: str, *, origin: str) -> Any:  # noqa: ANN401 - YAML holds anything
    """Parse YAML 1.2. `origin` names the text in errors."""
    documents = load_documents(text, origin=origin)
    if len(documents) > 1:
        raise RecipeError(f"{origin}: invalid YAML: expected one document, found {len(documents)}")
    return documents[0] if documents else None


def load_documents(text: str, *, origin: str) -> list[Any]:
    """Parse a stream of YAML 1.2 documents. `origin` names the text in errors."""
    if len(text) > _MAX_CHARACTERS:
        raise RecipeError(f"{origin}: too large: expected at most 1 MiB of YAML")
    steps = ((char in "[{") - (char in "]}") for char in text)
    if max(accumulate(steps), default=0) > _MAX_DEPTH:  # the parser would take seconds
        raise RecipeError(f"{origin}: too deep: expected at most {_MAX_DEPTH} nested brackets")
    parser = YAML(typ="safe", pure=True)
    parser.Constructor = _BoundedConstructor
    try:
        return list(parser.load_all(text))
    except MarkedYAMLError as error:
        raise _syntax_error(error, origin) from error
    except Exception as error:  # the parser may raise anything for an untrusted text
        problem = str(error).strip() or type(error).__name__
        raise RecipeError(f"{origin}: invalid YAML: {problem}") from error


def _syntax_error(error: MarkedYAMLError, origin: str) -> RecipeError:
    """Return an error that shows where YAML is invalid, with the most likely remedy."""
    mark, start = error.problem_mark, error.context_mark
    problem = str(error.problem or error.context).partition("\n")[0]
    if problem.startswith("but "):
        problem = f"{error.context} {problem}"
    hint = None
    if "'\\t'" in problem:
        hint = "Indent with spaces instead of tabs."
    elif re.search("alias|anchor|directive|tag|token", problem):
        hint = 'Quote text that begins with one of * & ! % @ `, as in "*LayerNorm*".'
    elif start is not None and "flow" in str(error.context):
        hint = f"Check the bracket that opens in line {start.line + 1}, column {start.column + 1}."
    if mark is None:
        return RecipeError(f"{origin}: invalid YAML: {problem}", hint=hint)
    snippet = re.sub(r" \(line: \d+\)$", "", mark.get_snippet() or "")
    position = f"line {mark.line + 1}, column {mark.column + 1}"
    return RecipeError(f"{origin}: invalid YAML in {position}: {problem}\n{snippet}", hint=hint)


class _BoundedConstructor(SafeConstructor):
    """A constructor that refuses huge integers, and aliases that unfold into too many nodes."""

    def construct_document(self, node: Node) -> Any:  # noqa: ANN401 - YAML holds anything
        if _count_unfolded(node, {}) > _MAX_NODES:
            raise ValueError(f"its aliases unfold into more than {_MAX_NODES:,} values")
        return super().construct_document(node)

    def construct_yaml_int(self, node: ScalarNode) -> Any:  # noqa: ANN401 - as the parser's own
        if len(node.value) > _MAX_DIGITS:  # Python does not print it
            raise ValueError(f"an integer of {len(node.value):,} digits")
        return super().construct_yaml_int(node)


_BoundedConstructor.add_constructor("tag:yaml.org,2002:int", _BoundedConstructor.construct_yaml_int)


def _count_unfolded(node: Node, counts: dict[int, int]) -> int:
    """Count a node and its descendants as often as aliases repeat them."""
    if id(node) not in counts:
        counts[id(node)] = _MAX_NODES  # for an alias that contains itself
        inner = node.value if isinstance(node, CollectionNode) else ()
        children = chain.from_iterable(
            item if isinstance(item, tuple) else (item,) for item in inner
        )
        counts[id(node)] = 1 + sum(_count_unfolded(child, counts) for child in children)
    return counts[id(node)]


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, with its keys in their order."""
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 2**16  # a wrapped string is harder to read and to compare
    stream = StringIO()
    writer.dump(dict(value), stream)
    return stream.getvalue()


def read_recipe_text(path: Path) -> str:
    """Return the text of a recipe file. Raises `RecipeError` if it is missing or unreadable."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        guess = suggest(str(path), map(str, path.parent.glob("*.y*ml")))
        raise RecipeError(f"recipe not found: {path}{guess and f'; {guess}'}") from error
    except IsADirectoryError as error:
        raise RecipeError(
            f"expected a recipe file, found a directory: {path}",
            hint=f"Name the recipe in it: {path / RECIPE}"
            if (path / RECIPE).is_file()
            else "A recipe is a YAML file. Set models with --set 'model_pool.models=[a, b]'.",
        ) from error
    except OSError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RecipeError(f"recipe {path} cannot be read: {error}") from error


def check_sections(documents: Sequence[Any], path: Path) -> dict[str, Any]:
    """Return the sections in a recipe file's documents. Raises `RecipeError` unless it has one."""
    if len(documents) > 1:
        raise RecipeError(f"{path}: expected one YAML document, found {len(documents)}")
    if not (documents and isinstance(documents[0], dict)):
        raise RecipeError(
            f"recipe {path} is not a mapping of sections to options",
            hint="A recipe begins, for example, with: algorithm: ties",
        )
    placed: Any = mark_folder(documents[0], os.path.dirname(path))  # noqa: PTH120 - Path would say `.`
    return cast("dict[str, Any]", placed)


def check_not_foreign(recipe: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for a configuration of another program: mergekit or FusionBench.

    A mapping with the key `algorithm` is a recipe, whatever else is wrong with it.
    """
    if "algorithm" in recipe:
        return
    for program, (foreign_keys, remedy) in _FOREIGN.items():
        if keys := sorted(foreign_keys & {*recipe}):
            raise RecipeError(
                f"expected a recipe, found a configuration of {program} with {', '.join(keys)}",
                hint=f"{remedy}\nSee docs/how-to/port-from-{program.lower()}.md.",
            )


def spell_out(value: object) -> object:
    """Spell out the section of a component: a name alone becomes a mapping with that name."""
    if value is None:  # an empty section
        return {}
    return {"name": value} if isinstance(value, str) else value


def format_flow(value: object) -> str:
    """Format lists and mappings of numbers as YAML on one line, for hints."""
    if isinstance(value, Mapping):
        items = (f"{key}: {format_flow(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_flow, value))}]"
    return str(value)


def format_value(value: object) -> str:
    """Format a value for an error, on one short line."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - an integer of 5,000 digits, or an object of the caller's
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 3]}..."
