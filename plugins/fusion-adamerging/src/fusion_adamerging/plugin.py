"""Registers AdaMerging and related methods; imports nothing heavy."""

from collections.abc import Iterator

from fusion_core import AlgorithmSpec, PipelineSpec, hookimpl


@hookimpl
def fusion_register_algorithms() -> Iterator[AlgorithmSpec]:
    """Register the methods that learn from unlabeled data."""
    yield AlgorithmSpec(
        name="adamerging",
        family="learned coefficients",
        summary="Learn merging coefficients by minimising entropy on unlabeled data.",
        formula="base + sum of lambda_kl * tau_kl in layer l, lambda learned to lower the entropy",
        target="fusion_adamerging.adamerging:AdaMerging",
        config="fusion_adamerging.config:AdaMergingConfig",
        needs_base=True,
        needs_tasks="unlabeled",
        needs_tasks_unless="coefficients",
        cost="backward",
        reference="arXiv:2310.02575",
    )
    yield AlgorithmSpec(
        name="adarank",
        family="learned coefficients",
        summary="Switch singular components on and off to lower the entropy on unlabeled data.",
        formula="base + sum of lambda_kl * U diag(B * S) V', B of 0 and 1 and lambda learned",
        target="fusion_adamerging.adarank:AdaRank",
        config="fusion_adamerging.config:AdaRankConfig",
        needs_base=True,
        needs_tasks="unlabeled",
        needs_tasks_unless="coefficients",
        cost="backward",
        reference="arXiv:2503.22178",
    )
    yield AlgorithmSpec(
        name="symerge",
        family="learned coefficients",
        summary="Learn coefficients and one layer per task from the predictions of the experts.",
        formula=(
            "base + sum of lambda_kl * tau_kl, with a last layer per task t; both learned to "
            "predict as W_t"
        ),
        target="fusion_adamerging.symerge:SyMerge",
        config="fusion_adamerging.config:SyMergeConfig",
        needs_base=True,
        needs_tasks="unlabeled",
        needs_task=True,
        cost="backward",
        reference="arXiv:2412.19098",
    )
    yield AlgorithmSpec(
        name="surgery",
        stage="calibrate",
        family="learned coefficients",
        summary="Train one adapter per task that moves the merge's features to its expert's.",
        formula="for task t features z - up_t relu(down_t z), learned to match those of W_t",
        target="fusion_adamerging.surgery:Surgery",
        config="fusion_adamerging.config:SurgeryConfig",
        needs_tasks="unlabeled",
        needs_task=True,
        task_requirements="heads that read features, which one module of the model returns or "
        "which the task passes through mark_features",
        cost="forward",
        reference="arXiv:2402.02705",
    )


@hookimpl
def fusion_register_pipelines() -> Iterator[PipelineSpec]:
    """Register the best known pipeline that needs no labels."""
    yield PipelineSpec(
        name="strong",
        summary="Disentangle task vectors, then learn coefficients from experts' predictions.",
        stages=(("disentangle", {}), ("adamerging", {"preset": "strong", "init": 1})),
    )
