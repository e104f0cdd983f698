"""The api's own SQL: where the two databases lie, their column types, positions and migrations."""
