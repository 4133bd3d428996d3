"""The queue's speed beside that of RabbitMQ and procrastinate, in one run: ``python -m benchmarks.queue``."""
