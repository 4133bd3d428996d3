"""How fast volumes can be looked at."""
