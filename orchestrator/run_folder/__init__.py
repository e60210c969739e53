"""What a run leaves on disk: paths, lease, records, checkpoints, predictions, exported models."""
