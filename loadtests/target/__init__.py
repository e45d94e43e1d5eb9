"""The server that the scenarios for locust load: a process of its own, and its start."""
