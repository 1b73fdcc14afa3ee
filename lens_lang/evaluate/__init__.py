"""Measuring what an intervention does, beside matched random controls and intervals."""
