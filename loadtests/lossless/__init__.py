"""Is anything lost? Servers are rolled, resized, replaced, stopped, starved, under load."""
