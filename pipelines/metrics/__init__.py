"""The ten metrics of operation: measured each night, kept, exported, drawn."""
