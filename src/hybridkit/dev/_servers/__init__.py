"""PostgreSQL, MongoDB, Redis and RabbitMQ on this machine."""
