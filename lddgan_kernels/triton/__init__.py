"""Triton kernels and their launchers; same stems as `ops`. Nothing here is imported before use."""
