"""Search: space, samplers, schedulers, planner and leaderboard, without Ray."""
