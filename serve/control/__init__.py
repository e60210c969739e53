"""What is served: the table of versions, who changes it, and how gateways follow it."""
