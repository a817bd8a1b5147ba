"""What a round costs on the link, beside bare gRPC and stock Flower."""
