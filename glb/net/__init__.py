"""The network: the only code that opens sockets, duplicates them and sets their options.

Each module owns one noun::

    sockets       listening sockets, and what the kernel knows of them
    unix_files    the files of Unix sockets, and stale ones in the way
    connection    what an accepted connection costs
    spare_fd      a descriptor for when there is none
    fd_leaks      how many descriptors are open, and why

It imports `glb.model` alone.
"""
