"""Fault drills: nights of a scratch workspace that are disturbed on purpose, and what is left of them."""
