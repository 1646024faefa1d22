"""The Open Inference Protocol v2 over gRPC, with Triton's extensions. Needs the extra `grpc`."""
