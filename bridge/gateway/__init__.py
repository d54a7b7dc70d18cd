"""The gateway: accepts requests, resolves them to jobs, indexes the jobs, and sends webhooks."""
