"""Heads, batches and accuracy."""

from __future__ import annotations

import json
import math
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoTokenizer

from fusion_core import Measured, Split, run_fusion, shuffled_rows
from fusion_core.errors import CheckpointError, RecipeError
from fusion_testing import Mean
from pools_clip.config import ClipClassificationConfig, ClipConfig
from pools_clip.pool import ClipPool
from pools_clip.tasks import ClipClassification

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPVisionModel

    from pools_clip.tasks import ClipTask

Rows = "list[tuple[bytes, int]]"
_FIRST = torch.tensor([0])
TEMPLATE = "a photo of the {}"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def options(base: Path, dataset: dict[str, Any]) -> dict[str, Any]:
    return {"clip": str(base), "datasets": {"pets": dataset}, "templates": [TEMPLATE]}


@pytest.fixture
def pool(options: dict[str, Any]) -> ClipClassification:
    return ClipClassification(ClipClassificationConfig(**options))


@pytest.fixture
def task(pool: ClipClassification) -> ClipTask:
    return pool["pets"]


@pytest.fixture
def model(base: Path, experts: dict[str, str]) -> CLIPVisionModel:
    models = ClipPool(ClipConfig(base=str(base), models=experts))
    return models.build(models.base)


def open_pool(options: dict[str, Any], **changes: Any) -> ClipClassification:
    return ClipClassification(ClipClassificationConfig(**{**options, **changes}))


def with_data(options: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"datasets": {"pets": {**options["datasets"]["pets"], **fields}}}


def test_the_identity_covers_everything_that_accuracy_depends_on(
    options: dict[str, Any], base: Path, dataset: dict[str, Any], tmp_path: Path
) -> None:
    def identity(pool: ClipClassification) -> str:
        return json.dumps(pool.identity("pets"))

    data, clip = tmp_path / "test.parquet", tmp_path / "clip"
    data.write_bytes(Path(dataset["test"]).read_bytes())
    shutil.copytree(base, clip)
    copied = {**options, **with_data(options, test=str(data)), "clip": str(clip)}
    names = [*dataset["classnames"][:-1], "blue car"]
    seen = {
        identity(open_pool(copied)),
        identity(open_pool(copied).holdout()),
        identity(open_pool(copied, limit=3)),
        identity(open_pool(copied, batch_size=3)),
        identity(open_pool(copied, templates=["{}"])),
        identity(open_pool(copied, **with_data(copied, classnames=names))),
    }
    assert identity(open_pool(copied)) in seen
    for path in (data, clip / "model.safetensors", clip / "tokenizer.json"):
        path.write_bytes(path.read_bytes())
        seen.add(identity(open_pool(copied)))
    assert len(seen) == 9


def test_logits_match_clip(
    task: ClipTask, model: CLIPVisionModel, base: Path, whole: CLIPModel, dataset: dict[str, Any]
) -> None:
    batch = task.batch(0, size=5, split=Split.TEST, seed=0)
    texts = [TEMPLATE.format(name) for name in dataset["classnames"]]
    tokens = AutoTokenizer.from_pretrained(base)(texts, padding=True, return_tensors="pt")
    inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = whole(pixel_values=batch.inputs, **inputs).logits_per_image
        # So small a model rounds an embedding's direction in fp32 by at most 32 epsilon. The scale
        # multiplies the cosine of two such directions.
        bound = 64 * torch.finfo(torch.float32).eps * float(whole.logit_scale.exp())
        torch.testing.assert_close(task.logits(model, batch), expected, rtol=0, atol=bound)


def test_a_class_is_the_normalized_mean_of_its_prompts(
    options: dict[str, Any], model: CLIPVisionModel
) -> None:
    templates = [TEMPLATE, "{}", "a {}"]
    batch = open_pool(options)["pets"].batch(0, size=5, split=Split.TEST, seed=0)

    def embeddings(template: str) -> torch.Tensor:
        return open_pool(options, templates=template)["pets"]._clip.heads.classes["pets"]  # noqa: SLF001

    mean = torch.stack([embeddings([template]) for template in templates]).mean(dim=0)
    task = open_pool(options, **with_data(options, templates=templates))["pets"]
    heads = task._clip.heads  # noqa: SLF001
    torch.testing.assert_close(heads.classes["pets"], functional.normalize(mean, dim=-1))
    assert task.logits(model, batch).shape == (5, 3)


