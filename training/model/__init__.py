"""The networks that are trained, and what they are made of."""
