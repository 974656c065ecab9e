"""Whether models agree in what lies beside their weights: configurations, an adapter's base.

What is found is kept, because a run aligns its models several times; policies judge it afterwards.
"""

from __future__ import annotations

from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from fusion_core.weights.aligning import _configuration as configuration
from fusion_core.weights.aligning import _tokens as tokens
from fusion_core.weights.aligning._difference import Doubt
from fusion_core.weights.aligning._origin import other_base
from fusion_core.weights.reading.assets import CONFIG, parsed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from fusion_core.recipe.config import AlignmentPolicy
    from fusion_core.weights.aligning._difference import Difference
    from fusion_core.weights.reading.assets import Files
    from fusion_core.weights.source import WeightSource

ADAPTER_CONFIG = "adapter_config.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
#: Classes that any tokenizer may be loaded as.
_ANY_TOKENIZER = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend")
_MOST_DOUBTS = 20


class Agreement:
    """What models say of themselves, compared with the first that says something."""

    def __init__(
        self,
        base: WeightSource | None,
        models: Mapping[str, WeightSource],
        files: Mapping[str, Files],
    ) -> None:
        """`models` has the base first, if there is one; `files` lie beside them."""
        self._base = base
        self._files = {name: files.get(name, {}) for name in models}

    def judged(self, policy: AlignmentPolicy) -> tuple[list[Difference], list[str]]:
        """Return what the policies make of the doubts: errors and warnings."""
        errors: list[Difference] = []
        warnings: list[str] = []
        for kind in ("config", "tokenizer"):
            setting = getattr(policy, kind)
            for doubt in () if setting == "ignore" else getattr(self, f"_{kind}"):
                if doubt.serious and setting == "error":
                    errors.append(doubt.as_difference(f"alignment.{kind}=warn"))
                else:
                    warnings.append(str(doubt))
        return errors, warnings

    @cached_property
    def _tokenizer(self) -> list[Doubt]:
        return [*tokens.conflicts(self._files), *tokens.roles(self._files)]

    @cached_property
    def _config(self) -> list[Doubt]:
        return [*self._configured(), *self._tokenizer_classes(), *self._bases()]

    def _configured(self) -> Iterator[Doubt]:
        configs = self._all(CONFIG)
        for name, theirs in islice(configs.items(), 1, None):
            first, ours = next(iter(configs.items()))
            measure = "the base" if first == "base" else first
            found = configuration.differences(ours, theirs, name, measure)
            ordered = sorted(found, key=lambda each: (not each.serious, each.subject))
            yield from ordered[:_MOST_DOUBTS]
            if len(ordered) > _MOST_DOUBTS:
                more = f"{len(ordered) - _MOST_DOUBTS} more keys differ"
                yield Doubt(CONFIG, name, more, ordered[_MOST_DOUBTS].serious)

    def _tokenizer_classes(self) -> Iterator[Doubt]:
        classes = {
            name: kind
            for name, config in self._all(_TOKENIZER_CONFIG).items()
            if (kind := _class_of(config)) is not None
        }
        first = next(iter(classes.items()), None)
        for name, kind in classes.items():
            if first is not None and kind != first[1]:
                yield Doubt("tokenizer_class", name, f"{kind!r}, {first[0]}'s is {first[1]!r}")

    def _bases(self) -> Iterator[Doubt]:
        config = self._all(CONFIG).get("base", {})
        for name, adapter in self._all(ADAPTER_CONFIG).items():
            if self._base is not None:
                yield from other_base(adapter, name, self._base, config)

    def _all(self, file: str) -> dict[str, dict[str, Any]]:
        """Read a configuration of every model that has it and says something in it."""
        read = {name: parsed(files, file, name) for name, files in self._files.items()}
        return {name: config for name, config in read.items() if config}


def _class_of(tokenizer: Mapping[str, Any]) -> str | None:
    named = tokenizer.get("tokenizer_class")
    kind = named.removesuffix("Fast") if isinstance(named, str) else ""
    return kind if kind and kind not in _ANY_TOKENIZER else None
