"""The exporter of spans over OTLP/HTTP: the one module that needs the extra `otel`."""

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from hybridkit.settings import ServiceSettings


def otlp_provider(settings: ServiceSettings, endpoint: str) -> TracerProvider:
    """Make a provider that sends spans in batches, from a thread of its own.

    Args:
        settings: give the resource its names.
        endpoint: the collector's base URL, as in `OTEL_EXPORTER_OTLP_ENDPOINT`.
    """
    resource = {"service.name": settings.service_name, "deployment.environment.name": settings.environment}
    # Not at exit: whoever configured it closes it, within the time that there is.
    provider = TracerProvider(resource=Resource.create(resource), shutdown_on_exit=False)
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint.rstrip("/") + "/v1/traces"))
    )
    return provider
