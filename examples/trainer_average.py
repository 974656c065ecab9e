"""Average the last checkpoints of a `transformers.Trainer` when its training ends.

trainer = Trainer(..., callbacks=[AverageCheckpoints(last=5)])
trainer.train()
averaged = AutoModel.from_pretrained("OUTPUT_DIR/averaged")
"""

from __future__ import annotations

from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fusion_core import RunOptions, run_fusion


class AverageCheckpoints(TrainerCallback):
    """Write the mean of the last checkpoints to a folder next to them."""

    def __init__(self, last: int, folder: str = "averaged") -> None:
        self.last, self.folder = last, folder

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Raise `ValueError` if the trainer will delete checkpoints that the mean needs."""
        if args.save_total_limit is not None and args.save_total_limit < self.last:
            raise ValueError(
                f"expected save_total_limit of at least {self.last}, got {args.save_total_limit}"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Average the checkpoints, in the first process alone."""
        if state.is_world_process_zero:
            run = Path(args.output_dir or ".")
            models = {path.name: str(path) for path in sorted(run.glob("checkpoint-*"))}
            run_fusion(
                algorithm={"name": "run-average", "last": self.last},
                model_pool={"name": "checkpoints", "models": models},
                output=run / self.folder,
                options=RunOptions(overwrite=True),  # an earlier mean, and nothing else
            )
