"""A check of the pool suites catches each fault planted into sound pools."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from suites import run_suites

if TYPE_CHECKING:
    from collections.abc import Mapping

TESTS = """
    import pytest
    from fusion_core import ModelPoolSpec, TaskPoolSpec
    from fusion_testing import ModelPoolSuite, TaskPoolSuite
    from fusion_core import ComponentConfig
    from planted_faults import MODEL_FAULTS, WORLDS

    def suite(name, base, **fixtures):
        fixtures = {key: pytest.fixture(value) for key, value in fixtures.items()}
        globals()[name] = type(name, (base,), fixtures)

    for name, world in WORLDS.items():
        about = {"name": name.replace("_", "-"), "summary": "Planted."}
        tasks = TaskPoolSpec(
            **about,
            target=f"{world.tasks.__module__}:{world.tasks.__name__}",
            config="planted_pools:Options",
        )
        models = ModelPoolSpec(
            **about,
            target=f"{world.models.__module__}:{world.models.__name__}",
            config="fusion_core.recipe.config:ComponentConfig",
        )
        live = lambda self, world=world: world.models(ComponentConfig())
        suite(f"Test_{name}", TaskPoolSuite, spec=lambda self, spec=tasks: spec, models=live)
        if name in {"images", "texts", *MODEL_FAULTS}:
            suite(f"Test_{name}_models", ModelPoolSuite, spec=lambda self, spec=models: spec)
