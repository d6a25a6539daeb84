"""How the schema came to be, one module per change (Alembic)."""
