"""Write the notebook pair of every experiment, `notebook.py` and `notebook.ipynb`, from one template for each kind.

The notebooks hold no outputs: results are not in git, and a notebook shows those of the folder it is run in.
"""

import re
import sys
from pathlib import Path

import jupytext
import nbformat
import yaml

ROOT = Path(__file__).parents[1]
HEADER = """\
# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
"""
TOP = """
# %% [markdown]
# # {name}
#
# {about}
#
# Run the experiment with `experiments/{name}/run.sh`, or let `TAMPERDOSE_RUN` name the folder of another run.
# Written by `scripts/make_notebooks.py`.

# %%
import os

import pandas as pd
from IPython.display import Image, display

import tamperdose as td

run = td.open_run(os.environ.get("TAMPERDOSE_RUN", "results"))
print(run.judge, "|", "no audit" if run.audit is None else f"audit: {{run.audit.outcome}}")

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
print("\\n".join(run.lines()))

# %%
doses = pd.DataFrame(run.dose_response)
doses[["arm", "metric", "value", "low", "high", "bracket_low", "bracket_high", "scope", "censored", "fit"]]
"""
LADDER = """
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
"""
ATTACKS = """
# %% [markdown]
# ## Attacks on one axis
#
# Doses of different attacks have different units; what they cost in operations is common to all.

# %%
rrr = measured[measured["metric"] == "RRR"]
rrr.sort_values(["attack", "dose_flops"])[["attack", "dose_steps", "dose_flops", "value", "low", "high"]]

# %%
rrr.loc[rrr.groupby("attack", observed=True)["value"].idxmin(), ["attack", "dose_steps", "value", "high"]]
"""
DEFENCES = """
# %% [markdown]
# ## Defences
#
# How many times as long each held, and what it costs before any attack.

# %%
compared = pd.DataFrame(run.defences)
compared if compared.empty else compared[["defence", "metric", "value", "low", "high"]]
"""
TEMPLATES = {"grid": "", "ladder": LADDER, "attacks": ATTACKS, "defences": DEFENCES}


def kind_of(name: str) -> str:
    """The kind of an experiment, by the end of its name.

    >>> kind_of("qwen2_ladder"), kind_of("qwen2_7b_lora_grid")
    ('ladder', 'grid')
    """
    return next(kind for kind in TEMPLATES if name.endswith(f"_{kind}"))


def script_of(folder: Path) -> str:
    """The percent script of an experiment; its study's first comment says what it is about."""
    study = (folder / "study.yaml").read_text(encoding="utf-8")
    name = yaml.safe_load(study)["name"]
    comment = re.match(r"(?:#[^\n]*\n)+", study)
    about = " ".join(line.removeprefix("#").strip() for line in comment[0].splitlines()) if comment else ""
    return HEADER + (TOP + TEMPLATES[kind_of(folder.name)]).format(name=name, about=about)


def notebook_of(script: str) -> str:
    """The same as a notebook, with ids that are the cells' places, so that it is the same file every time."""
    notebook = jupytext.reads(script, fmt="py:percent")
    for place, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{place}"
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    nbformat.validate(notebook)
    return nbformat.writes(notebook) + "\n"


def main() -> int:
    """Write all pairs; return the exit code."""
    for study in sorted((ROOT / "experiments").glob("*/study.yaml")):
        script = script_of(study.parent)
        (study.parent / "notebook.py").write_text(script, encoding="utf-8")
        (study.parent / "notebook.ipynb").write_text(notebook_of(script), encoding="utf-8")
        print(study.parent / "notebook.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
