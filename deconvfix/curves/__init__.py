"""Conversions made several times, to see what an option or more data would bring."""
