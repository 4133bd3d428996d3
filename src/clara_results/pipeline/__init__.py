"""Pipeline definitions: read, checked, run on one machine, and translated for a cluster."""
