"""Clara Results carries what an imaging pipeline produced to where people use it, and proves that it arrived."""

__version__ = "0.1.0"
