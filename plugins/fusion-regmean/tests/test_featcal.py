"""FeatCal against least squares on stacked inputs, block by block, in float64."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from padded_words import SAMPLES, WordModel, WordTask, WordTasks, word_pool
from torch import Tensor, nn

from fusion_core import Batch, RunContext, Split, run_fusion
from fusion_core.errors import FusionError
from fusion_regmean.expert_passes import ExpertPasses
from fusion_regmean.featcal import FeatCal
from fusion_testing import Mean, TinyTasks
from pools_checkpoints import CheckpointsConfig, CheckpointsPool

State = dict[str, Tensor]

BLOCKS = ["embed", "layers.0", "layers.1", "head"]
MERGE = Mean()
OPTIONS: list[dict[str, float]] = [
    {"ridge": 0.05, "anchor": 2.0, "teacher": 0.3},
    {"ridge": 0.5, "anchor": 1.0, "teacher": 1.0},
    {"ridge": 0.01, "anchor": 0.0, "teacher": 0.0},
]


def linear(
    inputs: dict[str, Tensor], targets: dict[str, Tensor], experts: dict[str, State], name: str
) -> tuple[list[Tensor], list[Tensor], list[float]]:
    """Return the rows and right sides of every expert, and the norms that divide them."""
    norms = [float((x.T @ x / len(x)).norm()) for x in inputs.values()]
    scales = [(len(x) * norm) ** -0.5 for x, norm in zip(inputs.values(), norms, strict=True)]
    rows = [scale * x for scale, x in zip(scales, inputs.values(), strict=True)]
    sides = [
        scale * targets[expert] @ state[f"{name}.weight"].T
        for scale, (expert, state) in zip(scales, experts.items(), strict=True)
    ]
    return rows, sides, norms


def least(rows: list[Tensor], sides: list[Tensor], ridge: float, anchor: Tensor) -> Tensor:
    """Solve rows @ X = sides, pulled towards an anchor, both of shape (unknowns, columns)."""
    pull = ridge**0.5 * torch.eye(len(anchor), dtype=torch.float64)
    system = torch.linalg.lstsq(torch.cat([*rows, pull]), torch.cat([*sides, pull @ anchor]))
    return system.solution


def calibrate(
    current: State,
    base: State,
    experts: dict[str, State],
    images: dict[str, Tensor],
    stacks: Any,
    **options: float,
) -> State:
    for block in BLOCKS:
        merge_inputs = {e: stacks.inputs(current, batch) for e, batch in images.items()}
        expert_inputs = {e: stacks.inputs(experts[e], batch) for e, batch in images.items()}
        anchor = {n: torch.lerp(base[n], x, options["anchor"]) for n, x in current.items()}
        solved: State = {}
        for tensor in current:
            name = tensor.removesuffix(".weight")
            if name == tensor or not name.startswith(block):
                continue
            inputs = {e: layers[tensor] for e, layers in merge_inputs.items()}
            bias = f"{name}.bias"
            if name.endswith("norm"):
                rows = {
                    e: torch.stack([z, torch.ones_like(z)], -1) / len(z) ** 0.5
                    for e, z in inputs.items()
                }
                affine = [
                    torch.stack([expert[tensor], expert[bias]]) for expert in experts.values()
                ]
                pulled = torch.stack([anchor[tensor], anchor[bias]])
                columns = [
                    least(
                        [row[:, feature] for row in rows.values()],
                        [
                            e[:, feature] @ a[:, feature, None]
                            for e, a in zip(rows.values(), affine, strict=True)
                        ],
                        options["ridge"],
                        pulled[:, feature, None],
                    )
                    for feature in range(len(current[tensor]))
                ]
                solved[tensor], solved[bias] = torch.cat(columns, dim=1)
                continue
            targets = {
                e: torch.lerp(x, expert_inputs[e][tensor], options["teacher"])
                for e, x in inputs.items()
            }
            rows, sides, norms = linear(inputs, targets, experts, name)
            solved[tensor] = least(rows, sides, options["ridge"], anchor[tensor].T).T
            rest = sum(
                (
                    experts[e][bias]
                    + experts[e][tensor] @ targets[e].mean(0)
                    - solved[tensor] @ inputs[e].mean(0)
                )
                / norm
                for e, norm in zip(inputs, norms, strict=True)
            )
            weight = sum(1 / norm for norm in norms) + options["ridge"]
            solved[bias] = (rest + options["ridge"] * anchor[bias]) / weight
        current = current | solved
    return current


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", [0, 1])
def test_layers_are_solved_block_by_block(
    seed: int, options: dict[str, float], stacks: Any
) -> None:
    pool = stacks.pool(seed=seed)
    merged = stacks.merge([MERGE, FeatCal(samples=40, **options)], pool, seed=seed)
    images = {name: stacks.images(name, seed=seed) for name in pool.experts}
    start, base = stacks.merge(MERGE, pool), pool.base.state_dict()
    expected = calibrate(start, base, stacks.experts(pool), images, stacks, **options)
    for name, values in expected.items():
        torch.testing.assert_close(merged[name], values, rtol=1e-6, atol=1e-8)
        assert (merged[name] - start[name]).abs().max() > 1e-3


def test_a_strong_pull_gives_the_anchor(stacks: Any) -> None:
    pool = stacks.pool()
    merged = stacks.merge([MERGE, FeatCal(samples=4, ridge=1e9, anchor=1.0)], pool)
    for name, values in stacks.merge(MERGE, pool).items():
        torch.testing.assert_close(merged[name], values)


def test_excluded_tensors_stay_as_they_were_merged(stacks: Any) -> None:
    pool = stacks.pool()
    pipeline = [MERGE, {"name": "featcal", "samples": 4, "only": ["*.up.*", "*.norm.weight"]}]
    merged = stacks.merge(pipeline, pool)
    for name, values in stacks.merge(MERGE, pool).items():
        assert torch.equal(merged[name], values) != (".up." in name), (
            "a norm is solved with its bias or not at all"
        )


@pytest.mark.parametrize("limit", [0, 150_000])
def test_the_result_does_not_depend_on_the_inputs_that_fit_in_memory(
    limit: int, stacks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, recorded = [MERGE, FeatCal(samples=40)], []
    original = ExpertPasses.of

    def count_blocks(self: ExpertPasses, blocks: Any) -> Any:
        passes = original(self, blocks)
        recorded.append(len(passes))
        return passes

    expected = stacks.merge(pipeline, stacks.pool())
    monkeypatch.setattr("fusion_regmean.expert_passes.ExpertPasses.of", count_blocks)
    monkeypatch.setattr("fusion_regmean.expert_passes._LIMIT", limit)
    merged = stacks.merge(pipeline, stacks.pool())
    assert all(torch.equal(merged[name], values) for name, values in expected.items())
    assert sum(recorded) == len(BLOCKS)
    assert (max(recorded) > 1) == (limit > 0)
    assert len(recorded) > 1, "not all blocks fit"


@pytest.mark.parametrize("frozen", ["layers.1", "layers.0.up.bias", "layers.0.norm.weight"])
def test_what_no_expert_changes_stays(frozen: str, stacks: Any) -> None:
    pool = stacks.pool(frozen=frozen)
    merged = stacks.merge([MERGE, FeatCal(samples=40)], pool)
    stay = "layers.0.norm" if "norm" in frozen else frozen  # a norm is solved with its bias
    for name, values in stacks.merge(MERGE, pool).items():
        assert torch.equal(merged[name], values) == name.startswith(stay)


@pytest.mark.parametrize("follow", [True, False])
def test_whole_answers_are_seen_if_they_follow_their_texts(follow: bool) -> None:  # noqa: FBT001
    seen = []

    class Whole(WordTask):
        def batch(self, step: int, *, size: int, split: Split, seed: int) -> Batch:
            texts = super().batch(step, size=size, split=split, seed=seed)
            mask = texts.tensors["attention_mask"].bool()
            return Batch({**texts.tensors, "predicted": mask if follow else mask.unsqueeze(1)})

        def logits(self, model: nn.Module, batch: Batch) -> Tensor:
            seen.append(self.name)
            texts = {name: x for name, x in batch.tensors.items() if name != "predicted"}
            return super().logits(model, Batch(texts))

    class Answering(WordTask):
        def with_all_predictions(self) -> Whole:
            return Whole(self.name)

    experts = word_pool(0, torch.float64).config.models
    pool = CheckpointsPool(CheckpointsConfig(base=WordModel().double(), models=experts))
    context = RunContext(tasks=WordTasks(kind=Answering))
    FeatCal(samples=SAMPLES).calibrate(pool.experts["a"], pool, context)
    assert set(seen) == ({"a", "b", "c"} if follow else set())


def test_a_head_tied_to_embeddings_stays() -> None:
    experts = word_pool(0, torch.float64).config.models
    pool = CheckpointsPool(CheckpointsConfig(base=WordModel().double(), models=experts))
    merge = pool.experts["a"]
    merged = FeatCal(samples=SAMPLES).calibrate(merge, pool, RunContext(tasks=WordTasks()))
    unchanged = {
        name for name in merge.infos if torch.equal(merged.tensor(name), merge.tensor(name))
    }
    assert {"embedding.weight", "output.weight"} <= unchanged
    assert unchanged.isdisjoint({"mix.weight", "turn.weight", "up.weight"})


def test_a_task_that_calls_merge_and_expert_differently_is_an_error(
    stacks: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, calls = TinyTasks(), count()
    original = tasks["a"].logits

    def logits(model: nn.Module, batch: Batch) -> Tensor:
        if next(calls) % 2:
            original(model, batch)
        return original(model, batch)

    monkeypatch.setattr(tasks["a"], "logits", logits)
    pools: dict[str, Any] = {"model_pool": stacks.pool(), "task_pool": tasks}
    with pytest.raises(FusionError, match=r"task 'a' calls the layer of 'embed.weight' differen"):
        run_fusion(algorithm=[MERGE, FeatCal(samples=4)], **pools)
