"""Where data comes from and goes: one module per system."""
