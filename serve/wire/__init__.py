"""Batches between gateways and replicas, over a socket of their own.

Ray's call between two actors takes milliseconds, which is longer than a small network's forward
pass. Ray Serve therefore starts, watches and ends the processes, and batches go past it.
"""
