"""What the fleet service remembers, in SQLite or PostgreSQL.

`tables` the schema (`migrations` how it came to be), `database` connections and upgrades, and one module per noun:
`devices`, `desired`, `rollouts`, `access` (tokens, audit log), `webhooks`. Functions take an open SQLAlchemy
connection, so a caller decides what belongs into one transaction.
"""
