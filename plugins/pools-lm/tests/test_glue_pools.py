"""The GLUE pools, with a local hub that serves tiny repositories under the real ids."""

from __future__ import annotations

import copy
import json
from io import BytesIO
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hub_server import serving
from safetensors.torch import load_file, save_file
from safetensors.torch import save as dump
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2Tokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from typer.testing import CliRunner

from fusion_core import FeatureTask, Split
from fusion_core.commands import Subject
from fusion_core.errors import FusionError, HubError, RecipeError
from fusion_testing import TaskPoolSuite
from pools_lm import plugin
from pools_lm.config import LanguageConfig
from pools_lm.glue.config import FlanT5Config, FlanT5TasksConfig, Gpt2Config, Gpt2TasksConfig
from pools_lm.glue.pools import FlanT5Glue, FlanT5GlueTasks, Gpt2Glue, Gpt2GlueTasks
from pools_lm.glue.tables import (
    examples_of,
    load_family,
    load_published,
    question_options,
    text_options,
)
from pools_lm.pools import ClassificationPool, EncoderPool
from pools_lm.tasks.config import GenerateLines, GenerateTasksConfig
from pools_lm.tasks.lines import read_lines
from pools_lm.tasks.pool import GenerateTasks
from pools_lm.tasks.sentence_config import ClassificationConfig, ClassLines
from pools_lm.tasks.sentences import ClassificationTasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from hub_server import HubServer

    from fusion_core import ModelPool, TaskPoolSpec

EIGHT = ["cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb"]
FAMILIES = ["gpt2", "flan-t5-base", "flan-t5-base-lora", "flan-t5-large-lora"]
#: the class or the score of each line
LABELS = {
    **{task: [1, 0, 1, 1, 0, 1, 1, 1] for task in EIGHT},
    "mnli": [0, 1, 2, 2, 1, 2],
    "stsb": [3.8, 0.0, 4.25, 5.0],
}
#: the constant answer of each expert
SAYS = {"mrpc": "yes", "rte": "no", "mnli": "contradiction", "stsb": "3.8"}
WORDS = ["<pad>", "</s>", "<unk>", "no", "yes", "contradiction", "3.8", "4.2", "the", "question"]


def fields_of(task: str) -> list[str]:
    """Return the fields of a task's text, or of its pair."""
    return [template.strip("{}") for template in text_options(task).values()]


def table(task: str) -> bytes:
    """Return a parquet file like those of nyu-mll/glue."""
    labels = LABELS[task]
    kind = pa.float32() if task == "stsb" else pa.int64()
    sentences = [f"{'the old ' * n}fox {{n}} jumps over the {task}" for n in range(len(labels))]
    columns = {
        field: [f"{sentence} {field[-1]}" for sentence in sentences] for field in fields_of(task)
    }
    stream = BytesIO()
    pq.write_table(pa.table({**columns, "label": pa.array(labels, kind)}), stream)
    return stream.getvalue()


def files_of(directory: Path) -> dict[str, bytes | Path]:
    return {path.name: path for path in directory.iterdir()}


def add_glue(hub: HubServer) -> None:
    """Add the test files of all tasks, and other files that must not be read."""
    files: dict[str, bytes] = {}
    for task in EIGHT:
        test = examples_of(task)["test"].rpartition("/")[2]
        files[f"{task}/{test}-00000-of-00001.parquet"] = table(task)
        files[f"{task}/test-00000-of-00001.parquet"] = b"without labels"
        files[f"{task}/train-00000-of-00001.parquet"] = table(task)
    files["mnli/validation_mismatched-00000-of-00001.parquet"] = b"another"
    hub.add("nyu-mll/glue", files, kind="dataset")


