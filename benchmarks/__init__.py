"""Nexmark and the side-by-side runs."""