def test_logits_are_differentiable_in_every_parameter(
    task: ClipTask, model: CLIPVisionModel
) -> None:
    batch = task.batch(0, size=5, split=Split.UNLABELED, seed=0)
    task.logits(model, batch).softmax(dim=1).square().sum().backward()
    for name, value in model.named_parameters():
        assert value.grad is not None, name
        assert value.grad.abs().sum() > 0 or name.endswith("k_proj.bias"), name


def test_gradients_flow_after_an_evaluation(task: ClipTask, model: CLIPVisionModel) -> None:
    with torch.inference_mode():
        task.evaluate(model)
    batch = task.batch(0, size=5, split=Split.TEST, seed=0)
    task.logits(model, batch).sum().backward()
    assert all(value.grad is not None for value in model.parameters())


def test_batches_are_reproducible(options: dict[str, Any], task: ClipTask) -> None:
    arguments = {"size": 4, "split": Split.TRAIN, "seed": 3}
    before = torch.get_rng_state()
    batch = task.batch(7, **arguments)
    task.batch(2, **arguments)
    again = open_pool(options)["pets"].batch(7, **arguments)
    assert torch.equal(batch.inputs, again.inputs)
    assert torch.equal(batch.labels, again.labels)
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_are_permutations() -> None:
    epochs = [
        torch.cat([shuffled_rows(step, 5, 20, key="k") for step in range(first, first + 4)])
        for first in (0, 4)
    ]
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(20))] * 2
    assert not torch.equal(*epochs)
    assert not torch.equal(shuffled_rows(0, 20, 20, key="k"), shuffled_rows(0, 20, 20, key="l"))


def test_labels_match_their_images_and_unlabeled_has_none(
    task: ClipTask, dataset: dict[str, Any], rows: Rows
) -> None:
    everything = task.batch(0, size=20, split=Split.TEST, seed=0)
    assert sorted(everything.labels.tolist()) == sorted(label for _, label in rows)
    rows_in_order = shuffled_rows(0, 20, 20, key="0\0pets\0test")
    assert everything.labels.tolist() == [rows[row][1] for row in rows_in_order]
    assert task.batch(0, size=15, split=Split.UNLABELED, seed=0).labels is None


def test_halves_partition_the_test_images_reproducibly(options: dict[str, Any], rows: Rows) -> None:
    whole = open_pool(options)
    halves = whole.holdout()["pets"]
    seen = halves.batch(0, size=10, split=Split.UNLABELED, seed=0)
    measured = halves.batch(0, size=10, split=Split.TEST, seed=0)
    everything = whole["pets"].batch(0, size=20, split=Split.TEST, seed=0)
    together = torch.cat([seen.inputs, measured.inputs]).flatten(1)
    assert sorted(together.tolist()) == sorted(everything.inputs.flatten(1).tolist())
    assert seen.labels is None
    assert measured.labels is not None
    again = open_pool(options).holdout()["pets"].batch(0, size=10, split=Split.TEST, seed=0)
    assert torch.equal(again.inputs, measured.inputs)
    with pytest.raises(RecipeError, match="has 10 test images"):
        halves.batch(0, size=11, split=Split.TEST, seed=0)


