"""These are programs, not tests: pytest, which looks for doctests, needn't import them."""

collect_ignore_glob = ["*.py"]
