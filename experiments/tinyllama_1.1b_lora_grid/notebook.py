# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # tinyllama_1.1b_lora_grid
#
# The source study's settings for TinyLlama-1.1B-Chat: rank 8, 4-bit, learning rate 2e-4, length 256, greedy, 512 new tokens, seed 42, doses 500/1000/2000; with a geometric ladder below them, because refusals may be gone long before 500. Needs a CUDA device with the `gpu` extra. Pin `revision` to a commit before reporting a number.
#
# Run the experiment with `experiments/tinyllama_1.1b_lora_grid/run.sh`, or let `TAMPERDOSE_RUN` name the folder of another run.
# Written by `scripts/make_notebooks.py`.

# %%
import os

import pandas as pd
from IPython.display import Image, display

import tamperdose as td

run = td.open_run(os.environ.get("TAMPERDOSE_RUN", "results"))
print(run.judge, "|", "no audit" if run.audit is None else f"audit: {run.audit.outcome}")

# %% [markdown]
# ## Refusals by dose
#
# RRR and its complement with their intervals, n and what it is worth; drift beside them.

# %%
names = ["RRR", "compliance_rate", "degenerate_rate", "RD"]
measured = run.metrics[run.metrics["metric"].isin(names) & run.metrics["judge"].isin(["", run.judge])]
columns = ["arm", "dose_steps", "metric", "value", "low", "high", "n", "n_effective"]
measured.loc[measured["metric"] == "RRR", columns]

# %%
measured.pivot_table(index=["arm", "dose_steps"], columns="metric", values="value", observed=True)

# %% [markdown]
# ## Figures, drawn again

# %%
for path in run.draw():
    if path.suffix == ".png":
        display(Image(filename=path))

# %% [markdown]
# ## Breaking doses
#
# ED50 and ED90 of every arm, as fitted; the lines withhold what the audit does not support, the table does not.

# %%
print("\n".join(run.lines()))

# %%
doses = pd.DataFrame(run.dose_response)
doses[["arm", "metric", "value", "low", "high", "bracket_low", "bracket_high", "scope", "censored", "fit"]]
