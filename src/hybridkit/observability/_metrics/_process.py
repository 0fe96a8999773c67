"""The process itself."""

from hybridkit.observability._metrics._declare import counter


class ProcessMetrics:
    """The process itself."""

    log_lines_dropped = counter("hybridkit_log_lines_dropped_total", "Log lines that could not be written.")
