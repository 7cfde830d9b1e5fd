"""The checkpoint store: one DuckDB file, one writing thread, one transaction per epoch."""
