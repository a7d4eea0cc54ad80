"""Property tests draw the same examples every time and are not timed: a busy machine must not fail them."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "stats", deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("stats")
