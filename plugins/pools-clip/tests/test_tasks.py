"""Heads, batches and accuracy."""

from __future__ import annotations

import json
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


def opened(options: dict[str, Any], **others: Any) -> ClipClassification:
    return ClipClassification(ClipClassificationConfig(**{**options, **others}))


def with_data(options: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"datasets": {"pets": {**options["datasets"]["pets"], **fields}}}


def test_an_identity_changes_with_all_that_accuracy_depends_on(
    options: dict[str, Any], base: Path, dataset: dict[str, Any], tmp_path: Path
) -> None:
    def identity(pool: ClipClassification) -> str:
        return json.dumps(pool.identity("pets"))

    data, clip = tmp_path / "test.parquet", tmp_path / "clip"
    data.write_bytes(Path(dataset["test"]).read_bytes())
    shutil.copytree(base, clip)
    given = {**options, **with_data(options, test=str(data)), "clip": str(clip)}
    names = [*dataset["classnames"][:-1], "blue car"]
    seen = {
        identity(opened(given)),
        identity(opened(given).holdout()),
        identity(opened(given, limit=3)),
        identity(opened(given, batch_size=3)),
        identity(opened(given, templates=["{}"])),
        identity(opened(given, **with_data(given, classnames=names))),
    }
    assert identity(opened(given)) in seen
    for path in (data, clip / "model.safetensors", clip / "tokenizer.json"):
        path.write_bytes(path.read_bytes())
        seen.add(identity(opened(given)))
    assert len(seen) == 9


