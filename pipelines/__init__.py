"""AttendanSee Pipelines: class photos in, attendance out, as a Dagster code location."""
