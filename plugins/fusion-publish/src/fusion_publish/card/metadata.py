"""The metadata of a model card: the YAML block that the hub reads.

The fields are those of the hub's model card specification. GGUF converters read `base_model` and
keep it as `general.base_model.*`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from fusion_publish.card.identifiers import IDENTIFIERS
from fusion_publish.card.licences import find_link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fusion_publish.card.kinds import Kind
    from fusion_publish.card.outputs import MergeOutput
    from fusion_publish.card.results import Result

_NOT_IN_A_SLUG = re.compile(r"[^a-z0-9_.]+")
_LICENCE_FILES = ("LICENSE", "LICENSE.md", "LICENSE.txt")


def write_metadata(
    output: MergeOutput,
    repository: str | None,
    kind: Kind,
    licence: str | None,
    results: Sequence[Result],
) -> str:
    """Return the metadata as YAML. `licence` is None if it is unknown."""
    from huggingface_hub import ModelCardData

    name = "merge" if repository is None else repository.rpartition("/")[2]
    data = ModelCardData(
        **_lineage(output, kind),
        **_licence(output, licence),
        language=_languages(output) or None,
        library_name=kind.library,
        pipeline_tag=kind.pipeline_tag,
        tags=[*(["merge"] if output.is_merge else []), "fusion-core", *output.methods],
        metrics=list(dict.fromkeys(_slug(result.metric) for result in results)) or None,
        model_name=name if results else None,
        eval_results=[_eval_result(result, kind) for result in results] or None,
    )
    return str(data.to_yaml())


def _lineage(output: MergeOutput, kind: Kind) -> dict[str, Any]:
    """Return the repositories that the model was made of, and the relation to them.

    An adapter names its base alone, because the hub loads it with this model. Models that are not
    on the hub have no identifier and are left out. The hub works out the relation of a model that
    another command than `fuse run` wrote.
    """
    parents = [parent for parent in output.parents if not kind.is_adapter or parent.name == "base"]
    repositories = dict.fromkeys(filter(None, (parent.repository for parent in parents)))
    if not repositories:
        return {}
    fields: dict[str, Any] = {"base_model": list(repositories)}
    if kind.is_adapter:
        fields["base_model_relation"] = "adapter"
    elif output.is_merge:
        fields["base_model_relation"] = "merge"
    return fields


def _licence(output: MergeOutput, licence: str | None) -> dict[str, Any]:
    """Return the fields of a licence. The hub wants a name for one that it has no identifier of."""
    if licence is None:
        return {"license": "unknown"}
    if licence in IDENTIFIERS:
        return {"license": licence}
    file = next(filter(output.has, _LICENCE_FILES), None)
    link = file or find_link(output.cards, licence)
    fields = {"license": "other", "license_name": _slug(licence)}
    return fields if link is None else {**fields, "license_link": link}


def _languages(output: MergeOutput) -> list[str]:
    """Return the languages that the models' cards name."""
    languages = (card.get("languages", []) for card in output.cards.values())
    return list(dict.fromkeys(str(language) for several in languages for language in several))


def _eval_result(result: Result, kind: Kind) -> Any:  # noqa: ANN401 - huggingface_hub's
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type=kind.pipeline_tag or "other",
        dataset_type=result.dataset or _slug(result.task),
        dataset_name=result.task,
        dataset_split="test",
        dataset_revision=result.revision,
        dataset_args=None if result.examples is None else {"examples": result.examples},
        metric_type=_slug(result.metric),
        metric_name=f"{result.metric} ({result.notes})",
        metric_value=round(result.value, 4),
        metric_args=_interval(result),
    )


def _interval(result: Result) -> dict[str, float] | None:
    if result.interval is None:
        return None
    low, high = (round(end, 4) for end in result.interval)
    return {"confidence": 0.95, "low": low, "high": high}


def _slug(text: str) -> str:
    """Return a text in the form of an identifier."""
    return _NOT_IN_A_SLUG.sub("-", text.lower()).strip("-") or "task"
