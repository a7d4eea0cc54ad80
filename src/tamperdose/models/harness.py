"""Public benchmarks on a loaded model, through lm-evaluation-harness: the extra `lmeval`."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from tamperdose.extras import require
from tamperdose.models.load import ChatModel


def harness_results(
    chat: ChatModel, tasks: Sequence[str], *, batch_size: int = 16, limit: int | None = None
) -> Mapping[str, Mapping[str, Any]]:
    """Results of named lm-eval tasks (`arc_easy`, `hellaswag`) on a model as it is now, under its chat template.

    Inside `changed` (`tamperdose.models.changes`) it measures the tampered model. The tasks' data come from the hub, so
    it takes a network or a filled cache; nothing of it enters a run's files.

    Args:
        chat: The model.
        tasks: Names as `lm-eval ls tasks` lists them.
        batch_size: Requests that go through the model together.
        limit: Only the first so many items of each task, for a quick look.

    Returns:
        By task, then by metric: `acc,none`, `acc_stderr,none`, ...

    Raises:
        ExtraError: lm-eval is not installed.

    Source: Gao et al., lm-evaluation-harness, doi:10.5281/zenodo.5371628; the interface is that of version 0.4.8 on.
    """
    require("a task of lm-eval", "lm_eval", extra="lmeval")
    # By name: the package is optional, and none of its types are needed.
    models = importlib.import_module("lm_eval.models.huggingface")
    model = models.HFLM(pretrained=chat.model, tokenizer=chat.tokenizer, batch_size=batch_size)
    found = importlib.import_module("lm_eval").simple_evaluate(
        model=model, tasks=list(tasks), limit=limit, apply_chat_template=True
    )
    return found["results"]
