"""What a process opens and closes, in order, and how it tells whether it is alive and ready.

`ServiceResources` opens the dependencies of a process, and drains and closes them within one budget. `Health` answers
for them; `HealthServer` serves its answers to an orchestrator.
"""

from hybridkit.lifespan._health import DependencyState, Health, HealthServer, Probe, Readiness, RenderMetrics
from hybridkit.lifespan._resources import Dependency, ServiceResources, StopAction

__all__ = [
    "Dependency",
    "DependencyState",
    "Health",
    "HealthServer",
    "Probe",
    "Readiness",
    "RenderMetrics",
    "ServiceResources",
    "StopAction",
]
