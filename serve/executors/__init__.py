"""What runs a served network: chosen by measurement, and the same numbers within a tolerance."""
