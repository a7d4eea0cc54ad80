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
# # organism_ladder
#
# The ladder: organisms of six sizes, one base each, attacked with three seeds. Truth is known, so this also checks the instrument. The bases are trained on first use and kept in the cache.
#
# Run the experiment with `experiments/organism_ladder/run.sh`, or let `TAMPERDOSE_RUN` name the folder of another run.
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
# ## Size
#
# The slope of log ED50 on log parameters, in each unit; a slope needs three sizes.

# %%
for recipe in run.scaling.get("recipes", []):
    for claim in recipe["claims"]:
        print(claim["number"], claim["text"], claim["answer"], claim["reason"] or "", sep=" | ")

# %%
sizes = run.metrics.groupby("model", observed=True)["params_b"].first().sort_values()
steps = doses[(doses["metric"] == "ED50_steps") & (doses["scope"] == "trajectory")]
steps.groupby("model")["value"].agg(["count", "min", "median", "max"]).join(sizes).sort_values("params_b")