def test_halves_match_the_splits_of_holdout(
    options: dict[str, Any],
) -> None:
    whole = open_pool(options, **with_data(options, unlabeled=None))
    held_out = whole.holdout()
    chosen, measured = whole.halves()
    assert not chosen.transductive
    assert measured.measured_on == "the other half of the test images"

    def pixels(pool: ClipClassification, split: Split) -> list[list[float]]:
        batch = pool["pets"].batch(0, size=10, split=split, seed=0)
        assert (batch.labels is None) == (split is Split.UNLABELED)
        return sorted(batch.inputs.flatten(1).tolist())

    seen, left = pixels(held_out, Split.UNLABELED), pixels(held_out, Split.TEST)
    assert pixels(chosen, Split.TEST) == seen
    assert pixels(measured, Split.TEST) == left
    assert pixels(chosen, Split.UNLABELED) == pixels(measured, Split.UNLABELED) == seen
    assert pixels(held_out.halves()[0], Split.TEST) == seen
    identities = [pool.identity("pets") for pool in (whole, held_out, chosen, measured)]
    assert len({json.dumps(identity) for identity in identities}) >= 3
    other = open_pool(options)  # has unlabeled images, which stay
    assert [
        pixels(half, Split.UNLABELED) == pixels(other, Split.UNLABELED) for half in other.halves()
    ] == [True, True]


def test_halves_are_not_transductive_and_describe_their_images(options: dict[str, Any]) -> None:
    whole = open_pool(options, **with_data(options, unlabeled=None))
    assert whole.transductive
    assert whole.measured_on is None
    assert not whole.holdout().transductive
    assert "a half of the test images" in whole.holdout().measured_on
    assert open_pool(options, limit=3).measured_on == "the first 3 test images of each task"


def test_training_images_are_not_halved(options: dict[str, Any], task: ClipTask) -> None:
    arguments = {"size": 9, "split": Split.TRAIN, "seed": 0}
    halved = open_pool(options).holdout()["pets"]
    assert torch.equal(halved.batch(0, **arguments).inputs, task.batch(0, **arguments).inputs)


@pytest.mark.parametrize("size", [0, 10])
def test_an_invalid_batch_size_is_refused(task: ClipTask, size: int) -> None:
    with pytest.raises(
        RecipeError, match=rf"invalid batch size {size}: task 'pets' has 9 train images"
    ):
        task.batch(0, size=size, split=Split.TRAIN, seed=0)


def test_accuracy_is_the_fraction_of_correct_images(task: ClipTask, model: CLIPVisionModel) -> None:
    batch = task.batch(0, size=20, split=Split.TEST, seed=0)
    with torch.no_grad():
        right = task.logits(model, batch).argmax(dim=1) == batch.labels
    metrics = task.evaluate(model)
    assert metrics == {"accuracy": right.sum().item() / 20}
    assert isinstance(metrics, Measured)
    rows = shuffled_rows(0, 20, 20, key=f"0\0pets\0{Split.TEST}")
    assert torch.tensor(metrics.outcomes)[rows].tolist() == right.tolist()  # in the file's order


def test_a_model_that_computes_nan_has_no_accuracy(task: ClipTask, model: CLIPVisionModel) -> None:
    model.register_forward_pre_hook(lambda _, inputs: (inputs[0].index_fill(0, _FIRST, math.nan),))
    metrics = task.evaluate(model)
    assert math.isnan(metrics["accuracy"])
    assert isinstance(metrics, Measured)
    assert [math.isnan(outcome) for outcome in metrics.outcomes] == [True] + [False] * 19


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_accuracy_does_not_depend_on_the_batch_size(
    options: dict[str, Any], model: CLIPVisionModel, task: ClipTask, batch_size: int
) -> None:
    other = open_pool(options, batch_size=batch_size)["pets"]
    assert other.evaluate(model) == task.evaluate(model)


def test_evaluation_uses_equal_batches(options: dict[str, Any], model: CLIPVisionModel) -> None:
    sizes: list[int] = []
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    open_pool(options, batch_size=12)["pets"].evaluate(model)  # of 20 images
    assert sizes == [10, 10]


def test_evaluation_does_not_change_the_model(task: ClipTask, model: CLIPVisionModel) -> None:
    model.train()
    model.encoder.eval()
    before = {name: module.training for name, module in model.named_modules()}
    task.evaluate(model)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(value.grad is None for value in model.parameters())


def test_limit_evaluates_the_first_images(options: dict[str, Any], model: CLIPVisionModel) -> None:
    task = open_pool(options, limit=4)["pets"]
    assert task.evaluate(model)["accuracy"] in {0, 0.25, 0.5, 0.75, 1}
    with pytest.raises(RecipeError, match="has 4 test images"):
        task.batch(0, size=5, split=Split.TEST, seed=0)


