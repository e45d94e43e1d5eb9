"""The version, where the build can read it without importing gevent."""

VERSION = "0.1.0"
