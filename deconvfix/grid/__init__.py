"""Checkerboard artifacts as numbers."""