@pytest.fixture(scope="module")
def served(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A hub with all repositories, for tests that neither change it nor count requests."""
    with serving(tmp_path_factory.mktemp("served")) as hub:
        add_glue(hub)
        add_flan(hub, folders)
        add_gpt2(hub, folders)
        yield hub


@pytest.fixture
def own_hub(hub: HubServer, served: HubServer) -> HubServer:
    """A copy of this hub for one test."""
    hub.repositories = copy.deepcopy(served.repositories)
    return hub


# Flan-T5: models that always answer one word


def words() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def build_t5(word: str) -> dict[str, bytes]:
    """Return a T5 whose next word depends only on the previous one, because layers add nothing.

    As in Flan-T5, its head and its embeddings are different matrices.
    """
    fields = {"d_model": 16, "d_ff": 8, "d_kv": 8, "num_layers": 1, "num_heads": 2}
    sizes = {**fields, "vocab_size": len(WORDS), "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(**sizes))
    tensors = {
        name: torch.full_like(value, "norm" in name) for name, value in model.named_parameters()
    }
    tensors["shared.weight"] = torch.eye(len(WORDS), 16)
    tensors["lm_head.weight"] = torch.zeros(len(WORDS), 16)
    tensors["lm_head.weight"][WORDS.index(word), 0] = 1
    tensors["lm_head.weight"][WORDS.index("</s>"), WORDS.index(word)] = 1
    config = {"model_type": "t5", "tie_word_embeddings": False, **sizes}
    return {"config.json": json.dumps(config).encode(), "model.safetensors": dump(tensors)}


def add_flan(hub: HubServer, folders: Path) -> None:
    """Add a base that answers yes, with its tokenizer, and experts without one."""
    card = {"README.md": b"---\nlicense: apache-2.0\n---\n"}
    hub.add("google/flan-t5-base", {**build_t5("yes"), **files_of(folders / "words"), **card})
    for task in EIGHT:
        hub.add(f"tanganke/flan-t5-base_glue-{task}", build_t5(SAYS.get(task, "yes")))


APP = resolve_name("fusion_core.cli.app:app")  # the command itself, in this process


def fuse(*arguments: str, code: int = 0) -> Any:
    result = CliRunner().invoke(APP, list(arguments))
    assert getattr(result.exception, "exit_code", result.exit_code) == code, result.exception
    return result


@pytest.mark.parametrize(
    ("name", "row", "average"),
    [
        ("gpt2", "RegMean", 68.8),
        ("gpt2", "TIES λ=0.6", 70.0),
        ("flan-t5-base", "TIES λ=0.3", 79.9),
        ("flan-t5-base-lora", "Simple Average", 78.2),
        ("flan-t5-base-lora", "Fine-tuned (STL)", 84.6),
        ("flan-t5-large-lora", "Task Arithmetic λ=0.3", 87.3),
    ],
)
def test_published_rows_match_the_published_averages(name: str, row: str, average: float) -> None:
    published = load_published(name)
    assert published["tasks"] == load_family(name).tasks
    assert all(len(scores) == len(published["tasks"]) for scores in published["rows"].values())
    assert abs(sum(published["rows"][row]) / len(published["tasks"]) - average) < 0.06


def test_repositories_of_experts() -> None:
    names = {name: load_family(name).experts(["rte"])["rte"] for name in FAMILIES}
    assert names == {
        "gpt2": "tanganke/gpt2_rte",
        "flan-t5-base": "tanganke/flan-t5-base_glue-rte",
        "flan-t5-base-lora": "tanganke/flan-t5-base_glue-rte_lora-16",
        "flan-t5-large-lora": "tanganke/flan-t5-large_glue-rte_lora-16",
    }
    assert question_options("qnli")["names"] == ["yes", "no"]
    assert examples_of("mnli")["test"].endswith("/mnli/validation_matched")


def test_a_run_is_shown_with_published_results(own_hub: HubServer, tmp_path: Path) -> None:
    """A constant answer scores the fraction of lines with this answer."""
    chosen = ("--set", "model_pool.tasks=[mrpc, rte, mnli, stsb]")
    options = (*chosen, "-o", str(tmp_path / "out"))
    result = fuse("run", "--algo", "simple-average", "--pool", "flan-t5-glue", *options)
    assert "to download: " in result.stderr
    for text in ("Task Arithmetic", "simple-average (this run)", "spearman", "FusionBench"):
        assert text in " ".join(result.stdout.split()), text
    report = json.loads((tmp_path / "out/report.json").read_text())
    experts, base = report["reference"]["experts"], report["reference"]["base"]
    assert experts["mrpc"] == {"exact_match": 6 / 8, "invalid": 0}
    assert experts["rte"] == {"exact_match": 6 / 8, "invalid": 0}
    assert experts["mnli"] == {"exact_match": 3 / 6, "invalid": 0}
    assert experts["stsb"] == {"spearman": 0, "invalid": 0}
    assert base["rte"] == {"exact_match": 2 / 8, "invalid": 0}
    assert base["stsb"] == {"spearman": 0, "invalid": 1}
    assert report["published"]["rows"]["TIES λ=0.3"]["stsb"] == pytest.approx(0.783)
    recorded = json.loads((tmp_path / "out/provenance.json").read_text())["predicate"]
    commit = own_hub.repositories["datasets", "nyu-mll/glue"].refs["main"]
    assert recorded["tasks"]["mnli"]["test"] == {
        "data": f"nyu-mll/glue@{commit}",
        "files": ["mnli/validation_matched-00000-of-00001.parquet"],
    }
    assert not own_hub.asked("sst2")
    assert not own_hub.asked("train-")
    own_hub.stop()
    again = fuse("evaluate", str(tmp_path / "out"), "--json", "-q")
    assert json.loads(again.stdout)["tasks"] == report["tasks"]


@pytest.mark.usefixtures("served")
def test_questions_and_answers_match_the_training_of_the_experts() -> None:
    pool = FlanT5Glue(FlanT5Config(tasks=["stsb"]))
    task = FlanT5GlueTasks(FlanT5TasksConfig(tasks=["stsb"])).bind(pool)["stsb"]
    lines = task.lines(Split.TEST)
    assert [task.answer(line) for line in lines] == ["3.8", "0.0", "4.2", "5.0"]  # 4.25 is even
    question = (
        "Consider the sentences 'the old fox {n} jumps over the stsb 1' and 'the old fox {n} jumps "
        "over the stsb 2'. On a scale from 1 (completely different) to 5 (completely similar), "
        "rate the similarity."
    )
    assert task.questions(lines)[1] == question
    assert task.pairs(lines[:1], Split.TEST)[0].continuation == [WORDS.index("3.8")]
    assert task.pairs(lines[:1], Split.UNLABELED)[0].continuation == ()


def test_lora_experts_have_their_own_published_results(
    served: HubServer, tmp_path: Path, adapter: Callable[..., str]
) -> None:
    written = Path(adapter(tmp_path / "lora", "decoder.block.0.layer.0.SelfAttention.q"))
    for task in ("mrpc", "rte"):
        served.add(f"tanganke/flan-t5-base_glue-{task}_lora-16", files_of(written))
    chosen = ("--set", "model_pool.tasks=[mrpc, rte]", "--set", "model_pool.variant=base-lora")
    pool = ("--pool", "flan-t5-glue", *chosen)
    fuse("run", "--algo", "simple-average", *pool, "-q", "-o", str(tmp_path / "out"))
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["published"]["family"].startswith("tanganke/flan-t5-base_glue-*_lora-16")
    assert report["reference"]["experts"]["mrpc"]["exact_match"] == 6 / 8
    assert FlanT5Glue(FlanT5Config(tasks=["mrpc"], variant="base-lora")).experts["mrpc"].is_delta


# GPT-2: experts with their own heads


def save_tokenizer(folder: Path) -> GPT2Tokenizer:
    """Save a tokenizer like the experts', with just `vocab.json` and `merges.txt`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<|endoftext|>"])
    tokenizer.train_from_iterator(["the old fox jumps over the tasks"], trainer)
    folder.mkdir()
    tokenizer.model.save(str(folder))
    return GPT2Tokenizer.from_pretrained(folder)


def classifier(rows: int, seed: int, classes: int) -> Any:
    sizes: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": rows}
    special = dict.fromkeys(["bos_token_id", "eos_token_id", "pad_token_id"], 0)
    config = GPT2Config(num_labels=classes, **sizes, **special)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_config(config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with masks among its weights, as on the hub, experts with heads, and tokenizers."""
    root = tmp_path_factory.mktemp("models")
    words().save_pretrained(root / "words")
    tokenizer = save_tokenizer(root / "tokenizer")
    classifier(len(tokenizer), 0, 2).transformer.save_pretrained(root / "gpt2")
    tokenizer.save_pretrained(root / "gpt2")
    path = root / "gpt2/model.safetensors"
    save_file({**load_file(path), "h.0.attn.bias": torch.ones(1, 1, 4, 4)}, path)
    for seed, task in enumerate(EIGHT[:-1], 1):
        classifier(len(tokenizer), seed, 3 if task == "mnli" else 2).save_pretrained(root / task)
    return root


def add_gpt2(hub: HubServer, folders: Path) -> None:
    """Add the base and the experts."""
    hub.add("openai-community/gpt2", files_of(folders / "gpt2"))
    for task in EIGHT[:-1]:
        tokenizer_files = files_of(folders / "tokenizer")
        hub.add(f"tanganke/gpt2_{task}", {**files_of(folders / task), **tokenizer_files})


@pytest.mark.parametrize("task", ["qnli", "mnli", "cola"])
@pytest.mark.usefixtures("served")
def test_an_expert_with_its_head_matches_transformers(folders: Path, task: str) -> None:
    pool = Gpt2Glue(Gpt2Config(tasks=[task]))
    tasks = Gpt2GlueTasks(Gpt2TasksConfig(tasks=[task], batch_size=3)).bind(pool)
    whole = AutoModelForSequenceClassification.from_pretrained(folders / task).eval()
    tokenizer = GPT2Tokenizer.from_pretrained(folders / "tokenizer")
    model, glue_task = pool.build(pool.experts[task]), tasks[task]
    assert isinstance(glue_task, FeatureTask)
    right = 0
    with torch.no_grad():
        for line in read_lines(examples_of(task)["test"]):
            inputs = tokenizer(*[line[field] for field in fields_of(task)], return_tensors="pt")
            right += int(whole(**inputs).logits.argmax()) == line["label"]
        batch = glue_task.batch(0, size=6, split=Split.TEST, seed=0)
        expected = whole(**batch.tensors).logits
        assert torch.allclose(glue_task.logits(model, batch), expected, atol=1e-6)
    assert batch.labels is not None
    assert set(batch.labels.tolist()) <= set(range(expected.shape[1]))
    count = len(LABELS[task])
    assert tasks.measure(Subject.of(model))[task] == {"accuracy": right / count}
    assert glue_task.batch(0, size=6, split=Split.UNLABELED, seed=0).labels is None


@pytest.mark.usefixtures("served")
def test_only_the_backbone_is_merged(folders: Path, tmp_path: Path) -> None:
    options = ("--set", "model_pool.tasks=[mrpc, mnli]", "--tasks", "mrpc,mnli,rte", "-q")
    pool = ("--pool", "gpt2-glue", *options)
    result = fuse("run", "--algo", "simple-average", *pool, "-o", str(tmp_path / "out"))
    assert "Task Arithmetic" in result.stdout
    merged = load_file(tmp_path / "out/model.safetensors")
    experts = [load_file(folders / task / "model.safetensors") for task in ("mrpc", "mnli")]
    name = "h.1.mlp.c_fc.weight"
    mean = (experts[0][f"transformer.{name}"] + experts[1][f"transformer.{name}"]) / 2
    assert torch.allclose(merged[name], mean)
    assert "score.weight" not in merged
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert list(report["tasks"]) == ["mrpc", "mnli", "rte"]
    assert list(report["reference"]["experts"]) == ["mrpc", "mnli"]


@pytest.mark.usefixtures("served")
def test_adamerging_learns_by_the_heads(tmp_path: Path) -> None:
    steps = ("--set", "algorithm.steps=2", "--set", "algorithm.batch_size=3", "-q")
    options = ("--tasks", "mrpc,cola", "-o", str(tmp_path / "out"))
    result = fuse("run", "--algo", "adamerging", "--pool", "gpt2-glue", *steps, *options)
    assert "transductive" in result.stdout


def bind_tasks(pool: ModelPool[Any], **options: Any) -> Gpt2GlueTasks:
    return Gpt2GlueTasks(Gpt2TasksConfig(tasks=["rte"], **options)).bind(pool)


def test_a_repository_without_a_head_is_refused(own_hub: HubServer, folders: Path) -> None:
    own_hub.add("tanganke/gpt2_rte", files_of(folders / "gpt2"))
    tasks = bind_tasks(Gpt2Glue(Gpt2Config(tasks=["mrpc"])))
    with pytest.raises(
        RecipeError, match=r"gpt2_rte@\w+ has no head for task 'rte': 'score.weight' is missing"
    ):
        tasks.check()


@pytest.mark.usefixtures("served")
def test_heads_need_models_of_their_type(folders: Path) -> None:
    """The task's head replaces the model's own."""
    models = {"mrpc": "tanganke/gpt2_mrpc"}
    pool = ClassificationPool(LanguageConfig(base="tanganke/gpt2_rte", models=models))
    tasks = bind_tasks(pool)
    batch = tasks.adaptive("rte").batch(0, size=6, split=Split.TEST, seed=0)
    whole = AutoModelForSequenceClassification.from_pretrained(folders / "rte").eval()
    live = pool.build(pool.base)
    live.score.weight.data.zero_()
    with torch.no_grad():
        logits = tasks.adaptive("rte").logits(live, batch)
        assert torch.allclose(logits, whole(**batch.tensors).logits, atol=1e-6)
    with pytest.raises(RecipeError, match="'rte': its head belongs to gpt2, the models are t5"):
        bind_tasks(FlanT5Glue(FlanT5Config(tasks=["rte"]))).check()


# Both


@pytest.mark.parametrize("name", ["gpt2-glue", "flan-t5-glue"])
def test_a_run_after_a_download_needs_no_network(
    own_hub: HubServer, tmp_path: Path, name: str
) -> None:
    options = ("--pool", name, "--set", "model_pool.tasks=[mrpc, cola]")
    assert "tanganke" in fuse("check", "--algo", "simple-average", *options).stdout
    assert not own_hub.asked("validation", "GET")
    assert all(part for _, _, part in own_hub.asked("model.safetensors", "GET"))  # headers
    assert "to download" in fuse("download", *options).stderr
    own_hub.stop()
    ran = fuse("run", "--algo", "simple-average", *options, "-o", str(tmp_path / "out"))
    assert "nothing to download" in ran.stderr


def test_unknown_names_are_reported(own_hub: HubServer, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean mnli"):
        FlanT5Glue(FlanT5Config(tasks=["mnl"]))
    with pytest.raises(RecipeError, match="unknown task 'stsb'"):
        Gpt2GlueTasks(Gpt2TasksConfig(tasks=["stsb"]))
    own_hub.fail("datasets/nyu-mll/glue", status=404, headers={"X-Error-Code": "RepoNotFound"})
    options = ("--pool", "flan-t5-glue", "--tasks", "rte", "-o", str(tmp_path / "out"), "-q")
    error = fuse("run", "--algo", "simple-average", *options, code=5).exception
    assert isinstance(error, HubError)
    assert "no dataset nyu-mll/glue" in error.message
    assert not (tmp_path / "out").exists()


def test_a_split_on_the_hub_can_replace_a_file(own_hub: HubServer) -> None:
    assert read_lines("hub:nyu-mll/glue/stsb/train", 1)[0].fill("{label:.1f}") == "3.8"
    own_hub.add("nyu-mll/glue", {"a.csv": b""}, kind="dataset", branch="refs/convert/parquet")
    assert len(read_lines("hub:nyu-mll/glue@main/mrpc/validation", 3)) == 3
    with pytest.raises(RecipeError, match="invalid name of a data set's split"):
        read_lines("hub:nyu-mll/glue")
    with pytest.raises(HubError, match="no parquet files of the split 'dev'"):
        read_lines("hub:nyu-mll/glue/mrpc/dev")
    with pytest.raises(FusionError, match="invalid parquet"):
        read_lines("hub:nyu-mll/glue/cola/test")


@pytest.mark.usefixtures("served")
def test_sentence_tasks_read_splits() -> None:
    """A probe's training examples are downloaded first, and `check` reads none of them."""
    models = {"mrpc": "tanganke/gpt2_mrpc"}
    pool = EncoderPool(LanguageConfig(base="openai-community/gpt2", models=models))
    data = {"mrpc": ClassLines(**text_options("mrpc"), **examples_of("mrpc"))}
    tasks = ClassificationTasks(ClassificationConfig(datasets=data)).bind(pool)
    tasks.check()
    paths = [path for download in tasks.downloads() for path in download.paths]
    assert paths == [f"mrpc/{n}-00000-of-00001.parquet" for n in ("validation", "train")]
    assert [*tasks.inputs()["mrpc"]["test"]["files"]] == paths[:1]
    assert 0 <= tasks["mrpc"].evaluate(pool.build(pool.base))["accuracy"] <= 1


@pytest.mark.usefixtures("served")
def test_few_shot_examples_are_downloaded_first() -> None:
    data = {**examples_of("mrpc"), "prompt": "{sentence1}", "answer": "{sentence2:.1f}", "shots": 1}
    config = GenerateTasksConfig(datasets={"mrpc": GenerateLines(**data)})
    tasks = GenerateTasks(config).bind(FlanT5Glue(FlanT5Config(tasks=["mrpc"])))
    paths = [path for download in tasks.downloads() for path in download.paths]
    assert paths == [f"mrpc/{n}-00000-of-00001.parquet" for n in ("validation", "train")]
    with pytest.raises(FusionError, match=r"row 0: cannot fill '\{sentence2:.1f\}'"):
        tasks["mrpc"].batch(0, size=1, split=Split.TRAIN, seed=0)


@pytest.fixture(scope="module")
def backbones(served: HubServer) -> Gpt2Glue:
    assert served.repositories
    return Gpt2Glue(Gpt2Config(tasks=["mrpc", "mnli"]))


class TestGpt2(TaskPoolSuite):
    expected_failures: ClassVar[dict[str, str]] = {
        "test_splits_share_no_examples": "the hub of these tests serves one table for all splits"
    }

    @pytest.fixture
    def spec(self) -> TaskPoolSpec:
        specs = plugin.fusion_register_task_pools()
        return next(spec for spec in specs if spec.name == "gpt2-glue")

    @pytest.fixture
    def options(self) -> dict[str, Any]:
        return {"tasks": ["mrpc", "mnli"]}

    @pytest.fixture
    def models(self, backbones: Gpt2Glue) -> Gpt2Glue:
        return backbones
