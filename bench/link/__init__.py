"""The cost of a round on the link, compared with bare gRPC and stock Flower."""
