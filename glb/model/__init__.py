"""Plain data and decisions: they can be read, and tested, without a loop.

Each module owns one noun: `address`, `accept_errors`, `clone`, `limits`, `policy`, `states`,
`stats`. They import the standard library alone, and open nothing.
"""
