"""The edge at which a promoted release acts: the server, and the logs that it writes for the next night."""
