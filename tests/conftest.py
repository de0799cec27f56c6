"""How all tests draw examples: whatever else the machine does, a test says the same each time.

No example has a time limit, and none is kept between runs. Every run draws the same examples, so
that a change is judged by what it changes; `pytest --hypothesis-profile=explore` draws others.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile(
    "steady",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
    derandomize=True,
)
settings.register_profile("explore", settings.get_profile("steady"), derandomize=False)
settings.load_profile("steady")
