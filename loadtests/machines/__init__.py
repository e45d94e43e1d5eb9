"""Hosts behind a load balancer, each in a network namespace of its own."""
