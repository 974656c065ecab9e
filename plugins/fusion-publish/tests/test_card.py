"""Model cards: what the hub, GGUF converters and people read in them, and whose edits they keep."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from gguf import Metadata
from huggingface_hub import ModelCard, parse_eval_result_entries
from safetensors.torch import save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from fusion_core import Report, run_fusion
from fusion_core.commands import load_plugins, read_provenance
from fusion_core.errors import CheckpointError, OutputError, RecipeError
from fusion_publish.card.kinds import find_kind
from fusion_publish.card.licences import find_licence
from fusion_publish.card.outputs import MergeOutput
from fusion_publish.card.results import eval_results, list_results
from fusion_publish.card.writing import CARD, is_edited, write_card

if TYPE_CHECKING:
    from collections.abc import Callable

    from hub_server import HubServer
    from transformers import PreTrainedModel

SIZES: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
SIZES |= {"num_attention_heads": 2}
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPORT = {
    "schema": 2,
    "tasks": {"latin": {"accuracy": 0.75}, "greek": {"loss": 2.5}, "broken": {"accuracy": "NaN"}},
    "metrics": {"greek": {"loss": {"unit": "nats", "higher_is_better": False}}},
    "reference": {"base": {"latin": {"accuracy": 0.5}}},
    "transductive": True,
}
OUTCOMES = {"schema": 1, "tasks": {"latin": {"outcomes": "1110"}}}


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((2, 2), value)}


def save_model(directory: Path, value: float = 0.0, licence: str | None = None) -> str:
    directory.mkdir(parents=True)
    save_file(tensors(value), directory / "model.safetensors")
    if licence is not None:
        (directory / CARD).write_text(f"---\nlicense: {licence}\nlanguage: en\n---\n# Mine\n")
    return str(directory)


def merge(folder: Path, *licences: str | None, **output: Any) -> Path:
    """Merge models with these licences, the base first."""
    names = ["base", *(f"expert-{number}" for number in range(1, len(licences)))]
    base, *experts = [
        save_model(folder / "models" / name, number, licence)
        for number, (name, licence) in enumerate(zip(names, licences, strict=True))
    ]
    run_fusion(
        algorithm={"name": "task-arithmetic", "scale": 0.5},
        model_pool={"name": "checkpoints", "base": base, "models": experts},
        output={"path": str(folder / "merged"), **output},
    )
    return folder / "merged"


@pytest.fixture
def merged(tmp_path: Path) -> Path:
    return merge(tmp_path, "mit", "apache-2.0")


def add_report(directory: Path, data: str | None = None) -> MergeOutput:
    """Add the report of an evaluation, with a data set of the hub for the task `latin`."""
    (directory / "report.json").write_text(json.dumps(REPORT))
    (directory / "outcomes.json").write_text(json.dumps(OUTCOMES))
    provenance = json.loads((directory / "provenance.json").read_text())
    if data is not None:
        test = {"data": data, "files": ["test.parquet"]}
        provenance["predicate"]["tasks"] = {
            "latin": {"test": test, "train": {"data": f"org/x@{COMMIT}"}}
        }
        (directory / "provenance.json").write_text(json.dumps(provenance))
    return MergeOutput.read(directory)


def metadata_of(directory: Path) -> dict[str, Any]:
    data: dict[str, Any] = ModelCard.load(directory / CARD).data.to_dict()
    return data


# --- what is in a card --------------------------------------------------------------------------


def test_every_run_writes_a_card_that_the_library_of_the_hub_reads(merged: Path) -> None:
    data = metadata_of(merged)
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["en"]
    assert data["tags"] == ["merge", "fusion-core", "task-arithmetic"]
    assert "base_model" not in data  # no model of this merge is on the hub
    text = (merged / CARD).read_text()
    assert (merged / "recipe.yaml").read_text() in text
    assert str(merged.parent) not in text
    assert CARD not in read_provenance(merged).subject


def test_a_card_promises_no_reproduction_of_live_models(tmp_path: Path) -> None:
    models = {"one": torch.nn.Linear(2, 2), "two": torch.nn.Linear(2, 2)}
    run_fusion(
        algorithm="simple-average", model_pool={"models": models}, output=str(tmp_path / "merged")
    )
    text = (tmp_path / "merged" / CARD).read_text()
    assert "fuse reproduce" not in text
    assert "it describes live Python objects" in text
    with pytest.raises(RecipeError, match="had the model in memory, not in a file"):
        run_fusion(tmp_path / "merged" / "recipe.yaml", output=str(tmp_path / "again"))


def test_models_of_the_hub_are_parents_also_for_gguf(hub: HubServer, tmp_path: Path) -> None:
    directory = Path(save_model(tmp_path / "model", 1, "mit"))
    for repo in ("org/Base-7B", "org/expert"):
        hub.add_directory(repo, directory)
    models = {"one": "org/expert", "again": "org/expert", "local": str(directory)}
    run_fusion(
        algorithm="task-arithmetic",
        model_pool={"name": "checkpoints", "base": "org/Base-7B", "models": models},
        output=str(tmp_path / "merged"),
    )
    data = metadata_of(tmp_path / "merged")
    assert data["base_model"] == ["org/Base-7B", "org/expert"]
    assert data["base_model_relation"] == "merge"
    metadata = Metadata.load(None, tmp_path / "merged")
    assert [model["repo_url"] for model in metadata.base_models or []] == [
        "https://huggingface.co/org/Base-7B",
        "https://huggingface.co/org/expert",
    ]
    assert metadata.license == "mit"


def test_results_are_a_model_index_with_interval_and_adaptation(merged: Path) -> None:
    add_report(merged)
    write_card(merged)
    (index,) = yaml.safe_load((merged / CARD).read_text().split("---\n")[1])["model-index"]
    latin, greek = index["results"]  # a score that is not a number is left out
    assert latin["dataset"] == {
        "name": "latin",
        "type": "latin",
        "split": "test",
        "args": {"examples": 4},
    }
    (metric,) = latin["metrics"]
    assert (metric["type"], metric["value"]) == ("accuracy", 75.0)
    assert metric["args"] == {"confidence": 0.95, "low": 30.0642, "high": 95.4413}  # Wilson's
    assert "adapted on the test examples" in metric["name"]
    assert greek["metrics"][0]["value"] == 2.5
    row = "| latin | accuracy in % | 75.0 | 30.1 to 95.4 | 50.0 |  | 4 |"
    assert row in (merged / CARD).read_text()


def test_results_on_data_of_the_hub_have_files_that_the_hubs_library_reads(merged: Path) -> None:
    output = add_report(merged, f"org/letters@{COMMIT}")
    assert write_card(merged) == [CARD, ".eval_results/latin.yaml"]
    content = yaml.safe_load((merged / ".eval_results" / "latin.yaml").read_text())
    (entry,) = parse_eval_result_entries(content)
    assert (entry.dataset_id, entry.task_id, entry.value) == ("org/letters", "latin", 75.0)
    assert entry.dataset_revision == COMMIT
    assert entry.notes == (
        "test split; 4 examples; 95 % interval 30.06 to 95.44 %; the method adapted on the test "
        "examples, without their labels"
    )
    assert [eval_results(result) is None for result in list_results(output)] == [False, True]
    (merged / "report.json").unlink()
    write_card(merged)  # the results of an evaluation that is gone are gone, too
    assert not (merged / ".eval_results").exists()


@pytest.mark.parametrize(("task", "file"), [("arc_easy", "arc_easy"), ("../up", "task-0")])
def test_a_file_of_results_is_named_after_its_task(merged: Path, task: str, file: str) -> None:
    add_report(merged, f"org/letters@{COMMIT}")
    for name in ("report.json", "outcomes.json", "provenance.json"):
        path = merged / name
        path.write_text(path.read_text().replace('"latin"', f'"{task}"'))
    assert write_card(merged) == [CARD, f".eval_results/{file}.yaml"]


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=16, bos_token_id=1, eos_token_id=2))


def tower() -> PreTrainedModel:
    return CLIPVisionModel(CLIPVisionConfig(**SIZES, image_size=8, patch_size=4))


def classifier() -> PreTrainedModel:
    return BertForSequenceClassification(BertConfig(**SIZES, vocab_size=16))


@pytest.mark.parametrize(
    ("build", "tag"),
    [
        (llama, "text-generation"),
        (tower, "image-feature-extraction"),
        (classifier, "text-classification"),
    ],
)
def test_the_code_in_a_card_loads_the_model(
    build: Callable[[], PreTrainedModel],
    tag: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, expert = str(tmp_path / "base"), str(tmp_path / "expert")
    for directory in (base, expert):
        build().save_pretrained(directory)
    run_fusion(
        algorithm="task-arithmetic",
        model_pool={"name": "checkpoints", "base": base, "models": [expert]},
        output=str(tmp_path / "merged"),
    )
    data = metadata_of(tmp_path / "merged")
    assert (data["library_name"], data["pipeline_tag"]) == ("transformers", tag)
    monkeypatch.chdir(tmp_path / "merged")
    loaded = run_code(tmp_path / "merged")
    assert type(loaded["model"]) is type(build())


@pytest.mark.plugins
def test_the_code_in_a_card_adds_the_modules_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("base", "a", "b")
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        llama().save_pretrained(tmp_path / name)
    pool = {"name": "causal-lm", "base": str(tmp_path / "base")}
    run_fusion(
        algorithm={"name": "smile", "rank": 2},
        model_pool={**pool, "models": [str(tmp_path / name) for name in names[1:]]},
        output=str(tmp_path / "merged"),
    )
    monkeypatch.chdir(tmp_path / "merged")
    loaded = run_code(tmp_path / "merged")
    assert any(name.endswith("q_proj.router") for name, _ in loaded["model"].named_modules())


def run_code(directory: Path) -> dict[str, Any]:
    """Run the code block of a card."""
    text = (directory / CARD).read_text()
    block = re.search(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert block is not None
    names: dict[str, Any] = {}
    exec(block[1], names)
    return names


def test_plain_tensors_adapters_sentence_encoders_and_tasks_have_code(merged: Path) -> None:
    output = MergeOutput.read(merged)
    assert 'Path("{model}").glob("*.safetensors")' in find_kind(output).code
    (merged / "modules.json").write_text("[]")
    assert find_kind(output).library == "sentence-transformers"
    config = {"base_model_name_or_path": "org/base", "task_type": "CAUSAL_LM"}
    (merged / "adapter_config.json").write_text(json.dumps(config))
    kind = find_kind(output)
    assert (kind.library, kind.pipeline_tag, kind.is_adapter) == ("peft", "text-generation", True)
    assert 'AutoModelForCausalLM.from_pretrained("org/base")' in kind.code
    report = Report({"latin": {"accuracy": 1.0}}, needs_task=True)
    assert 'build_for_task("{model}", "latin")' in find_kind(replace(output, report=report)).code


# --- licences -----------------------------------------------------------------------------------


def cards(*licences: str | None) -> dict[str, dict[str, Any]]:
    return {f"{n}": {"licence": licence} for n, licence in enumerate(licences)}


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["MIT", "mit"], "mit"),
        (["mit", "Apache-2.0", "bsd-3-clause"], "apache-2.0"),
        (["cc0-1.0", "mit"], "mit"),
        (["apache-2.0", "llama3.1", "mit"], "llama3.1"),
        (["gpl-3.0", "apache-2.0"], "gpl-3.0"),
        (["mit", None], None),
        (["mit", "other"], None),
        ([], None),
    ],
)
def test_a_licence_follows_from_those_of_the_models(
    licences: list[str | None], expected: str | None
) -> None:
    assert find_licence(cards(*licences)) == expected


@pytest.mark.parametrize(
    "licences",
    [
        ["llama3.1", "gemma"],
        ["apache-2.0", "gpl-2.0"],
        ["cc-by-nc-nd-4.0"],
        ["cc-by-sa-4.0", "gpl-3.0", None],
    ],
)
def test_licences_that_conflict_are_refused_unless_the_user_names_one(
    licences: list[str | None],
) -> None:
    with pytest.raises(RecipeError, match=r"conflict|forbids") as caught:
        find_licence(cards(*licences))
    assert all(licence in caught.value.message for licence in licences if licence)
    assert "--set output.licence" in (caught.value.hint or "")
    assert find_licence(cards(*licences), "my-licence") == "my-licence"


def test_a_conflict_is_refused_before_the_merge(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"base \(gemma\), expert-1 \(llama3\.1\)"):
        merge(tmp_path / "refused", "gemma", "llama3.1")
    assert not (tmp_path / "refused" / "merged").exists()
    named = merge(tmp_path / "named", "gemma", "llama3.1", licence="Acme-1")
    data = metadata_of(named)
    assert (data["license"], data["license_name"]) == ("other", "acme-1")


def test_models_without_cards_give_a_card_without_a_known_licence(tmp_path: Path) -> None:
    directory = merge(tmp_path, None, "mit")
    assert metadata_of(directory)["license"] == "unknown"
    write_card(directory, licence="cc-by-4.0")
    write_card(directory)  # keeps the licence that the user named
    assert metadata_of(directory)["license"] == "cc-by-4.0"


# --- the file -----------------------------------------------------------------------------------


def test_an_edited_card_is_kept_without_force(merged: Path, tmp_path: Path) -> None:
    add_report(merged)
    with (merged / CARD).open("a") as stream:
        stream.write("Intended for birds.\n")
    before = (merged / CARD).read_bytes()
    with pytest.raises(OutputError, match=f"edited since: {CARD}"):
        write_card(merged)
    assert (merged / CARD).read_bytes() == before
    with pytest.raises(OutputError, match=f"files that fuse did not write: {CARD}"):
        run_fusion(merged / "recipe.yaml", output=str(merged), options=overwriting())
    write_card(merged, force=True)
    assert b"birds" not in (merged / CARD).read_bytes()
    run_fusion(merged / "recipe.yaml", output=str(merged), options=overwriting())


def test_a_forced_card_keeps_the_licence_and_the_repository(merged: Path) -> None:
    write_card(merged, licence="cc-by-nc-4.0", repository="me/birds")
    with (merged / CARD).open("a") as stream:
        stream.write("Intended for birds.\n")
    write_card(merged, force=True)
    text = (merged / CARD).read_text()
    assert metadata_of(merged)["license"] == "cc-by-nc-4.0"
    assert "# me/birds\n" in text
    assert "Intended" not in text
    with pytest.raises(RecipeError, match="invalid name of a repository: 'bad name'"):
        write_card(merged, repository="bad name")


def test_a_card_of_another_encoding_is_one_of_the_users(merged: Path) -> None:
    (merged / CARD).write_bytes("# Vögel\n".encode("latin-1"))
    with pytest.raises(OutputError, match=f"edited since: {CARD}"):
        write_card(merged)
    write_card(merged, force=True)
    assert not is_edited(merged / CARD)


def test_a_users_own_results_are_kept(merged: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_report(merged, data=f"org/latin@{COMMIT}")
    users = merged / ".eval_results" / "mine.yaml"
    users.parent.mkdir()
    users.write_text("- value: 1\n")
    assert write_card(merged) == [CARD, ".eval_results/latin.yaml"]
    latin = users.with_name("latin.yaml")
    edited = latin.read_text() + "# checked by hand\n"
    latin.write_text(edited)
    assert write_card(merged) == [CARD]
    assert "latin.yaml is kept" in caplog.text
    (merged / "report.json").unlink()
    assert write_card(merged, force=True) == [CARD]
    assert (users.read_text(), latin.read_text()) == ("- value: 1\n", edited)


def test_an_evaluation_updates_a_card_unless_it_was_edited(
    merged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_card(merged, repository="org/name", licence="mit")
    add_report(merged)
    load_plugins().notify("fusion_output_written", path=merged)
    text = (merged / CARD).read_text()
    assert "| latin | accuracy in % | 75.0 |" in text
    assert "# org/name" in text
    assert "license: mit" in text
    assert not caplog.text
    (merged / CARD).write_text(text + "Mine.\n")
    load_plugins().notify("fusion_output_written", path=merged)
    assert (merged / CARD).read_text() == text + "Mine.\n"
    assert f"fuse card {merged} --force writes it again" in caplog.text


def overwriting() -> Any:
    from fusion_core import RunOptions

    return RunOptions(overwrite=True)


def test_only_outputs_of_runs_have_cards(tmp_path: Path) -> None:
    save_model(tmp_path / "model", 0, "mit")
    before = (tmp_path / "model" / CARD).read_bytes()
    with pytest.raises(CheckpointError, match=r"has no provenance\.json"):
        write_card(tmp_path / "model", force=True)
    assert (tmp_path / "model" / CARD).read_bytes() == before


def test_the_output_of_another_command_has_a_card_without_a_recipe(merged: Path) -> None:
    provenance = json.loads((merged / "provenance.json").read_text())
    provenance["predicate"]["command"] = "extract-lora"
    (merged / "provenance.json").write_text(json.dumps(provenance))
    (merged / "recipe.yaml").unlink()
    write_card(merged)
    assert metadata_of(merged)["tags"] == ["fusion-core", "extract-lora"]
    text = (merged / CARD).read_text()
    assert "# Output of extract-lora\n\nMade from the models below by `fuse extract-lora`" in text
    assert "## Recipe" not in text


def test_hostile_names_stay_inside_their_cells(merged: Path) -> None:
    provenance = json.loads((merged / "provenance.json").read_text())
    provenance["predicate"]["inputs"]["a|b\n# <script>"] = {"source": "x | y"}
    provenance["predicate"]["warnings"] = ["the tokenizers of <a>\n# differ"]
    (merged / "provenance.json").write_text(json.dumps(provenance))
    write_card(merged)
    text = (merged / CARD).read_text()
    assert "| a\\|b # &lt;script> | x \\| y | unknown |" in text
    assert "## Warnings\n\n- the tokenizers of &lt;a> # differ\n\n" in text