def test_with_unlabeled_images_nothing_is_transductive(pool: ClipClassification) -> None:
    assert not pool.transductive


def test_without_unlabeled_images_the_test_images_are_used(options: dict[str, Any]) -> None:
    pool = open_pool(options, **with_data(options, unlabeled=None))
    assert pool.transductive
    batch = pool["pets"].batch(0, size=20, split=Split.UNLABELED, seed=0)
    assert batch.labels is None


@pytest.mark.parametrize("split", [Split.UNLABELED, Split.TRAIN])
def test_a_missing_split_is_named(options: dict[str, Any], split: Split) -> None:
    pool = open_pool(options, **with_data(options, unlabeled=None, train=None), transductive=False)
    assert not pool.transductive
    with pytest.raises(RecipeError, match=f"no {split} images") as caught:
        pool["pets"].batch(0, size=2, split=split, seed=0)
    assert f"task_pool.datasets.pets.{split}" in str(caught.value)


def test_tasks_keep_the_chosen_order(options: dict[str, Any], dataset: dict[str, Any]) -> None:
    datasets = dict.fromkeys(("a", "b", "c"), dataset)
    assert open_pool(options, datasets=datasets).names == ["a", "b", "c"]
    assert open_pool(options, datasets=datasets, tasks=["c", "a"]).names == ["c", "a"]


@pytest.mark.parametrize(
    ("tasks", "problem"), [(["pet"], "did you mean pets"), (["pets", "pets"], "named twice")]
)
def test_a_wrong_choice_of_tasks_is_a_recipe_error(
    options: dict[str, Any], tasks: list[str], problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem) as caught:
        open_pool(options, tasks=tasks)
    assert caught.value.exit_code == 2


def test_an_unknown_task_is_named_with_close_ones(pool: ClipClassification) -> None:
    with pytest.raises(RecipeError, match="did you mean pets"):
        pool["petz"]


def test_missing_files_are_reported_at_once(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        open_pool(options, **with_data(options, test="no.parquet", train="none.parquet"))
    assert "datasets.pets.test: no.parquet does not exist" in caught.value.message
    assert "datasets.pets.train: none.parquet does not exist" in caught.value.message


def test_heads_need_a_full_clip_model(options: dict[str, Any], experts: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="without a text tower"):
        open_pool(options, clip=experts["hub"])


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A copy of the CLIP model that a test can damage."""
    return shutil.copytree(base, tmp_path / "clip")


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("tokenizer.json", "tokenizer cannot be loaded"),
        ("preprocessor_config.json", "missing preprocessor_config"),
    ],
)
def test_missing_files_of_the_model_are_named(
    options: dict[str, Any], copy: Path, model: CLIPVisionModel, file: str, problem: str
) -> None:
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=problem):
        open_pool(options, clip=str(copy))["pets"].evaluate(model)


def test_a_model_of_images_that_are_not_square_is_refused(
    options: dict[str, Any], copy: Path
) -> None:
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"image_size": 8', '"image_size": [8, 4]'))
    with pytest.raises(CheckpointError, match=r"invalid image_size \[8, 4\]"):
        open_pool(options, clip=str(copy))["pets"].batch(0, size=1, split=Split.TEST, seed=0)


def test_a_model_without_projections_has_no_heads(options: dict[str, Any], copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, copy / "model.safetensors")
    task = open_pool(options, clip=str(copy))["pets"]
    with pytest.raises(CheckpointError, match=r"missing tensor 'text_projection\.weight'"):
        task.head(torch.zeros(1, 4))


def test_a_run_reports_base_experts_and_merge(
    base: Path,
    experts: dict[str, str],
    dataset: dict[str, Any],
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    result = run_fusion(
        algorithm=Mean(),
        model_pool={"name": "clip", "base": str(base), "models": {"pets": experts["hub"]}},
        task_pool={"name": "clip-classification", **options},
        output={"path": str(tmp_path / "merged")},
    )
    report = result.report.as_json()
    assert report["tasks"].keys() == {"pets"}
    assert report["reference"].keys() == {"base", "experts"}
