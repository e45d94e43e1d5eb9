"""What load tests have in common. Each module owns one noun; `experiment` puts them together.

An experiment says which contenders there are, what is asked of them, and what is promised.
`loadtests.bench.servers` has the programs that the processes run.
"""