def test_logits_are_those_of_clip(
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


def test_a_class_is_the_normalised_mean_of_its_prompts(
    options: dict[str, Any], model: CLIPVisionModel
) -> None:
    templates = [TEMPLATE, "{}", "a {}"]
    batch = opened(options)["pets"].batch(0, size=5, split=Split.TEST, seed=0)

    def embeddings(template: str) -> torch.Tensor:
        return opened(options, templates=template)["pets"]._clip.heads.classes["pets"]  # noqa: SLF001

    mean = torch.stack([embeddings([each]) for each in templates]).mean(dim=0)
    task = opened(options, **with_data(options, templates=templates))["pets"]
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


def test_a_batch_is_a_pure_function(options: dict[str, Any], task: ClipTask) -> None:
    arguments = {"size": 4, "split": Split.TRAIN, "seed": 3}
    before = torch.get_rng_state()
    batch = task.batch(7, **arguments)
    task.batch(2, **arguments)
    again = opened(options)["pets"].batch(7, **arguments)
    assert torch.equal(batch.inputs, again.inputs)
    assert torch.equal(batch.labels, again.labels)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_shows_every_row_once_and_the_next_in_another_order() -> None:
    epochs = [
        torch.cat([shuffled_rows(step, 5, 20, key="k") for step in range(first, first + 4)])
        for first in (0, 4)
    ]
    assert [sorted(epoch.tolist()) for epoch in epochs] == [list(range(20))] * 2
    assert not torch.equal(*epochs)
    assert not torch.equal(shuffled_rows(0, 20, 20, key="k"), shuffled_rows(0, 20, 20, key="l"))


def test_labels_belong_to_their_images_and_unlabeled_has_none(
    task: ClipTask, dataset: dict[str, Any], rows: Rows
) -> None:
    everything = task.batch(0, size=20, split=Split.TEST, seed=0)
    assert sorted(everything.labels.tolist()) == sorted(label for _, label in rows)
    rows_in_order = shuffled_rows(0, 20, 20, key="0\0pets\0test")
    assert everything.labels.tolist() == [rows[row][1] for row in rows_in_order]
    assert task.batch(0, size=15, split=Split.UNLABELED, seed=0).labels is None


def test_halves_hold_every_test_image_once_and_the_same_ones_every_time(
    options: dict[str, Any], rows: Rows
) -> None:
    whole = opened(options)
    halves = whole.holdout()["pets"]
    seen = halves.batch(0, size=10, split=Split.UNLABELED, seed=0)
    measured = halves.batch(0, size=10, split=Split.TEST, seed=0)
    everything = whole["pets"].batch(0, size=20, split=Split.TEST, seed=0)
    together = torch.cat([seen.inputs, measured.inputs]).flatten(1)
    assert sorted(together.tolist()) == sorted(everything.inputs.flatten(1).tolist())
    assert seen.labels is None
    assert measured.labels is not None
    again = opened(options).holdout()["pets"].batch(0, size=10, split=Split.TEST, seed=0)
    assert torch.equal(again.inputs, measured.inputs)
    with pytest.raises(RecipeError, match="has 10 test images"):
        halves.batch(0, size=11, split=Split.TEST, seed=0)


def test_options_are_chosen_on_the_half_that_holdout_leaves_unlabeled(
    options: dict[str, Any],
) -> None:
    whole = opened(options, **with_data(options, unlabeled=None))
    held = whole.holdout()
    chosen, measured = whole.halves()
    assert not chosen.transductive
    assert measured.measured_on == "the other half of the test images"

    def pixels(pool: ClipClassification, split: Split) -> list[list[float]]:
        batch = pool["pets"].batch(0, size=10, split=split, seed=0)
        assert (batch.labels is None) == (split is Split.UNLABELED)
        return sorted(batch.inputs.flatten(1).tolist())

    seen, left = pixels(held, Split.UNLABELED), pixels(held, Split.TEST)
    assert pixels(chosen, Split.TEST) == seen
    assert pixels(measured, Split.TEST) == left
    assert pixels(chosen, Split.UNLABELED) == pixels(measured, Split.UNLABELED) == seen
    assert pixels(held.halves()[0], Split.TEST) == seen
    names = [each.identity("pets") for each in (whole, held, chosen, measured)]
    assert len({json.dumps(name) for name in names}) >= 3
    own = opened(options)  # has unlabeled images, which stay
    assert [
        pixels(half, Split.UNLABELED) == pixels(own, Split.UNLABELED) for half in own.halves()
    ] == [True, True]


def test_halves_are_not_transductive_and_say_what_was_measured(options: dict[str, Any]) -> None:
    whole = opened(options, **with_data(options, unlabeled=None))
    assert whole.transductive
    assert whole.measured_on is None
    assert not whole.holdout().transductive
    assert "a half of the test images" in whole.holdout().measured_on
    assert opened(options, limit=3).measured_on == "the first 3 test images of each task"


def test_training_images_are_not_halved(options: dict[str, Any], task: ClipTask) -> None:
    arguments = {"size": 9, "split": Split.TRAIN, "seed": 0}
    halved = opened(options).holdout()["pets"]
    assert torch.equal(halved.batch(0, **arguments).inputs, task.batch(0, **arguments).inputs)


@pytest.mark.parametrize("size", [0, 10])
def test_a_batch_that_cannot_be_is_refused(task: ClipTask, size: int) -> None:
    with pytest.raises(RecipeError, match=rf"a batch of {size}: task 'pets' has 9 train images"):
        task.batch(0, size=size, split=Split.TRAIN, seed=0)


def test_accuracy_is_the_fraction_that_is_right(task: ClipTask, model: CLIPVisionModel) -> None:
    batch = task.batch(0, size=20, split=Split.TEST, seed=0)
    with torch.no_grad():
        right = task.logits(model, batch).argmax(dim=1) == batch.labels
    found = task.evaluate(model)
    assert found == {"accuracy": right.sum().item() / 20}
    assert isinstance(found, Measured)
    rows = shuffled_rows(0, 20, 20, key=f"0\0pets\0{Split.TEST}")
    assert torch.tensor(found.outcomes)[rows].tolist() == right.tolist()  # in the file's order


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_accuracy_does_not_depend_on_the_batch_size(
    options: dict[str, Any], model: CLIPVisionModel, task: ClipTask, batch_size: int
) -> None:
    other = opened(options, batch_size=batch_size)["pets"]
    assert other.evaluate(model) == task.evaluate(model)


def test_images_are_measured_in_batches_of_one_size(
    options: dict[str, Any], model: CLIPVisionModel
) -> None:
    sizes: list[int] = []
    model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
    opened(options, batch_size=12)["pets"].evaluate(model)  # of 20 images
    assert sizes == [10, 10]


def test_evaluating_leaves_the_model_as_it_was(task: ClipTask, model: CLIPVisionModel) -> None:
    model.train()
    model.encoder.eval()
    before = {name: module.training for name, module in model.named_modules()}
    task.evaluate(model)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert all(value.grad is None for value in model.parameters())


def test_a_quick_look_measures_the_first_images(
    options: dict[str, Any], model: CLIPVisionModel
) -> None:
    task = opened(options, limit=4)["pets"]
    assert task.evaluate(model)["accuracy"] in {0, 0.25, 0.5, 0.75, 1}
    with pytest.raises(RecipeError, match="has 4 test images"):
        task.batch(0, size=5, split=Split.TEST, seed=0)


def test_with_unlabeled_images_nothing_is_transductive(pool: ClipClassification) -> None:
    assert not pool.transductive


def test_without_unlabeled_images_the_test_images_serve(options: dict[str, Any]) -> None:
    pool = opened(options, **with_data(options, unlabeled=None))
    assert pool.transductive
    batch = pool["pets"].batch(0, size=20, split=Split.UNLABELED, seed=0)
    assert batch.labels is None


@pytest.mark.parametrize("split", [Split.UNLABELED, Split.TRAIN])
def test_a_split_that_is_not_there_is_named(options: dict[str, Any], split: Split) -> None:
    pool = opened(options, **with_data(options, unlabeled=None, train=None), transductive=False)
    assert not pool.transductive
    with pytest.raises(RecipeError, match=f"no {split} images") as caught:
        pool["pets"].batch(0, size=2, split=split, seed=0)
    assert f"task_pool.datasets.pets.{split}" in str(caught.value)


def test_tasks_are_chosen_in_the_order_asked_for(
    options: dict[str, Any], dataset: dict[str, Any]
) -> None:
    datasets = dict.fromkeys(("a", "b", "c"), dataset)
    assert opened(options, datasets=datasets).names == ["a", "b", "c"]
    assert opened(options, datasets=datasets, tasks=["c", "a"]).names == ["c", "a"]


@pytest.mark.parametrize(
    ("tasks", "problem"), [(["pet"], "did you mean pets"), (["pets", "pets"], "named twice")]
)
def test_a_wrong_choice_of_tasks_is_a_recipe_error(
    options: dict[str, Any], tasks: list[str], problem: str
) -> None:
    with pytest.raises(RecipeError, match=problem) as caught:
        opened(options, tasks=tasks)
    assert caught.value.exit_code == 2


def test_an_unknown_task_is_named_with_close_ones(pool: ClipClassification) -> None:
    with pytest.raises(RecipeError, match="did you mean pets"):
        pool["petz"]


def test_files_are_looked_for_before_any_work(options: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        opened(options, **with_data(options, test="no.parquet", train="none.parquet"))
    assert "datasets.pets.test: no.parquet does not exist" in caught.value.message
    assert "datasets.pets.train: none.parquet does not exist" in caught.value.message


def test_heads_need_a_whole_clip(options: dict[str, Any], experts: dict[str, str]) -> None:
    with pytest.raises(CheckpointError, match="without a text tower"):
        opened(options, clip=experts["hub"])


@pytest.fixture
def copy(base: Path, tmp_path: Path) -> Path:
    """A copy of the CLIP model, to be spoilt."""
    return shutil.copytree(base, tmp_path / "clip")


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("tokenizer.json", "tokenizer cannot be loaded"),
        ("preprocessor_config.json", "no preprocessor_config"),
    ],
)
def test_what_the_model_lacks_is_named(
    options: dict[str, Any], copy: Path, model: CLIPVisionModel, file: str, problem: str
) -> None:
    (copy / file).unlink()
    with pytest.raises(CheckpointError, match=problem):
        opened(options, clip=str(copy))["pets"].evaluate(model)


def test_a_model_of_images_that_are_not_square_is_refused(
    options: dict[str, Any], copy: Path
) -> None:
    path = copy / "config.json"
    path.write_text(path.read_text().replace('"image_size": 8', '"image_size": [8, 4]'))
    with pytest.raises(CheckpointError, match=r"image_size is \[8, 4\]"):
        opened(options, clip=str(copy))["pets"].batch(0, size=1, split=Split.TEST, seed=0)


def test_a_model_without_projections_has_no_heads(options: dict[str, Any], copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    del tensors["text_projection.weight"]
    save_file(tensors, copy / "model.safetensors")
    task = opened(options, clip=str(copy))["pets"]
    with pytest.raises(CheckpointError, match=r"no tensor 'text_projection\.weight'"):
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
