"""What a benchmark says when it can't go on."""


class BenchmarkFailed(Exception):
    """A server or a client did not do what was to be measured."""
