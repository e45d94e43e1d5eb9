"""The network: the only code that opens sockets, duplicates them and sets their options.

Each module owns one noun::

    sockets       listening sockets, and what the kernel knows of them
    unix_files    the files of Unix sockets, and stale ones in the way
    inherited     sockets that the process was started with, and words to systemd
    passed        sockets that a process gives to the one that replaces it
    connection    what an accepted connection costs
    spare_fd      a descriptor for the moment when there is no other
    fd_leaks      how many descriptors are open, and what they are

It imports `glb.model` alone.
"""
