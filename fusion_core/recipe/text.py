"""Recipes as text: YAML in and out.

YAML is read as version 1.2, without tags, within bounds: recipes come from anywhere. What a recipe
means is not known here (`fusion_core.recipe.config`).
"""

from __future__ import annotations

import os
from io import StringIO
from itertools import accumulate, chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import CollectionNode

from fusion_core.errors import RecipeError
from fusion_core.recipe.paths import placed_in

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ruamel.yaml.nodes import Node, ScalarNode

#: The file beside merged weights that says how they were made.
RECIPE = "recipe.yaml"

#: Far from what a recipe of thousands of models or overrides takes.
_LARGEST_YAML = 2**20
_MOST_NODES = 100_000
_DEEPEST = 100
_LONGEST_INTEGER = 1_000


def load_yaml(text: str, *, origin: str) -> Any:  # noqa: ANN401 - YAML holds anything
    """Parse YAML 1.2; `origin` names the text in errors."""
    if len(text) > _LARGEST_YAML:
        raise RecipeError(f"{origin}: larger than 1 MiB, which no recipe is")
    if _nesting(text) > _DEEPEST:
        raise RecipeError(f"{origin}: nested deeper than {_DEEPEST} brackets, as no recipe is")
    parser = YAML(typ="safe", pure=True)
    parser.Constructor = _BoundedConstructor
    try:
        return parser.load(text)
    except Exception as error:  # whatever the parser makes of a text that nobody vouches for
        problem = str(error).strip() or type(error).__name__
        hint = _QUOTE if isinstance(error, MarkedYAMLError) else None
        raise RecipeError(f"{origin}: not valid YAML: {problem}", hint=hint) from error


_QUOTE = 'Text that begins with one of * & ! % @ ` [ { has to be quoted: "*LayerNorm*".'


def _nesting(text: str) -> int:
    """Return how deeply brackets nest: the parser takes seconds over tens of thousands."""
    steps = ((each in "[{") - (each in "]}") for each in text)
    return max(accumulate(steps), default=0)


#: Other programs' files: keys that no recipe has, and what their parts are called here.
_FOREIGN = {
    "mergekit": (
        {"merge_method", "slices", "tokenizer_source"},
        (
            "merge_method is algorithm.name, parameters are algorithm.<option>, models are "
            "model_pool.models, base_model is model_pool.base, dtype is output.dtype"
        ),
    ),
    "FusionBench": (
        {"modelpool", "taskpool", "_target_", "defaults", "hydra"},
        (
            "method is algorithm, modelpool is model_pool, taskpool is task_pool, _target_ is a "
            "section's name, and only fuse's own flags override a file"
        ),
    ),
}


class _BoundedConstructor(SafeConstructor):
    """Refuses aliases that would unfold into more than any recipe holds."""

    def construct_document(self, node: Node) -> Any:  # noqa: ANN401 - YAML holds anything
        if _unfolded(node, {}) > _MOST_NODES:
            raise ValueError("its aliases unfold into too much")
        return super().construct_document(node)

    def construct_yaml_int(self, node: ScalarNode) -> Any:  # noqa: ANN401 - as the parser's own
        """Refuse integers that no option takes, and that Python does not print."""
        if len(node.value) > _LONGEST_INTEGER:
            raise ValueError(f"an integer of {len(node.value):,} digits")
        return super().construct_yaml_int(node)


_BoundedConstructor.add_constructor("tag:yaml.org,2002:int", _BoundedConstructor.construct_yaml_int)


def _unfolded(node: Node, sizes: dict[int, int]) -> int:
    """Count a node and what is below it, as often as aliases repeat it."""
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_NODES  # found again below itself: an alias that holds itself
        inner = node.value if isinstance(node, CollectionNode) else ()
        below = chain.from_iterable(each if isinstance(each, tuple) else (each,) for each in inner)
        sizes[id(node)] = 1 + sum(_unfolded(each, sizes) for each in below)
    return sizes[id(node)]


def dump_yaml(value: Mapping[str, Any]) -> str:
    """Return a mapping as YAML, keys in their order."""
    writer = YAML()
    writer.default_flow_style = False
    writer.width = 2**16  # a wrapped string is harder to read and to compare
    stream = StringIO()
    writer.dump(dict(value), stream)
    return stream.getvalue()


def load_recipe(path: str | Path) -> dict[str, Any]:
    """Read a recipe file; validation comes with the run, when flags have had their say.

    Relative paths in it start in its own folder (`paths.py`). Raises `RecipeError` if the
    file is missing, is not YAML, or is not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe {str(path)!r} cannot be read: {error}") from error
    recipe = load_yaml(text, origin=str(path))
    if not isinstance(recipe, dict):
        raise RecipeError(f"recipe {str(path)!r} is not a mapping of sections to options")
    placed: Any = placed_in(recipe, os.path.dirname(path))  # noqa: PTH120 - Path would say `.`
    return cast("dict[str, Any]", placed)


def check_own_kind(recipe: Mapping[str, Any]) -> None:
    """Raise `RecipeError` for what is another program's: mergekit's or FusionBench's.

    What names an `algorithm` is a recipe, whatever else is wrong in it.
    """
    if "algorithm" in recipe:
        return
    for program, (foreign, names) in _FOREIGN.items():
        if found := sorted(foreign & {*recipe}):
            raise RecipeError(
                f"this is a configuration of {program}, not a recipe: it has {', '.join(found)}",
                hint=f"What is what here: {names}.\n"
                f"See docs/how-to/port-from-{program.lower()}.md.",
            )


def from_name(value: object) -> object:
    """Spell a component's section out: a name alone is a mapping with that name."""
    if value is None:  # a section that is there but empty
        return {}
    return {"name": value} if isinstance(value, str) else value


def shown(value: object) -> str:
    """Show a value in an error, on one line."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 - an integer of 5,000 digits, or an object of the caller's
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else f"{text[:57]}..."  # noqa: PLR2004 - one line of a terminal
