"""What one worker of a cluster takes. How a study is scheduled changes no number and is no part of its digest."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from tamperdose.study.parts import Frozen, PositiveFloat, PositiveInt, Share, no_boolean


class Resources(Frozen):
    """What a worker declares to the scheduler, and how often work that was lost is tried again.

    A worker holds one model and does one thing at a time, so this is what the largest model of the study takes.
    """

    cpus: PositiveInt = 1
    """CPU cores, and as many threads. Raise it for large models on CPUs; leave it for small ones."""
    gpus: Share | Literal["auto"] = "auto"
    """Share of one GPU; `auto` is all of it where the models run on one, or what `gpu_memory_gb` makes of it."""
    gpu_memory_gb: PositiveFloat | None = None
    """Memory of one GPU of the cluster: with it a worker takes the share that the plan's estimate is of that."""
    memory_gb: PositiveFloat | Literal["auto"] = "auto"
    """Memory of the machine; `auto` is the plan's estimate where the models run on CPUs, and nothing elsewhere."""
    retries: Annotated[int, BeforeValidator(no_boolean), Field(ge=0, le=20)] = 2
    """How often work is tried again after its worker, its machine or its memory was lost; on another machine first."""
