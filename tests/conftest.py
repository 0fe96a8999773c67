"""What holds for all tests: no verdict depends on how busy the machine is."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "hybridkit", parent=settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("hybridkit")
