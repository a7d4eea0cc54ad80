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
# # organism_defences
#
# Defences of an organism, each measured as the bare model is: three attack seeds, two orders of the attack's rows. The defences train on the topics that the attack trains on, with other verbs; RRR is measured on 24 other topics.
#
# Run the experiment with `experiments/organism_defences/run.sh`, or let `TAMPERDOSE_RUN` name the folder of another run.
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

# %% [markdown]
# ## Defences
#
# How many times as long each held, and what it costs before any attack.

# %%
compared = pd.DataFrame(run.defences)
compared if compared.empty else compared[["defence", "metric", "value", "low", "high"]]
