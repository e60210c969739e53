"""How many replicas a version wants; Serve's controller asks, so that nothing heavy is imported."""

from __future__ import annotations

import math
from typing import Any

BATCHES = "batches"
"""What a replica calls the number of batches that it has under way."""


def by_batches(context: Any) -> tuple[int, dict[str, Any]]:
    """Replicas so that each has as many batches as the configuration wants.

    Args:
        context: Serve's `AutoscalingContext`; limits and delays are Serve's to apply.
    """
    under_way = sum(context.aggregated_metrics.get(BATCHES, {}).values())
    return max(1, math.ceil(under_way / context.config.get_target_ongoing_requests())), {}
