"""Which version answers a request, and when: rules, queues, batches."""
