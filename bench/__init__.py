"""Measurements of spotledger, side by side with peers in one run."""
