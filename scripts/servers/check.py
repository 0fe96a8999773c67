"""Print which RabbitMQ the tests will use, and fail if it is not the given one.

    python scripts/servers/check.py "RabbitMQ 3.10"

Of several installations the newest is taken, so a newer RabbitMQ of the machine would hide the one built for the tests.
"""

import os
import sys

from hybridkit.dev._servers._choice import choose
from hybridkit.dev._servers._local import discovery

wanted = sys.argv[1]
source = choose("rabbitmq", discovery(os.environ), private=True).source
if f"{wanted}." not in source:
    sys.exit(f"servers: the tests want {wanted}, and would run on another server ({source})")
print(f"servers: {source}")
