"""The Ray Serve application: gateways that speak HTTP, replicas of each version, the operator.

Each version is a Serve application of its own without a route, so that versions come and go while
gateways answer. Gateways gather requests into batches and send them to replicas by sockets of
their own; the operator starts and ends versions, and publishes what is served and where. Serve
starts, watches, scales and replaces all of these processes.
"""

from orchestrator.serve.app.address import Address
from orchestrator.serve.app.application import (
    build_application,
    deployable,
    look,
    start,
    stop,
)

__all__ = ["Address", "build_application", "deployable", "look", "start", "stop"]
