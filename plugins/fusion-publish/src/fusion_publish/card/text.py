"""The text of a model card, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fusion_publish.card.results import describe_adaptation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fusion_core import Report
    from fusion_publish.card.kinds import Kind
    from fusion_publish.card.outputs import MergeOutput, Parent
    from fusion_publish.card.results import Result

_HUB = "https://huggingface.co"


def write_text(
    output: MergeOutput,
    repository: str | None,
    kind: Kind,
    licence: str | None,
    results: Sequence[Result],
) -> str:
    """Return the Markdown below the metadata."""
    recipe, warnings = output.recipe_text, output.provenance.warnings
    sections = [
        f"# {_inline(repository or _title(output))}",
        _summary(output),
        "## Models\n\n" + _models(output),
        *([] if output.report is None else ["## Results\n\n" + _results(output.report, results)]),
        "## Use\n\n" + _use(repository, kind),
        *(["## Warnings\n\n" + _warnings(warnings)] if warnings else []),
        *([] if recipe is None else ["## Recipe\n\n" + _code("yaml", recipe)]),
        *([] if recipe is None else ["## Reproduce\n\n" + _reproduction(output, repository)]),
        "## Licence\n\n" + _licence(licence),
    ]
    return "\n\n".join(sections)


def _title(output: MergeOutput) -> str:
    methods = ", ".join(output.methods)
    return f"Merge by {methods}" if output.is_merge else f"Output of {methods}"


def _summary(output: MergeOutput) -> str:
    if not output.is_merge:
        return (
            f"Made from the models below by `fuse {output.provenance.command}` of fusion-core. "
            "`provenance.json` has the hashes of its inputs and of its files."
        )
    methods = ", ".join(f"`{method}`" for method in output.methods)
    experts = output.provenance.inputs.keys() - {"base"}
    count = f"{len(experts)} models" if len(experts) > 1 else "one model"
    tensors = output.provenance.tensors.get("merged")
    counted = f" It has {tensors} merged tensors." if tensors else ""
    return f"A merge of {count} by {methods}, made with fusion-core.{counted}"


def _models(output: MergeOutput) -> str:
    rows = [
        (parent.name, _source(parent), str(output.cards[parent.name].get("licence", "unknown")))
        for parent in output.parents
    ]
    return _table(("model", "source", "licence"), rows)


def _source(parent: Parent) -> str:
    if parent.repository is None:
        return parent.source
    commit = parent.source.rpartition("@")[2]
    address = f"{_HUB}/{parent.repository}/tree/{commit}"
    return f"[{parent.repository}]({address}) at `{commit[:12]}`"


def _results(report: Report, results: Sequence[Result]) -> str:
    base, experts = report.reference.base, report.reference.experts
    rows = []
    for result in results:
        metric = report.main_metrics[result.task]
        others = (row.get(result.task, {}).get(metric.name) for row in (base, experts))
        shown = ["" if value is None else metric.shown(float(value)) for value in others]
        ends = [metric.shown(end) for end in _raw_interval(result)]
        rows.append(
            [
                *(result.task, str(metric), metric.shown(_raw(result, result.value))),
                " to ".join(ends),
                *shown,
                "" if result.examples is None else str(result.examples),
            ]
        )
    headings = ("task", "metric", "merge", "95 % interval", "base", "expert", "examples")
    return f"{_table(headings, rows)}\n\n{_conditions(report)}"


def _raw(result: Result, value: float) -> float:
    return value / 100 if result.unit == "%" else value


def _raw_interval(result: Result) -> Iterator[float]:
    return (_raw(result, end) for end in result.interval or ())


def _conditions(report: Report) -> str:
    """Say what was measured: the split, what the method saw, and how options were chosen."""
    lines = [f"Measured on the test split: {report.measured_on or 'all examples'}."]
    lines.append(f"T{describe_adaptation(report)[1:]}.")
    if report.chosen is not None:
        lines.append(f"Options: {report.chosen}.")
    if report.needs_task:
        lines.append("Tasks have weights of their own: inference needs the task.")
    return " ".join(lines)


def _use(repository: str | None, kind: Kind) -> str:
    code = _code("python", kind.code.replace("{model}", repository or "."))
    return code if repository else f"In the directory of this file:\n\n{code}"


def _warnings(warnings: Sequence[str]) -> str:
    return "\n".join(f"- {_inline(warning)}" for warning in warnings)


def _reproduction(output: MergeOutput, repository: str | None) -> str:
    if output.provenance.used_live_objects:
        return "The recipe alone does not make this model again: it describes live Python objects."
    packages = " ".join(f"{name}=={version}" for name, version in output.versions.items())
    steps = f"pip install {packages} fusion-publish\nfuse reproduce {repository or '.'}"
    return (
        "`fuse reproduce` makes this model again from the inputs that `provenance.json` identifies "
        "by commits and hashes, and compares every tensor. A branch other than `main` is named as "
        f"in `ORG/NAME@BRANCH`.\n\n{_code('sh', steps)}"
    )


def _licence(licence: str | None) -> str:
    if licence is None:
        return (
            "Unknown: the card of at least one model names no licence. The terms of every model "
            "apply to this model."
        )
    return f"{_inline(licence)}. The terms of every model above apply to this model."


def _code(language: str, text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.strip()}\n{fence}"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *([_inline(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _inline(text: str) -> str:
    """Return a text on one line, without characters that end a cell or begin a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
