"""The HTTP contract: routes, and how errors become RFC 9457 problems."""
