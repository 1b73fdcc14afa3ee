"""Detectors: pure functions from statistics to neurons, one method per file."""
