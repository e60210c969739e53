"""The status page: HTML, CSS and JavaScript, put together by `orchestrator.serve.routes.pages`."""
