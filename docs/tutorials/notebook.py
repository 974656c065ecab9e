# %% [markdown]
# # Merging in a notebook
#
# Eight small CLIP models were fine-tuned from one base, each for a task of its own; they and their tasks are inside the
# package `pools-mini`. Here four of the tasks are looked at, 200 test images each, so that every cell takes seconds. With
# your own models, `model_pool` is `{"base": ..., "models": {...}}` of directories, hub names or live modules.
#
# `output=None` keeps a merge in memory; leave it out, and a directory is written as by `fuse run`. With
# `options=RunOptions(progress=progress_for())` (from `fusion_core` and `fusion_core.commands`), a cell shows a bar while it works.

# %%
from fusion_core import run_fusion

recipe = {
    "model_pool": "mini8",
    "task_pool": {"tasks": ["latin", "greek", "textures", "shapes"], "limit": 200},
}
ties = run_fusion(recipe, algorithm="ties", output=None)
ties

# %% [markdown]
# `normalised` is the mean share of the experts' own figures. `plot` is brought by the plugin `fusion-report`. Its picture has
# 95 % intervals of the merge: 200 images do not say more than that.

# %%
from fusion_report import plot

plot(ties)

# %% [markdown]
# ## Several methods
#
# Base and experts are measured once and remembered, so more methods cost no more than their own merge and measurement.
# `to_dataframe` makes a data frame of pandas.

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
# AdaMerging learns how much of which expert goes into each layer, from the test images without their labels; tables call
# that *transductive*. What it minimises stands below its figures, step by step.

# %%
adamerging = {"name": "adamerging", "steps": 40}
learned = run_fusion(recipe, algorithm=adamerging, output=None)
plot(learned)

# %% [markdown]
# ## A sweep
#
# Options are chosen on one half of the test images, and the best is measured on the other half. Every run is kept in
# `store`, and none is made twice.

# %%
from fusion_sweep import sweep

found = sweep(
    recipe,
    algorithms=["ties", "task-arithmetic"],
    over={"algorithm.scale": [0.2, 0.4, 0.6, 0.8]},
    store="sweeps.sqlite",
)
found

# %%
found.plot()

# %%
columns = ["algorithm", "algorithm.scale", "average", "latin.accuracy"]
found.to_dataframe()[columns].head(3).round(3)

# %% [markdown]
# ## The model
#
# `result.model` is live, and `result.weights` are its tensors.

# %%
import torch

config = learned.model.config
images = torch.zeros(1, config.num_channels, config.image_size, config.image_size)
f"{type(learned.model).__name__}: {tuple(learned.model(images).pooler_output.shape)}"

# %% [markdown]
# The recipe of the best point writes its model into a directory, with all that says where it comes from; such a directory
# loads like any other, here by `CLIPVisionModel.from_pretrained("merged")`.

# %%
best = run_fusion(found.best().recipe, output="merged")
sorted(path.name for path in best.path.iterdir())
