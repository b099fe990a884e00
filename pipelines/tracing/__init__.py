"""Traces for an OpenTelemetry collector: of nights, and of decisions by their id."""
