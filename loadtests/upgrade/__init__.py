"""Is a connection lost while a new process takes over? `python -m loadtests.upgrade` tells.

``glb serve`` is replaced by SIGUSR2, over and over, under load; then new processes fail in every
way there is, once each. Clients, reports and promises are those of `loadtests.lossless`. Each
module owns one noun::

    __main__    the command
    upgrades    upgrades under load, and upgrades that fail
    lineage     the line of processes, each of which replaces the last
    program     what they serve
"""
