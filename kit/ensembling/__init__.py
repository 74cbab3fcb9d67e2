"""Blend and calibrate predictions, with weights fitted to out-of-fold predictions."""
