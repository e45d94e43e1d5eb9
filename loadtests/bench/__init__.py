"""What does a connection cost here, and elsewhere? The programs that serve are in `servers`."""
