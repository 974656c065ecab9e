# %% [markdown]
# # Merging in a notebook
#
# This notebook merges four experts with several methods, plots and compares the results, runs a small sweep, and writes the
# best model.
#
# The package `pools-mini` contains eight small CLIP models, fine-tuned from one base for one task each, and their tasks. Four
# tasks with 200 test images each keep every cell short. For your own models, set `model_pool` to
# `{"base": ..., "models": {...}}` with directories, hub names or live modules.
#
# `output=None` keeps a merge in memory. Without it, `run_fusion` writes a directory as `fuse run` does. To see a progress bar,
# pass `options=RunOptions(progress=progress_for())`, from `fusion_core` and `fusion_core.commands`.

# %%
from fusion_core import run_fusion

recipe = {
    "model_pool": "mini8",
    "task_pool": {"tasks": ["latin", "greek", "textures", "shapes"], "limit": 200},
}
ties = run_fusion(recipe, algorithm="ties", output=None)
ties

# %% [markdown]
# `normalised` is the merged model's figure divided by the expert's, averaged over tasks. The plugin `fusion-report` provides
# `plot`. The bars of the merge have 95 % intervals, which are wide with 200 images per task.

# %%
from fusion_report import plot

plot(ties)

# %% [markdown]
# ## Several methods
#
# The figures of the base and the experts are cached, so each further method costs only its own merge and evaluation.
# `to_dataframe` returns a pandas data frame.

# %%
import pandas as pd

from fusion_report import to_dataframe

columns = {}
for name in ("simple-average", "ties", "tsv-m"):
    result = run_fusion(recipe, algorithm=name, output=None)
    columns[name] = to_dataframe(result.report)["merged"]
table = pd.DataFrame(columns)
table.loc["average"] = table.mean()
table.style.format("{:.1%}")

# %% [markdown]
# ## A method that learns
#
# AdaMerging learns one coefficient per expert and parameter tensor from 300 unlabeled images per task, which are not test
# images. The lower plot shows the objective at each step.

# %%
adamerging = {"name": "adamerging", "steps": 40}
learned = run_fusion(recipe, algorithm=adamerging, output=None)
plot(learned)

# %% [markdown]
# ## A sweep
#
# The sweep ranks all trials on one half of the test images, and measures the best on the other half. `store` keeps every
# trial, so a second sweep does not repeat them.

# %%
from fusion_sweep import sweep

trials = sweep(
    recipe,
    algorithms=["ties", "task-arithmetic"],
    over={"algorithm.scale": [0.2, 0.4, 0.6, 0.8]},
    store="sweeps.sqlite",
)
trials

# %%
trials.plot()

# %%
columns = ["algorithm", "algorithm.scale", "average", "latin.accuracy"]
trials.to_dataframe()[columns].head(3).round(3)

# %% [markdown]
# ## The model
#
# `result.model` is a live module, and `result.weights` holds its tensors.

# %%
import torch

config = learned.model.config
images = torch.zeros(1, config.num_channels, config.image_size, config.image_size)
f"{type(learned.model).__name__}: {tuple(learned.model(images).pooler_output.shape)}"

# %% [markdown]
# Run the recipe of the best trial again with an output directory. `CLIPVisionModel.from_pretrained("merged")` loads the
# directory, which also holds the recipe, the report and the provenance.

# %%
best = run_fusion(trials.best().recipe, output="merged")
sorted(path.name for path in best.path.iterdir())
