"""What operators see and do: the operator service, status, Prometheus."""
