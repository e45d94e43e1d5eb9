"""What does glb's monkey patch cost a program that has no use for it? `python -m loadtests.monkey`.

Programs of the standard library, one listener each, run under gevent's patch and under glb's:
these are to cost the same. Then with four copies on one address, by SO_REUSEPORT: there glb's
patch is to make the order exact. The server programs are those of `loadtests.bench`; the client and
the forms of the report those of `loadtests.frame`. Each module owns one noun::

    __main__    the command
    report      tables
    promises    what glb promises, and whether it was kept
    measure     the run: rounds, and turns in each
    plan        its numbers
    contenders  a program under a patch
    figures     what is measured of a contender
"""
