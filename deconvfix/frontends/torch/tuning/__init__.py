"""Distillation: converted modules trained to follow the original."""
