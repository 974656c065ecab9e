"""Faults planted into sound pools: each world replaces a method or two of a sound one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from planted_pools import (
    CLASSES,
    NAMES,
    PAD,
    PIXELS,
    WIDTH,
    Images,
    ImageTask,
    Models,
    TextModels,
    Texts,
    TextTask,
    drawn,
    projection,
)
from torch import nn

from fusion_core import Batch, ComponentConfig, Measured, Split, TaskPool, shuffled_rows
from fusion_core.weights import Columns, Matrices, Rows, StateDictSource


@dataclass(frozen=True)
class World:
    """A task pool with its model pool."""

    tasks: type[Images]
    models: type[Models]


IMAGES, TEXTS = World(Images, Models), World(Texts, TextModels)
#: name of a fault -> world
WORLDS: dict[str, World] = {"images": IMAGES, "texts": TEXTS}


def plant(
    name: str, world: World, kind: str, methods: dict[str, Any], task: type[Any] | None = None
) -> None:
    """Add a world with replaced methods of its tasks, task pool or model pool."""
    tasks, models = world.tasks, world.models
    methods = {**methods, "__module__": __name__}
    if kind == "task":
        task_class = task or type(f"{name}_task", (tasks.task,), methods)
        tasks = type(f"{name}_tasks", (tasks,), {"task": task_class, "__module__": __name__})
    elif kind == "pool":
        tasks = type(f"{name}_tasks", (tasks,), methods)
    else:
        models = type(f"{name}_models", (models,), methods)
    globals().update({pool.__name__: pool for pool in (tasks, models)})
    WORLDS[name] = World(tasks, models)


class LayoutTask(ImageTask):
    """Sound inputs of unusual layouts: strided bf16, views, bool and empty tensors."""

    def stack(self, examples: list[torch.Tensor]) -> Any:
        pixels = torch.stack(examples)
        return {
            "pixels": pixels.bfloat16().T.contiguous().T,
            "every_second": pixels[:, ::2],
            "flags": (pixels > 0)[:, 1:],
            "nothing": pixels[:, :0],
            "first": pixels[:, 0] > 0,
        }

    def features(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        features: torch.Tensor = model(inputs["pixels"].float())
        return features


plant("layouts", IMAGES, "task", {}, LayoutTask)


# --- faults of tasks ----------------------------------------------------------------------------


def changed_batch(change: Any, world: type[Any] = ImageTask) -> dict[str, Any]:
    """Return a `batch` that changes a sound batch by change(task, batch, split, step)."""

    def batch(self: Any, step: int, *, size: int, split: Split, seed: int) -> Batch:
        sound = world.batch(self, step, size=size, split=split, seed=seed)
        changed: Batch = change(self, sound, split, step)
        return changed

    return {"batch": batch}


def changed_data(change: Any, world: type[Any] = ImageTask) -> dict[str, Any]:
    """Return a `drawn_data` that changes sound data by change(task, split, x, y)."""

    def drawn_data(self: Any, split: Split) -> Any:
        return change(self, split, *world.drawn_data(self, split))

    return {"drawn_data": drawn_data}


def in_test(change: Any) -> Any:
    return lambda task, split, x, y: change(x, y) if split is Split.TEST else (x, y)


def scored(change: Any) -> dict[str, Any]:
    """Return an `evaluate` that computes scores from outcomes by change(task, right)."""
    return {"evaluate": lambda self, model: change(self, self.right(model))}


def accuracy_over(count: Any) -> dict[str, Any]:
    return scored(lambda task, right: {"accuracy": sum(right) / count(right)})


def by_batches(self: Any, model: nn.Module) -> dict[str, float]:
    right, size = self.right(model), self.options.batch_size
    parts = [right[start : start + size] for start in range(0, len(right), size)]
    return {"accuracy": sum(sum(part) / len(part) for part in parts) / len(parts)}


def without_last(self: Any, model: nn.Module) -> dict[str, float]:
    right = self.right(model)
    whole = right[: len(right) // self.options.batch_size * self.options.batch_size]
    return {"accuracy": sum(whole) / len(whole)}


def remembered(self: Any, model: nn.Module) -> Any:
    if not hasattr(self, "figures"):
        self.figures = ImageTask.evaluate(self, model)
    return self.figures


def shuffled_outcomes(self: Any, model: nn.Module) -> Measured:
    right = self.right(model)
    return Measured({"accuracy": sum(right) / len(right)}, sorted(right))


def with_dropout(self: Any, model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return nn.functional.dropout(model(inputs), 0.5, training=True)


def another_tasks(name: str) -> str:
    return NAMES[(NAMES.index(name) + 1) % len(NAMES)]


def permuted(labels: torch.Tensor) -> torch.Tensor:
    return labels[torch.randperm(len(labels), generator=drawn("permuted"))]


class Counting(ImageTask):
    """The head rotates the classes with every call."""

    calls = 0

    def head(self, features: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().head(features).roll(self.calls, 1)


def part_of_test(self: Any, split: Split) -> Any:
    """Return UNLABELED examples, one in four of them a test example."""
    x, y = ImageTask.drawn_data(self, split)
    if split is Split.UNLABELED:
        few = len(x) // 4
        x = ImageTask.drawn_data(self, Split.TEST)[0][:few] + x[few:]
    return x, y


def marked(task: Any, batch: Batch, split: Split, step: int) -> Batch:
    inputs: Any = batch.inputs
    if batch.labels is not None:
        inputs[:, 3] = batch.labels.float()
    return Batch(inputs, batch.labels)


def marked_unlabeled(self: Any, step: int, *, size: int, split: Split, seed: int) -> Batch:
    examples, labels = self.data(split)
    batch = ImageTask.batch(self, step, size=size, split=split, seed=seed)
    rows = self.rows(step, size, len(examples), f"{seed}{self.name}{split}")
    if split is Split.UNLABELED:
        batch.inputs[:, 3] = labels[rows].float()  # type: ignore[index, call-overload]
    return batch


def cached_batch(self: Any, step: int, *, size: int, split: Split, seed: int) -> Batch:
    cache = self.__dict__.setdefault("cache", {})
    key = (step, size, split, seed)
    if key not in cache:
        cache[key] = ImageTask.batch(self, step, size=size, split=split, seed=seed)
    batch: Batch = cache[key]
    return batch


def normalised(task: Any, batch: Batch, split: Split, step: int) -> Batch:
    inputs: Any = batch.inputs
    return Batch(inputs - inputs.mean(0), batch.labels)


def misplaced(task: Any, batch: Batch, split: Split, step: int) -> Batch:
    return Batch(batch.inputs, None if batch.labels is None else batch.labels.roll(1))


def shorter(self: Any, step: int, *, size: int, split: Split, seed: int) -> Batch:
    count = len(self.data(split)[0])
    return ImageTask.batch(self, step, size=min(size, count), split=split, seed=seed)


def timed_rows(self: Any, step: int, size: int, count: int, key: str) -> torch.Tensor:
    import time

    return shuffled_rows(step, size, count, key=f"{key}{int(time.time() / 3600)}")


def without_seed(self: Any, step: int, *, size: int, split: Split, seed: int) -> Batch:
    return ImageTask.batch(self, step, size=size, split=split, seed=0)


def unmoved(self: Any, model: nn.Module) -> Any:
    examples, labels = self.data(Split.TEST)
    with torch.no_grad():
        right = self.head(model(self.stack(examples))).argmax(1) == labels
    return {"accuracy": float(right.double().mean())}


def hashed_head(self: Any, features: torch.Tensor) -> torch.Tensor:
    generator = torch.Generator().manual_seed(hash(self.name) % 2**40)
    return features @ torch.randn(WIDTH, CLASSES, generator=generator)


TASK_FAULTS: dict[str, dict[str, Any]] = {
    "labels_permuted": changed_data(in_test(lambda x, y: (x, permuted(y)))),
    "train_labels_permuted": changed_data(
        lambda task, split, x, y: (x, permuted(y) if split is Split.TRAIN else y)
    ),
    "labels_shifted": changed_data(lambda task, split, x, y: (x, (y + 1) % CLASSES)),
    "labels_rolled": changed_data(in_test(lambda x, y: (x, y.roll(1)))),
    "labels_constant": changed_data(in_test(lambda x, y: (x, torch.zeros_like(y)))),
    "labels_from_one": changed_data(lambda task, split, x, y: (x, y + 1)),
    "labels_negative": changed_data(lambda task, split, x, y: (x, y - 1)),
    "labels_of_other_rows": changed_batch(misplaced),
    "train_is_test": {
        "drawn_data": lambda self, split: ImageTask.drawn_data(
            self, Split.TEST if split is Split.TRAIN else split
        )
    },
    "unlabeled_is_test": {
        "drawn_data": lambda self, split: ImageTask.drawn_data(
            self, Split.TEST if split is Split.UNLABELED else split
        )
    },
    "unlabeled_partly_test": {"drawn_data": part_of_test},
    "test_doubled": changed_data(
        in_test(lambda x, y: ([*x[: len(x) // 2]] * 2, torch.cat([y[: len(y) // 2]] * 2)))
    ),
    "test_scaled": changed_data(in_test(lambda x, y: ([255 * pixels for pixels in x], y))),
    "test_in_double": changed_data(in_test(lambda x, y: ([pixels.double() for pixels in x], y))),
    "inputs_not_finite": changed_data(
        lambda task, split, x, y: ([pixels / (pixels > -1.5) for pixels in x], y)
    ),
    "noise_at_test": changed_batch(
        lambda task, batch, split, step: Batch(
            batch.inputs + 0.1 * torch.randn(batch.inputs.shape, generator=drawn(step, split)),
            batch.labels,
        )
    ),
    "normalised_by_batch": changed_batch(normalised),
    "answers_in_inputs": changed_batch(marked),
    "labels_in_unlabeled": {"batch": marked_unlabeled},
    "shared_batches": {"batch": cached_batch},
    "fewer_than_asked": {"batch": shorter},
    "size_ignored": {
        "batch": lambda self, step, *, size, split, seed: ImageTask.batch(
            self, step, size=6, split=split, seed=seed
        )
    },
    "rows_by_time": {"rows": timed_rows},
    "seed_ignored": {"batch": without_seed},
    "accuracy_by_batches": {"evaluate": by_batches},
    "last_batch_dropped": {"evaluate": without_last},
    "wrong_denominator": accuracy_over(lambda right: len(right) + 8),
    "error_as_accuracy": scored(lambda task, right: {"accuracy": 1 - sum(right) / len(right)}),
    "error_undeclared": scored(lambda task, right: {"wrong": 1 - sum(right) / len(right)}),
    "figures_remembered": {"evaluate": remembered},
    "outcomes_sorted": {"evaluate": shuffled_outcomes},
    "outcomes_of_others": scored(
        lambda task, right: Measured({"accuracy": sum(right) / len(right)}, [*right, *right])
    ),
    "outcomes_random": scored(
        lambda task, right: Measured(
            {"accuracy": sum(right) / len(right)},
            [right[n] for n in torch.randperm(len(right)).tolist()],
        )
    ),
    "device_ignored": {"evaluate": unmoved},
    "dropout": {"features": with_dropout},
    "inputs_written": {"features": lambda self, model, inputs: model(inputs.mul_(1.5))},
    "head_of_another_task": {
        "head": lambda self, features: features @ projection(another_tasks(self.name)).to(features)
    },
    "classes_reversed": {"head": lambda self, features: ImageTask.head(self, features).flip(1)},
    "head_by_hash": {"head": hashed_head},
    "evaluate_raises": {"evaluate": lambda self, model: {"accuracy": 1 / 0}},
    "halves_ignored_by_evaluate": {
        "right": lambda self, model: ImageTask.right(self.__class__(self.name, self.options), model)
    },
}
for _name, _methods in TASK_FAULTS.items():
    plant(_name, IMAGES, "task", _methods)
plant("head_turns", IMAGES, "task", {}, Counting)

# --- faults of texts ----------------------------------------------------------------------------


def stacked(change: Any) -> dict[str, Any]:
    """Return a `stack` that changes a sound result by change(ids, mask)."""

    def stack(self: Any, examples: list[torch.Tensor]) -> Any:
        inputs = TextTask.stack(self, examples)
        ids, mask = change(inputs["input_ids"], inputs["attention_mask"])
        return {"input_ids": ids, "attention_mask": mask}

    return {"stack": stack}


def on_the_left(ids: torch.Tensor, mask: torch.Tensor) -> Any:
    lengths = mask.sum(1)
    rows = zip(ids, mask, lengths.tolist(), strict=True)
    turned = [(text.roll(-size), seen.roll(-size)) for text, seen, size in rows]
    return torch.stack([text for text, _ in turned]), torch.stack([seen for _, seen in turned])


def last_feature(self: Any, model: nn.Module, inputs: Any) -> torch.Tensor:
    return model(**inputs).last_hidden_state[:, -1]


TEXT_FAULTS: dict[str, dict[str, Any]] = {
    "mask_of_ones": stacked(lambda ids, mask: (ids, torch.ones_like(mask))),
    "mask_of_ones_to_a_length": stacked(
        lambda ids, mask: (
            nn.functional.pad(ids, (0, 16 - ids.shape[1]), value=PAD),
            torch.ones(len(ids), 16, dtype=torch.long),
        )
    ),
    "mask_inverted": stacked(lambda ids, mask: (ids, 1 - mask)),
    "mask_too_short": stacked(lambda ids, mask: (ids, mask.roll(-1, 1) * mask)),
    "last_column_lost": stacked(lambda ids, mask: (ids[:, :-1], mask[:, :-1])),
    "last_token_lost": {
        "stack": lambda self, examples: TextTask.stack(self, [text[:-1] for text in examples])
    },
    "last_token_lost_at_test": changed_data(
        in_test(lambda x, y: ([text[:-1] for text in x], y)), TextTask
    ),
    "truncated_to_the_shortest": {
        "stack": lambda self, examples: TextTask.stack(
            self, [text[: min(map(len, examples))] for text in examples]
        )
    },
    "padding_on_the_left_of_last": {**stacked(on_the_left), "features": last_feature},
    "no_tensor_for_a_split": changed_batch(
        lambda task, batch, split, step: Batch(
            batch.inputs if split is Split.TEST else {"input_ids": batch.tensors["input_ids"]},
            batch.labels,
        ),
        TextTask,
    ),
    "labels_among_inputs": changed_batch(
        lambda task, batch, split, step: (
            Batch(
                {**batch.tensors, "labels": torch.zeros(len(batch), dtype=torch.long)}, batch.labels
            )
            if split is Split.UNLABELED
            else batch
        ),
        TextTask,
    ),
}
for _name, _methods in TEXT_FAULTS.items():
    plant(_name, TEXTS, "task", _methods)

# --- faults of task pools -----------------------------------------------------------------------


def overlapping(self: Any) -> Any:
    one, other = Images.halves(self)
    for task in other.tasks.values():
        task.half = None
    return one, other


def eight(self: Any) -> Any:
    held = self.on_half(1, "a held-out half")
    for task in held.tasks.values():
        sound = task.data

        def data(split: Split, sound: Any = sound) -> Any:
            examples, labels = sound(split)
            return (examples, labels) if split is Split.TRAIN else (examples[:8], labels[:8])

        task.data = data
    return held


def in_place(self: Any) -> Any:
    for task in self.tasks.values():
        task.half, task.is_held_out = 1, True
    self.measured_on = "a half"
    return self


def still_whole(self: Any) -> Any:
    held = copy.copy(self)
    held.measured_on = "a held-out half"
    return held


def unsaid(self: Any) -> Any:
    held = Images.holdout(self)
    held.measured_on = None
    return held


def transductive(self: Any) -> Any:
    held = Images.holdout(self)
    held.transductive = True
    return held


def of_two_names(self: Any) -> Any:
    one, other = Images.halves(self)
    one.measured_on = other.measured_on = "a half"
    return one, other


def measured_in_another_order(self: Any, subject: Any, tasks: Any = None, **options: Any) -> Any:
    return TaskPool.measure(self, subject, None, **options)


POOL_FAULTS: dict[str, dict[str, Any]] = {
    "names_in_a_set": {"names": property(lambda self: tuple(set(NAMES)))},
    "names_used_up": {"names": property(lambda self: self.__dict__.setdefault("it", iter(NAMES)))},
    "transductive_for_nothing": {"transductive": True},
    "identity_without_options": {
        "identity": lambda self, name: {"half": self[name].half, "held": self[name].is_held_out}
    },
    "identity_without_half": {"identity": lambda self, name: self.config.model_dump(mode="json")},
    "identity_by_hash": {
        "identity": lambda self, name: {**Images.identity(self, name), "name": hash(name)}
    },
    "inputs_not_json": {"inputs": lambda self: {"names": set(self.names)}},
    "halves_overlap": {"halves": overlapping},
    "halves_of_one_name": {"halves": of_two_names},
    "holdout_of_eight": {"holdout": eight},
    "holdout_in_place": {"holdout": in_place},
    "holdout_of_all": {"holdout": still_whole},
    "holdout_unsaid": {"holdout": unsaid},
    "holdout_transductive": {"holdout": transductive},
    "holdout_raises": {"holdout": lambda self: {}["half"]},
    "limit_unsaid": {"measured_on": property(lambda self: None, lambda self, value: None)},
    "tasks_ignored_by_measure": {"measure": measured_in_another_order},
    "check_refuses": {"check": lambda self: self["owl"]},
}
for _name, _methods in POOL_FAULTS.items():
    plant(_name, IMAGES, "pool", _methods)

# --- faults of model pools ----------------------------------------------------------------------


def built(change: Any) -> dict[str, Any]:
    return {"build": lambda self, weights, **options: change(self, weights, options)}


def with_experts(change: Any) -> dict[str, Any]:
    """Return a constructor that changes the experts by change(experts, base)."""

    def changed_init(self: Any, config: ComponentConfig) -> None:
        Models.__init__(self, config)
        self.experts = change(self.experts, self.base)

    return {"__init__": changed_init}


def trained(self: Any, weights: Any, options: Any) -> nn.Module:
    return Models.build(self, weights, **options).train(weights is not self.base)


def rotated(experts: dict[str, Any], base: Any) -> dict[str, Any]:
    names = list(experts)
    return {name: experts[names[(n + 1) % len(names)]] for n, name in enumerate(names)}


class Noisy(StateDictSource):
    """Weights with random noise on every read."""

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        values = super().read(name, start, stop)
        return values + 1e-3 * torch.randn(values.shape)


def dropping() -> nn.Module:
    class Dropping(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return nn.functional.dropout(super().forward(inputs), 0.3, training=True)

    return Dropping(PIXELS, WIDTH)


def matrices(sizes: Any) -> dict[str, Any]:
    """Declare axes of rows and of columns."""

    def declared(self: Any, name: str, shape: tuple[int, ...]) -> Matrices:
        del name
        rows, *columns = sizes(self, shape)
        return Matrices((Rows(rows), *map(Columns, columns)))

    return {"matrices": declared}


def turns(self: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    self.asked = [*getattr(self, "asked", []), shape]
    return shape[:: (-1) ** self.asked.count(shape)]


MODEL_FAULTS: dict[str, dict[str, Any]] = {
    "experts_rotated": with_experts(rotated),
    "tasks_rotated": {"task_of": lambda self, expert: another_tasks(expert)},
    "experts_in_a_set": {"order": property(lambda self: set(NAMES))},
    "experts_are_the_base": with_experts(dict.fromkeys),
    "two_experts_are_one": with_experts(
        lambda experts, base: {**experts, NAMES[1]: experts[NAMES[0]]}
    ),
    "experts_exchanged_by_build": built(
        lambda self, weights, options: Models.build(
            self,
            self.experts[NAMES[1]] if weights is self.experts[NAMES[0]] else weights,
            **options,
        )
    ),
    "trained_experts": built(trained),
    "dropout_in_the_model": {"construct": staticmethod(dropping)},
    "noisy_reads": with_experts(
        lambda experts, base: {name: Noisy(source.state_dict()) for name, source in experts.items()}
    ),
    "cards_of_nobody": {"cards": lambda self: {"expert": {"licence": "MIT"}}},
    "matrices_beyond_the_tensor": matrices(lambda self, shape: (shape[0] + 1, *shape[1:])),
    "matrices_by_turns": matrices(turns),
}
for _name, _methods in MODEL_FAULTS.items():
    plant(_name, IMAGES, "models", _methods)
