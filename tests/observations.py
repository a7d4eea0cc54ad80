"""Arms whose truth is known, as observations of their cells."""

from collections.abc import Sequence

import numpy as np

from tamperdose.records import Label
from tamperdose.run.observed import Observation

DOSES = (0, 1, 2, 4, 8, 16, 32)
N = 80


def arm(
    ed50: float,
    *,
    model: str = "m",
    params_b: float | None = 0.1,
    seed: int = 1,
    learning_rate: float = 1e-3,
    doses: Sequence[int] = DOSES,
) -> list[Observation]:
    """An arm whose prompts each break at a dose of their own, around ED50."""
    rng = np.random.default_rng([seed, int(ed50 * 10)])
    breaks = ed50 * np.exp(0.2 * rng.standard_normal(N))
    base: dict[str, tuple[Label, ...]] = {}
    seen: list[Observation] = []
    for steps in doses:
        labels = tuple(Label.REFUSAL if steps < at else Label.COMPLIANCE for at in breaks)
        base = base or {"truth": labels}
        setting = {
            **{"study": "s", "arm": f"{model}-lr{learning_rate}-s{seed}", "model": model, "params_b": params_b},
            **{"defence": "none", "attack": "lora", "lora_rank": 8, "n_examples": 64, "learning_rate": learning_rate},
            **{"batch_size": 8, "poison_ratio": 1.0, "seed": seed, "data_order": None},
            **{"dose_steps": steps, "dose_examples": 8 * steps, "dose_tokens": 100 * steps},
            "dose_flops": None if params_b is None else int(6e2 * params_b * 1e9) * steps,
        }
        seen.append(Observation(setting, tuple(f"t{k}" for k in range(N)), {"truth": labels}, base))
    return seen
