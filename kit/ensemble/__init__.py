"""Blend and calibrate predictions: simple pools, weights fitted on out-of-fold predictions, saved blends."""
