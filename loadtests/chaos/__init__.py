"""A server in trouble: what `loadtests.soak` and `loadtests.strikes` share.

Servers are a process with a `life`; its troubles are the experiment's. Clients (`clients`) with
requests of their own numbers are in the command's process (`run`). What both count, and what must
hold of servers (`checks`), of handlers (`work`) and of replies, is in one `tally`.
"""
