"""The chat template of an output: the models' most frequent one, a known format, or a text."""

from __future__ import annotations

import json
import re
from collections import Counter
from importlib.resources import files as package_files
from typing import TYPE_CHECKING

from jinja2 import Environment, TemplateSyntaxError
from jinja2.ext import Extension

from fusion_core.errors import RecipeError
from pools_checkpoints import read_side_file, select_tokenizer_files
from pools_lm.config import AUTO, CHAT_FORMATS
from pools_lm.confined.client import SETTINGS
from pools_lm.tokenizer_files import has_tokenizer
from pools_lm.vocabularies import read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from jinja2.nodes import Node
    from jinja2.parser import Parser

    from fusion_core.weights import Files

#: A marker of a turn, such as `<|im_start|>`, which is meant as one token.
_MARKER = re.compile(r"<\|\w+\|>|\[\|\w+\|\]|<\w+_of_turn>")
_TEMPLATE, _KEY = "chat_template.jinja", "chat_template"


def choose_template(option: str, files_by_model: Mapping[str, Files]) -> str | None:
    """Return the template that an option names; None if no model has one for `auto`.

    Of equally frequent templates, the first model's is chosen. Raises `RecipeError` for a text that
    is not a template, and if no model has a tokenizer, which the template belongs to.
    """
    if not any(map(has_tokenizer, files_by_model.values())):
        raise RecipeError(
            "model_pool.chat_template: no model has a tokenizer that the template belongs to",
            hint="Remove the option, or copy a tokenizer next to the base's weights.",
        )
    if option in CHAT_FORMATS:
        path = package_files("pools_lm") / "data" / "chat_templates" / f"{option}.jinja"
        return path.read_text(encoding="utf-8")
    if option != AUTO:
        _check_syntax(option)
        return option
    templates = Counter(filter(None, map(_read_template, files_by_model.values())))
    return templates.most_common(1)[0][0] if templates else None


def replace_template(files: Files, template: str) -> dict[str, bytes | Path]:
    """Return side files with one chat template instead of all others."""
    others = {
        name: content
        for name, content in files.items()
        if not name.startswith((f"{_KEY}.", "additional_chat_templates/"))
    }
    settings = read_json(files[SETTINGS]) if SETTINGS in files else {}
    if settings.pop(_KEY, None) is not None:
        text = json.dumps(settings, indent=2, ensure_ascii=False)
        others[SETTINGS] = text.encode() + b"\n"
    return {**others, _TEMPLATE: template.encode()}


def describe_lost_markers(template: str, files: Files) -> Iterator[str]:
    """Yield a warning about markers of a template that no tokenizer file mentions."""
    tokenizer = select_tokenizer_files(files)
    contents = [read_side_file(tokenizer[name]) for name in tokenizer if name != _TEMPLATE]
    markers = dict.fromkeys(_MARKER.findall(template))
    lost = [text for text in markers if not any(text.encode() in content for content in contents)]
    if lost:
        yield (
            f"chat_template: the tokenizer has no token {', '.join(lost)}, and splits this text "
            "into pieces. Add tokens by model_pool.tokens, or choose another format"
        )


class _Generation(Extension):
    """The tag `generation` of transformers, which marks what an assistant says."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares an instance's variable

    def parse(self, parser: Parser) -> list[Node]:
        """Read up to the tag's end."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _check_syntax(template: str) -> None:
    """Raise `RecipeError` for a text that Jinja cannot parse."""
    try:
        Environment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(template)  # noqa: S701 - parsed, never rendered
    except TemplateSyntaxError as error:
        raise RecipeError(
            f"model_pool.chat_template: invalid Jinja template, line {error.lineno}: {error}",
            hint="In YAML, a template of several lines follows `chat_template: |`, indented.",
        ) from error


def _read_template(files: Files) -> str | None:
    """Return the default template of a model's files, without outer space."""
    if _TEMPLATE in files:
        return read_side_file(files[_TEMPLATE]).decode("utf-8", errors="replace").strip()
    stated = read_json(files[SETTINGS]).get(_KEY) if SETTINGS in files else None
    if isinstance(stated, list):  # of templates with names
        named = {entry.get("name"): entry.get("template") for entry in stated}
        stated = named.get("default")
    return stated.strip() if isinstance(stated, str) else None
