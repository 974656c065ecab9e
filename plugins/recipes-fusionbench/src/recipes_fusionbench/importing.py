"""The import of a file: composition, interpolation, and the translation of its sections."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fusion_core.commands import (
    ImportedRecipe,
    format_value,
    load_documents,
    similar_names,
)
from recipes_fusionbench.comments import make_comments
from recipes_fusionbench.composition import PROGRAMS, Composition
from recipes_fusionbench.fusion import Fusion
from recipes_fusionbench.interpolation import resolve
from recipes_fusionbench.methods import translate
from recipes_fusionbench.models import read_models
from recipes_fusionbench.options import Options, target_of
from recipes_fusionbench.published import expand
from recipes_fusionbench.tasks import make_data_section, read_tasks
from recipes_fusionbench.tree import Tree
from recipes_import import ImportFindings

if TYPE_CHECKING:
    from pathlib import Path

_PAGE = "docs/how-to/port-from-fusionbench.md"
_POOLS = ("modelpool", "taskpool")
_PROGRAM_CLASSES = {"FabricModelFusionProgram", "ModelFusionProgram", ""}
#: Options of the program that do not concern the merge.
_IGNORED = ("hydra", "path", "print_config", "print_function_call", "report_save_path")
#: Options whose values are the same, whatever the precision of the machine.
_FULL_PRECISION = (None, 32, "32", "32-true")
#: FusionBench compares neither configurations nor tokenizers.
_ALIGNMENT = {"config": "warn", "tokenizer": "warn"}


def import_text(text: str, origin: str, folder: Path) -> ImportedRecipe | None:
    """Return the recipe of a file of FusionBench; None for other files. `origin` names the file.

    Files that it names lie in `folder`, or in an installed FusionBench. Raises `RecipeError` with
    one line for everything that a recipe cannot express.
    """
    documents = load_documents(text, origin=origin)
    if len(documents) != 1 or not _is_configuration(documents[0]):
        return None
    findings = ImportFindings()
    composed = Composition(Tree(folder), findings).compose(documents[0])
    findings.raise_problems(origin, _PAGE)
    recipe, comments = _File(resolve(composed), findings).make_recipe()
    findings.raise_problems(origin, _PAGE)
    return ImportedRecipe("FusionBench", recipe, findings.warnings, comments)


def _is_configuration(document: object) -> bool:
    """Tell whether a document declares a fusion of FusionBench."""
    if not isinstance(document, dict) or "algorithm" in document:
        return False
    if any(isinstance(document.get(pool), dict) for pool in _POOLS) or target_of(document):
        return True
    listed = document.get("defaults")
    return any(map(_names_pool, listed if isinstance(listed, list) else []))


def _names_pool(entry: object) -> bool:
    """Tell whether an entry of a list of defaults names a pool, or a program of FusionBench."""
    if isinstance(entry, dict):
        groups = [str(key).split()[-1:] for key in entry]
        return any(group and group[0].partition("@")[0].strip("/") in _POOLS for group in groups)
    return entry in PROGRAMS


class _File:
    """One composed file, with all interpolations resolved."""

    def __init__(self, content: dict[str, Any], findings: ImportFindings) -> None:
        self._findings = findings
        self._top = Options(content, "", findings)

    def make_recipe(self) -> tuple[dict[str, Any], dict[tuple[str, ...], str]]:
        """Return the recipe with its comments. It is incomplete if there are problems."""
        self._check_program()
        pool = self._top.section("modelpool")
        models = read_models(pool, self._findings)
        if models is None:
            return {}, {}
        fusion = Fusion(self._top.section("method"), models)
        if not translate(fusion) or not fusion.stages:
            return {}, {}
        tasks = self._read_tasks(pool, fusion)
        stages = fusion.stages
        recipe = {
            "algorithm": stages[0] if len(stages) == 1 else stages,
            "model_pool": models.make_section(has_tasks=tasks is not None),
            **({} if tasks is None else {"task_pool": tasks}),
            **self._read_seed(),
            **self._read_output(fusion),
            "alignment": {**_ALIGNMENT, **({"extra": "drop"} if models.has_heads else {})},
        }
        self._report_unknown()
        return recipe, make_comments(recipe, fusion)

    def _check_program(self) -> None:
        program = target_of(self._top.values)
        if program not in _PROGRAM_CLASSES:
            self._top.refuse("_target_", f"{program} does not fuse models")
        for name, reason in {
            "fast_dev_run": "true runs on single batches; set task_pool.limit in a recipe",
            "dry_run": "true runs nothing; see fuse check",
        }.items():
            self._top.expect(name, False, reason=reason)
        self._top.ignore(*_IGNORED)

    def _read_tasks(self, pool: Options, fusion: Fusion) -> dict[str, Any] | None:
        models = fusion.models
        tasks = read_tasks(self._top.section("taskpool"), models)
        fabric = self._top.section("fabric")
        if fusion.data is None:
            if tasks is None and models.is_measured:
                reason = "none, but the pool gpt2-glue is measured; skip that with --no-eval"
                self._findings.warn("taskpool", reason)
            return tasks
        if fabric.take("precision") not in _FULL_PRECISION:
            fabric.refuse("precision", "expected 32: examples pass through models in fp32")
        needed = make_data_section(pool, fusion.data, models)
        if fusion.data == "train_datasets":
            reason = "fusion-core takes unlabeled examples, here those of the test split"
            self._findings.warn("modelpool.train_datasets", reason)
        if tasks is None:
            self._findings.warn("taskpool", "none, but the tasks of the method are measured")
            return needed
        self._check_tasks(tasks, needed)
        return tasks

    def _check_tasks(self, tasks: dict[str, Any], needed: dict[str, Any]) -> None:
        """Record tasks that a method needs and the task pool lacks."""
        missing = {*expand(needed.get("tasks", []))} - {*expand(tasks.get("tasks", []))}
        if missing:
            names = ", ".join(sorted(missing))
            self._top.refuse("taskpool", f"lacks {names}, whose examples the method needs")
        given, wanted = tasks.get("name"), needed.get("name")
        if given != wanted and wanted is not None:
            self._top.refuse("taskpool", f"has the tasks of {given}, and the method needs {wanted}")
        given, wanted = tasks.get("corruption", "none"), needed.get("corruption", "none")
        if given != wanted:
            reason = f"measures images of corruption {given}, and the method adapts to {wanted}"
            self._top.refuse("taskpool", reason)

    def _read_seed(self) -> dict[str, Any]:
        seed = self._top.take("seed")
        if seed is None:
            return {}
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            self._top.refuse("seed", f"expected a whole number, got {format_value(seed)}")
        return {"seed": seed}

    def _read_output(self, fusion: Fusion) -> dict[str, Any]:
        output: dict[str, Any] = {}
        self._top.ignore("merged_model_save_path")
        path = self._top.values.get("merged_model_save_path") or fusion.output
        if isinstance(path, str) and "{log_dir}" not in path:
            output["path"] = path
        elif path is not None:
            reason = "not determined by the file; name the directory by fuse run -o"
            self._findings.warn("merged_model_save_path", reason)
        saving = self._top.section("merged_model_save_kwargs")
        saving.ignore("save_tokenizer", "tokenizer_kwargs", "max_shard_size", "safe_serialization")
        saving.expect("push_to_hub", False, reason="true has no counterpart; upload the directory")
        dtype = saving.text("model_dtype") or fusion.models.dtype
        saving.finish()
        if dtype is not None:
            output["dtype"] = dtype
        return {"output": output} if output else {}

    def _report_unknown(self) -> None:
        """Refuse misspelt keys. Others are variables of the file."""
        known = {*("method", "modelpool", "taskpool", "seed", "fabric"), *_IGNORED}
        known |= {"merged_model_save_path", "merged_model_save_kwargs", "fast_dev_run", "dry_run"}
        for name in self._top.values:
            similar = similar_names(str(name), known, cutoff=0.8)
            if name not in known and not str(name).startswith("_") and similar:
                self._top.refuse(str(name), f"unknown key; did you mean {similar[0]}?")
