"""Locustfiles: each asks one question, and starts a server of its own. See docs/loadtests.md."""
