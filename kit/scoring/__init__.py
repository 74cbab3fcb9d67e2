"""Everything that needs only numbers: validating, scoring, comparing and blending predictions, never with torch."""
