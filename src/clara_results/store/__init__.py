"""The only SQL: tables, migrations, and one function a statement.

The same statements are to run on SQLite and PostgreSQL. A function takes a SQLAlchemy Connection inside a
transaction that ``database`` opened; it decides nothing.
"""
