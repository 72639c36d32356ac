"""Two amounts of fuzzing: a glance by default, and `make fuzz`, a hundred thousand inputs and more."""

from hypothesis import HealthCheck, settings

settings.register_profile("fuzz", max_examples=15_000, deadline=None, suppress_health_check=list(HealthCheck))
