"""The Results Service's HTTP API as a Python client; operator, agents and CLI speak through it."""

from clara_results.client.client import ResultsClient

__all__ = ["ResultsClient"]
