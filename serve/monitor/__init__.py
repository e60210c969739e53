"""What is known of a server while it runs: metrics, drift, calibration, and a log of requests."""
