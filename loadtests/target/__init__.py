"""The server that the scenarios for locust load: a process of its own, and who starts it."""
