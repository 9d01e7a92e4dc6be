"""The one home of SQL: migrations, queries, the embedded server."""
