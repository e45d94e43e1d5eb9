"""What load tests have in common: processes, a client, figures, promises and reports.

Each module owns one noun::

    process     a contender, and the process that it serves in
    client      the load: `client.c`, compiled and run
    rounds      a run: contenders that have their turns, interleaved
    figures     what was measured, and its ratios; plain data
    promise     what a figure may be, and whether it was kept
    sheet       the forms of a report: as text, in Markdown and JSON
    plot        bars
    progress    what people see meanwhile
    command     options, a run from start to end, the exit status

An experiment says which contenders there are, what is asked of them, and what is promised.
`loadtests.bench` has the programs that the processes run.
"""
