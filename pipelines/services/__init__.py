"""The use cases, each once; assets, jobs and CLI call these."""
