"""The command ``clara-results``: one file a command; wires everything together."""
