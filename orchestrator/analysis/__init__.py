"""Looking into models: what they consist of and what they cost."""
