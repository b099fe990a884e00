"""Failures told to Sentry, if that is configured: where and what kind, and nothing of the data."""
