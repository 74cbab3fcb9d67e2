"""Compare every model, baseline and blend on the very same rows, as tables and as a page."""
