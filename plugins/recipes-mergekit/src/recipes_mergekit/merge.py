"""One merge of mergekit as a recipe."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fusion_core.commands import similar_names
from recipes_mergekit.methods import METHODS, Method
from recipes_mergekit.models import STACKED, UNCHECKED, Models
from recipes_mergekit.parameters import Parameters, check_names
from recipes_mergekit.stacking import unwrap_stack
from recipes_mergekit.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from recipes_import import ImportFindings
    from recipes_mergekit.configuration import Configuration, Reference, Slice, Source


@dataclass(frozen=True)
class Merge:
    """Turns a configuration into a recipe, and records what it cannot express."""

    configuration: Configuration
    documents: Mapping[str, Mapping[str, Any]]
    findings: ImportFindings

    def make_recipe(self) -> dict[str, Any]:
        """Return the recipe. It is incomplete if there are problems."""
        method = self._find_method()
        if method is None:
            return {}
        check_names(self.configuration, method, self.findings)
        bases, experts = self._split_sources(method)
        if method.can_skip:
            experts = _fill_slices(experts)
        if not experts or not self._check_counts(method, experts):
            return {}
        if any("int8_mask" in level for level in self._levels()):
            self._warn("parameters.int8_mask", "has no effect on values")
        models = Models(self.documents)
        names = _name_experts(models, experts)
        parameters = Parameters(self.configuration, experts, names, self.findings)
        algorithm = method.translate(parameters)
        pool = self._make_pool(models, bases, experts, names, method)
        section = algorithm.as_section(self.configuration.slices)
        recipe = {"algorithm": section, "model_pool": pool}
        if self._is_stack:
            scales = parameters.by_expert("scale", 1.0)[names[0]]
            recipe = unwrap_stack(pool["models"][names[0]], scales) or recipe
        vocabulary = Vocabulary(self.configuration, models, self.findings)
        recipe["model_pool"] = vocabulary.extend_pool(recipe["model_pool"], recipe["algorithm"])
        alignment = dict(STACKED if recipe["algorithm"]["name"] == "stack" else UNCHECKED)
        return {**recipe, **self._make_output(models), "alignment": self._check_dtypes(alignment)}

    @property
    def _is_stack(self) -> bool:
        """Whether layers are copied, not merged."""
        return self.configuration.method == "passthrough" and self.configuration.has_ranges

    def _refuse(self, key: str, reason: str) -> None:
        self.findings.refuse(self.configuration.prefix + key, reason)

    def _warn(self, key: str, reason: str) -> None:
        self.findings.warn(self.configuration.prefix + key, reason)

    def _find_method(self) -> Method | None:
        name = self.configuration.method
        if name in METHODS:
            return METHODS[name]
        similar = similar_names(name, METHODS)
        hint = f"did you mean {similar[0]}?" if similar else f"expected one of {', '.join(METHODS)}"
        self._refuse("merge_method", f"unknown method {name!r}; {hint}")
        return None

    def _levels(self) -> list[Mapping[str, Any]]:
        parts = self.configuration.slices
        of_sources = [source.parameters for part in parts for source in part.sources]
        return [self.configuration.parameters, *(part.parameters for part in parts), *of_sources]

    def _split_sources(
        self, method: Method
    ) -> tuple[list[Source] | None, list[tuple[Source, ...]]]:
        """Return the base of every slice, None without one, and the experts of every slice."""
        bases: list[Source] = []
        experts: list[tuple[Source, ...]] = []
        for part in self.configuration.slices:
            base = self._base_of(part)
            chosen = [source for source in part.sources if source.model == base]
            if method.base == "input":
                experts.append(part.sources)
                continue
            experts.append(tuple(source for source in part.sources if source.model != base))
            bases += chosen
            if not chosen and (method.base == "required" or base is not None):
                where = "base_model" if base is None else f"{part.key}.sources"
                self._refuse(where, f"{self.configuration.method} needs a base model here")
                return None, []
        if bases and len(bases) != len(experts):
            self._refuse("base_model", "some slices have the base among their sources, others not")
        return bases or None, experts

    def _base_of(self, part: Slice) -> Reference | None:
        return part.base or self.configuration.base

    def _check_counts(self, method: Method, experts: Sequence[Sequence[Source]]) -> bool:
        counts = sorted({len(sources) for sources in experts})
        if len(counts) > 1:
            self._refuse("slices", f"slices merge different numbers of models: {counts}")
            return False
        count, most = counts[0], method.most
        if count < method.least or (most is not None and count > most):
            wanted = f"at least {method.least}" if most is None else f"exactly {most}"
            besides = "" if method.base == "input" else " besides the base"
            reason = f"{self.configuration.method} takes {wanted} model(s){besides}, got {count}"
            self._refuse(self.configuration.slices[0].key, reason)
            return False
        return True

    def _make_pool(
        self,
        models: Models,
        bases: Sequence[Source] | None,
        experts: Sequence[Sequence[Source]],
        names: Sequence[str],
        method: Method,
    ) -> dict[str, Any]:
        pool: dict[str, Any] = {}
        base = self.configuration.base
        if bases is not None:
            base = bases[0].model
            pool["base"] = self._locate(models, bases, files=self.configuration.base)
        elif base is not None and method.base == "input" and not self._is_stack:
            layers = [replace(sources[0], model=base) for sources in experts]
            pool["base"] = self._locate(models, layers)  # the result has its configuration
        pool["models"] = {
            name: self._locate(
                models,
                [sources[number] for sources in experts],
                base,
                files=base if self._is_stack else None,
            )
            for number, name in enumerate(names)
        }
        return pool

    def _locate(
        self,
        models: Models,
        sources: Sequence[Source],
        base: Reference | None = None,
        *,
        files: Reference | None = None,
    ) -> Any:  # noqa: ANN401 - a path or a recipe
        """Return a model, or layers of several, with the configuration of `files`."""
        if sources[0].layers is not None:
            return models.stack(sources, files)
        return models.locate(sources[0].model, base)

    def _make_output(self, models: Models) -> dict[str, Any]:
        dtype = self.configuration.out_dtype or self.configuration.dtype
        if dtype is None and models.unrounded:
            first = models.unrounded[0]
            self._refuse("dtype", f"missing, and the merge of {first} has none that is stored")
        if dtype == "float64":
            key = "dtype" if self.configuration.out_dtype is None else "out_dtype"
            self._refuse(key, "float64: merges are computed and stored in fp32 at most")
        return {} if dtype is None else {"output": {"dtype": dtype}}

    def _check_dtypes(self, alignment: dict[str, str]) -> dict[str, str]:
        """Return the checks. Without a dtype, mergekit promotes different ones: an error here."""
        if not (self.configuration.out_dtype or self.configuration.dtype):
            alignment["dtype"] = "error"
        return alignment


def _fill_slices(experts: Sequence[tuple[Source, ...]]) -> list[tuple[Source, ...]]:
    """Add sources of weight 0 to slices that merge fewer models than others."""
    most = max(map(len, experts), default=0)
    return [
        (*sources, *[replace(sources[0], parameters={"weight": 0.0})] * (most - len(sources)))
        if sources
        else sources
        for sources in experts
    ]


def _name_experts(models: Models, experts: Sequence[Sequence[Source]]) -> list[str]:
    """Return one name per expert: the model's, or `stack` with a number for layers of several."""
    names: list[str] = []
    for number in range(len(experts[0])):
        used = dict.fromkeys(sources[number].model for sources in experts)
        name = models.name(next(iter(used))) if len(used) == 1 else f"stack-{number + 1}"
        names.append(name if name not in names else f"{name}-{number + 1}")
    return names