"""

CAUGHT_BY: Mapping[str, str] = {
    **dict.fromkeys(
        [
            *("labels_permuted", "train_labels_permuted", "labels_shifted", "labels_rolled"),
            *("labels_of_other_rows", "error_as_accuracy", "error_undeclared"),
            *("head_of_another_task", "classes_reversed", "experts_rotated", "tasks_rotated"),
            *("dropout_in_the_model", "evaluate_raises"),
        ],
        "test_experts_are_good_at_their_own_tasks",
    ),
    "labels_constant": "test_labels_are_of_their_examples",
    "labels_negative": "test_labels_are_of_their_examples",
    "labels_from_one": "test_scores_have_gradients",
    "answers_in_inputs": "test_labels_are_of_their_examples",
    "labels_among_inputs": "test_labels_are_of_their_examples",
    "labels_in_unlabeled": "test_splits_hold_the_same_kind_of_inputs",
    "test_scaled": "test_splits_hold_the_same_kind_of_inputs",
    "test_in_double": "test_splits_hold_the_same_kind_of_inputs",
    "inputs_not_finite": "test_splits_hold_the_same_kind_of_inputs",
    "no_tensor_for_a_split": "test_splits_hold_the_same_kind_of_inputs",
    "train_is_test": "test_splits_share_no_examples",
    "unlabeled_is_test": "test_splits_share_no_examples",
    "unlabeled_partly_test": "test_splits_share_no_examples",
    "transductive_for_nothing": "test_splits_share_no_examples",
    "test_doubled": "test_examples_repeat_no_more_than_data_does",
    "noise_at_test": "test_a_test_example_is_the_same_in_every_batch",
    "normalised_by_batch": "test_a_test_example_is_the_same_in_every_batch",
    "truncated_to_the_shortest": "test_a_test_example_is_the_same_in_every_batch",
    "last_column_lost": "test_a_test_example_is_the_same_in_every_batch",
    "shared_batches": "test_batches_belong_to_the_caller",
    "fewer_than_asked": "test_splits_share_no_examples",
    "size_ignored": "test_batches_have_their_size_and_their_labels",
    "rows_by_time": "test_batches_are_a_pure_function",
    "seed_ignored": "test_steps_and_seeds_give_other_batches",
    "names_in_a_set": "test_batches_are_the_same_in_another_process",
    "identity_by_hash": "test_batches_are_the_same_in_another_process",
    "head_by_hash": "test_heads_are_the_same_in_another_process",
    "accuracy_by_batches": "test_figures_do_not_depend_on_the_batch_size",
    "last_batch_dropped": "test_figures_do_not_depend_on_the_batch_size",
    "wrong_denominator": "test_an_accuracy_is_that_of_the_scores",
    "figures_remembered": "test_an_accuracy_is_that_of_the_scores",
    "outcomes_sorted": "test_an_accuracy_is_that_of_the_scores",
    "outcomes_of_others": "test_an_accuracy_is_that_of_the_scores",
    "outcomes_random": "test_metrics_keep_their_unit",
    "device_ignored": "test_tasks_follow_the_model_to_its_device",
    "dropout": "test_scores_are_the_same_again",
    "head_turns": "test_scores_are_the_same_again",
    "inputs_written": "test_scores_leave_the_batch_alone",
    "mask_of_ones": "test_the_mask_marks_padding_and_nothing_else",
    "mask_of_ones_to_a_length": "test_the_mask_marks_padding_and_nothing_else",
    "mask_inverted": "test_the_mask_marks_padding_and_nothing_else",
    "mask_too_short": "test_the_mask_marks_padding_and_nothing_else",
    "last_token_lost": "test_texts_keep_the_token_that_ends_them",
    "last_token_lost_at_test": "test_every_split_ends_texts_alike",
    "padding_on_the_left_of_last": "test_padding_does_not_change_scores",
    "names_used_up": "test_tasks_are_named_and_in_a_fixed_order",
    "identity_without_options": "test_an_identity_changes_with_the_options",
    "inputs_not_json": "test_inputs_and_conditions_can_be_recorded",
    "tasks_ignored_by_measure": "test_some_tasks_are_measured_like_all",
    "limit_unsaid": "test_a_limit_measures_the_first_test_examples",
    "check_refuses": "test_data_that_is_here_passes_the_check",
    "halves_overlap": "test_halves_share_no_test_examples",
    "halves_of_one_name": "test_halves_share_no_test_examples",
    "halves_ignored_by_evaluate": "test_halves_are_measured_apart",
    **dict.fromkeys(
        [
            *("holdout_of_eight", "holdout_in_place", "holdout_of_all", "holdout_unsaid"),
            *("holdout_transductive", "identity_without_half", "holdout_raises"),
        ],
        "test_a_holdout_is_apart_from_what_is_adapted_on",
    ),
    "experts_in_a_set": "test_the_pool_is_the_same_in_another_process",
    "experts_are_the_base": "test_experts_differ_from_the_base_and_from_each_other",
    "two_experts_are_one": "test_experts_differ_from_the_base_and_from_each_other",
    "experts_exchanged_by_build": "test_every_expert_is_built_from_its_own_weights",
    "trained_experts": "test_every_expert_is_built_from_its_own_weights",
    "noisy_reads": "test_sources_hold_the_same_values_again",
    "cards_of_nobody": "test_what_is_said_of_models_is_by_their_names",
    "matrices_beyond_the_tensor": "test_matrices_fit_the_tensors",
    "matrices_by_turns": "test_matrices_fit_the_tensors",
}

#: Parts of the names of checks that need an installed package.
_PACKAGING = ("plugin", "package", "listing", "options", "option")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    root = tmp_path_factory.mktemp("planted")
    (root / "site").mkdir()
    for module in ("planted_pools.py", "planted_faults.py"):
        shutil.copy(Path(__file__).parent / module, root / "site")
    faults = [f"(Test_{fault} and {check})" for fault, check in CAUGHT_BY.items()]
    packaging = " or ".join(_PACKAGING)
    sound = f"((Test_images or Test_texts or Test_layouts) and not ({packaging}))"
    return run_suites(root, TESTS, [sound, *faults])


@pytest.mark.thorough
@pytest.mark.parametrize("fault", CAUGHT_BY)
def test_planted_fault_is_caught_by_its_check(
    planted: dict[str, dict[str, str]], fault: str
) -> None:
    failures = {**planted.get(fault, {}), **planted.get(f"{fault}_models", {})}
    assert "To fix it: " in failures.get(CAUGHT_BY[fault], ""), failures


@pytest.mark.thorough
@pytest.mark.parametrize("world", ["images", "images_models", "texts", "texts_models", "layouts"])
def test_sound_pools_pass(planted: dict[str, dict[str, str]], world: str) -> None:
    assert planted[world] == {}
