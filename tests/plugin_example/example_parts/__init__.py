"""A user's package that adds parts to orch: `plugins: [example_parts.orch]`."""
