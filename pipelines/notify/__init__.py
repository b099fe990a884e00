"""Telling people: what is worth a page or a ticket, when it is told, and to whom."""
