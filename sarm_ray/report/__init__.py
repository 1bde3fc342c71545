"""Figures and advice for people: read what the other rooms wrote; no torch, no ray."""
